"""The glossary: its links lead to lessons, and each lesson really has the term."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from notebook_rules import broken_links_in, is_prose, source

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
PAGE = NOTEBOOKS / "glossary.md"
ENTRY = re.compile(
    r"- \*\*(?P<term>[^*]+)\*\*: (?P<says>.+) \(\[(?P<number>\d\d)\]\((?P<link>\S+)\)\)\."
)


def entries() -> list[dict[str, str]]:
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("-")]
    return [match.groupdict() if (match := ENTRY.fullmatch(line)) else {} for line in lines]


def prose(lesson: Path) -> str:
    cells = json.loads(lesson.read_text("utf-8"))["cells"]
    return " ".join(" ".join(source(cell) for cell in cells if is_prose(cell)).split())


def occurs(term: str, text: str) -> bool:
    """Whether a lesson has the term as a word, whatever its ending or its capitals."""
    return re.search(rf"(?<!\w){re.escape(stem(term))}", text, re.IGNORECASE) is not None


def stem(term: str) -> str:
    return re.sub(r"(ing|e)$", "", term) if " " not in term else term


def test_every_line_is_a_term_a_sentence_and_a_lesson():
    found = entries()
    assert len(found) > 50
    assert all(found), "a line that is not `- **term**: one sentence ([NN](NN_topic.ipynb)).`"
    for entry in found:
        assert entry["link"].startswith(f"{entry['number']}_"), entry
        assert ". " not in entry["says"].replace("et al. ", ""), f"one sentence: {entry}"


def test_the_order_is_the_alphabets_and_no_term_stands_twice():
    terms = [entry["term"].casefold() for entry in entries()]
    assert terms == sorted(set(terms))


def test_every_link_leads_somewhere():
    assert broken_links_in(PAGE.read_text("utf-8"), NOTEBOOKS) == []


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.get("term"))
def test_its_lesson_has_the_term(entry):
    lesson = NOTEBOOKS / entry["link"]
    assert occurs(entry["term"], prose(lesson)), f"{lesson.name} never says {entry['term']!r}"


def test_a_term_that_is_not_there_is_missed():
    text = prose(NOTEBOOKS / "09_steering.ipynb")
    assert occurs("clamp", text)
    assert not occurs("amortisation gap", text)
    assert not occurs("lamp", text), "the inside of a word is no word"
