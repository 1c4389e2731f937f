"""The generated corpus, in which every token's concepts are known.

A document is 64 tokens: `<doc>`, then segments of randomly chosen registers, cut at the end.
Document `index` of `seed` is always the same, so a corpus is a pair of numbers and needs no disk.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from saelearn.corpus.grammar import Bag, Writer
from saelearn.corpus.registers import REGISTERS
from saelearn.errors import Refusal, check_tensor, checked, whole

LENGTH = 64  # tokens in a document, `<doc>` included
BOS = "<doc>"
UNKNOWN = "<unk>"
TRAIN, HELD_OUT = 0, 1  # seeds: what the model was trained on, and what it has never seen

Register = Callable[[Writer], None]
MIX = Bag(REGISTERS)


@dataclass(frozen=True)
class Document:
    """One document, all lists of one length.

    tokens: words; concepts: names that hold at each token; nats: the surprise of each token to
    somebody who knows the grammar and what came before (0 at `<doc>`).
    """

    tokens: list[str]
    concepts: list[tuple[str, ...]]
    nats: list[float]

    @property
    def text(self) -> str:
        return " ".join(self.tokens)


@checked(index=whole(0), seed=whole(0), length=whole(1))
def document(
    index: int, *, seed: int = TRAIN, length: int = LENGTH, mix: Bag[Register] = MIX
) -> Document:
    """Document number `index` of the corpus `seed`; `mix` is what its registers are drawn from."""
    writer = Writer(random.Random(f"{seed}/{index}"))
    writer.say(BOS)
    while len(writer.tokens) < length:
        register = writer.pick(mix)
        with writer.within(f"register:{register.__name__}"):
            register(writer)
    return Document(writer.tokens[:length], writer.concepts[:length], writer.nats[:length])


@checked(n=whole(0), seed=whole(0), start=whole(0))
def documents(
    n: int, *, seed: int = TRAIN, start: int = 0, mix: Bag[Register] = MIX
) -> Iterator[Document]:
    """Documents `start` to `start + n` of the corpus `seed`, one after another."""
    return (document(i, seed=seed, mix=mix) for i in range(start, start + n))


def encode(docs: Sequence[Document] | Iterator[Document], vocabulary: dict[str, int]) -> Tensor:
    """Token ids `tokens_NT` (int64) of documents, by a vocabulary word -> id.

    Raises:
        Refusal: a word is not in the vocabulary.
    """
    try:
        return torch.tensor([[vocabulary[word] for word in doc.tokens] for doc in docs])
    except KeyError as error:
        raise Refusal(
            "documents written with words of the vocabulary",
            f"the word {error}",
            "use the tokenizer that was built for this corpus, or rebuild it: `saelearn data`",
        ) from None


@checked(n=whole(1))
def vocabulary(n: int = 20_000) -> list[str]:
    """Every word of the corpus, frequent ones first, with `<doc>` and `<unk>` at 0 and 1."""
    counts = Counter(word for doc in documents(n) for word in doc.tokens if word != BOS)
    return [BOS, UNKNOWN, *(w for w, _ in sorted(counts.items(), key=lambda c: (-c[1], c[0])))]


@checked(n=whole(1), minimum=whole(1))
@lru_cache(maxsize=2)
def concept_names(n: int = 4_000, minimum: int = 50) -> tuple[str, ...]:
    """Concepts that hold at `minimum` or more tokens of `n` documents, in alphabetical order.

    A concept that holds at one word, whenever it stands there and nowhere else, is left out: to
    find it, reading the word is enough, and it would say nothing about a model.
    """
    words, counts, places = Counter(), Counter(), defaultdict(Counter)
    for doc in documents(n):
        words.update(doc.tokens)
        for word, names in zip(doc.tokens, doc.concepts, strict=True):
            for name in set(names):
                counts[name] += 1
                places[name][word] += 1
    return tuple(
        sorted(
            name
            for name, count in counts.items()
            if count >= minimum
            and (len(places[name]) > 1 or words[next(iter(places[name]))] > count)
        )
    )


def labels(docs: Sequence[Document], names: Sequence[str]) -> Tensor:
    """Which concepts hold where: `labels_NTC`, bool, one column for each of `names`."""
    column = {name: i for i, name in enumerate(names)}
    out = np.zeros((len(docs), len(docs[0].tokens), len(names)), dtype=bool)
    for n, doc in enumerate(docs):
        for t, held in enumerate(doc.concepts):
            out[n, t, [column[name] for name in held if name in column]] = True
    return torch.from_numpy(out)


@checked(n=whole(1), seed=whole(0))
def entropy_bound(n: int = 20_000, *, seed: int = HELD_OUT) -> float:
    """Nats per predicted token of somebody who knows the grammar: no model does better on average.

    The mean surprise over tokens 1 to 63 of `n` documents (`<doc>` is given, not predicted). It
    is exact where every choice shows in the text; choices cut off at a document's end make it
    too high by less than the choice that is pending there.
    """
    nats = np.array([doc.nats[1:] for doc in documents(n, seed=seed)])
    return float(nats.mean())


@checked(n_words=whole(1))
def fourgrams(tokens_NT: Tensor, n_words: int) -> Tensor:
    """Each run of four tokens as one number `[N, T - 3]`, int64, base `n_words`."""
    code_NT = tokens_NT[:, :-3]
    for shift in (1, 2, 3):
        end = tokens_NT.shape[1] - 3 + shift
        code_NT = code_NT * n_words + tokens_NT[:, shift:end]
    return code_NT


@checked(n_words=whole(1))
def validity(tokens_NT: Tensor, known: Tensor, n_words: int) -> float:
    """Share of the 4-grams of `tokens_NT` that occur in the corpus (`known`, sorted, int64)."""
    check_tensor(known, "known", "K")
    codes = fourgrams(tokens_NT, n_words).flatten()
    at = torch.searchsorted(known, codes).clamp(max=len(known) - 1)
    return float((known[at] == codes).double().mean())
