"""A writer that remembers, for every token, what it means and how surprising it was.

The registers of the corpus are written with it. A random choice adds its -log p (in nats) to the
token that reveals it, so that the sum over a document is the surprise of the whole document:
the bound that no language model can beat on average (Shannon, 1948).
"""

from __future__ import annotations

import contextlib
import math
import random
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Generic, TypeVar

Option = TypeVar("Option")


@dataclass(frozen=True)
class Term:
    """Something with a name: its words, the kind of thing it is, and the concepts it carries."""

    words: tuple[str, ...]
    kind: str
    concepts: tuple[str, ...]
    traits: Mapping[str, object] = field(default_factory=dict, hash=False, compare=False)


class Bag(Generic[Option]):
    """Options with probabilities.

    Args:
        weights: option -> weight, or a sequence, which gets Zipf's law: the weight of the
            option at rank r is 1 / r (Zipf, 1949).
    """

    def __init__(self, weights: Mapping[Option, float] | Sequence[Option]):
        if not isinstance(weights, Mapping):
            weights = {option: 1 / rank for rank, option in enumerate(weights, start=1)}
        total = sum(weights.values())
        self.options = tuple(weights)
        self.nats = tuple(-math.log(w / total) for w in weights.values())
        self._cumulative = tuple(accumulate(w / total for w in weights.values()))

    def weights(self, total: float = 1.0) -> dict[Option, float]:
        """Option -> weight, the weights adding up to `total`."""
        return {o: total * math.exp(-n) for o, n in zip(self.options, self.nats, strict=True)}

    def draw(self, rng: random.Random) -> tuple[Option, float]:
        """An option and its surprise in nats."""
        index = min(bisect(self._cumulative, rng.random()), len(self.options) - 1)
        return self.options[index], self.nats[index]


class Writer:
    """Collects the tokens of one document with their concepts and their surprise.

    `tokens[t]` is a string, `concepts[t]` a tuple of names, `nats[t]` the surprise of the choices
    that token t reveals, given all that was chosen before.
    """

    def __init__(self, rng: random.Random):
        self.tokens: list[str] = []
        self.concepts: list[tuple[str, ...]] = []
        self.nats: list[float] = []
        self._rng = rng
        self._pending = 0.0
        self._scope: tuple[str, ...] = ()

    def pick(self, bag: Bag[Option]) -> Option:
        """Choose from the bag; the next token that is said reveals the choice."""
        option, nats = bag.draw(self._rng)
        self._pending += nats
        return option

    def flip(self, probability: float) -> bool:
        """True with the given probability; the next token reveals it."""
        yes = self._rng.random() < probability
        self._pending -= math.log(probability if yes else 1 - probability)
        return yes

    def say(
        self, *parts: str | Term | Bag, also: tuple[str, ...] = (), knowing: str | None = None
    ) -> None:
        """Write words (a string is split at spaces), terms, and one pick from each bag.

        `also` are concepts of every word written; `knowing` is one that the token before needs.

        The token before a term gets the concept `expects:<kind>`: that is where a model has to
        know what kind of thing comes next.
        """
        if knowing:
            self.recall(knowing)
        for part in parts:
            part = self.pick(part) if isinstance(part, Bag) else part
            if isinstance(part, Term):
                if self.concepts:
                    self.concepts[-1] += (f"expects:{part.kind}",)
                self._write(part.words, part.concepts + also)
            else:
                self._write(part.split(), also)

    @contextlib.contextmanager
    def within(self, *concepts: str) -> Iterator[None]:
        """Give every token written inside the block these concepts too."""
        outer = self._scope
        self._scope += concepts
        yield
        self._scope = outer

    def recall(self, *concepts: str) -> None:
        """Give the last token these concepts: to write what follows, one has to know them."""
        self.concepts[-1] += concepts

    def begin(self, *concepts: str) -> None:
        """Add concepts from the next token to the end of the enclosing `within` block."""
        self._scope += concepts

    def _write(self, words: Sequence[str], concepts: tuple[str, ...]) -> None:
        for word in words:
            self.tokens.append(word)
            self.concepts.append(self._scope + concepts)
            self.nats.append(self._pending)
            self._pending = 0.0
