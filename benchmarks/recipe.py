"""What a training learns from each token: our recipe, its knobs one by one, and SAELens'.

    python -m benchmarks.recipe --json --data tiny --data FILE.safetensors --records runs.jsonl

Three kinds of data: features that were planted (the truth is known), the default site of the tiny
language model (the concepts are known), and activations of any model from a file (`x_ND`, one row a
token). Two widths, a few lambdas, three seeds. A run is judged on rows that it has not seen, by
loss, L0, explained variance, share of dead features, and truth: the share of planted directions
that some decoder row has found, or the mean F1 of the best feature for each concept.

Three questions, each with as many tokens for all:

- `grid`: how good is the best learning rate of a grid, ours and SAELens', and how near to it is
  what we do if nobody chooses a rate?
- `knobs`: what does each knob do, the others left as they are?
- `reach`: after how many tokens are we where SAELens' best of the grid is after all of them, with
  no rate chosen; and where are we after two thirds of them, with the best rate?

Each finished run is a line in `--records`, and a study that was stopped goes on from there; a line
is used again only for the same settings and, of ours, the same defaults. SAELens runs where it is
installed. With `--part 1/8` to `--part 8/8`, eight processes make an eighth of the runs each, into
records of their own, which one more call without it puts together (`--records` can be given several
times; the first is written).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import inspect
import itertools
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.world.detectors import N_THRESHOLDS
from benchmarks.world.sample import Sample
from saelearn import artifacts, corpus, metrics, tiny
from saelearn.activations import collect
from saelearn.sae import SAE, l1_loss
from saelearn.toy import PlantedFeatures
from saelearn.train import Settings, lr_factor, mean_norm_scale, shuffled, train, usual_lr

WIDTHS = (2, 8)  # features for each dimension
LAMBDAS = {"planted": (0.5, 2.0), "tiny": (0.5, 2.0, 6.0), "file": (2.0, 6.0)}
LR_GRID = (1e-3, 2e-3, 4e-3, 8e-3)
TUTORIAL = {"lr_decay": 0.2, "l1_warmup": 0.05}  # shares of the steps, as in SAELens' tutorial
KNOBS: dict[str, Sequence] = {
    "basis": ("principal", "given"),
    "center": ("mean", "zero", "geometric_median"),
    "lr_warmup": (0.0, 0.02, 0.1),
    "lr_decay": (0.0, 0.2, 0.4, 0.7, 1.0),
    "l1_warmup": (0.0, 0.05, 0.15, 0.3, 0.5),
    "clip_norm": (0.1, 1.0, 10.0, 1e9),
    "batch_size": (256, 512, 1_024, 2_048),
    "decoder_norm": ("weighted", "unit_norm"),
    "resample_at": ((), (0.25, 0.5), (0.2, 0.4, 0.6)),
}
SHARES = (1 / 3, 1 / 2, 2 / 3, 1.0)  # of the tokens, for `reach`
BATCH = 1_024  # SAELens' here, so that its steps are as many as ours were when this began
PLANTED_D, PLANTED_ON = 64, 6  # dimensions, features on at a time
HELD_OUT_ROWS = 25_000
CHUNK = 4_096


@dataclass(frozen=True)
class Size:
    """How much is tried."""

    tokens: int = 3_000_000
    seeds: int = 3
    widths: tuple[int, ...] = WIDTHS
    lambdas: int = 3  # the first so many
    documents: int = 24_000  # of the tiny model
    held_out: int = 400


FULL = Size()
QUICK = Size(tokens=200_000, seeds=1, widths=(2,), lambdas=1, documents=1_500, held_out=60)


@dataclass(frozen=True)
class Data:
    """Activations to train on, others to judge by, and what is known of the truth."""

    name: str
    x_ND: Tensor
    held_ND: Tensor
    lambdas: tuple[float, ...]
    truth: Callable[[SAE, Tensor], float] | None = None  # of the SAE and raw held-out rows
    _there: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @functools.cached_property
    def scale(self) -> float:
        """What a training multiplies activations by."""
        return mean_norm_scale(self.x_ND[: 2**16].float())

    def on(self, device: str) -> Tensor:
        """The rows to train on, on a device."""
        if device not in self._there:
            self._there[device] = self.x_ND.to(device)
        return self._there[device]


def planted(d_sae: int, size: Size) -> Data:
    """As many directions as there are features; the truth is how many of them are found."""
    truth = PlantedFeatures.make(d_sae, PLANTED_D, PLANTED_ON / d_sae)
    generator = torch.Generator().manual_seed(0)
    x_ND, _ = truth.sample(min(size.tokens, 1_000_000), generator=generator)
    held_ND, _ = truth.sample(HELD_OUT_ROWS, generator=generator)

    def found(sae: SAE, held_ND: Tensor) -> float:
        return metrics.recovery(sae.W_dec, truth.directions_GD).n_recovered / d_sae

    return Data("planted", x_ND, held_ND, LAMBDAS["planted"], found)


def tiny_model(size: Size) -> Data:
    """The tiny model's default site; the truth is the corpus' own."""
    lm, sample = tiny.load_lm(), Sample(size.held_out)
    tokens_NT = corpus.encode(corpus.documents(size.documents), lm.tokenizer.get_vocab())
    x_ND = collect(lm, tokens_NT, tiny.SITE).x_ND

    def found(sae: SAE, held_ND: Tensor) -> float:
        f_NF = torch.cat([sae.encode(x_BD) for x_BD in held_ND.split(CHUNK)])
        best = metrics.best_f1(f_NF, sample.scored_NC, n_thresholds=N_THRESHOLDS)
        return float(best.f1_C.mean())

    return Data("tiny", x_ND, sample.acts().x_ND, LAMBDAS["tiny"], found)


def from_file(path: Path) -> Data:
    """Activations of a real model: `x_ND` in a safetensors file, rows in any order of documents.

    The last rows are held out, so neighbours in a text should be neighbours in the file.
    """
    x_ND = artifacts.read_tensors(path)["x_ND"]
    n = min(HELD_OUT_ROWS, len(x_ND) // 10)
    return Data(path.stem, x_ND[:-n], x_ND[-n:].float(), LAMBDAS["file"])


@dataclass(frozen=True)
class Run:
    """One training: whose, on what, with which settings of the user's."""

    who: str
    data: str
    d_sae: int
    l1_coefficient: float
    seed: int
    tokens: int
    settings: tuple[tuple[str, object], ...] = ()

    def key(self) -> str:
        """What a record is found by."""
        return json.dumps(asdict(self), sort_keys=True)


def ours(run: Run, data: Data, device: str) -> SAE:
    """Trained by `train`, with what the user says and our defaults for the rest."""
    settings = dict(run.settings)
    batch_size = settings.get("batch_size", _default_batch())
    arguments = {
        "l1_coefficient": run.l1_coefficient,
        "steps": max(1, run.tokens // batch_size),
        "seed": run.seed,
        "device": device,
        "progress": False,
    }
    return train(data.on(device), run.d_sae, **arguments, **settings).sae


@functools.cache
def _default_batch() -> int:
    return inspect.signature(train).parameters["batch_size"].default


def sae_lens(run: Run, data: Data, device: str) -> SAE:
    """By SAELens' standard trainer with its tutorial's schedules, on rows of the same scale."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    steps, lr = max(1, run.tokens // BATCH), dict(run.settings)["lr"]
    d_in = data.x_ND.shape[1]
    torch.manual_seed(run.seed)
    theirs = StandardTrainingSAE(
        StandardTrainingSAEConfig(
            d_in=d_in, d_sae=run.d_sae, l1_coefficient=run.l1_coefficient, device=device,
            l1_warm_up_steps=int(TUTORIAL["l1_warmup"] * steps),
        )
    )  # fmt: skip
    config = SAETrainerConfig(
        total_training_samples=steps * BATCH, train_batch_size_samples=BATCH, device=device,
        lr=lr, lr_end=lr, lr_decay_steps=int(TUTORIAL["lr_decay"] * steps),
    )  # fmt: skip
    rows = (x_BD.float() * data.scale for x_BD in shuffled(data.on(device), BATCH, seed=run.seed))
    trainer = SAETrainer(cfg=config, sae=theirs, data_provider=rows)
    for _ in range(steps):
        trainer.step(next(rows))
        trainer.n_training_steps += 1
    sae = SAE(d_in, run.d_sae)
    sae.load_state_dict({name: p.detach().cpu() for name, p in theirs.state_dict().items()})
    return sae.fold_scale_(data.scale)


TRAINERS = {"saelearn": ours, "sae_lens": sae_lens}


@torch.no_grad()
def judge(sae: SAE, data: Data, l1_coefficient: float) -> dict[str, float]:
    """Loss in training units and the rest, on rows that were held out."""
    scale, n = data.scale, len(data.held_ND)
    W_dec_FD = sae.W_dec * scale  # as in training, where activations were larger
    loss, active, fired_F, x_hat = 0.0, 0, torch.zeros(sae.d_sae, dtype=torch.bool), []
    for x_BD in data.held_ND.split(CHUNK):
        output = sae(x_BD)
        scaled = output._replace(x_hat=output.x_hat * scale)
        terms = l1_loss(x_BD * scale, scaled, W_dec_FD, l1_coefficient=l1_coefficient)
        loss += float(terms.total) * len(x_BD) / n
        active += int((output.f > 0).sum())
        fired_F |= (output.f > 0).any(0)
        x_hat.append(output.x_hat)
    found = {
        "loss": loss,
        "l0": active / n,
        "explained": metrics.explained_variance(data.held_ND, torch.cat(x_hat)),
        "dead": 1 - float(fired_F.float().mean()),
    }
    if data.truth:
        found["truth"] = data.truth(sae, data.held_ND)
    return found


class Records:
    """What each finished run gave, in memory and, if there is a file, a line of it for each."""

    def __init__(self, paths: Sequence[Path] = (), *, device: str = "cpu"):
        self._path, self._device, self._found = next(iter(paths), None), device, {}
        self._where = "" if device == "cpu" else f" {device}"
        for path in paths:
            for line in path.read_text().splitlines() if path.exists() else ():
                with contextlib.suppress(ValueError):  # the last line, if it was cut
                    record = json.loads(line)
                    self._found[record["key"]] = record["found"]

    def get(self, run: Run, data: Data) -> dict[str, float]:
        """The figures of a run, measured now unless they are known."""
        recipe = _recipe() if run.who == "saelearn" else ""
        key = f"{run.key()} {_rows_name(data)}{self._where}{recipe}"
        if key not in self._found:
            started = time.perf_counter()
            sae = TRAINERS[run.who](run, data, self._device)
            found = judge(sae, data, run.l1_coefficient)
            found["seconds"] = time.perf_counter() - started
            self._found[key] = found
            if self._path:
                with self._path.open("a") as file:
                    file.write(json.dumps({"key": key, "found": found}) + "\n")
            print(run, _rounded(found), file=sys.stderr)
        return self._found[key]


class Wishes(Records):
    """Which runs are asked for; none is made."""

    def __init__(self):
        super().__init__()
        self.runs: dict[Run, Data] = {}

    def get(self, run: Run, data: Data) -> dict[str, float]:
        """Figures that mean nothing."""
        self.runs[run] = data
        return {"loss": 0.0}


@functools.cache
def _recipe() -> str:
    """What our defaults are: figures of others are no figures of these."""
    defaults = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
    shares = [lr_factor(i, 9, warmup=0.0, decay=1.0) for i in (2, 5)]
    named = repr((defaults, usual_lr(_default_batch(), 128), shares))
    return " " + hashlib.sha256(named.encode()).hexdigest()[:8]


def _rows_name(data: Data) -> str:
    rows = data.held_ND[:64].contiguous().numpy().tobytes()
    return f"{tuple(data.x_ND.shape)} {hashlib.sha256(rows).hexdigest()[:12]}"


@dataclass(frozen=True)
class Place:
    """One data set, width and lambda; its seeds are repeats."""

    data: Data
    d_sae: int
    l1_coefficient: float
    size: Size
    records: Records

    def runs(self, who: str, tokens: int | None = None, **settings) -> list[dict[str, float]]:
        """The figures of all seeds."""
        return [
            self.records.get(
                Run(
                    who, self.data.name, self.d_sae, self.l1_coefficient, seed,
                    tokens or self.size.tokens, tuple(sorted(settings.items())),
                ),
                self.data,
            )
            for seed in range(self.size.seeds)
        ]  # fmt: skip

    def grid(self) -> dict:
        """Each side's runs over the grid, the best by loss, and ours with no rate chosen."""
        report = {"default": spread(self.runs("saelearn"))}
        for who in TRAINERS:
            if who == "sae_lens" and not machine.version("sae-lens"):
                continue
            tried = {lr: self.runs(who, lr=lr) for lr in LR_GRID}
            best = min(tried, key=lambda lr: _mean(tried[lr], "loss"))
            report[who] = {"best_lr": best} | {f"{lr:g}": spread(f) for lr, f in tried.items()}
        return report

    def knobs(self, names: Iterable[str]) -> dict:
        """Each value of each knob, everything else as it is by default."""
        return {
            name: {json.dumps(v): spread(self.runs("saelearn", **{name: v})) for v in KNOBS[name]}
            for name in names
        }

    def reach(self) -> dict:
        """Our losses after a part of the tokens with no rate chosen, and the first part that is as
        low as SAELens' best; and after two thirds of them, with the best rate of the grid."""
        losses, two_thirds = {}, round(2 / 3 * self.size.tokens)
        for n in (round(share * self.size.tokens) for share in SHARES):
            losses[n] = spread(self.runs("saelearn", tokens=n))["loss"]
        tried = {lr: self.runs("saelearn", tokens=two_thirds, lr=lr) for lr in LR_GRID}
        best = min(tried, key=lambda lr: _mean(tried[lr], "loss"))
        chosen = {"best_lr": best, "loss": spread(tried[best])["loss"]}
        report: dict = {"loss_after": losses, "two_thirds": chosen}
        if machine.version("sae-lens"):
            theirs = min(_mean(self.runs("sae_lens", lr=lr), "loss") for lr in LR_GRID)
            enough = [n for n, (loss, _) in losses.items() if loss <= theirs]
            report |= {"sae_lens": round(theirs, 4), "tokens": min(enough, default=None)}
        return report


def spread(found: list[dict[str, float]]) -> dict[str, list[float]]:
    """Mean and standard deviation over the seeds, for each figure."""
    return {
        name: [
            round(_mean(found, name), 4),
            round(statistics.stdev(f[name] for f in found), 4) if len(found) > 1 else 0.0,
        ]
        for name in found[0]
    }


def _mean(found: list[dict[str, float]], name: str) -> float:
    return statistics.fmean(each[name] for each in found)


def _rounded(found: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in found.items()}


def places(names: Sequence[str], size: Size, records: Records) -> Iterator[Place]:
    """All data sets, widths and lambdas that were asked for."""
    for name in names:
        whole = {"planted": lambda: None, "tiny": lambda: tiny_model(size)}.get(
            name, lambda name=name: from_file(Path(name))
        )()
        for width in size.widths:
            d_sae = width * (whole.x_ND.shape[1] if whole else PLANTED_D)
            data = whole or planted(d_sae, size)
            for l1_coefficient in data.lambdas[: size.lambdas]:
                yield Place(data, d_sae, l1_coefficient, size, records)


def _part(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> tuple[int, int]:
    part = re.fullmatch(r"(\d+)/(\d+)", arguments.part or "1/1")
    if not part or not 1 <= int(part[1]) <= int(part[2]):
        parser.error(f"--part: expected I/N with I from 1 to N, got {arguments.part!r}")
    if arguments.part and not arguments.records:
        parser.error("--part: name --records too, or what the runs give is lost")
    return int(part[1]), int(part[2])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipe", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--data", action="append", help="planted, tiny or a file; default: both")
    parser.add_argument("--study", choices=("grid", "knobs", "reach"), action="append")
    parser.add_argument("--knob", choices=KNOBS, action="append", help="default: all")
    parser.add_argument("--tokens", type=int, help="of each training")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--records", type=Path, action="append", help="a file that remembers finished runs"
    )
    parser.add_argument("--part", help="I/N: make this part of the runs, without tables")
    parser.add_argument("--device", default="cpu", help="where trainings run")
    parser.add_argument("--quick", action="store_true", help="few tokens, one seed, one lambda")
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    size = QUICK if arguments.quick else FULL
    changed = {n: v for n in ("tokens", "seeds") if (v := getattr(arguments, n))}
    size = Size(**asdict(size) | changed)
    studies = arguments.study or (["grid"] if arguments.quick else ["grid", "knobs", "reach"])
    names = arguments.data or ["planted", "tiny"]
    part, parts = _part(parser, arguments)
    numbers = itertools.count()  # of the runs of all places
    records = Records(arguments.records or (), device=arguments.device)
    results = []
    with contextlib.redirect_stdout(sys.stderr):
        for place in places(names, size, Wishes() if arguments.part else records):
            found = {
                "data": place.data.name, "d_in": place.data.x_ND.shape[1], "d_sae": place.d_sae,
                "l1_coefficient": place.l1_coefficient, "tokens": size.tokens, "seeds": size.seeds,
                "device": arguments.device,
            }  # fmt: skip
            for study in studies:
                arguments_of = [arguments.knob or KNOBS] if study == "knobs" else []
                found[study] = getattr(place, study)(*arguments_of)
            if arguments.part:
                for run, number in zip(place.records.runs, numbers):  # noqa: B905 (without end)
                    if number % parts == part - 1:
                        records.get(run, place.data)
                place.records.runs.clear()
                continue
            results.append(found)
            if not arguments.json:
                print(json.dumps(found), file=sys.stderr)
    if arguments.part:
        return
    print(json.dumps({"machine": machine.describe(), "size": asdict(size), "results": results}))


if __name__ == "__main__":
    main()
