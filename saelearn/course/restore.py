"""A student's notebook put in order: the cells of the release, their answers, their own cells.

The release is the skeleton. Check cells come from it alone, so that an edited, deleted, doubled or
moved one is as it was. Every other cell is the student's own version of it where there is one, and
what a student added stays behind the cell that it followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import saelearn.course.points as of
from saelearn.course.points import Check


@dataclass(frozen=True)
class Step:
    """One thing to do in grading: run a cell, or judge what a check asks for."""

    name: str  # the cell's id in the release, or `extra-N`
    source: str = ""
    check: Check | None = None
    shown: bool = False  # a cell of the release that asks for nothing, and nobody changed


def restored(student: dict[str, Any], released: dict[str, Any]) -> tuple[list[Step], list[str]]:
    """The steps of grading one notebook, and what had to be put right in it."""
    module, _ = of.checks_of(released)
    skeleton = [cell for cell in released["cells"] if cell["cell_type"] == "code"]
    mine: dict[int, list[str]] = {}
    added: dict[int, list[str]] = {}
    last, notes = -1, []
    cells = [cell for cell in student["cells"] if cell.get("cell_type") == "code"]
    for cell, place in zip(cells, _places(cells, skeleton), strict=True):
        if place is None:
            added.setdefault(last, []).append(of.text(cell))
            continue
        mine.setdefault(place, []).append(of.text(cell))
        last = place
    steps = [Step(f"extra-{i}", source) for i, source in enumerate(added.pop(-1, []))]
    for place, cell in enumerate(skeleton):
        sources, original = mine.get(place, []), of.text(cell)
        steps.append(_step(cell, sources, original, module))
        notes += _notes(cell, sources, original)
        extra = enumerate(added.get(place, []))
        steps += [Step(f"{cell['id']}-extra-{i}", source) for i, source in extra]
    return steps, notes


def solved(complete: dict[str, Any], released: dict[str, Any]) -> dict[str, Any]:
    """The release with the solutions of the complete lesson in its answer cells: full marks."""
    solutions = {cell["id"]: of.text(cell) for cell in complete["cells"]}
    _, alias = of.checks_of(released)
    cells = [
        {**cell, "source": of.split(solutions[cell["id"]], alias)[0]}
        if of.is_answer(cell)
        else cell
        for cell in released["cells"]
    ]
    return {**released, "cells": cells}


def _step(cell: dict, sources: list[str], original: str, module: str) -> Step:
    if of.is_check(cell):
        return Step(cell["id"], check=of.check_in(cell, module))
    changed = [source for source in sources if source != original]
    shown = not changed and not of.is_answer(cell)
    return Step(cell["id"], (changed or [original])[-1], shown=shown)


def _notes(cell: dict, sources: list[str], original: str) -> list[str]:
    name = of.grade_id(cell)
    if of.is_check(cell) and any(_squeezed(source) != _squeezed(original) for source in sources):
        return [f"{name} had been edited; the check of the release was used"]
    if of.is_check(cell) and not sources:
        return [f"{name} was missing; the check of the release was used"]
    if of.is_answer(cell) and not sources:
        return [f"{name} was missing: nothing answered, unless in a cell of the student's own"]
    if len(sources) > 1 and of.is_answer(cell):
        return [f"{name} was there {len(sources)} times; the last one changed was used"]
    return []


def _squeezed(source: str) -> str:
    return "".join(source.split())


def _places(cells: list[dict], skeleton: list[dict]) -> list[int | None]:
    """Which cell of the release each of the student's is: by grade id, by id, by its text."""
    by_grade = {of.grade_id(cell): i for i, cell in enumerate(skeleton) if of.grade_id(cell)}
    by_id = {cell["id"]: i for i, cell in enumerate(skeleton)}
    by_text = {of.text(cell): i for i, cell in enumerate(skeleton)}
    return [
        next(
            (
                place
                for place in (
                    by_grade.get(of.grade_id(cell)),
                    by_id.get(_id(cell)),
                    by_text.get(of.text(cell)),
                )
                if place is not None
            ),
            None,
        )
        for cell in cells
    ]


def _id(cell: dict) -> str | None:
    found = cell.get("id")
    return found if isinstance(found, str) else None
