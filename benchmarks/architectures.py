"""Every architecture, trained by us and by SAELens' own trainer: who reconstructs better?

    python -m benchmarks.architectures --json [--quick] [--log FILE] [--data planted] [--tool NAME]
                                       [--lr 1e-3] [--steps N]

From the same start (`b_dec` at the mean), on the same batches in the same order, at the same
learning rate and for as many steps, all else as each tool does by default; `sae_lens_scheduled` is
SAELens with our warm-ups and a rate that falls as long as ours, though in a line. Data are scaled
beforehand to a mean squared norm of D. Measured on held-out rows, with the SAE as each tool would
save it.

Errors are compared at equal L0: k decides it, or two strengths lie on both sides of it and what is
measured is interpolated in log L0 (a seed for which they do not is left out, and `seeds` says so).
A batch's L0 decides for BatchTopK and Matryoshka; what their thresholds make of single rows stands
beside it. With `--log` each finished training is a line of a file, and a second call goes on.

Shapes: N rows, B batch, D width, F features.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import machine
from saelearn import corpus, metrics
from saelearn.activations import collect
from saelearn.sae import (
    SAE,
    BatchTopK,
    Gated,
    GatedL1,
    JumpL0,
    JumpReLU,
    Matryoshka,
    Squared,
    TopK,
    load,
)
from saelearn.tiny import shipped
from saelearn.toy import PlantedFeatures
from saelearn.train import Settings, mean_norm_scale, shuffled, train, usual_lr
from saelearn.train.settings import objective_of

BATCH, SEEDS = 512, 3


@dataclass(frozen=True)
class Data:
    """Rows to train on and rows to measure on, scaled; the truth, if it is known.

    k: the L0 at which all are compared.
    lr: of all tools; None is `usual_lr`, our default.
    """

    name: str
    x_ND: Tensor
    held_ND: Tensor
    d_sae: int
    k: int
    steps: int
    true_GD: Tensor | None = None
    lr: float | None = None


def planted(quick: bool) -> Data:
    """64 known directions in 32 dimensions, three of them at a time."""
    made, n = PlantedFeatures.make(), 20_000 if quick else 400_000
    x_ND, _ = made.sample(n, generator=torch.Generator().manual_seed(10))
    held_ND, _ = made.sample(20_000, generator=torch.Generator().manual_seed(11))
    scale = mean_norm_scale(x_ND)
    steps = 20 if quick else 1_500
    return Data("planted", x_ND * scale, held_ND * scale, 128, 4, steps, made.directions_GD)


def tiny(quick: bool) -> Data:
    """The default site of the course's language model."""
    lm = shipped.load_lm()

    def rows(n: int, **seed: int) -> Tensor:
        tokens_NT = corpus.encode(corpus.documents(n, **seed), lm.tokenizer.get_vocab())
        return collect(lm, tokens_NT, shipped.SITE).x_ND.float()

    x_ND = rows(40 if quick else 4_000)
    held_ND = rows(20 if quick else 400, seed=corpus.HELD_OUT)
    scale, steps = mean_norm_scale(x_ND), 20 if quick else 1_000
    F = shipped.D_SAE // 2
    return Data("tiny", x_ND * scale, held_ND * scale, F, shipped.K_DEFAULT, steps)


DATA = {"planted": planted, "tiny": tiny}


@dataclass(frozen=True)
class Kind:
    """An architecture with a strength of its own: a coefficient, or an L0.

    ours: strength, F -> arguments of `train`.
    theirs: strength, F -> settings of SAELens' training SAE of the name `peer`.
    strengths: for each data set; None is k.
    warmup: what SAELens calls the steps in which the penalty rises.
    of_batch: L0 is a mean over the batch.
    at: the L0 at which figures are compared, for each data set where it is not k: what lies within
        reach in so few steps.
    """

    ours: Callable[[float, int], dict]
    peer: str
    theirs: Callable[[float, int], dict]
    strengths: dict[str, Sequence[float]] | None = None
    warmup: str | None = None
    of_batch: bool = False
    at: dict[str, float] = field(default_factory=dict)


def widths(F: int) -> tuple[int, int]:
    """Of the narrower SAEs within a Matryoshka SAE."""
    return F // 16, F // 4


KINDS = {
    "l1": Kind(
        lambda c, F: {"l1_coefficient": c},
        "StandardTrainingSAE", lambda c, F: {"l1_coefficient": c},
        {"planted": (2.0, 3.0), "tiny": (0.7, 1.5)}, "l1_warm_up_steps",
        at={"planted": 4.3, "tiny": 6},
    ),
    "topk": Kind(
        lambda k, F: {"kind": TopK, "k": k}, "TopKTrainingSAE", lambda k, F: {"k": k},
    ),
    "batchtopk": Kind(
        lambda k, F: {"kind": BatchTopK, "k": k}, "BatchTopKTrainingSAE", lambda k, F: {"k": k},
        of_batch=True,
    ),
    "jumprelu_target": Kind(
        lambda l0, F: {"kind": JumpReLU, "objective": JumpL0(target_l0=l0)},
        "JumpReLUTrainingSAE",
        lambda l0, F: {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": l0},
        {"planted": (3.2, 4.8), "tiny": (10.0, 15.0, 30.0)}, "l0_warm_up_steps",
        at={"tiny": 24},
    ),
    "jumprelu_step": Kind(
        lambda c, F: {"kind": JumpReLU, "objective": JumpL0(c)},
        "JumpReLUTrainingSAE", lambda c, F: {"l0_coefficient": c},
        {"planted": (0.1, 0.25, 0.5), "tiny": (0.25, 1.0, 4.0)}, "l0_warm_up_steps",
        at={"tiny": 6},
    ),
    "gated": Kind(
        lambda c, F: {"kind": Gated, "objective": GatedL1(c)},
        "GatedTrainingSAE", lambda c, F: {"l1_coefficient": c},
        {"planted": (1.5, 2.0, 2.5), "tiny": (1.5, 3.0)}, "l1_warm_up_steps",
        at={"tiny": 4},
    ),
    "matryoshka": Kind(
        lambda k, F: {"kind": BatchTopK, "k": k, "objective": Matryoshka(widths=widths(F))},
        "MatryoshkaBatchTopKTrainingSAE",
        lambda k, F: {"k": k, "matryoshka_widths": [*widths(F), F]},
        of_batch=True,
    ),
}  # fmt: skip


def strengths(name: str, kind: str) -> Sequence[float | None]:
    """The strengths that a kind is trained with on a data set; None is k."""
    return (KINDS[kind].strengths or {name: (None,)})[name]


def saelearn(kind: Kind, data: Data, strength: float, seed: int, **more) -> SAE:
    """Ours, by `train` with its defaults."""
    given = kind.ours(strength, data.d_sae) | more
    return train(
        data.x_ND, data.d_sae, **given, steps=data.steps, batch_size=BATCH, lr=data.lr, seed=seed,
        normalize=False, progress=False,
    ).sae.exported()  # fmt: skip


def reviving(kind: Kind, data: Data, strength: float, seed: int) -> SAE:
    """Ours with the auxiliary term for dead features, as SAELens weighs it."""
    objective = kind.ours(strength, data.d_sae).get("objective")
    aux = {"aux_k": data.x_ND.shape[1] // 2, "aux_coefficient": 1.0, "dead_after": 100}
    nested = {"widths": objective.widths} if objective else {}
    return saelearn(kind, data, strength, seed, objective=(
        Matryoshka(**nested, **aux) if nested else Squared(**aux)))  # fmt: skip


def sae_lens(kind: Kind, data: Data, strength: float, seed: int, *, scheduled: bool = False) -> SAE:
    """SAELens' trainer from our start, saved there and loaded here."""
    import sae_lens as peer
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    given = kind.ours(strength, data.d_sae)
    named = {name: given.get(name) for name in ("objective", "l1_coefficient", "k")}
    mine = Settings(
        d_sae=data.d_sae, steps=data.steps, seed=seed, kind=given.get("kind", SAE), k=named["k"],
        objective=objective_of(**named, decoder_norm=None),
    )  # fmt: skip
    settings = kind.theirs(strength, data.d_sae)
    if scheduled and kind.warmup:
        settings[kind.warmup] = round(mine.l1_warmup * data.steps)
    config = getattr(peer, f"{kind.peer}Config")
    sae = getattr(peer, kind.peer)(config(d_in=data.x_ND.shape[1], d_sae=data.d_sae, **settings))
    start = shuffled(data.x_ND, BATCH, seed=seed).sample_ND
    state = {name: t for name, t in mine.new_sae(start).state_dict().items()
             if name in dict(sae.named_parameters())}  # fmt: skip
    sae.load_state_dict(state, strict=False)
    lr, schedule = data.lr or usual_lr(BATCH, data.x_ND.shape[1]), {}
    if scheduled:
        schedule["lr_warm_up_steps"] = round(mine.lr_warmup * data.steps)
        schedule["lr_decay_steps"] = round(mine.lr_decay * data.steps)
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=data.steps * BATCH, train_batch_size_samples=BATCH, lr=lr,
            lr_end=lr, **schedule,
        ),
        sae=sae, data_provider=shuffled(data.x_ND, BATCH, seed=seed),
    )  # fmt: skip
    trainer.fit()
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return load(folder)


def sae_lens_scheduled(kind: Kind, data: Data, strength: float, seed: int) -> SAE:
    return sae_lens(kind, data, strength, seed, scheduled=True)


TOOLS = {each.__name__: each for each in (saelearn, sae_lens, sae_lens_scheduled)}
EXTRA = {"saelearn_reviving": reviving}


@torch.no_grad()
def measured(sae: SAE, data: Data, k: int | None) -> dict[str, float]:
    """What held-out rows say; with `k`, the k B largest of each batch are active.

    error: squared, summed over D, as a share of the mean squared norm, D.
    """
    x_ND, found = data.held_ND, []
    for x_BD in x_ND.split(BATCH):
        f_BF = sae.encode(x_BD)
        if k is not None:
            z_BF = torch.relu(sae.pre(x_BD))
            least = z_BF.flatten().topk(k * len(x_BD)).values[-1]
            f_BF = torch.where(z_BF >= least, z_BF, 0.0)
        found.append((sae.reconstruct(x_BD, f_BF), (f_BF > 0).sum(0)))
    x_hat_ND, count_F = torch.cat([x for x, _ in found]), sum(count for _, count in found)
    figures = {
        "l0": float(count_F.sum()) / len(x_ND),
        "explained_variance": metrics.explained_variance(x_ND, x_hat_ND),
        "error": float((x_ND - x_hat_ND).square().sum(1).mean()) / x_ND.shape[1],
        "dead": float((count_F == 0).float().mean()),
    }
    if data.true_GD is not None:
        figures["recovered"] = metrics.recovery(sae.W_dec, data.true_GD).n_recovered
    return figures


def trainings(names: Iterable[str], kinds: Iterable[str], tools: Iterable[str], seeds: int):
    """All that has to be trained, seed by seed: data, kind, tool, strength, seed."""
    for seed in range(seeds):
        for name in names:
            for kind in kinds:
                for strength in strengths(name, kind):
                    for tool in tools:
                        if tool not in EXTRA or kind in ("topk", "batchtopk", "matryoshka"):
                            yield name, kind, tool, strength, seed


def one(data: Data, kind: str, tool: str, strength: float | None, seed: int) -> dict:
    """Train one, and measure it."""
    how, started = KINDS[kind], time.perf_counter()
    way = (TOOLS | EXTRA)[tool]
    with contextlib.redirect_stdout(sys.stderr):
        sae = way(how, data, data.k if strength is None else strength, seed)
    seconds = round(time.perf_counter() - started, 1)
    figures = measured(sae, data, data.k if how.of_batch else None)
    single = {"single_rows": measured(sae, data, None)} if how.of_batch else {}
    return {"data": data.name, "kind": kind, "tool": tool, "strength": strength, "seed": seed,
            "steps": data.steps, "lr": data.lr, "seconds": seconds} | figures | single  # fmt: skip


def is_of(data: Data | None, run: dict) -> bool:
    """Whether a line of a log is a training on these data, with as many steps at this rate."""
    return data is not None and (run["steps"], run["lr"]) == (data.steps, data.lr)


FIGURES = ("explained_variance", "error", "dead", "recovered")


def at_equal_l0(runs: Sequence[dict], k: float) -> dict[str, float] | None:
    """Figures of one seed at L0 = k: measured there, or on the line in log L0 through two runs.

    None if k does not lie between two.
    """
    names = [name for name in FIGURES if name in runs[0]]
    if len(runs) == 1:
        return {name: runs[0][name] for name in names}
    for low, high in itertools.pairwise(sorted(runs, key=lambda run: run["l0"])):
        if 0 < low["l0"] <= k <= high["l0"]:
            share = math.log(k / low["l0"]) / math.log(high["l0"] / low["l0"])
            return {name: low[name] + share * (high[name] - low[name]) for name in names}
    return None


def summary(runs: Sequence[dict], k_of: dict[str, int]) -> list[dict]:
    """One row for each data set, kind and tool: means and deviations over the seeds."""
    grouped: dict[tuple, dict[int, list[dict]]] = {}
    for run in (r for r in runs if r["strength"] in strengths(r["data"], r["kind"])):
        by_seed = grouped.setdefault((run["data"], run["kind"], run["tool"]), {})
        by_seed.setdefault(run["seed"], []).append(run)
    rows = []
    for (name, kind, tool), by_seed in grouped.items():
        whole = [each for each in by_seed.values() if len(each) == len(strengths(name, kind))]
        l0 = KINDS[kind].at.get(name, k_of[name])
        found = [f for f in (at_equal_l0(each, l0) for each in whole) if f]
        row = {"data": name, "kind": kind, "tool": tool, "at_l0": l0, "seeds": len(found)}
        row |= {figure: spread([f[figure] for f in found]) for figure in (found or [{}])[0]}
        mine = [run for each in whole for run in each]
        row["l0"] = {str(s): spread([run["l0"] for run in mine if run["strength"] == s])
                     for s in strengths(name, kind)}  # fmt: skip
        if KINDS[kind].of_batch:
            for figure in ("l0", "explained_variance"):
                values = [run["single_rows"][figure] for run in mine]
                row[f"single_rows_{figure}"] = spread(values)
        rows.append(row | {"seconds": spread([run["seconds"] for run in mine])})
    return rows


def spread(values: Sequence[float]) -> tuple[float, float] | None:
    """Mean and standard deviation."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return round(statistics.mean(values), 5), round(deviation, 5)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.architectures", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", choices=DATA, action="append", help="default: both")
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all")
    parser.add_argument("--tool", choices=TOOLS | EXTRA, action="append", help="default: installed")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, help="of each training; default: the data set's own")
    parser.add_argument("--lr", type=float, help="of all tools; default: our default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="20 steps, one seed: does it run?")
    parser.add_argument("--log", type=Path, help="a line for each training; goes on from there")
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    installed = [t for t in TOOLS if t == "saelearn" or machine.version("sae-lens")]
    names = arguments.data or list(DATA)
    made = {name: DATA[name](arguments.quick) for name in names}
    changed = {n: v for n in ("steps", "lr") if (v := getattr(arguments, n))}
    made = {name: replace(data, **changed) for name, data in made.items()}
    runs, log = [], arguments.log
    if log and log.exists():
        lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
        runs = [line for line in lines if is_of(made.get(line["data"]), line)]
    wanted = trainings(names, arguments.kind or KINDS, arguments.tool or installed,
                       1 if arguments.quick else arguments.seeds)  # fmt: skip
    key = ("data", "kind", "tool", "strength", "seed")
    done = {tuple(run[name] for name in key) for run in runs}
    for name, *which in wanted:
        if (name, *which) in done:
            continue
        runs.append(one(made[name], *which))
        if not arguments.json:
            print(json.dumps(runs[-1]), file=sys.stderr)
        if log:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(runs[-1]) + "\n")
    k_of = {name: data.k for name, data in made.items()}
    rows = summary(runs, k_of)
    print(json.dumps({"machine": machine.describe(), "results": rows}))


if __name__ == "__main__":
    main()
