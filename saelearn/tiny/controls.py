"""What a trained SAE has to beat: half of it never trained, nothing trained, no trained model.

The frozen ones after "Sanity Checks for Sparse Autoencoders" (2026, arXiv 2602.14111). All are TopK
SAEs of one size, so that each has the same L0. Lesson 10.
Shapes: N rows, D activation width, F features, C concepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saelearn import artifacts, corpus, features, metrics, steer
from saelearn.activations import collect
from saelearn.errors import Refusal
from saelearn.lm import LM, OURS
from saelearn.sae import SAE, Squared, TopK, load
from saelearn.tiny import shipped
from saelearn.train import train

D_SAE, K, SEEDS = 512, 12, (0, 1, 2)
DOCUMENTS, HELD_OUT = 12_000, 400
REPRESENTED = 0.8  # F1 of a linear probe; of what the model does not hold, no feature can speak
BATCH_SIZE, STEPS = 1_024, 3_000
KINDS = ("trained", "frozen decoder", "frozen encoder", "random", "untrained model")
STEERED = ("golden_retriever", "tiger", "castle", "Golden_Gate_Bridge")
TEXTS = 60  # for each push
NUMBERS_FILE = "numbers.json"


class Score(NamedTuple):
    """What can be said of an SAE where the concepts are known.

    Attributes:
        explained: explained variance.
        l0: mean number of active features.
        best_f1: mean over concepts of the best single feature's F1.
        probe_1, probe_4, probe_16: mean F1 of probes that read so many features.
        steered: share of texts that name what its best feature's decoder row pushes toward, less
            the share without a push; nan for a model that does not write.
    """

    explained: float
    l0: float
    best_f1: float
    probe_1: float
    probe_4: float
    probe_16: float
    steered: float


class Truth(NamedTuple):
    """Held-out text with the concepts that the model represents: `labels_NC` of `names`."""

    held: shipped.HeldOut
    labels_NC: Tensor
    names: tuple[str, ...]


def truth(n: int = HELD_OUT, *, probe: Mapping[str, float] | None = None) -> Truth:
    """`n` documents, and the concepts that a linear probe finds at `SITE`.

    Args:
        probe: F1 of that probe for each concept; the shipped ones if None.
    """
    held, probe = shipped.held_out(n), probe or shipped.probe_f1()
    kept = [c for c, name in enumerate(held.names) if probe.get(name, 0.0) >= REPRESENTED]
    return Truth(held, held.flat()[0][:, kept], tuple(held.names[c] for c in kept))


def make(kind: str, x_ND: Tensor, *, seed: int = 0, steps: int = STEPS) -> SAE:
    """Train one of `KINDS` on the activations of its model; "random" is left as it begins."""
    if kind not in KINDS:
        raise Refusal(f"one of {', '.join(KINDS)}", repr(kind))
    if kind == "random":
        return TopK.from_data(x_ND, D_SAE, k=K, seed=seed)
    return train(
        x_ND, D_SAE, kind=TopK, k=K, steps=steps, batch_size=BATCH_SIZE, log_every=250, seed=seed,
        objective=Squared(aux_k=64, aux_coefficient=1 / 8, dead_after=100),
        frozen=_frozen(kind), progress=False,
    ).sae  # fmt: skip


def _frozen(kind: str) -> str | None:
    return kind.split()[1] if kind.startswith("frozen") else None


@torch.no_grad()
def score(sae: SAE, x_ND: Tensor, labels_NC: Tensor, lm: LM | None, names: Sequence[str]) -> Score:
    """Judge an SAE by reconstruction and by the truth.

    Args:
        x_ND: held-out activations.
        labels_NC: which of the concepts `names` holds where.
        lm: the model that is steered; None leaves steering out.
    """
    f_NF = features.encode(sae, x_ND)
    best = metrics.best_f1(f_NF, labels_NC)
    probes = [float(features.sparse_probe_f1(f_NF, labels_NC, k).mean()) for k in (1, 4, 16)]
    rows = {
        thing: sae.W_dec[int(best.candidate_C[names.index(f"about:{thing}")])] for thing in STEERED
    }
    steered = steered_rate(lm, rows, x_ND) if lm else float("nan")
    explained = metrics.explained_variance(x_ND, sae.reconstruct(x_ND, f_NF))
    return Score(explained, metrics.l0(f_NF), float(best.f1_C.mean()), *probes, steered)


def steered_rate(lm: LM, directions: dict[str, Tensor], x_ND: Tensor, *, seed: int = 3) -> float:
    """How many more texts name a thing when pushed toward it, mean over things.

    The push is as long as a typical activation, at the first eight words (lesson 09).

    Args:
        directions: thing -> where to push, `[D]`.
        x_ND: activations of the site, for the unit of the push.
    """
    how = {"max_new_tokens": 40, "n": TEXTS, "seed": seed}
    plain_NT, unit = lm.generate("<doc>", **how), steer.typical_norm(x_ND)
    gains = []
    for thing, direction_D in directions.items():
        edit = steer.add(direction_D, unit, positions=range(1, 9))
        pushed_NT = lm.generate("<doc>", edits={shipped.SITE: edit}, **how)
        gains.append(shipped.mention_rate(pushed_NT, thing) - shipped.mention_rate(plain_NT, thing))
    return sum(gains) / len(gains)


def build(folder: Path, root: Path) -> None:
    """Train every kind with every seed, score them, and keep the first seed's SAEs in 16 bits.

    Args:
        folder: what is replaced.
        root: where the models lie.
    """
    known = truth(HELD_OUT, probe=artifacts.read_json(root / "probes.json"))
    found = {}
    with artifacts.replacing(folder) as temporary:
        temporary.mkdir()
        for model in ("lm", "lm_random"):
            lm = LM.load(root / model)
            vocabulary = lm.tokenizer.get_vocab()
            tokens_NT = corpus.encode(corpus.documents(DOCUMENTS), vocabulary)
            x_ND = collect(lm, tokens_NT, shipped.SITE, progress=True).x_ND
            x_held_ND = collect(lm, known.held.tokens_NT, shipped.SITE).x_ND
            writer = lm if model == "lm" else None
            for kind in KINDS[:-1] if writer else KINDS[-1:]:
                scores = []
                for seed in SEEDS:
                    print(f"{kind}, seed {seed}")
                    sae = make(kind, x_ND, seed=seed, steps=STEPS).half().float()
                    scores.append(score(sae, x_held_ND, known.labels_NC, writer, known.names))
                    if seed == SEEDS[0]:
                        named = {"model_name": OURS if writer else f"{OURS}, untrained"}
                        sae.metadata |= lm.about(shipped.SITE) | named | {"seed": seed}
                        sae.half().save(temporary / _folder(kind))
                found[kind] = [{k: _short(v) for k, v in s._asdict().items()} for s in scores]
        artifacts.write_json(temporary / NUMBERS_FILE, found)


def _short(value: float) -> float | None:
    return None if value != value else float(f"{value:.4g}")


def _folder(kind: str) -> str:
    return kind.replace(" ", "_")


def load_control(kind: str) -> SAE:
    """The shipped SAE of one of `KINDS`, of the first seed."""
    if kind not in KINDS:
        raise Refusal(f"one of {', '.join(KINDS)}", repr(kind))
    return load(artifacts.find(f"controls/{_folder(kind)}")).float()


def scores() -> dict[str, list[Score]]:
    """For each of `KINDS` a score for each seed, as they were measured when the SAEs were made."""
    stored = artifacts.read_json(artifacts.find(f"controls/{NUMBERS_FILE}"))
    return {
        kind: [Score(**{k: float("nan") if v is None else v for k, v in s.items()}) for s in each]
        for kind, each in stored.items()
    }
