"""Answers that are alike: listed for a teacher to look at, without a verdict.

Two answers are alike if they are the same but for comments, layout and the names that their
authors chose. Short ones are left out, and so is what half of the class wrote, each in their own
words: there it is the natural way. Who is left may have worked together, asked the same machine,
or had the same idea.
"""

from __future__ import annotations

import hashlib
import keyword
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import saelearn.course.points as of
from saelearn.course.marks import Answer, Graded

SHORTEST = 40  # words and signs, without which two people often write the same
COMMON, FEW = 0.5, 3  # of those who answered: in more than that it is the natural way
TOKEN = re.compile(
    r'(?s:"""(?:\\.|[^\\])*?"""|\'\'\'(?:\\.|[^\\])*?\'\'\')|"(?:\\.|[^"\\\n])*"|'
    r"'(?:\\.|[^'\\\n])*'|#[^\n]*|[^\W\d]\w*|\d[\w.]*|\S"
)


@dataclass(frozen=True)
class Alike:
    """Students whose answers to one exercise are alike.

    Attributes:
        lesson, exercise: where.
        students: who, two or more.
        to_the_letter: whether comments, layout and names are the same as well.
        length: of the answer, in words and signs.
    """

    lesson: str
    exercise: str
    students: tuple[str, ...]
    to_the_letter: bool
    length: int


def answers_of(notebook: dict[str, Any] | None, released: dict[str, Any]) -> list[Answer]:
    """What has to be kept of a student's answers to find others that are alike.

    Args:
        notebook: what was handed in; None if nothing was.
        released: what was handed out.
    """
    module, _ = of.checks_of(released)
    given = {of.grade_id(cell): of.text(cell) for cell in notebook["cells"]} if notebook else {}
    found, latest = [], None
    for cell in released["cells"]:
        if of.is_answer(cell):
            latest = cell
        elif of.is_check(cell) and latest is not None:
            own, asked = given.get(of.grade_id(latest)), of.text(latest)
            if own is not None and own != asked:
                found.append(_answer(of.check_in(cell, module).title, own, asked))
            latest = None
    return found


def alike(graded: Iterable[Graded]) -> list[Alike]:
    """Groups of students whose answers are alike, the longest answers first."""
    by_exercise: dict[tuple[str, str], list[tuple[str, Answer]]] = {}
    for each in graded:
        for answer in each.answers:
            key = each.lesson, answer.exercise
            by_exercise.setdefault(key, []).append((each.student, answer))
    found = []
    for (lesson, exercise), answers in by_exercise.items():
        groups: dict[str, list[tuple[str, Answer]]] = {}
        for student, answer in answers:
            if answer.length >= SHORTEST:
                groups.setdefault(answer.shape, []).append((student, answer))
        for group in groups.values():
            same = len({answer.letters for _, answer in group}) == 1
            rare = len(group) <= max(FEW, COMMON * len(answers))
            if len(group) > 1 and (same or rare):
                students = tuple(student for student, _ in group)
                found.append(Alike(lesson, exercise, students, same, group[0][1].length))
    return sorted(found, key=lambda a: (-a.length, a.lesson, a.exercise, a.students))


def _answer(exercise: str, own: str, asked: str) -> Answer:
    handed_out = set(TOKEN.findall(asked))
    shape, numbers = [], {}
    tokens = [t for t in TOKEN.findall(own) if t[0] != "#" and t[:3] not in ('"""', "'''")]
    for before, token in zip(["", *tokens], tokens, strict=False):
        chosen = token.isidentifier() and not keyword.iskeyword(token)
        if chosen and before != "." and token not in handed_out:
            token = f"name {numbers.setdefault(token, len(numbers))}"
        shape.append(token)
    return Answer(exercise, _digest(own), _digest("\n".join(shape)), len(shape))


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode("utf-8", "replace")).hexdigest()[:16]
