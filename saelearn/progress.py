"""What a learner has solved, kept beside the lessons: no account and no network.

A check that passes adds a line to the file `.solved` in the folder where the learner works. That
is one to which lessons were copied for a learner, or a class's; in any other nothing is written.
Lines are only added, in one go each, so that several lessons may be open at once.
"""

from __future__ import annotations

import datetime
import os
import re
from dataclasses import dataclass
from pathlib import Path

FILE = ".solved"
SIGNS = (".lessons.json", "START_HERE.md")
"""What lies in a learner's folder: what `saelearn lab` remembers, or the cover of a class's."""
LINE = re.compile(r"(\d\d) (\w+) (\d+) \d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class Solved:
    """How far a learner is in one lesson.

    Attributes:
        checks: names of those that passed.
        n: how many the lesson has.
    """

    checks: frozenset[str]
    n: int

    @property
    def done(self) -> bool:
        return len(self.checks) >= self.n

    def __str__(self) -> str:
        return f"{len(self.checks)} of {self.n} solved"


def keep(lesson: str, check: str, n: int, folder: Path | None = None) -> Solved | None:
    """Remember that a check passed; how far the lesson is now, or None outside of such a folder.

    Args:
        lesson: its number, such as `04`.
        check: its name.
        n: how many checks the lesson has.
        folder: the learner's (default: where Python works).
    """
    try:
        folder = folder or Path.cwd()
        if not any((folder / sign).exists() for sign in SIGNS):
            return None
        before = of_folder(folder).get(lesson, Solved(frozenset(), n))
        if check not in before.checks:
            with (folder / FILE).open("a+b") as file:  # writes at the end, wherever it reads
                file.seek(-1 if (there := file.seek(0, os.SEEK_END)) else 0, os.SEEK_END)
                begin = "\n" if there and file.read(1) != b"\n" else ""  # after a broken line
                file.write(f"{begin}{lesson} {check} {n} {datetime.date.today()}\n".encode())
    except OSError:  # a folder that cannot be written, or was deleted: solving goes on
        return None
    return Solved(before.checks | {check}, n)


def of_folder(folder: Path | None = None) -> dict[str, Solved]:
    """How far a learner is, by the lessons' numbers; lines that cannot be read are passed over.

    Args:
        folder: the learner's (default: where Python works).
    """
    try:
        text = ((folder or Path.cwd()) / FILE).read_text("utf-8", errors="replace")
    except OSError:
        return {}
    found: dict[str, Solved] = {}
    for line in filter(None, map(LINE.fullmatch, text.splitlines())):
        lesson, check, n = line.groups()
        before = found[lesson].checks if lesson in found else frozenset()
        found[lesson] = Solved(before | {check}, int(n))
    return found
