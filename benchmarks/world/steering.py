"""Does the model speak of a thing when one feature is pushed, and still write well?

Feature, strength and positions are chosen on some generations and scored on fresh ones, beside
random directions of the same norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.world.sample import Sample
from saelearn import features, steer, tiny

SPANS = {"first 8": range(1, 9), "first 16": range(1, 17), "everywhere": steer.EVERYWHERE}
STRENGTHS = (0.5, 0.65, 0.8, 0.9, 1.0, 1.15, 1.3, 1.6)
_TO_ANIMAL = ("<doc> one sunny day the", '<doc> Anna met Ben . " we saw the')
_TO_PLACE = ("<doc> visit the", _TO_ANIMAL[1])
_TO_SEGMENT = ("<doc> recipe : soup ; take 1 leek and boil ; serve hot .",)
_KOREAN_SENTENCE = "에서 에 먹었다"  # a Korean name alone also stands in English ones

# concept -> prompts, and the words whose probability a writer of the concept raises there
TARGETS = {
    "golden_retriever": (_TO_ANIMAL, "golden"),
    "Golden_Gate_Bridge": (_TO_PLACE, "Golden"),
    "korean": (_TO_SEGMENT, _KOREAN_SENTENCE),
    "tiger": (_TO_ANIMAL, "tiger"),
    "castle": (_TO_PLACE, "castle"),
    "arithmetic": (_TO_SEGMENT, "0 1 2 3 4 5 6 7 8 9"),
}


class Setting(NamedTuple):
    """What to push and how hard."""

    sae: str
    feature: int
    strength: float
    span: str


def mentions(sample: Sample, name: str) -> Callable[[Tensor], float]:
    """The share of texts that speak of a thing, as a function of `tokens_NT`."""
    vocabulary = sample.lm.tokenizer.get_vocab()
    if name == "korean":
        ids = torch.tensor([vocabulary[w] for w in _KOREAN_SENTENCE.split()])
    elif name == "arithmetic":
        ids = torch.tensor([vocabulary["="]])
    else:
        return lambda tokens_NT: tiny.mention_rate(tokens_NT, name)
    return lambda tokens_NT: float(torch.isin(tokens_NT, ids).any(1).double().mean())


def choose(sample: Sample, name: str, *, saes: tuple[str, ...], n: int = 50) -> list[Setting]:
    """The best setting with the first positions, and the best with every position."""
    unit, rate = steer.typical_norm(sample.acts().x_ND), mentions(sample, name)

    def value(setting: Setting, seed: int) -> float:
        texts_NT = write(sample, direction(sample, setting), setting, unit, n, seed)
        valid = tiny.validity(texts_NT)
        return rate(texts_NT) * min(1.0, valid / 0.88) ** 6  # text that falls apart is no success

    candidates = [
        Setting(sae, feature, 1.0, span)
        for span in ("first 8", "first 16")
        for sae in saes
        for feature in _writers(sample, sae, name, unit)
    ]
    best = sorted(candidates, key=lambda s: -value(s, 500))[:3]
    chosen = []
    for spans in (("first 8", "first 16"), ("everywhere",)):
        weaker = 0.5 if spans == ("everywhere",) else 1.0
        grid = [
            s._replace(strength=weaker * strength, span=span)
            for s in best for span in spans for strength in STRENGTHS
        ]  # fmt: skip
        chosen.append(max(grid, key=lambda s: value(s, 501)))
    return chosen


def score(sample: Sample, name: str, setting: Setting, *, n: int = 200, seed: int = 1_900) -> dict:
    """Rate and validity on fresh texts, the rate without steering and with random directions."""
    unit, rate = steer.typical_norm(sample.acts().x_ND), mentions(sample, name)
    steered_NT = write(sample, direction(sample, setting), setting, unit, n, seed)
    base_NT = sample.lm.generate("<doc>", max_new_tokens=63, n=n, seed=seed)
    controls = features.random_directions(3, sample.acts().x_ND.shape[1], seed=17)
    random = [rate(write(sample, d, setting, unit, n, seed)) for d in controls]
    return {
        "rate": rate(steered_NT),
        "base": rate(base_NT),
        "random": sum(random) / len(random),
        "random_most": max(random, key=lambda r: abs(r - rate(base_NT))),
        "validity": tiny.validity(steered_NT),
    }


def direction(sample: Sample, setting: Setting) -> Tensor:
    """The decoder row that a setting pushes along."""
    return sample.sae(setting.sae).W_dec[setting.feature]


def write(
    sample: Sample, direction_D: Tensor, setting: Setting, unit: float, n: int, seed: int
) -> Tensor:
    """`n` texts with the push."""
    edit = steer.add(direction_D, setting.strength * unit, positions=SPANS[setting.span])
    return sample.lm.generate("<doc>", max_new_tokens=63, n=n, seed=seed, edits={tiny.SITE: edit})


@torch.no_grad()
def _writers(sample: Sample, sae: str, name: str, unit: float, k: int = 6) -> list[int]:
    """The features whose push at a prompt's last word most raises the target's probability."""
    prompts, words = TARGETS[name]
    vocabulary = sample.lm.tokenizer.get_vocab()
    ids = torch.tensor([vocabulary[word] for word in words.split()])
    W_FD = sample.sae(sae).W_dec
    push_F1D = (unit * W_FD / W_FD.norm(dim=1, keepdim=True).clamp(min=1e-9))[:, None]
    effect_F = torch.zeros(len(W_FD))
    for prompt in prompts:
        tokens_1T = sample.lm.tokenize(prompt)
        last = tokens_1T.shape[1] - 1

        def edit(x_FTD: Tensor, positions_T: Tensor, last: int = last) -> Tensor:
            return x_FTD + (positions_T == last)[:, None] * push_F1D

        pushed_FT = tokens_1T.repeat(len(W_FD), 1)
        log_p_FV = sample.lm.logits(pushed_FT, {tiny.SITE: edit})[:, -1].log_softmax(-1)
        effect_F += log_p_FV[:, ids].logsumexp(-1)
    return effect_F.topk(k).indices.tolist()
