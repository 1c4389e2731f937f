"""What came after L1, at one site, on the same data: architectures side by side.

All have `D_SAE` features and `STEPS` steps of `BATCH_SIZE` tokens with the defaults of `train`;
they differ in architecture, objective and strength alone. Lesson 11; `benchmarks.frontier` has
other sizes.
Shapes: N rows, D activation width, F features, C concepts.
"""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saelearn import artifacts, corpus, features, metrics
from saelearn.activations import ablation, collect, collect_all, splice
from saelearn.errors import Refusal
from saelearn.lm import LM, OURS
from saelearn.sae import (
    SAE,
    BatchTopK,
    EndToEnd,
    Gated,
    GatedL1,
    JumpL0,
    JumpReLU,
    JumpReLUTranscoder,
    Matryoshka,
    Squared,
    TopK,
    load,
)
from saelearn.tiny import controls, looks, shipped
from saelearn.train import train, usual_lr

D_SAE, STEPS, BATCH_SIZE, SEEDS = 256, 1_000, 512, (0, 1, 2)
LONGER = 6_000  # steps of those that are trained for as long as it still changes their order
DOCUMENTS, HELD_OUT, SPLICED = 8_000, 200, 80
READS, WRITES = "transformer.h.2.mlp:in", "transformer.h.2.mlp:out"  # of the transcoder
TRANSCODER_L0 = 12
TRANSCODER = {"d_sae": 512, "steps": 1_500, "batch_size": 1_024}
TRANSCODER_DOCUMENTS = 12_000
AT, NEAR = 6, 0.03  # the L0 at which architectures are compared, and how near is near enough
NUMBERS_FILE, TWINS_FILE, OTHER_SEEDS = "numbers.json", "twins.json", "other_seeds"
TWINS_DOCUMENTS, CURED = 16, 25_200  # documents; rows on which cures are fitted
AUX = {"aux_k": 64, "aux_coefficient": 1 / 8, "dead_after": 100}


def _nested(k: float, d_sae: int) -> dict[str, Any]:
    return {"kind": BatchTopK, "k": int(k),
            "objective": Matryoshka(widths=(d_sae // 16, d_sae // 4), **AUX)}  # fmt: skip


KINDS: dict[str, Callable[[float, int], dict[str, Any]]] = {
    "L1": lambda c, F: {"l1_coefficient": c},
    "Gated": lambda c, F: {"kind": Gated, "objective": GatedL1(c)},
    "TopK": lambda k, F: {"kind": TopK, "k": int(k), "objective": Squared(**AUX)},
    "BatchTopK": lambda k, F: {"kind": BatchTopK, "k": int(k), "objective": Squared(**AUX)},
    "JumpReLU": lambda l0, F: {"kind": JumpReLU, "objective": JumpL0(target_l0=l0)},
    "Matryoshka": _nested,
}
"""For each architecture the arguments of `train`, from its strength and its number of features."""
WITHOUT_AUX = "TopK without AuxK"
END_TO_END = "TopK, end to end"
KINDS_ASIDE = dict.fromkeys((END_TO_END, WITHOUT_AUX), lambda k, F: {"kind": TopK, "k": int(k)})
TUNED = ("L1", "Gated")  # their strength is a price, and L0 what comes of it
# the first of each comes to an L0 of about `AT`, and is shipped
STRENGTHS: dict[str, tuple[float, ...]] = dict.fromkeys(KINDS, (AT,)) | {
    "L1": (0.98, 0.5, 2.0),
    "Gated": (1.25, 0.6, 2.8),
}
STRENGTHS_LONGER = {"L1": (0.7, 0.9), "TopK": (AT,)}  # around `AT`, after `LONGER` steps
COMPARED = ("TopK", END_TO_END)  # of which features without a twin are looked for


class Score(NamedTuple):
    """What can be said of an SAE at the default site.

    Attributes:
        l0: mean number of active features.
        explained: explained variance.
        gamma: `metrics.shrinkage`; 1 if nothing shrinks.
        recovered_mean, recovered_zero, recovered_words: loss recovered, counted from the mean
            activation, from zeros, and from a guess by the words' frequencies.
        kl: mean KL(model || spliced model), nats per token.
        best_f1: mean over represented concepts of the best single feature's F1.
        absorbed: `features.absorption`, mean over the classes of animals.
        dead: share of features that are never active.
    """

    l0: float
    explained: float
    gamma: float
    recovered_mean: float
    recovered_zero: float
    recovered_words: float
    kl: float
    best_f1: float
    absorbed: float
    dead: float


FIGURES = Score._fields


class Bench:
    """The model, activations to train on, and held-out text with its truth.

    Attributes:
        lm: the model.
        tokens_NT, x_ND: documents to train on, and their activations at the default site.
        known, x_held_ND: `controls.Truth` of held-out documents, and their activations.
    """

    def __init__(
        self,
        lm: LM,
        *,
        documents: int = DOCUMENTS,
        held_out: int = HELD_OUT,
        probe: Mapping[str, float] | None = None,
    ):
        self.lm = lm
        vocabulary = lm.tokenizer.get_vocab()
        self.tokens_NT = corpus.encode(corpus.documents(documents), vocabulary)
        self.x_ND = collect(lm, self.tokens_NT, shipped.SITE).x_ND
        self.known = controls.truth(held_out, probe=probe)
        self.x_held_ND = collect(lm, self.known.held.tokens_NT, shipped.SITE).x_ND
        self.classes = [c for c, name in enumerate(self.known.names) if name.startswith("class:")]
        self.reads_NC = features.linear_probe(
            self.x_held_ND, self.known.labels_NC[:, self.classes]
        )  # fmt: skip
        self.spliced_NT = self.known.held.tokens_NT[:SPLICED]
        self.clean = lm.loss(self.spliced_NT)
        mean_D = self.x_held_ND.mean(0)
        self.bottoms = {
            name: lm.loss(self.spliced_NT, {shipped.SITE: edit})
            for name, edit in {
                "mean": ablation(mean_D), "zero": ablation(None),
            }.items()
        }  # fmt: skip
        self.bottoms["words"] = _by_frequency(self.tokens_NT, self.spliced_NT)

    def train(
        self,
        kind: str,
        strength: float,
        seed: int,
        *,
        d_sae: int | None = None,
        steps: int | None = None,
    ) -> SAE:
        """One of `KINDS` or `KINDS_ASIDE`, trained: `D_SAE` features, `STEPS` steps by default."""
        d_sae, steps = d_sae or D_SAE, steps or STEPS
        given = (KINDS | KINDS_ASIDE)[kind](strength, d_sae)
        how = {"steps": steps, "seed": seed, "log_every": 250, "progress": False}
        how["lr"] = usual_lr(BATCH_SIZE, self.x_ND.shape[1])
        if kind == END_TO_END:
            how["lr"] /= 2  # the whole led the model's loss astray with two of three seeds
            objective = EndToEnd(self.lm, shipped.SITE, Squared(**AUX))
            documents = BATCH_SIZE // self.tokens_NT.shape[1]
            given |= {"objective": objective}
            return train(self.tokens_NT, d_sae, batch_size=documents, **given, **how).sae
        return train(self.x_ND, d_sae, batch_size=BATCH_SIZE, **given, **how).sae

    @torch.no_grad()
    def score(self, sae: SAE) -> Score:
        """Judge an SAE of the default site."""
        x_ND, labels_NC = self.x_held_ND, self.known.labels_NC
        f_NF = features.encode(sae, x_ND)
        x_hat_ND = sae.reconstruct(x_ND, f_NF)
        compared = self.lm.compare(self.spliced_NT, {shipped.SITE: splice(sae)})
        recovered = {
            f"recovered_{name}": (bottom - compared.edited) / (bottom - self.clean)
            for name, bottom in self.bottoms.items()
        }
        absorbed = [
            features.absorption(f_NF, sae.W_dec, x_ND, labels_NC[:, c], reads_N)
            for c, reads_N in zip(self.classes, self.reads_NC.T, strict=True)
        ]
        return Score(
            l0=metrics.l0(f_NF), explained=metrics.explained_variance(x_ND, x_hat_ND),
            gamma=metrics.shrinkage(x_ND, x_hat_ND), **recovered, kl=compared.kl,
            best_f1=float(metrics.best_f1(f_NF, labels_NC).f1_C.mean()),
            absorbed=sum(absorbed) / len(absorbed), dead=metrics.dead_fraction(f_NF),
        )  # fmt: skip

    def run(self, kind: str, strength: float, seed: int, **size: int) -> tuple[dict[str, Any], SAE]:
        """Train and judge one as it would be saved in 16 bits: a record, and the SAE."""
        started = time.perf_counter()
        sae = self.train(kind, strength, seed, **size).exported()
        seconds = time.perf_counter() - started
        found = self.score(sae.half().float())._asdict()
        steps = size.get("steps") or STEPS
        record = {"kind": kind, "strength": strength, "seed": seed, "steps": steps}
        return record | {"seconds": round(seconds, 1)} | _rounded(found), sae


def _by_frequency(tokens_NT: Tensor, judged_NT: Tensor) -> float:
    """Nats per token of a guess that knows how frequent each word is, and nothing of the text."""
    count_V = tokens_NT[:, 1:].flatten().bincount(minlength=int(judged_NT.max()) + 1).double() + 1
    return float(-(count_V / count_V.sum()).log()[judged_NT[:, 1:]].mean())


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.5g}") for name, value in figures.items()}


class Training(NamedTuple):
    """What `build` trains: a kind of SAE, its strength, its seed, for how many steps."""

    kind: str
    strength: float
    seed: int
    steps: int


def trainings() -> Iterator[Training]:
    """All that `build` trains, what is wanted most first."""
    for level, kinds in ((0, STRENGTHS), (1, TUNED), (2, TUNED), (0, (WITHOUT_AUX, END_TO_END))):
        for seed in SEEDS:
            for kind in kinds:
                yield Training(kind, STRENGTHS.get(kind, (AT,))[level], seed, STEPS)
    for seed in SEEDS:
        for kind, strengths in STRENGTHS_LONGER.items():
            yield from (Training(kind, strength, seed, LONGER) for strength in strengths)


def build(folder: Path, root: Path) -> None:
    """Train and judge all, and keep the first seed's SAEs in 16 bits.

    What is finished is kept beside `folder` until all is, under a name that belongs to the model:
    a second call goes on from there.

    Args:
        folder: what is replaced.
        root: where the model lies.
    """
    model = artifacts.sha256(root / "lm" / "model.safetensors")[:8]
    unfinished = folder.with_name(f".{folder.name}-{model}")
    unfinished.mkdir(exist_ok=True)
    _go_on(unfinished, LM.load(root / "lm"), artifacts.read_json(root / "probes.json"))
    with artifacts.replacing(folder) as temporary:
        shutil.copytree(unfinished, temporary)
    shutil.rmtree(unfinished)


def _go_on(folder: Path, lm: LM, probe: Mapping[str, float]) -> None:
    """Make what a folder does not hold yet."""
    path, others = folder / NUMBERS_FILE, folder / OTHER_SEEDS
    runs = artifacts.read_json(path) if path.exists() else []
    done = {Training(*(run[name] for name in Training._fields)) for run in runs}
    bench = Bench(lm, probe=probe)
    if not (folder / "transcoder").exists():
        _transcoder(lm).half().save(folder / "transcoder")
    for which in trainings():
        kind, strength, seed, steps = which
        if which in done:
            continue
        run, sae = bench.run(kind, strength, seed, steps=steps)
        print(f"{kind}, {strength:g}, {steps} steps, seed {seed}: L0 {run['l0']:.2f}, "
              f"{run['seconds']:.0f} s")  # fmt: skip
        if steps == STEPS and strength == STRENGTHS.get(kind, (AT,))[0] and kind != WITHOUT_AUX:
            run["left"] = _rounded(looks.cures(sae, bench.x_held_ND, bench.x_ND[:CURED]))
            sae.metadata |= lm.about(shipped.SITE) | {"model_name": OURS, "seed": seed}
            if seed == SEEDS[0]:
                sae.half().save(folder / _folder(kind))
            elif kind in COMPARED:
                sae.half().save(others / f"{_folder(kind)}_{seed}")
        runs.append(run)
        artifacts.write_json(path, runs)
    artifacts.write_json(folder / TWINS_FILE, _twins(folder, bench))
    shutil.rmtree(others, ignore_errors=True)


def _twins(folder: Path, bench: Bench) -> dict[str, list[dict[str, Any]]]:
    """What features do that an SAE of another kind, or of the same with another seed, lacks."""

    def found(kind: str, seed: int) -> SAE:
        place = f"{OTHER_SEEDS}/{_folder(kind)}_{seed}" if seed != SEEDS[0] else _folder(kind)
        return load(folder / place).float()

    local, whole = ({seed: found(kind, seed) for seed in SEEDS} for kind in COMPARED)
    pairs = {END_TO_END: list(zip(local.values(), whole.values(), strict=True))}
    next_seed = [*SEEDS[1:], SEEDS[0]]
    pairs["another seed"] = [(local[a], local[b]) for a, b in zip(SEEDS, next_seed, strict=True)]
    few_NT = bench.spliced_NT[:TWINS_DOCUMENTS]
    return {
        name: [
            {label: _rounded(harm._asdict()) for label, harm in looks.harms(
                bench.lm, sae, other, bench.x_held_ND, few_NT).items()}
            for sae, other in each
        ]
        for name, each in pairs.items()
    }  # fmt: skip


def _transcoder(lm: LM) -> SAE:
    """Features of what enters the last block's MLP, that reconstruct what leaves it."""
    documents = corpus.documents(TRANSCODER_DOCUMENTS)
    tokens_NT = corpus.encode(documents, lm.tokenizer.get_vocab())
    x_ND, y_ND = (a.x_ND for a in collect_all(lm, tokens_NT, [READS, WRITES]).values())
    objective = JumpL0(target_l0=TRANSCODER_L0)
    how = {"kind": JumpReLUTranscoder, "objective": objective, "log_every": 250, "progress": False}
    sae = train(x_ND, target=y_ND, **TRANSCODER, **how).sae
    sae.metadata |= lm.about(READS) | {"model_name": OURS}
    return sae


def _folder(kind: str) -> str:
    return kind.lower().replace(",", "").replace(" ", "_")


def load_kind(kind: str) -> SAE:
    """The shipped SAE of a kind, of the first seed, at an L0 of about `AT`."""
    able = [*KINDS, END_TO_END]
    if kind not in able:
        raise Refusal(f"one of {', '.join(able)}", repr(kind))
    return load(artifacts.find(f"beyond/{_folder(kind)}")).float()


def load_transcoder() -> SAE:
    """The shipped transcoder of the last block's MLP."""
    return load(artifacts.find("beyond/transcoder")).float()


def scores(steps: int | None = None) -> list[dict[str, Any]]:
    """What was measured when the SAEs were made: a record for each training of so many steps.

    `STEPS` by default. A record holds the fields of `Training` and `Score`, and seconds; those at
    an L0 of about `AT` after `STEPS` steps also, as `left`, what `looks.cures` leave.
    """
    runs = artifacts.read_json(artifacts.find(f"beyond/{NUMBERS_FILE}"))
    return [run for run in runs if run["steps"] == (steps or STEPS)]


def twins() -> dict[str, list[dict[str, looks.Harm]]]:
    """What local features do that have, and have not, a twin: for each seed, as `looks.harms` says.

    Of `END_TO_END`, or of "another seed" of the same kind.
    """
    stored = artifacts.read_json(artifacts.find(f"beyond/{TWINS_FILE}"))
    return {
        name: [{label: looks.Harm(**harm) for label, harm in pair.items()} for pair in pairs]
        for name, pairs in stored.items()
    }


def at_equal_l0(runs: list[dict[str, Any]], l0: float = AT) -> dict[str, list[dict[str, float]]]:
    """Figures at one L0: kind -> a record for each seed.

    Measured there (within `NEAR` of it), or on the line in log L0 through the two trainings around
    it; a seed of which no two lie around it is left out.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for kind, seed in dict.fromkeys((run["kind"], run["seed"]) for run in runs):
        mine = [run for run in runs if (run["kind"], run["seed"]) == (kind, seed)]
        mine.sort(key=lambda run: run["l0"])
        record = min(mine, key=lambda run: abs(math.log(run["l0"] / l0)))
        if abs(record["l0"] / l0 - 1) > NEAR:
            around = [(a, b) for a, b in itertools.pairwise(mine) if a["l0"] < l0 < b["l0"]]
            if not around:
                continue
            low, high = around[0]
            share = math.log(l0 / low["l0"]) / math.log(high["l0"] / low["l0"])
            between = {name: low[name] + share * (high[name] - low[name]) for name in FIGURES}
            record = between | {"l0": float(l0)}
        found.setdefault(kind, []).append({name: record[name] for name in FIGURES})
    return found
