"""Every answer of every lesson's cases, handed in as a notebook and graded as a class is: files
collected, checks restored, answers run in sandboxes, a gradebook written.
"""

from __future__ import annotations

import ast
import csv
import importlib
import os
from pathlib import Path

import every_lesson
import pytest
from test_no_lesson_is_left_out import NUMBERS

from saelearn import artifacts
from saelearn.course import grade, handout, points
from saelearn.course.answers import Mother
from saelearn.course.confine import Limits
from saelearn.course.points import Check

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="students' code runs on POSIX alone"),
]
LIMITS = Limits(cell=300, check=300, total=3_000)  # for a busy machine
KINDS = ("RIGHT", "WRONG")


def answered_by(check: Check, case: str) -> dict:
    """A cell of the student's own that answers a check as a case of the tests does."""
    number = check.module.removeprefix("lesson")
    lines = [
        f"import every_lesson, test_lesson{number} as cases",
        f"_answers = every_lesson.made(cases.{case}[1])",
    ]
    for i, argument in enumerate(check.arguments):
        if isinstance(ast.parse(argument).body[0].value, ast.Name | ast.Attribute | ast.Subscript):
            lines += [f"if {i} < len(_answers):", f"    {argument} = _answers[{i}]"]
    metadata = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    return {**metadata, "id": f"own-{check.function}", "source": "\n".join(lines)}


def class_of(released: dict, cases: object) -> dict[str, tuple[dict, dict[str, tuple]]]:
    """Students, their notebooks, and which case stands behind each check: all cases are given."""
    module, _ = points.checks_of(released)
    found = {}
    for kind in KINDS:
        given: dict[str, list[int]] = {}
        for i, case in enumerate(getattr(cases, kind)):
            given.setdefault(case[0].__name__, []).append(i)
        for turn in range(max(map(len, given.values()))):
            cells, behind = [], {}
            for cell in released["cells"]:
                check = points.check_in(cell, module) if points.is_check(cell) else None
                mine = given.get(check.function, []) if check else []
                if turn < len(mine):
                    behind[check.grade_id] = getattr(cases, kind)[mine[turn]]
                    cells.append(answered_by(check, f"{kind}[{mine[turn]}]"))
                cells.append(cell)
            found[f"{kind} {turn}"] = ({**released, "cells": cells}, behind)
    return found


def is_due(kind: str, case: tuple, row: dict[str, str]) -> bool:
    """Whether a line of the gradebook is what the case has to get."""
    full = float(row["earned"]) == float(row["points"])
    if kind == "RIGHT":
        return full
    if not every_lesson.is_graded(case[0]) and row["state"] in ("noted", "wrong"):
        return True  # its truth, which may be the upper limit of a guess, is not asked for
    said = case[2] in row["message"] or case[2].startswith("at: ")  # no source over there
    return row["state"] == "wrong" and said and not full


@pytest.mark.parametrize("number", NUMBERS)
def test_all_cases_as_notebooks(number, tmp_path):
    cases = importlib.import_module(f"test_lesson{number}")
    (lesson,) = handout.find([number])
    handout.release([number], tmp_path / "out")
    released = handout.read_release(tmp_path / "out.zip").lessons[lesson.stem]
    handed_in = class_of(released, cases)
    for student, (notebook, _) in handed_in.items():
        artifacts.write_json(tmp_path / "in" / student / lesson.name, notebook)
    with Mother([f"test_lesson{number}", "every_lesson"]) as mother:
        grade.grade(
            tmp_path / "in", tmp_path / "out.zip", tmp_path / "grades",
            limits=LIMITS, mother=mother,
        )  # fmt: skip
    rows = read(tmp_path / "grades" / "gradebook.csv")
    faults = [
        (student, name, rows[student, name])
        for student, (_, behind) in handed_in.items()
        for name, case in behind.items()
        if not is_due(student.split()[0], case, rows[student, name])
    ]
    assert faults == []
    tried = sum(len(behind) for _, behind in handed_in.values())
    assert tried == sum(len(getattr(cases, kind)) for kind in KINDS)


def read(book: Path) -> dict[tuple[str, str], dict[str, str]]:
    with book.open(newline="", encoding="utf-8") as file:
        return {(row["student"], row["check"]): row for row in csv.DictReader(file)}
