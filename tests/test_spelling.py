"""Words are spelt rightly, and none stands twice, wherever a learner reads.

The dictionary is pyspellchecker's list of American English. What it lacks (British forms, terms,
names) stands in tests/data/words.txt, one word a line: names and acronyms as they are written, all
else in small letters. A new word that is right is added there.
"""

from __future__ import annotations

import ast
import functools
import io
import json
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from notebook_rules import is_prose, source
from spellchecker import SpellChecker

ROOT = Path(__file__).resolve().parent.parent
WORDS = ROOT / "tests" / "data" / "words.txt"
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [
    page
    for room in (".", "notebooks", "data", "benchmarks")
    for page in sorted((ROOT / room).glob("*.md"))
]
ANSWERING = [  # what checks, figures and widgets say
    module
    for room in ("exercises", "plots", "widgets")
    for module in sorted((ROOT / "saelearn" / room).glob("*.py"))
]
NO_PROSE = (
    r"(?s)```.*?```|\$\$.*?\$\$"  # blocks of code and of mathematics
    r"|`[^`\n]*`|\$[^$\n]*\$"  # the same within a line
    r"|(?<=\])\([^)]*\)|https?://\S+|<[a-z/!][^<>\n]*>?"  # where links lead; HTML
)
WORD = re.compile(r"(?<![\w@/\\={}.#])[^\W\d_]+(?:['’][^\W\d_]+)*(?![\w@/\\={}(])")  # not f(x), a.b
TWICE = re.compile(r"(?<![\w'’-])([^\W\d_]{2,}|a)\s+\1(?![\w'’-])", re.IGNORECASE)  # W W may be
MAY_STAND_TWICE = {"golden golden"}  # what a steered model stammers


@functools.cache
def dictionary() -> SpellChecker:
    return SpellChecker(language="en")


@functools.cache
def listed() -> frozenset[str]:
    return frozenset(WORDS.read_text("utf-8").split())


def is_known(word: str) -> bool:
    """Whether the dictionary or the list has it, with its 's or without.

    Single letters, and words of other alphabets, are nobody's business.
    """
    if len(word) == 1 or not word.isascii():
        return True
    stem = re.sub(r"['’]s$", "", word)
    in_english = any(form in dictionary().word_frequency for form in (word.lower(), stem.lower()))
    return in_english or stem in listed() or stem.lower() in listed()


def misspelt(text: str) -> list[str]:
    """The words of a text (Markdown, or plain) that nobody knows."""
    return sorted({word for word in WORD.findall(blank(text)) if not is_known(word)})


def doubled(text: str) -> list[str]:
    """Words that stand twice in a row, also over the end of a line."""
    pairs = {" ".join(pair[0].split()) for pair in TWICE.finditer(blank(text))}
    return sorted(pair for pair in pairs if pair.lower() not in MAY_STAND_TWICE)


def blank(text: str) -> str:
    return re.sub(NO_PROSE, " · ", text)


def texts_in_lesson(notebook: dict) -> Iterator[tuple[str, str]]:
    """Where and what: prose, alt texts, and what the code says to a reader."""
    for cell in notebook["cells"]:
        if is_prose(cell):
            yield cell["id"], source(cell)
        else:
            yield f"{cell['id']}, alt text", str(cell["metadata"].get("alt", ""))
            lines = source(cell).splitlines()
            code = "\n".join("pass" if line.startswith(("%", "!")) else line for line in lines)
            for text in [*strings_in(code), *comments_in(code)]:
                yield cell["id"], text


def strings_in(code: str) -> Iterator[str]:
    """Strings of more than one word, docstrings among them."""
    for node in ast.walk(ast.parse(code)):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and " " in text.strip():
            yield text


def comments_in(code: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def complaints(texts: Iterable[tuple[str, str]]) -> list[str]:
    """Each misspelling and each doubled word, with its place and what may have been meant."""
    found = []
    for where, text in texts:
        for word in misspelt(text):
            near = sorted(dictionary().known(dictionary().edit_distance_1(word.lower())))[:5]
            found.append(f"{where}: {word} ({', '.join(near) or 'no idea'}?)")
        found += [f"{where}: {pair} (twice)" for pair in doubled(text)]
    return found


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_is_spelt_rightly(lesson):
    assert complaints(texts_in_lesson(json.loads(lesson.read_text("utf-8")))) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_is_spelt_rightly(page):
    assert complaints([("text", page.read_text("utf-8"))]) == []


def test_what_the_library_says_to_a_learner_is_spelt_rightly():
    assert ANSWERING
    for module in ANSWERING:
        code = module.read_text("utf-8")
        assert complaints((module.name, text) for text in strings_in(code)) == []


def test_the_list_is_sorted_and_holds_only_what_the_dictionary_lacks():
    words = WORDS.read_text("utf-8").split()
    assert words == sorted(set(words), key=lambda word: (word.lower(), word))
    assert [word for word in words if word.lower() in dictionary().word_frequency] == []


PLANTED = {
    "recieve", "seperate", "superpostion", "activaton", "reconstuction", "neigbour", "teh",
    "dictionery", "polysemntic", "Brikcen", "autoencodr",
}  # fmt: skip


@pytest.mark.parametrize("wrong", sorted(PLANTED))
def test_a_planted_misspelling_is_found(wrong):
    assert misspelt(f"A {wrong} is here.") == [wrong]
    assert misspelt(f"*{wrong}*, ({wrong}), [{wrong}](a.md), **{wrong}'s** and {wrong}-free") != []


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("the the end", ["the the"]),
        ("at the end\n  the END end", ["END end"]),
        ("This this is it", ["This this"]),
        ("that is, is it? of a a kind, W W", ["a a"]),
        ("a model that stammers golden golden golden", []),
        ("step-by-step, one-to-one one's own own-goal", []),
        ("| 0 | 0 | in `in` $n$ n |", []),
    ],
)
def test_a_doubled_word_is_found(text, pairs):
    assert doubled(text) == pairs


def test_code_mathematics_and_addresses_are_no_prose():
    text = "`recieve` $seperate$ [here](teh.md) <teh> https://teh.org/recieve x_recieve y=recieve"
    assert misspelt(f"{text}\n```python\nrecieve\n```\n$$\nseperate\n$$\nrecieve(x)") == []


def test_what_is_planted_in_a_lesson_is_found_wherever_a_learner_reads():
    wrong = "a seperate superpostion of the the parts"
    code = f'import torch\n%matplotlib inline\nx = "{wrong}"  # {wrong}\nprint(f"{wrong} {{x}}")'
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": wrong},
        {"cell_type": "code", "id": "b", "metadata": {"alt": wrong}, "source": code},
    ]
    found = complaints(texts_in_lesson({"cells": cells}))
    assert found.count("a: seperate (separate?)") == 1
    assert found.count("b, alt text: the the (twice)") == 1
    assert sum(line.startswith("b: superpostion") for line in found) == 3


def test_no_spelling_is_known_by_mistake():
    """The list must not let through what it was not made for."""
    assert not is_known("bricken"), "a name without its capital"
    assert is_known("Bricken") and is_known("Bricken's") and is_known("Colour")
