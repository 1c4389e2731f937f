"""A lesson as it is handed out to a class: each check in a locked cell of its own, with points.

Nobody edits JSON for it. What stands in the lesson decides: the check calls at the end of its
cells (`check.tied(tied)`), the exercise that a check's title names, and the stars in that
exercise's heading. Cells are marked in nbgrader's way, so that its tools understand them as well:

- an answer is a cell with a solution in it; its `grade_id` is `answer-` and the cell's id;
- a check is one call, in a locked cell; its `grade_id` is `check-`, the lesson, and the function;
- an answer in words (see `written`) is a text cell with a solution in it: `written-` and the id.

All stay the same when exercises are added or moved.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from saelearn.course.versions import BEGIN, student_version
from saelearn.errors import Refusal

PER_STAR = 2  # points, so that half an exercise is a whole one
FOR_A_PREDICTION = 1  # for being answered: there is no wrong one
WRITTEN = "written-"  # how the names of cells begin that are answered in words
QUESTION = re.compile(r"(?m)^#+ Question (\d+\.\d+) (★+).*$")

Notebook = dict[str, Any]
Cell = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One call of a check in a lesson.

    Attributes:
        grade_id: stable name of its cell.
        module: where the function stands, such as `lesson04` of `saelearn.exercises`.
        function: its name.
        arguments: the source of each argument, to be evaluated where the answers are.
        title: what the exercise is called.
        points: what it is worth.
        prediction: whether it is answered with "noted", and never wrong.
    """

    grade_id: str
    module: str
    function: str
    arguments: tuple[str, ...]
    title: str
    points: float
    prediction: bool


def released(notebook: Notebook, name: str) -> Notebook:
    """The student version of a complete lesson, its checks split off, locked and worth points.

    Args:
        notebook: the lesson with its solutions.
        name: such as `04_first_sae`.

    Raises:
        Refusal: a check is called elsewhere than at the end of a cell.
    """
    answers = {cell["id"] for cell in notebook["cells"] if _has_solution(cell)}
    student = student_version(notebook)
    module, alias = checks_of(student)
    stars = dict(_stars(notebook))
    cells: list[Cell] = []
    question: re.Match | None = None
    for cell in student["cells"]:
        if cell["cell_type"] != "code":
            question = QUESTION.search(text(cell)) or question
            cells.append(_in_words(cell, question) if cell["id"] in answers else cell)
            continue
        body, calls = split(text(cell), alias)
        if body.strip():
            marks = _marks(f"answer-{cell['id']}", solution=True) if cell["id"] in answers else {}
            metadata = {**cell["metadata"], **marks}
            cells.append({**cell, "source": _lines(body), "metadata": metadata})
        for call in calls:
            marks = _marks(f"check-{name[:2]}-{call.func.attr}", grade=True)
            code = {"cell_type": "code", "execution_count": None, "outputs": []}
            source = _lines(ast.unparse(call))
            cells.append({**code, "id": f"{cell['id']}-{call.func.attr}", "source": source,
                          "metadata": marks})  # fmt: skip
    found = [cell["metadata"]["nbgrader"] for cell in cells if is_check(cell)]
    for marks, points in zip(found, _points(module, found, stars), strict=True):
        marks["points"] = points
    metadata = {**student["metadata"], "saelearn": {"lesson": name}}
    return {**student, "cells": cells, "metadata": metadata}


def check_in(cell: Cell, module: str) -> Check:
    """What a released check cell asks for."""
    marks = cell["metadata"]["nbgrader"]
    (statement,) = ast.parse(text(cell)).body
    call = statement.value
    function = vars(importlib.import_module(f"saelearn.exercises.{module}"))[call.func.attr]
    title = getattr(function, "title", None)
    return Check(
        grade_id=marks["grade_id"],
        module=module,
        function=call.func.attr,
        arguments=tuple(ast.unparse(argument) for argument in call.args),
        title=title or "Prediction: " + call.func.attr.split("_", 1)[-1].replace("_", " "),
        points=marks["points"],
        prediction=title is None,
    )


def checks_of(notebook: Notebook) -> tuple[str, str]:
    """The module of a lesson's checks, and the name by which the lesson calls it.

    Raises:
        Refusal: the lesson imports none.
    """
    for cell in notebook["cells"]:
        found = re.search(r"^from saelearn\.exercises import (lesson\d\d)(?: as (\w+))?$",
                          text(cell) if cell["cell_type"] == "code" else "", re.M)  # fmt: skip
        if found:
            return found[1], found[2] or found[1]
    expected = "a line `from saelearn.exercises import lessonNN as check`"
    raise Refusal(expected, "a lesson without it", "a lesson without checks cannot be graded")


def is_check(cell: Cell) -> bool:
    return bool(_nbgrader(cell).get("grade")) and not is_written(cell)


def is_answer(cell: Cell) -> bool:
    return bool(_nbgrader(cell).get("solution")) and not is_written(cell)


def is_written(cell: Cell) -> bool:
    """Whether it is answered in words, and its points are given by the teacher."""
    marks = _nbgrader(cell)
    return bool(marks.get("grade") and marks.get("solution"))


def question_in(cell: Cell) -> str:
    """The title of a question in words, such as `Question 4.9: what the price buys`."""
    found = QUESTION.search(text(cell)) if cell.get("cell_type") == "markdown" else None
    return f"Question {found[1]}: {found[0].partition(':')[2].strip()}" if found else ""


def grade_id(cell: Cell) -> str | None:
    found = _nbgrader(cell).get("grade_id")
    return found if isinstance(found, str) else None


def text(cell: Cell) -> str:
    """A cell's source; empty where a file that somebody damaged holds something else."""
    source = cell.get("source", "")
    parts = source if isinstance(source, list) else [source]
    return "".join(part for part in parts if isinstance(part, str))


def _nbgrader(cell: Cell) -> dict[str, Any]:
    metadata = cell.get("metadata")
    marks = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    return marks if isinstance(marks, dict) else {}


def _marks(name: str, *, solution: bool = False, grade: bool = False) -> dict[str, Any]:
    marks = {"grade": grade, "grade_id": name, "locked": grade, "schema_version": 3}
    return {"nbgrader": {**marks, "solution": solution, "task": False}}


def _has_solution(cell: Cell) -> bool:
    return BEGIN in text(cell)


def _in_words(cell: Cell, question: re.Match | None) -> Cell:
    """A text cell as nbgrader has them for answers that are graded by hand."""
    if question is None:
        raise Refusal(
            "a heading such as `### Question 4.9 ★ (5 min): its name` before a rubric",
            f"none before cell {cell['id']}",
            "write it: its stars are the points",
        )
    marks = _marks(f"{WRITTEN}{cell['id']}", solution=True, grade=True)
    marks["nbgrader"] |= {"locked": False, "points": PER_STAR * len(question[2])}
    return {**cell, "metadata": {**cell["metadata"], **marks}}


def split(source: str, alias: str) -> tuple[str, list[ast.Call]]:
    """A cell's source without the check calls at its end, and these."""
    if f"{alias}." not in source:
        return source, []
    body = ast.parse(source).body
    first = len(body)
    while first and _is_call_of(body[first - 1], alias):
        first -= 1
    if stray := [node for node in body[:first] if _is_call_of(node, alias)]:
        raise Refusal(
            "check calls at the end of a cell, nothing after them",
            f"`{ast.unparse(stray[0])}` in the middle",
            "put what follows it into a cell of its own",
        )
    if first == len(body):
        return source, []
    kept = source.splitlines()[: body[first].lineno - 1]
    return "\n".join(kept).rstrip(), [node.value for node in body[first:]]


def _is_call_of(node: ast.stmt, alias: str) -> bool:
    function = node.value.func if isinstance(getattr(node, "value", None), ast.Call) else None
    return (
        isinstance(node, ast.Expr)
        and isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == alias
    )


def _points(module: str, found: list[dict], stars: dict[str, int]) -> list[float]:
    """Points of each check: those of its exercise, shared with the exercise's other checks."""
    titles = vars(importlib.import_module(f"saelearn.exercises.{module}"))
    numbers = [
        _number(getattr(titles[marks["grade_id"].split("-", 2)[2]], "title", "")) for marks in found
    ]
    of_exercise = Counter(numbers)
    return [
        _whole(PER_STAR * stars.get(number, 1) / of_exercise[number])
        if number
        else FOR_A_PREDICTION
        for number in numbers
    ]


def _whole(points: float) -> float:
    return int(points) if points == int(points) else round(points, 2)


def _number(title: str) -> str:
    found = re.match(r"Exercise (\d+\.\d+)", title)
    return found[1] if found else ""


def _stars(notebook: Notebook) -> Iterator[tuple[str, int]]:
    """Each exercise's number and stars, as its heading has them."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            for number, stars in re.findall(r"(?m)^#+ Exercise (\d+\.\d+) (★+)", text(cell)):
                yield number, len(stars)


def _lines(source: str) -> list[str]:
    return source.splitlines(keepends=True)
