"""Labels by a stated rule, and how they do on text that had no say in them. Lesson 13.

A label is a list of words and a place: "this token is one of them", or "the token before is". The
rule is the same for features, neurons and random directions, so that they can be compared; it
knows spelling alone, no meaning. Shapes: N documents, T positions, P = T - 1 positions with a
row (the first has none).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

WHERE = ("here", "before")


class Label(NamedTuple):
    """Words `tokens` (most telling first) that stand "here" or "before" where a unit fires."""

    where: str
    tokens: list[int]


class Tested(NamedTuple):
    """How a label did: places where it held (`said`), where the unit fired, and where both."""

    hits: int
    said: int
    fired: int

    @property
    def precision(self) -> float:
        """Where the label holds, how often the unit fires."""
        return self.hits / max(1, self.said)

    @property
    def recall(self) -> float:
        """Where the unit fires, how often the label holds."""
        return self.hits / max(1, self.fired)

    @property
    def f1(self) -> float:
        """The harmonic mean of both."""
        return 2 * self.hits / max(1, self.said + self.fired)


def words(words_N: Tensor, fires_N: Tensor) -> list[int]:
    """The words with the highest rate of firing, as many as give the best F1.

    Args:
        words_N: the word of each place.
        fires_N: whether the unit fires there.
    """
    n_words = int(words_N.max()) + 1
    places_V = torch.bincount(words_N, minlength=n_words)
    hits_V = torch.bincount(words_N[fires_N], minlength=n_words)
    order_V = (hits_V / places_V.clamp(min=1)).argsort(descending=True, stable=True)
    f1_V = 2 * hits_V[order_V].cumsum(0) / (places_V[order_V].cumsum(0) + hits_V.sum())
    return order_V[: int(f1_V.argmax()) + 1].tolist()


def at(words_NT: Tensor, where: str) -> Tensor:
    """For each position with a row, `[N, P]`: the word "here", or the one "before"."""
    return words_NT[:, 1:] if where == "here" else words_NT[:, :-1]


def label(
    fires_NP: Tensor, words_NT: Tensor, choose: Callable[[Tensor, Tensor], list[int]] = words
) -> Label:
    """The better of the two kinds of label, by F1 on this text; words are chosen by `choose`."""
    found = [
        Label(where, choose(at(words_NT, where).flatten(), fires_NP.flatten())) for where in WHERE
    ]
    return max(found, key=lambda label: test(label, fires_NP, words_NT).f1)


def test(label: Label, fires_NP: Tensor, words_NT: Tensor) -> Tested:
    """A label on some text."""
    listed = torch.tensor(label.tokens, dtype=words_NT.dtype)
    says_NP = torch.isin(at(words_NT, label.where), listed)
    return Tested(*(int(m.sum()) for m in (says_NP & fires_NP, says_NP, fires_NP)))


def interval(hits: int, n: int, *, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for the rate hits / n; 95 % by default."""
    p = hits / n
    middle = p + z**2 / (2 * n)
    reach = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    return (middle - reach) / (1 + z**2 / n), (middle + reach) / (1 + z**2 / n)
