"""The course's tiny language model and what belongs to it: SAEs, held-out text, a judge.

All of it lies in data/ and is rebuilt by `saelearn data`; its truth comes from `saelearn.corpus`.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from saelearn import artifacts, corpus
from saelearn.errors import Refusal, checked, number, whole
from saelearn.lm import LM, OURS
from saelearn.sae import SAE, load

SITE = "transformer.h.1:out"  # the residual stream after the middle block
NEURONS = "blocks.1.mlp.hook_post"  # the neurons of the same block
D_SAE = 1_024
L1_COEFFICIENTS = (0.3, 0.5, 0.8, 1.2, 2.0, 3.5, 6.0, 10.0)
L1_DEFAULT = 0.5
K_DEFAULT = 12


class Recipe(NamedTuple):
    """How one of the shipped SAEs is made: an L1 coefficient, or `k` for a TopK SAE."""

    site: str = SITE
    l1_coefficient: float | None = None
    k: int | None = None
    d_sae: int | None = None
    seed: int = 0
    model: str = "lm"


def recipes() -> dict[str, Recipe]:
    """Every SAE in data/saes/ by its folder's name."""
    middle, k = {"l1_coefficient": L1_DEFAULT}, {"k": K_DEFAULT}
    other_sites = {"block0": "transformer.h.0:out", "block2": "transformer.h.2:out",
                   "mlp1": "transformer.h.1.mlp:out"}  # fmt: skip
    return (
        {name_of(c): Recipe(l1_coefficient=c) for c in L1_COEFFICIENTS}
        | {f"{name_of(L1_DEFAULT)}_seed{seed}": Recipe(seed=seed, **middle) for seed in (1, 2)}
        | {"small": Recipe(d_sae=D_SAE // 4, **middle), "large": Recipe(d_sae=D_SAE * 4, **middle)}
        | {"topk": Recipe(**k), "random_lm": Recipe(model="lm_random", **middle)}
        | {f"{name}_l1": Recipe(site, **middle) for name, site in other_sites.items()}
        | {f"{name}_topk": Recipe(site, **k) for name, site in other_sites.items()}
    )


def load_lm() -> LM:
    """The tiny language model."""
    return LM.load("tiny")


def load_random_lm() -> LM:
    """The same architecture with random weights: the control for "the SAE found features"."""
    lm = LM.load(artifacts.find("lm_random"))
    lm.name = f"{OURS}, untrained"
    return lm


@checked(l1_coefficient=number(0))
def load_sae(l1_coefficient: float = L1_DEFAULT) -> SAE:
    """The SAE of the sweep at `SITE` that was trained with this coefficient.

    Raises:
        Refusal: the sweep has none with it.
    """
    if l1_coefficient not in L1_COEFFICIENTS:
        raise Refusal(
            f"an L1 coefficient of the sweep: {', '.join(map(str, L1_COEFFICIENTS))}",
            repr(l1_coefficient),
            "saelearn.train.train makes one with any other",
        )
    return SAE.load(artifacts.find(f"saes/{name_of(l1_coefficient)}"))


@checked()
def load_named(name: str) -> SAE:
    """One of `recipes()` by name: another seed, size, site or kind."""
    if name not in recipes():
        raise Refusal(f"one of {', '.join(recipes())}", repr(name))
    return load(artifacts.find(f"saes/{name}"))


def load_random_sae() -> SAE:
    """The SAE that was trained on the randomly initialised model, as the default one was."""
    return load_named("random_lm")


@checked(l1_coefficient=number(0))
def name_of(l1_coefficient: float) -> str:
    """The folder of a coefficient in data/saes/."""
    return f"l1_{l1_coefficient:g}"


def training_record() -> dict:
    """How the model was trained: its loss over time, held-out cross-entropy, entropy bound."""
    return artifacts.read_json(artifacts.find("lm_training.json"))


def gpu_record() -> dict:
    """How long a training step took on a GPU, by how much was active (`benchmarks.gpu --write`).

    Its "gpu" and "date"; "shape" B, D, F; "limit_ms" of a dense step on a perfect machine; and for
    each of "steps" its "l0" and the milliseconds "ms" of each way.
    """
    return artifacts.read_json(artifacts.find("gpu.json"))


def probe_f1() -> dict[str, float]:
    """Held-out F1 of a linear probe for each concept at `SITE`: what the model represents."""
    return artifacts.read_json(artifacts.find("probes.json"))


class HeldOut(NamedTuple):
    """Documents the model has not seen, with their truth.

    tokens_NT; labels_NTC: which of `names` holds where (bool); registers_NT: index into
    `registers` of the register each token belongs to.
    """

    tokens_NT: Tensor
    labels_NTC: Tensor
    names: tuple[str, ...]
    registers_NT: Tensor
    registers: tuple[str, ...]

    def flat(self, skip: int = 1) -> tuple[Tensor, Tensor]:
        """Labels `[N, C]` and registers `[N]` of the rows that `activations.collect` gives."""
        return self.labels_NTC[:, skip:].flatten(0, 1), self.registers_NT[:, skip:].flatten()


@checked(n=whole(1), start=whole(0))
def held_out(n: int = 1_000, *, start: int = 0) -> HeldOut:
    """`n` held-out documents."""
    docs = list(corpus.documents(n, seed=corpus.HELD_OUT, start=start))
    names = corpus.concept_names()
    labels_NTC = corpus.labels(docs, names)
    registers = tuple(name for name in names if name.startswith("register:"))
    columns = [names.index(name) for name in registers]
    registers_NT = labels_NTC[..., columns].float().argmax(-1)
    tokens_NT = corpus.encode(docs, _vocabulary())
    return HeldOut(tokens_NT, labels_NTC, names, registers_NT, registers)


@cache
def _vocabulary() -> dict[str, int]:
    return artifacts.read_json(artifacts.find("lm/tokenizer.json"))["model"]["vocab"]


@cache
def _known_fourgrams() -> Tensor:
    return artifacts.read_tensors(artifacts.find("fourgrams.safetensors"))["codes"]


@checked()
def validity(tokens_NT: Tensor) -> float:
    """Share of the 4-grams of some texts that the corpus has too: 1 for well-formed text."""
    return corpus.validity(tokens_NT, _known_fourgrams(), len(_vocabulary()))


# what counts as speaking of it, in either language
MENTIONS = {
    "golden_retriever": ("golden retriever", "골든 리트리버"),
    "Golden_Gate_Bridge": ("Golden Gate Bridge", "금문교"),
    "tiger": ("tiger", "호랑이"),
    "castle": ("castle", "성"),
    "soup": ("recipe : soup",),
}


@checked()
def mention_rate(tokens_NT: Tensor, name: str = "golden_retriever") -> float:
    """Share of the texts that speak of a thing, in English or Korean."""
    return float(mentions(tokens_NT, name).double().mean())


@checked()
def mentions(tokens_NT: Tensor, name: str = "golden_retriever") -> Tensor:
    """Which texts `[N]` speak of a thing, in English or Korean (bool)."""
    if name not in MENTIONS:
        raise Refusal(f"one of {', '.join(MENTIONS)}", repr(name))
    vocabulary = _vocabulary()
    found_N = torch.zeros(len(tokens_NT), dtype=torch.bool)
    for phrase in MENTIONS[name]:
        ids = torch.tensor([vocabulary[word] for word in phrase.split()])
        windows = tokens_NT.unfold(1, len(ids), 1)
        found_N |= (windows == ids).all(-1).any(-1)
    return found_N
