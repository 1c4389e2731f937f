"""The corpus: the same every time, its labels where they belong, its entropy by counting."""

from __future__ import annotations

import collections
import itertools
import math
import random

import pytest
import torch

from saelearn import artifacts, corpus
from saelearn.corpus.grammar import Bag, Term, Writer
from saelearn.corpus.registers import REGISTERS
from saelearn.errors import Refusal

REGISTERS_BY_NAME = {register.__name__: register for register in REGISTERS}


class Recorder(Writer):
    """A writer that remembers what was chosen."""

    def __init__(self, rng: random.Random):
        super().__init__(rng)
        self.choices: list[object] = []

    def pick(self, bag: Bag) -> object:
        self.choices.append(option := super().pick(bag))
        return option

    def flip(self, probability: float) -> bool:
        self.choices.append(yes := super().flip(probability))
        return yes


def segments(register: object, n: int, seed: int = 0) -> list[Recorder]:
    found = []
    for i in range(n):
        writer = Recorder(random.Random(f"{seed}/{i}"))
        register(writer)
        found.append(writer)
    return found


@pytest.fixture(scope="module")
def docs() -> list[corpus.Document]:
    return list(corpus.documents(1_500, seed=corpus.HELD_OUT))


# --- the writer -----------------------------------------------------------------------------------


def test_a_bags_draws_have_its_probabilities() -> None:
    bag = Bag({"a": 6.0, "b": 3.0, "c": 1.0})
    rng = random.Random(0)
    drawn = [bag.draw(rng) for _ in range(20_000)]
    for option, p in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        share = sum(o == option for o, _ in drawn) / len(drawn)
        assert share == pytest.approx(p, abs=0.015)
        assert all(n == pytest.approx(-math.log(p)) for n in {n for o, n in drawn if o == option})
    zipf = Bag(["x", "y", "z"])
    assert [math.exp(-n) for n in zipf.nats] == pytest.approx([6 / 11, 3 / 11, 2 / 11])


def test_surprise_falls_on_the_token_that_reveals_it() -> None:
    writer = Writer(random.Random(0))
    writer.say("a b")
    writer.flip(0.25)
    writer.pick(Bag({"x": 1.0}))
    writer.say("c d")
    assert writer.nats[0] == writer.nats[1] == writer.nats[3] == 0
    assert writer.nats[2] in (pytest.approx(math.log(4)), pytest.approx(math.log(4 / 3)))


def test_concepts_hold_where_they_were_given() -> None:
    writer = Writer(random.Random(0))
    with writer.within("outer"):
        writer.say("one")
        with writer.within("inner"):
            writer.say("two", also=("extra",))
            writer.begin("rest")
            writer.say(Term(("big", "cat"), "animal", ("animal:cat",)))
        writer.say("end")
    writer.say("after")
    assert [set(names) for names in writer.concepts] == [
        {"outer"},
        {"outer", "inner", "extra", "expects:animal"},
        {"outer", "inner", "rest", "animal:cat"},
        {"outer", "inner", "rest", "animal:cat"},
        {"outer"},
        set(),
    ]


# --- the bound ------------------------------------------------------------------------------------


def test_the_surprise_is_the_entropy_by_counting() -> None:
    """A register of 24 texts: entropy of their counted frequencies against the mean of nats."""

    def small(w: Writer) -> None:
        who = w.pick(Bag(["dog", "cat", "cow"]))
        w.say("the", who, "is")
        w.say("not" if w.flip(0.3) else "so")
        w.say(w.pick(Bag(["big", "red"])), "." if w.flip(0.8) else "!")

    found = segments(small, 40_000)
    counts = collections.Counter(" ".join(w.tokens) for w in found)
    assert len(counts) == 24
    entropy = -sum(c / 40_000 * math.log(c / 40_000) for c in counts.values())
    assert sum(sum(w.nats) for w in found) / 40_000 == pytest.approx(entropy, rel=0.005)
    for writer in found[:200]:
        share = counts[" ".join(writer.tokens)] / 40_000
        assert math.exp(-sum(writer.nats)) == pytest.approx(share, abs=0.012)


@pytest.mark.parametrize("register", REGISTERS, ids=lambda r: r.__name__)
def test_every_choice_can_be_read_off_the_text(register: object) -> None:
    """One text, one sequence of choices: else the sum of nats is not the text's surprise."""
    known: dict[tuple[str, ...], list[object]] = {}
    for writer in segments(register, 3_000):
        choices = known.setdefault(tuple(writer.tokens), writer.choices)
        assert choices == writer.choices, " ".join(writer.tokens)
        assert writer._pending == 0  # nothing was chosen and never told
    texts = sorted(known)
    for shorter, longer in itertools.pairwise(texts):
        assert longer[: len(shorter)] != shorter, " ".join(longer)  # and its end can be seen


@pytest.mark.parametrize("register", REGISTERS, ids=lambda r: r.__name__)
def test_texts_are_as_frequent_as_their_surprise_says(register: object) -> None:
    """The probability of each of the common beginnings, counted and computed."""
    found = segments(register, 6_000, seed=1)
    beginnings = collections.defaultdict(list)
    for writer in found:
        beginnings[" ".join(writer.tokens)].append(math.exp(-sum(writer.nats)))
    for computed in beginnings.values():
        assert max(computed) == pytest.approx(min(computed))
        error = math.sqrt(computed[0] * (1 - computed[0]) / 6_000)
        assert abs(len(computed) / 6_000 - computed[0]) < 6 * error + 3 / 6_000


def test_registers_cannot_be_confused() -> None:
    """No text begins in two registers' ways."""
    first = {r: {w.tokens[0] for w in segments(r, 500)} for r in REGISTERS}
    for a, b in ((a, b) for a in first for b in first if a is not b):
        assert not first[a] & first[b], (a.__name__, b.__name__, first[a] & first[b])


def test_the_bound_is_the_mean_of_what_is_predicted(docs: list[corpus.Document]) -> None:
    bound = corpus.entropy_bound(1_500)
    assert bound == pytest.approx(sum(sum(d.nats) for d in docs) / (1_500 * 63))
    assert all(d.nats[0] == 0 for d in docs)
    assert 0.3 < bound < 1.5


# --- documents ------------------------------------------------------------------------------------


def test_documents_are_the_same_every_time_and_seeds_differ() -> None:
    first = [corpus.document(i) for i in range(20)]
    random.seed(123)
    assert first == list(corpus.documents(20))
    assert first[7:12] == list(corpus.documents(5, start=7))
    other = [corpus.document(i, seed=corpus.HELD_OUT) for i in range(20)]
    assert not {d.text for d in first} & {d.text for d in other}
    assert len({d.text for d in first}) == 20


def test_documents_have_one_length_and_one_beginning(docs: list[corpus.Document]) -> None:
    for doc in docs:
        assert len(doc.tokens) == len(doc.concepts) == len(doc.nats) == corpus.LENGTH
        assert doc.tokens[0] == corpus.BOS and corpus.BOS not in doc.tokens[1:]


def test_every_register_contributes_its_share(docs: list[corpus.Document]) -> None:
    """Segments are drawn by weight; a register's first token counts them."""
    begun = collections.Counter()
    for doc in docs:
        names = [[c for c in held if c.startswith("register:")] for held in doc.concepts]
        assert names[0] == [] and all(len(n) == 1 for n in names[1:])
        begun[names[1][0]] += 1  # the first segment is never cut short
    total = sum(REGISTERS.values())
    for register, weight in REGISTERS.items():
        share = begun[f"register:{register.__name__}"] / len(docs)
        assert share == pytest.approx(weight / total, abs=0.045)
        assert share > 0


# --- labels ---------------------------------------------------------------------------------------


def test_labels_stand_at_their_tokens(docs: list[corpus.Document]) -> None:
    names = corpus.concept_names(300, 10)
    table = corpus.labels(docs[:50], names)
    assert table.shape == (50, corpus.LENGTH, len(names)) and table.dtype == torch.bool
    for n in (0, 13, 49):
        for t in range(corpus.LENGTH):
            held = {name for name, yes in zip(names, table[n, t].tolist(), strict=True) if yes}
            assert held == set(docs[n].concepts[t]) & set(names)


def test_concept_names_are_frequent_sorted_and_no_single_word() -> None:
    names = corpus.concept_names(300, 10)
    assert list(names) == sorted(set(names))
    holds, words = collections.defaultdict(list), collections.Counter()
    for doc in corpus.documents(300):
        words.update(doc.tokens)
        for word, held in zip(doc.tokens, doc.concepts, strict=True):
            for name in set(held):
                holds[name].append(word)
    one_word = {n for n, at in holds.items() if len(set(at)) == 1 and len(at) == words[at[0]]}
    assert set(names) == {n for n, at in holds.items() if len(at) >= 10} - one_word
    assert "object:ball" in one_word and "animal:poodle" in names


def test_words_carry_their_concepts(docs: list[corpus.Document]) -> None:
    """A golden retriever is one at both its words, in English and in Korean, and nowhere else."""
    seen = collections.Counter()
    for doc in docs:
        for word, held in zip(doc.tokens, doc.concepts, strict=True):
            is_one = "animal:golden_retriever" in held
            assert is_one == (word in {"golden", "retriever", "골든", "리트리버"})
            assert not is_one or "class:dog" in held
            seen[word] += is_one
    assert min(seen[w] for w in ("golden", "retriever", "골든", "리트리버")) > 0


def test_what_is_expected_comes_next(docs: list[corpus.Document]) -> None:
    """At `expects:<kind>` the next token is of that kind; that is how a concept predicts."""
    seen = collections.Counter()
    for doc in docs:
        for held, following in itertools.pairwise(doc.concepts):
            for name in held:
                if name.startswith("expects:"):
                    kind = name.removeprefix("expects:")
                    assert any(c.startswith(f"{kind}:") for c in following), (name, following)
                    seen[kind] += 1
    assert len(seen) > 5


def test_concepts_that_say_what_follows_are_right(docs: list[corpus.Document]) -> None:
    """`result:12` holds where 12 comes next: the label stands where it predicts."""
    seen = 0
    for doc in docs:
        for t in range(corpus.LENGTH - 1):
            for name in doc.concepts[t]:
                if name.startswith("result:"):
                    assert doc.tokens[t + 1] == name.removeprefix("result:")
                    seen += 1
    assert seen > 50


# --- tokens and validity --------------------------------------------------------------------------


def test_encoding_goes_there_and_back(docs: list[corpus.Document]) -> None:
    words = corpus.vocabulary(400)
    assert words[:2] == [corpus.BOS, corpus.UNKNOWN] and len(set(words)) == len(words)
    ids = {word: i for i, word in enumerate(words)}
    some = list(corpus.documents(30))
    tokens = corpus.encode(some, ids)
    assert tokens.shape == (30, corpus.LENGTH) and tokens.dtype == torch.int64
    assert [words[i] for i in tokens[11].tolist()] == some[11].tokens
    del ids[some[0].tokens[5]]
    with pytest.raises(Refusal, match=some[0].tokens[5]):
        corpus.encode(some, ids)


def test_held_out_text_is_valid_and_shuffled_text_is_not(docs: list[corpus.Document]) -> None:
    words = corpus.vocabulary(4_000)
    ids = {word: i for i, word in enumerate(words)}
    tokens = corpus.encode(corpus.documents(4_000), ids)
    known = corpus.fourgrams(tokens, len(words)).flatten().unique()
    held_out = corpus.encode(docs, ids)
    assert corpus.validity(tokens, known, len(words)) == 1
    assert corpus.validity(held_out, known, len(words)) > 0.85
    order = torch.randperm(corpus.LENGTH, generator=torch.Generator().manual_seed(0))
    assert corpus.validity(held_out[:, order], known, len(words)) < 0.05


def test_validity_by_sets_of_tuples() -> None:
    generator = torch.Generator().manual_seed(0)
    corpus_NT, text_NT = (torch.randint(3, (n, 9), generator=generator) for n in (8, 5))

    def grams(tokens: torch.Tensor) -> list[tuple[int, ...]]:
        return [tuple(row[t : t + 4]) for row in tokens.tolist() for t in range(6)]

    allowed = set(grams(corpus_NT))
    expected = sum(gram in allowed for gram in grams(text_NT)) / 30
    known = corpus.fourgrams(corpus_NT, 3).flatten().unique()
    assert 0 < expected < 1
    assert corpus.validity(text_NT, known, 3) == pytest.approx(expected)


# --- registers of one's own, and the world's design -----------------------------------------------


def test_the_guides_register_can_be_added() -> None:
    """The example of data/README.md runs, is short, and keeps the rules of the others."""
    guide = (artifacts.data_dir() / "README.md").read_text("utf-8")
    code = guide.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    assert code.count("\n") <= 22
    shipping, docs = names["shipping"], names["docs"]
    assert any("ship" in doc.tokens for doc in docs)
    held = {name for doc in docs for concepts in doc.concepts for name in concepts}
    assert {"register:shipping", "port:Oslo", "bound_for:Oslo", "expects:port"} <= held
    test_every_choice_can_be_read_off_the_text(shipping)
    test_texts_are_as_frequent_as_their_surprise_says(shipping)
    assert "ship" not in {doc.tokens[1] for doc in corpus.documents(500)}
    assert list(corpus.documents(3)) == list(corpus.documents(3, mix=Bag(REGISTERS)))


def test_a_thing_has_one_concept_in_two_languages(docs: list[corpus.Document]) -> None:
    """Korean nouns stand in English stories, with the concept of the English word."""
    mixed = [
        (word, held)
        for doc in docs
        for word, held in zip(doc.tokens, doc.concepts, strict=True)
        if "register:story" in held and word in ("푸들", "금문교")
    ]
    assert {word for word, _ in mixed} == {"푸들", "금문교"}
    for word, held in mixed:
        assert ("animal:poodle" if word == "푸들" else "place:Golden_Gate_Bridge") in held


def test_translations_say_the_same_twice() -> None:
    for writer in segments(REGISTERS_BY_NAME["translation"], 300):
        held = [[c for c in names if c.startswith("animal:")] for names in writer.concepts]
        animals = [key for key, _ in itertools.groupby(c for names in held for c in names)]
        assert len(set(animals)) == 1


def test_verdicts_are_right_and_typed_speakers_keep_their_type() -> None:
    lies = collections.Counter()
    for writer in segments(REGISTERS_BY_NAME["statement"], 4_000):
        words = writer.tokens
        colours = [word for word in words if word in ("red", "green", "blue")]
        fact, claim, recalled = colours
        assert fact == recalled and words[-2] == ("(true)" if claim == fact else "(false)")
        speaker = next((w for w in words if w in ("honest", "liar")), "unknown")
        lies[speaker, claim != fact] += 1
    assert lies["honest", True] == lies["liar", False] == 0
    unknown = lies["unknown", True] + lies["unknown", False]
    assert lies["unknown", True] / unknown == pytest.approx(0.4, abs=0.04)
    assert unknown / 4_000 == pytest.approx(0.5, abs=0.04)


def test_names_decide_the_pronoun_and_professions_lean() -> None:
    she = collections.defaultdict(list)
    for writer in segments(REGISTERS_BY_NAME["profession"], 6_000):
        words = writer.tokens
        she[words[words.index("said") - 1]].append(words[words.index("that") + 1] == "she")
    assert all(she["Anna"]) and not any(she["Ben"])
    assert sum(she["nurse"]) / len(she["nurse"]) == pytest.approx(0.95, abs=0.04)
    assert sum(she["engineer"]) / len(she["engineer"]) == pytest.approx(0.1, abs=0.06)
