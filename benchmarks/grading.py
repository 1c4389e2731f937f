"""A class is graded: how long it takes, and how much of the processor.

    python -m benchmarks.grading 04 --json

Of ten students six answer everything as the lesson does, three every second exercise, and one
hands in what was handed out. Each has a cell of their own, so that no two files are the same. The
whole path is measured: files read, sandboxes, checks, gradebook, pages. `processor_seconds` are
those of all processes together; on a busy machine they say more than `seconds`.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from saelearn import artifacts
from saelearn.course import grade, handout, restore
from saelearn.course import points as of
from saelearn.course.confine import Limits


def hand_in(folder: Path, lesson: Path, release: handout.Release, students: int) -> None:
    """Write the class's notebooks, a folder for each student."""
    released = release.lessons[lesson.stem]
    answers = restore.solved(artifacts.read_json(lesson), released)["cells"]
    asked = [cell["id"] for cell in released["cells"] if of.is_answer(cell)]
    for number in range(students):
        tenth = number % 10
        given = set(asked) if tenth < 6 else set(asked[::2]) if tenth < 9 else set()
        cells = [
            answer if answer["id"] in given else empty
            for answer, empty in zip(answers, released["cells"], strict=True)
        ]
        own = {"cell_type": "code", "metadata": {}, "source": f"me = {number}", "outputs": []}
        name = folder / f"student {number:03}" / lesson.name
        artifacts.write_json(name, {**released, "cells": [*cells, own]})


def measure(lesson: Path, students: int, workers: int) -> dict:
    """Grade a class once, from an empty folder."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        handout.release([lesson.stem], place / "out", source=lesson.parent)
        release = handout.read_release(place / "out.zip")
        hand_in(place / "in", lesson, release, students)
        before, started = _processor(), time.perf_counter()
        graded = grade.grade(
            place / "in", place / "out.zip", place / "grades", workers=workers,
            limits=Limits(cell=600, check=600, total=6_000),
        )  # fmt: skip
        seconds, used = time.perf_counter() - started, _processor() - before
    full = [
        mark
        for i, each in enumerate(graded) if i % 10 < 6
        for mark in each.marks if not mark.title.startswith("Question")  # a teacher reads these
    ]  # fmt: skip
    return {
        "lesson": lesson.stem,
        "students": len(graded),
        "workers": workers,
        "seconds": round(seconds, 1),
        "processor_seconds": round(used, 1),
        "all_answered_got_all": all(mark.earned == mark.points for mark in full),
    }


def _processor() -> float:
    """Seconds of this process and of those that it started and that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grading", description=__doc__)
    parser.add_argument("lessons", nargs="+", metavar="NN", help="which lessons, such as 04 05")
    parser.add_argument("--students", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    arguments = parser.parse_args(argv)
    results = [
        measure(lesson, arguments.students, arguments.workers)
        for lesson in handout.find(arguments.lessons)
    ]
    print(json.dumps({"machine": machine.describe(), "results": results}))


if __name__ == "__main__":
    main()
