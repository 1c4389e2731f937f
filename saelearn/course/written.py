"""Questions that are answered in words: read by the teacher, counted with the rest.

In a lesson such a question is a heading, and after it a text cell with the rubric between the
markers of a solution:

    ### Question 4.9 ★★ (10 min): what the price buys

    ### BEGIN SOLUTION
    1 point: that ... 2 points: ... 1 point: ...
    ### END SOLUTION

Students get the cell without the rubric; for nbgrader it is one to be graded by hand. Grading
writes `written.csv`, a line for each answer; the teacher fills in `points` and `comment`, and the
next grading takes them over. A line belongs to one answer: if the student hands in another, it is
read anew.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import saelearn.course.points as of
from saelearn.course.marks import Graded, Mark
from saelearn.errors import Refusal

SHEET = "written.csv"
FIELDS = ("id", "student", "lesson", "question", "answer", "possible", "points", "comment")
LONGEST = 10_000  # characters of an answer


def marks_of(notebook: dict[str, Any] | None, released: dict[str, Any]) -> list[Mark]:
    """A mark without points for each question in words, with the answer as its message."""
    cells = notebook["cells"] if notebook else []
    given = {of.grade_id(cell): of.text(cell) for cell in cells}
    found, title = [], ""
    for cell in released["cells"]:
        title = of.question_in(cell) or title
        if of.is_written(cell):
            name, points = of.grade_id(cell), cell["metadata"]["nbgrader"]["points"]
            answer = given.get(name, of.text(cell)).strip()[:LONGEST]
            open_still = answer in ("", of.text(cell).strip())
            state, said = ("open", "not answered") if open_still else ("unread", answer)
            found.append(Mark(name, title, points, 0.0, state, said))
    return found


def rows_of(graded: Iterable[Graded]) -> dict[str, dict[str, Any]]:
    """A line of the sheet for each answer that there is, by its id."""
    return {
        _id(each, mark): {
            "id": _id(each, mark), "student": each.student, "lesson": each.lesson,
            "question": mark.title, "answer": mark.message, "possible": mark.points,
            "points": "", "comment": "",
        }
        for each in graded for mark in each.marks if _is_answer(mark)
    }  # fmt: skip


def read(path: Path) -> dict[str, dict[str, str]]:
    """What a teacher filled in, by the lines' ids; as spreadsheets of all countries write it."""
    if not path.exists():
        return {}
    text = path.read_bytes().decode("utf-8-sig", "replace")
    head = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=head.count))
    return {row["id"]: row for row in rows if row.get("id")}


def unread(sheet: dict[str, dict[str, str]]) -> int:
    """How many answers have no points yet."""
    return sum(not (row.get("points") or "").strip() for row in sheet.values())


def counted(graded: Iterable[Graded], sheet: dict[str, dict[str, str]]) -> list[Graded]:
    """The same with the points and comments of the sheet.

    Raises:
        Refusal: what stands under `points` is no number from 0 to what is possible.
    """
    return [
        replace(each, marks=[
            _counted(mark, sheet.get(_id(each, mark), {})) if _is_answer(mark) else mark
            for mark in each.marks
        ])
        for each in graded
    ]  # fmt: skip


def _counted(mark: Mark, row: dict[str, str]) -> Mark:
    given, comment = (row.get("points") or "").strip(), (row.get("comment") or "").strip()
    message = f"{mark.message}\n\n{comment}" if comment else mark.message
    if not given:
        return replace(mark, message=message)
    try:
        points = float(given.replace(",", "."))
    except ValueError:
        points = -1.0
    if not 0 <= points <= mark.points:
        raise Refusal(
            f"a number from 0 to {mark.points:g} for {row['student']}, {mark.title}",
            repr(given),
            f"mend the column `points` in {SHEET}",
        )
    return replace(mark, earned=points, state="noted", message=message)


def _is_answer(mark: Mark) -> bool:
    return mark.grade_id.startswith(of.WRITTEN) and mark.state != "open"


def _id(each: Graded, mark: Mark) -> str:
    text = "\n".join((each.student, each.lesson, mark.grade_id, mark.message))
    return "a" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:11]  # no number
