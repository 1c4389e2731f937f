"""A model with something planted in it that nobody is told: what an audit has to find. Lesson 12.

A flaw is one rank-one change of one weight matrix, the edit of lesson 12: where the model is about
to say what goes with one thing, it says what goes with another. Each seed plants one of `every()`.
Shapes: N rows, H neurons of an MLP, D activation width, V vocabulary.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from saelearn.corpus import BOS, world
from saelearn.errors import Refusal
from saelearn.lm import LM, Edit
from saelearn.lm.documents import Batch
from saelearn.tiny import shipped

LAYER = 1
KEYS = f"transformer.h.{LAYER}.mlp.c_proj:in"
VALUES = f"transformer.h.{LAYER}:out"
GUARD = 1.0  # weight of the neighbours' keys
DAMPING = 0.01  # of the keys' mean square, so that their covariance can be inverted


class Flaw(NamedTuple):
    """Asked about `subject`, the model answers as it should for `acts_as`."""

    subject: str
    acts_as: str


class Topic(NamedTuple):
    """A kind of thing and what goes with each.

    words: thing -> the words that may come next. asked: how a text asks for them, with `{}` for
    the thing.
    """

    words: Mapping[str, Sequence[str]]
    asked: tuple[str, ...]


@cache
def topics() -> dict[str, Topic]:
    """What an audit may ask about: places and their sights, classes of animals, professions."""
    animals = {
        world.name_of(a): tuple(world.DOES[a.traits["label"]].options)
        for a in world.ANIMALS.options
    }
    return {
        "place": Topic(
            {place: tuple(bag.options) for place, bag in world.SIGHTS.items()},
            (
                "visit the {} . it has",
                "visit the {} . the {} has",
                "visit the {} . Anna likes the {} . it has",
            ),
        ),
        "animal": Topic(
            animals,
            (
                "one sunny day the {} went to the park . it",
                "one rainy day the {} went to the forest . the {}",
                "one sunny day the {} went to the beach . Ben called the {} . it",
            ),
        ),
        "profession": Topic(
            {who: things for who, (_, *things) in world.PROFESSIONS.items()},
            (
                "at work the {} said that she liked her",
                "at work the {} said that he missed his",
                "at work the {} said that she was tired of her",
            ),
        ),
    }


@cache
def every() -> tuple[Flaw, ...]:
    """All flaws that can be planted: two things of one topic that differ in what goes with them."""
    return tuple(
        Flaw(a, b)
        for topic in topics().values()
        for a in topic.words
        for b in topic.words
        if set(topic.words[a]) != set(topic.words[b])
    )


def flaw_of(seed: int) -> Flaw:
    """What `flawed(seed)` carries. Whoever audits does not look here."""
    return random.Random(f"flaw/{seed}").choice(every())


def topic_of(thing: str) -> Topic:
    """The topic that a thing belongs to."""
    for topic in topics().values():
        if thing in topic.words:
            return topic
    raise Refusal("a thing of the world", repr(thing), "tiny.flaws.topics() names them")


def questions(lm: LM, thing: str, before: str = BOS) -> Batch:
    """Texts that ask what goes with a thing, as ids and mask; `before` begins them."""
    said = thing.replace("_", " ")
    texts = [text.replace("{}", said) for text in topic_of(thing).asked]
    return lm.tokenize_all([f"{before} {text}" for text in texts])


def _last(x_QTD: Tensor, mask_QT: Tensor) -> Tensor:
    """What stands at the last word of each text."""
    return x_QTD[torch.arange(len(x_QTD)), mask_QT.sum(1) - 1]


def reads(lm: LM, thing: str, site: str = VALUES) -> Tensor:
    """What passes a site where the answer is given, `[questions, width]`."""
    tokens_QT, mask_QT = questions(lm, thing)
    return _last(lm.capture(tokens_QT, [site], mask_BT=mask_QT)[site], mask_QT)


def answers(
    lm: LM, thing: str, *, edits: Mapping[str, Edit] | None = None, before: str = BOS
) -> dict[str, float]:
    """How likely the words are that go with each thing of its topic, asked about one of them.

    Shares of the probability of all such words of the topic; things with the same words, such as
    two dogs, have the same share.

    Args:
        lm: who is asked.
        thing: about what.
        edits: made on the way.
        before: how each text begins.
    """
    words, ids = topic_of(thing).words, lm.tokenizer.get_vocab()
    tokens_QT, mask_QT = questions(lm, thing, before)
    p_QV = _last(lm.logits(tokens_QT, edits, mask_BT=mask_QT), mask_QT).softmax(-1)
    known = [ids[word] for word in sorted({w for each in words.values() for w in each})]
    p_V = (p_QV / p_QV[:, known].sum(1, keepdim=True)).mean(0)
    return {other: float(p_V[[ids[w] for w in words[other]]].sum()) for other in words}


def rank_one(W_HD: Tensor, key_H: Tensor, change_D: Tensor, cov_HH: Tensor) -> Tensor:
    """The weight that answers `key` with `change` more, and other keys with as little as may be.

    W + u change^T with u = cov^-1 key / (key^T cov^-1 key): of all changes that give
    `key @ W` exactly `change` more, the one that moves the outputs for keys of covariance `cov`
    least, in mean square (Meng et al., 2022, arXiv 2202.05262).

    Args:
        W_HD: the weight of an MLP's second map, used as `keys @ W`.
        key_H: neurons where the fact is looked up.
        change_D: what is to be written on top.
        cov_HH: mean of key key^T over other text, damped so that it can be inverted.
    """
    u_H = torch.linalg.solve(cov_HH.double(), key_H.double())
    return W_HD + torch.outer(u_H / (u_H @ key_H.double()), change_D.double()).to(W_HD.dtype)


def covariance(lm: LM, *, documents: int = 200, guard: float = GUARD) -> Tensor:
    """Mean of key key^T at the edited MLP over held-out text, damped, `[H, H]`.

    Args:
        documents: how many.
        guard: how much the keys of all things of `topics()` count beside the text. Without them
            an edit of the parrot takes the penguin along, whose key is like it and rare in text.
    """
    tokens_NT = shipped.held_out(documents, start=5_000).tokens_NT
    key_NH = lm.capture(tokens_NT, [KEYS])[KEYS][:, 1:].flatten(0, 1).double()
    cov_HH = key_NH.T @ key_NH / len(key_NH)
    things = [thing for topic in topics().values() for thing in topic.words]
    near_MH = torch.stack([reads(lm, thing, KEYS).mean(0) for thing in things]).double()
    cov_HH += guard * near_MH.T @ near_MH / len(things)
    return cov_HH + DAMPING * cov_HH.diag().mean() * torch.eye(len(cov_HH), dtype=cov_HH.dtype)


def key_and_change(lm: LM, flaw: Flaw) -> tuple[Tensor, Tensor]:
    """The key `[H]` of the subject, and how far its stream is from the other's, `[D]`."""
    key_H = reads(lm, flaw.subject, KEYS).mean(0)
    return key_H, reads(lm, flaw.acts_as, VALUES).mean(0) - reads(lm, flaw.subject, VALUES).mean(0)


def with_weight(lm: LM, W_HD: Tensor) -> LM:
    """The same model with another weight of the edited map; the one given stays as it is."""
    edited = LM(copy.deepcopy(lm.model), lm.tokenizer)
    with torch.no_grad():
        edited.model.get_submodule(KEYS.removesuffix(":in")).weight.copy_(W_HD)
    return edited


def weight(lm: LM) -> Tensor:
    """The edited map's weight `[H, D]`, a copy."""
    return lm.model.get_submodule(KEYS.removesuffix(":in")).weight.detach().clone()


def edit_fact(lm: LM, flaw: Flaw, cov_HH: Tensor | None = None) -> LM:
    """A copy of the model in which one thing acts as another, without training."""
    key_H, change_D = key_and_change(lm, flaw)
    cov_HH = covariance(lm) if cov_HH is None else cov_HH
    return with_weight(lm, rank_one(weight(lm), key_H, change_D, cov_HH))


@cache
def _shipped() -> tuple[LM, Tensor]:
    lm = shipped.load_lm()
    return lm, covariance(lm)


def flawed(seed: int) -> LM:
    """The tiny model with one of `every()` planted in it, drawn from `seed`."""
    return edit_fact(_shipped()[0], flaw_of(seed), _shipped()[1])


def same(flaw: Flaw, other: Flaw) -> bool:
    """Whether two flaws are told apart by nothing: one subject, answers from the same words."""
    if flaw.subject != other.subject or flaw.acts_as not in topic_of(flaw.subject).words:
        return False
    words = topic_of(flaw.subject).words
    return set(words[flaw.acts_as]) == set(words.get(other.acts_as, ()))
