"""Whatever an answer is or does: a verdict comes back, and the reader's world is as it was."""

from __future__ import annotations

import importlib
import itertools
import os
import random
import subprocess
import sys
import warnings

import every_lesson
import numpy as np
import pytest
import torch
from test_no_lesson_is_left_out import NUMBERS

from saelearn import exercises
from saelearn.exercises import Mistake, Verdict, earned, exercise
from saelearn.exercises.lesson06 import predicted_alone
from saelearn.exercises.undisturbed import undisturbed

CASES = [
    (check, every_lesson.made(every_lesson.first(module.RIGHT, check)))
    for module in (importlib.import_module(f"test_lesson{number}") for number in NUMBERS)
    for check in every_lesson.checks_of(module)
]
each_check = pytest.mark.parametrize(
    ("check", "answers"), CASES, ids=[f"{c.__module__[-8:]}.{c.__name__}" for c, _ in CASES]
)


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class Hostile:
    """Raises at every touch."""

    def _refuse(self, *_):
        raise SystemExit("touched")

    __len__ = __iter__ = __float__ = __int__ = __index__ = __eq__ = __bool__ = __str__ = _refuse
    __repr__ = __getitem__ = __hash__ = __array__ = __lt__ = __format__ = __abs__ = _refuse


def raising(error: BaseException):
    def function(*_, **__):
        raise error

    return function


def endless():
    while True:
        yield 1


VALUES = [10**400, -(10**400), float("nan"), 1j, "", "x" * 10_000, b"\0", [], {}, set(), object()]
VALUES += [Hostile(), itertools.count(), endless(), [[1, 2], [3]], [None], [...], Mute(), int]
VALUES += [torch.empty(0), torch.ones(2, 0), torch.tensor(float("nan")), torch.ones(3).bool()]
VALUES += [
    np.array(["a"]),
    np.datetime64("nat"),
    [10**400],
    {"A": 10**400},
    torch.eye(2).to_sparse(),
]
ERRORS = [SystemExit(), SystemExit("x"), GeneratorExit(), StopIteration(), Mute(), MemoryError()]
ERRORS += [NotImplementedError(Hostile()), RecursionError(), BaseException("b"), Mistake(Hostile())]


@each_check
def test_no_answer_makes_it_raise(check, answers):
    functions = any(callable(answer) for answer in answers)
    for value in VALUES:
        tries = [(value, *answers[1:])]
        if functions:
            tries += [every_lesson.with_functions(answers, lambda *_, v=value, **__: v)]
            tries += [every_lesson.with_functions(answers, lambda *_, v=value, **__: (v, v))]
        for each in tries:
            assert isinstance(check(*each), Verdict)
    for error in ERRORS if functions else []:
        verdict = check(*every_lesson.with_functions(answers, raising(error)))
        assert verdict.state in ("wrong", "open")
        assert repr(verdict) and verdict._repr_html_() and len(verdict.message) <= 2_000


def test_ctrl_c_gets_through():
    with pytest.raises(KeyboardInterrupt):
        add(raising(KeyboardInterrupt()))


# --- the world around ---


@exercise("Exercise 1.1: add", passed="added")
def add(function) -> None:
    total = exercises.call(function, torch.ones(2), torch.ones(2, requires_grad=True))
    third = torch.randn(2, generator=torch.Generator().manual_seed(0)) / 3
    if third.dtype != torch.float32 or not torch.is_grad_enabled():
        raise AssertionError("the check's own numbers became others")
    exercises.diagnose(total, torch.tensor([2.0, 2.0]), {}, "not the sum")
    if not total.requires_grad:
        raise Mistake("no gradient")


CHANGES = {
    "gradients off": lambda: torch.set_grad_enabled(False),
    "inference": lambda: torch.inference_mode().__enter__(),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16).__enter__(),
    "dtype": lambda: torch.set_default_dtype(torch.float64),
    "device": lambda: torch.set_default_device("meta"),
    "strict": lambda: torch.use_deterministic_algorithms(True),
    "threads": lambda: torch.set_num_threads(2),
    "torch draws": lambda: torch.manual_seed(5),
    "numpy draws": lambda: np.random.seed(5),
    "python draws": lambda: random.seed(5),
    "folder": lambda: os.chdir("/"),
    "variables": lambda: os.environ.update(SAELEARN_GRADE="0", HOME="/"),
    "variables gone": lambda: os.environ.pop("PATH", None),
    "warnings": lambda: warnings.simplefilter("error"),
}


def world() -> list:
    return [
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
        os.getcwd(),
        dict(os.environ),
        list(warnings.filters),
    ]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_an_answer_changes_neither_stays_nor_spoils_it(change):
    def changes_and_adds(a, b):
        total = a + b
        change()
        return total

    before = world()
    assert add(changes_and_adds).passed
    assert world() == before
    assert not add(lambda a, b: change()).passed
    assert world() == before


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_changed_before_neither_spoils_a_right_answer_nor_is_it_mended(change):
    """Lesson 09 works without gradients; its checks must, and then leave it so."""
    with undisturbed():
        change()
        changed = world()
        assert add(lambda a, b: a + b).passed
        assert world() == changed


def test_a_folder_that_is_gone_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert add(lambda a, b: a + b).passed


def test_a_draw_without_the_generator_still_differs_between_two_calls():
    @exercise("Exercise 1.2: draw", passed="drawn")
    def draws(function) -> None:
        if torch.equal(exercises.call(function), exercises.call(function)):
            raise Mistake("the same twice")

    assert draws(lambda: torch.rand(4)).passed


def test_whether_it_grades_is_decided_when_the_lesson_starts():
    code = (
        "import importlib, os, saelearn.exercises as exercises\n"
        "for value in ('', '0', '1', 'yes'):\n"
        "    os.environ['SAELEARN_GRADE'] = value\n"
        "    importlib.reload(exercises)\n"
        "    os.environ['SAELEARN_GRADE'] = ''\n"
        "    try: exercises.exercise('t', passed='')(lambda answer: 1 / 0)(3)\n"
        "    except exercises.NotPassed: print(value)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["1", "yes"], done.stderr


def test_what_was_right_before_a_failure_is_kept():
    @exercise("Exercise 1.3: two", passed="both")
    def two(first, second) -> None:
        exercises.diagnose(first, 1, {}, "the first is wrong")
        with earned(0.5):
            exercises.diagnose(exercises.call(second), 2, {}, "the second is wrong")

    assert two(1, lambda: 2).share == 1
    assert two(1, lambda: 3).share == two(1, lambda: ...).share == two(1, raising(OSError())).share
    assert two(1, lambda: 3).share == 0.5
    assert not two(1, lambda: 3).passed
    assert two(3, lambda: 2).share == 0


def first_right(number: str, name: str) -> tuple:
    """A lesson's check, and right answers to it."""
    module = importlib.import_module(f"test_lesson{number}")
    check = getattr(module.check, name)
    return check, every_lesson.made(every_lesson.first(module.RIGHT, check))


@pytest.mark.parametrize(
    ("number", "name", "changed", "share"),
    [
        ("01", "encode_decode", lambda encode, decode: (encode, lambda *_: 3), 0.5),
        ("01", "encode_decode", lambda encode, decode: (lambda *_: 3, decode), 0),
        ("04", "tied", lambda tied: (lambda *a: (tied(*a)[0], a[0]),), 0.5),
        ("01", "encode_decode", lambda encode, decode: (encode, lambda *_: ...), 0.5),
        ("00", "shapes", lambda answers: ({**answers, "x_BTD[0]": ...},), 3 / 4),
        ("00", "shapes", lambda answers: (dict.fromkeys(answers, (1,)),), 0),
        ("05", "translations", lambda a, b, c: (a, 7.0, c), 2 / 3),
    ],
)
def test_what_is_half_right_earns_its_half(number, name, changed, share):
    check, answers = first_right(number, name)
    verdict = check(*changed(*answers))
    assert not verdict.passed
    assert verdict.share == pytest.approx(share)


def test_a_lesson_goes_on_with_what_passed():
    @exercise("Exercise 99.1", passed="yes")
    def doubles(function):
        if function(3) != 6:
            raise Mistake("no")

    def right(x):
        return x + x

    def wrong(x):
        return x * x

    def never_shown(x):
        return 2 * x

    for function in (right, wrong):
        doubles(function)
    assert exercises.own(right, len) is right
    for function in (wrong, never_shown, ..., None):
        assert exercises.own(function, len) is len


@pytest.mark.parametrize("measured", [1j, "0.3", None, torch.zeros(2)], ids=repr)
def test_nor_does_a_prediction_whose_measured_value_was_overwritten(measured):
    """The name is the learner's as well: the reply says what to run again."""
    verdict = predicted_alone(0.2, measured)
    assert verdict.state == "open" and "run the cell that computes it again" in verdict.message
