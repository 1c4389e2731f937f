"""Every answer of every lesson, judged as a class is graded: the function in a sandbox, the check
here. Right answers get full marks also for numbers drawn anew, wrong ones their named mistake.
"""

from __future__ import annotations

import importlib
import os

import every_lesson
import pytest
from test_no_lesson_is_left_out import NUMBERS

from saelearn.course import judge
from saelearn.course.answers import Mother, Sandbox
from saelearn.course.confine import Limits
from saelearn.course.points import Check

pytestmark = pytest.mark.skipif(os.name == "nt", reason="students' code runs on POSIX alone")


@pytest.fixture(scope="module")
def mother():
    with Mother([f"test_lesson{number}" for number in NUMBERS]) as started:
        yield started


def verdict_of(case: tuple, place: str, sandbox: Sandbox, module: str):
    """The verdict on the answers that stand at `place` in a lesson's cases, over the wire."""
    sandbox.run(f"answers = every_lesson.made(cases.{place}[1])")
    answers = every_lesson.made(case[1])
    arguments = tuple(f"answers[{i}]" for i in range(len(answers)))
    function, graded = case[0], every_lesson.is_graded(case[0])
    home = function.__module__.rpartition(".")[2]
    check = Check("", home, function.__name__, arguments, "", 1, not graded)
    return judge._verdict(check, sandbox, b"a key")


@pytest.mark.parametrize("number", NUMBERS)
def test_all_cases(number, mother):
    cases = importlib.import_module(f"test_lesson{number}")
    faults = []
    with Sandbox(mother, Limits()) as sandbox:
        assert sandbox.run(f"import every_lesson, test_lesson{number} as cases") == ""
        for i, case in enumerate(cases.RIGHT):
            verdict = verdict_of(case, f"RIGHT[{i}]", sandbox, number)
            if verdict.share != 1:
                faults.append((case[0].__name__, i, "right", verdict))
        for i, case in enumerate(cases.WRONG):
            verdict = verdict_of(case, f"WRONG[{i}]", sandbox, number)
            if not every_lesson.is_graded(case[0]) and verdict.state in ("noted", "wrong"):
                continue  # its truth, which may be the upper limit of a guess, is not asked for
            said = case[2] in verdict.message or case[2].startswith("at: ")  # no source over there
            if verdict.state != "wrong" or not said:
                faults.append((case[0].__name__, i, case[2], verdict))
            if verdict.share == 1:
                faults.append((case[0].__name__, i, "full marks", verdict))
        for i, case in enumerate(getattr(cases, "OPEN", [])):
            verdict = verdict_of(case, f"OPEN[{i}]", sandbox, number)
            if verdict.state != "open":
                faults.append((case[0].__name__, i, "open", verdict))
    assert faults == []
