"""What holds for the checks of every lesson: right answers written differently pass, likely
mistakes are named, nothing raises for a learner, and everything raises for the autograder.

A lesson's module takes these tests by `from every_lesson import *`, and conftest.py gives them
its cases:

- `RIGHT`: pairs of a check and answers that must pass;
- `WRONG`: triples of a check, answers that must not, and words of the hint that they must get;
- `OPEN`: pairs of a check and answers that count as none, beside those that are tried anyway.

Each check has at least three answers that are right and five that are not. No guess is wrong, so
for a prediction these are guesses that get a reply (low, near, high, in several types) and values
that are no guess (words, a truth value, a list, no number, outside on either side): `unreadable`.

Answers are a tuple, what the check is called with, or a function that makes it.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from saelearn import course, exercises
from saelearn.exercises import NotPassed

__all__ = [
    "test_an_exception_is_told_not_raised",
    "test_each_check_has_three_right_and_five_wrong_answers",
    "test_each_exercise_has_its_check",
    "test_mistakes_are_named",
    "test_no_answer_is_open",
    "test_no_function_is_no_answer",
    "test_right_answers_pass",
    "test_the_autograder_hears_of_it",
    "unreadable",
]

Check = Callable[..., Any]


def test_right_answers_pass(right):
    judge, answers = right
    verdict = judge(*made(answers))
    assert verdict.passed, verdict


def test_mistakes_are_named(wrong):
    judge, answers, words = wrong
    verdict = judge(*made(answers))
    assert verdict.state == "wrong"
    assert words in verdict.message


def test_no_answer_is_open(stub):
    judge, answers = stub
    assert judge(*made(answers)).state == "open"


def test_an_exception_is_told_not_raised(of_functions):
    judge, answers = of_functions

    def broken(*_, **__):
        raise KeyError("oops")

    verdict = judge(*with_functions(answers, broken))
    assert verdict.state == "wrong"
    assert "KeyError" in verdict.message


def test_no_function_is_no_answer(of_functions):
    judge, answers = of_functions
    assert judge(*with_functions(answers, 3.0)).state == "wrong"


def test_the_autograder_hears_of_it(check, request, monkeypatch):
    """It raises for what is wrong or missing, but never for a prediction."""
    monkeypatch.setattr(exercises, "GRADING", True)
    right = made(first(request.module.RIGHT, check))
    wrong = made(first(request.module.WRONG, check))
    assert check(*right).passed
    for answers in (wrong, (..., *right[1:])):
        if is_graded(check):
            with pytest.raises(NotPassed):
                check(*answers)
        else:
            assert not check(*answers).passed


def test_each_check_has_three_right_and_five_wrong_answers(check, request):
    assert sum(case[0] is check for case in request.module.RIGHT) >= 3
    assert sum(case[0] is check for case in request.module.WRONG) >= 5


def test_each_exercise_has_its_check(request):
    """The lesson's exercises are the checks' exercises, and the lesson calls every check."""
    prose, code = lesson(number_of(request.module))
    checks = checks_of(request.module)
    exercises = set(re.findall(r"(?m)^### Exercise (\d+\.\d+)", prose))
    assert exercises
    assert {
        re.match(r"Exercise (\d+\.\d+)", c.title)[1] for c in checks if is_graded(c)
    } == exercises
    assert [c.__name__ for c in checks if f"check.{c.__name__}(" not in code] == []
    titles = [c.title for c in checks if is_graded(c)]
    assert [title for title in titles if not re.match(r"Exercise \d+\.\d+: \S", title)] == []


def unreadable(prediction: Check, highest: float, *measured: float) -> list[tuple]:
    """Wrong cases of a prediction whose guess is one number from 0 to `highest`."""
    outside = [(value, f"between 0 and {highest:g}") for value in (-1, 2 * highest, float("nan"))]
    others = [("many", "a str"), (True, "a bool"), ([highest, highest], "a list")]
    return [(prediction, (value, *measured), words) for value, words in [*outside, *others]]


def made(answers: tuple | Callable[[], tuple]) -> tuple:
    return answers() if callable(answers) else answers


def with_functions(answers: tuple, instead: Any) -> tuple:
    return tuple(instead if callable(answer) else answer for answer in answers)


def first(cases: list[tuple], judge: Check) -> tuple | Callable[[], tuple]:
    for case in cases:
        if case[0] is judge:
            return case[1]
    raise AssertionError(f"{judge.__module__}.{judge.__name__} has no such answers")


def is_graded(judge: Check) -> bool:
    """Predictions are answered too, but nobody can fail them."""
    return hasattr(judge, "title")


def number_of(module: ModuleType) -> str:
    return module.__name__.removeprefix("test_lesson")


def checks_of(module: ModuleType) -> list[Check]:
    """The lesson's checks and predictions, and whatever else has cases."""
    of_lesson = vars(importlib.import_module(f"saelearn.exercises.lesson{number_of(module)}"))
    own = [
        each
        for name, each in of_lesson.items()
        if callable(each) and (is_graded(each) or name.startswith("predicted_"))
    ]
    return list(dict.fromkeys([*own, *(case[0] for case in module.RIGHT)]))


@functools.cache
def lesson(number: str) -> tuple[str, str]:
    """A lesson's prose and its code."""
    (path,) = course.notebooks_dir().glob(f"{number}_*.ipynb")
    text = {"markdown": [], "code": []}
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text[cell["cell_type"]].append("".join(cell["source"]))
    return "\n".join(text["markdown"]), "\n".join(text["code"])


def cases_of(module: ModuleType) -> dict[str, list]:
    """What each of the tests above is to be run with, in one lesson."""
    examples = dict(reversed(module.RIGHT))  # the first of each
    of_functions = [
        (check, answers)
        for check, answers in examples.items()
        if not callable(answers) and any(callable(answer) for answer in answers)
    ]
    stubs = [
        (check, (nothing, *(() if callable(answers) else answers[1:])))
        for check, answers in examples.items()
        for nothing in (None, ...)
    ]
    stubs += [
        (check, with_functions(answers, lambda *_, nothing=nothing, **__: nothing))
        for check, answers in of_functions
        for nothing in (None, ...)
    ]
    return {
        "right": module.RIGHT,
        "wrong": module.WRONG,
        "stub": stubs + getattr(module, "OPEN", []),
        "of_functions": of_functions,
        "check": checks_of(module),
    }
