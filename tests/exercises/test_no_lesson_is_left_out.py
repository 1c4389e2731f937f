"""Every lesson's checks are tested, and the tests that all lessons share can fail."""

from __future__ import annotations

import importlib
from types import ModuleType, SimpleNamespace

import every_lesson
import pytest

from saelearn import course
from saelearn.exercises import Mistake, exercise

NUMBERS = [path.stem[:2] for path in course.lessons()]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_lesson_takes_all_tests(number):
    module = importlib.import_module(f"test_lesson{number}")
    assert module.RIGHT
    for name in every_lesson.__all__:
        assert getattr(module, name) is getattr(every_lesson, name), "hidden by another of its name"


@exercise("Exercise 1.1: a number above 2", passed="it is")
def above_two(number) -> None:
    if number <= 2:
        raise Mistake("it is not above 2")


def of(right: list, wrong: list) -> SimpleNamespace:
    """What pytest's `request` would be in a module with these cases."""
    module = ModuleType("test_lesson01")
    module.RIGHT, module.WRONG = right, wrong
    return SimpleNamespace(module=module)


def test_the_shared_tests_can_fail():
    right = [(above_two, (3,)), (above_two, lambda: (4,)), (above_two, (2.5,))]
    wrong = [(above_two, (number,), "not above") for number in (-2, -1, 0, 1, 2)]
    every_lesson.test_right_answers_pass(right[1])
    every_lesson.test_mistakes_are_named(wrong[0])
    counted = every_lesson.test_each_check_has_three_right_and_five_wrong_answers
    counted(above_two, of(right, wrong))
    for fewer in (of(right[:2], wrong), of(right, wrong[:4])):
        with pytest.raises(AssertionError):
            counted(above_two, fewer)
    with pytest.raises(AssertionError):
        every_lesson.test_right_answers_pass((above_two, (1,)))
    with pytest.raises(AssertionError):
        every_lesson.test_mistakes_are_named((above_two, (1,), "another hint"))
    with pytest.raises(AssertionError):
        every_lesson.test_each_exercise_has_its_check(of(right, wrong))


def test_cases_cover_what_nobody_wrote_down():
    module = importlib.import_module(f"test_lesson{NUMBERS[1]}")
    cases = every_lesson.cases_of(module)
    graded = [check for check in cases["check"] if every_lesson.is_graded(check)]
    assert len(graded) >= 3
    assert {check for check, _ in cases["stub"]} >= set(graded)
