"""Checks for the exercises: what an answer must do, and the likely mistake named.

A check is a function of the learner's answer. It returns if the answer is right and raises
`Mistake` with a hint if it is not; `@exercise` turns that into a friendly box. For a learner a
check never raises, whatever the answer does, so a lesson with unsolved exercises still runs to
its end. Where the environment had `SAELEARN_GRADE` when the lesson started (an autograder that
counts exceptions) the same check raises `NotPassed` instead; `saelearn grade` needs no such help.
No check imports a solution: each tests properties, and numbers that it computes on its own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelearn import progress, style
from saelearn.exercises.undisturbed import undisturbed
from saelearn.style import as_html, as_text

GRADING = os.environ.get("SAELEARN_GRADE", "") not in ("", "0")
"""Read once: an answer that changes the environment changes nothing here."""
LONGEST = 2_000  # characters of a message that anybody reads
_PASSED: dict[str, tuple] = {}  # a check's title -> the answers that it took last


class Mistake(Exception):
    """A wrong answer; the message says what is wrong and where to look."""


class NotPassed(AssertionError):
    """What a failed check raises under the autograder."""


# state of a verdict -> its mark and colour
MARKS = {
    "passed": ("✓", style.FEATURE),
    "noted": ("→", style.RECONSTRUCTION),
    "wrong": ("✗", style.STEERED),
    "open": ("○", style.CONTROL),
}


@dataclass(frozen=True)
class Verdict:
    """What a check shows: `state` is one of `MARKS`; "noted" answers a prediction.

    `half` is the share of the exercise that is right where not all of it is, from 0 to 1. `beside`
    is shown below it: how far the learner is.
    """

    state: str
    title: str
    message: str
    half: float = 0.0
    beside: str = ""

    @property
    def passed(self) -> bool:
        return self.state in ("passed", "noted")

    @property
    def share(self) -> float:
        """What was earned, from 0 to 1."""
        return 1.0 if self.passed else self.half

    def __repr__(self) -> str:
        below = f"\n  {self.beside}" if self.beside else ""
        return as_text(f"{MARKS[self.state][0]} {self.title}: {self.message}{below}")

    def _repr_html_(self) -> str:
        mark, colour = MARKS[self.state]
        return (
            f'<div role="status" style="border-left:6px solid {colour};'
            f'padding:8px 14px;margin:4px 0;max-width:46em">'
            f"<b>{mark} {as_html(self.title)}</b><br>{as_html(self.message)}"
            f"{f'<br><small>{as_html(self.beside)}</small>' if self.beside else ''}</div>"
        )


def exercise(title: str, *, passed: str) -> Callable[[Callable[..., None]], Callable[..., Verdict]]:
    """Make a check out of a function that raises `Mistake`.

    Args:
        title: the exercise's name as the notebook prints it.
        passed: what to say to a right answer: what it shows, not only that it is right.
    """

    def decorate(judge: Callable[..., None]) -> Callable[..., Verdict]:
        @functools.wraps(judge)
        def check(*answers: Any) -> Verdict:
            verdict = told(title, passed, lambda: judge(*answers), answers)
            if verdict.passed:
                _PASSED[title] = answers
                verdict = replace(verdict, beside=_kept(judge))
            if GRADING and not verdict.passed:
                raise NotPassed(repr(verdict))
            return verdict

        check.title = title
        return check

    return decorate


def told(title: str, passed: str, judge: Callable[[], str | None], answers: tuple) -> Verdict:
    """Run `judge` and put into a verdict what it raises; Ctrl-C alone gets through.

    Args:
        title: the verdict's.
        passed: what to say if the judge returns nothing; a text that it returns is said instead.
        judge: raises `Mistake` for a wrong answer.
        answers: what it judges; dots or None among them mean that there is no answer yet.
    """
    if any(answer is ... or answer is None for answer in answers):
        return Verdict("open", title, "not answered yet: replace the dots, then run the cell again")
    try:
        with undisturbed():
            said = judge()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit and GeneratorExit too: an answer may raise them
        with undisturbed():
            state, message = _explained(error)
        return Verdict(state, title, message[:LONGEST], getattr(error, "half", 0.0))
    return Verdict("passed", title, passed if said is None else said)


def _kept(judge: Callable) -> str:
    """Keep in the learner's folder that a lesson's check passed, and say how far the lesson is."""
    lesson = re.fullmatch(r"saelearn\.exercises\.lesson(\d\d)", judge.__module__)
    if lesson is None:
        return ""
    n = len(checks_in(lesson[0]))
    with undisturbed():
        so_far = progress.keep(lesson[1], judge.__name__, n)
    return f"Lesson {lesson[1]}: {so_far}." if so_far else ""


def checks_in(module: str) -> dict[str, str]:
    """The checks of an imported module of exercises: name -> title."""
    found = vars(sys.modules[module]).items()
    return {name: each.title for name, each in found if isinstance(getattr(each, "title", 0), str)}


def own(answer: Any, otherwise: Any) -> Any:
    """What a lesson goes on with: the learner's answer if its check took it, else the library's.

    Args:
        answer: a function that was handed to a check before, or something that never was.
        otherwise: what takes its place while the exercise is open.
    """
    taken = any(answer is each for answers in _PASSED.values() for each in answers)
    return answer if taken else otherwise


def _explained(error: BaseException) -> tuple[str, str]:
    """The state that an exception means, and what to say about it."""
    if isinstance(error, Mistake):
        return "wrong", _text(error)
    if isinstance(error, NotImplementedError):
        nothing = "the function returns nothing so far (print shows a value, return gives it back)"
        return "open", f"not written yet: {_text(error) or nothing}"
    message = f"your code raised {type(error).__name__}: {_text(error)}"
    if where := getattr(error, "where", None) or _where(error):
        message += f"\nat: {where}"
    if "torch.return_types" in message:
        message += "\nalong a dim you get values and indices: take .values or .indices"
    return "wrong", message


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # its own __str__ raises
        return "(an error whose text cannot be shown)"


def _where(error: BaseException) -> str:
    """The line that raised, without a page of frames."""
    frames = traceback.extract_tb(error.__traceback__)
    return (frames[-1].line or frames[-1].name) if frames else ""


@contextlib.contextmanager
def earned(half: float) -> Iterator[None]:
    """What was right before this block earns a share of the points, also if the block fails.

    Args:
        half: the share, between 0 and 1.
    """
    try:
        yield
    except Exception as error:
        error.half = half
        raise


def each_earns(judge: Callable[[str, Any], None], answers: list[tuple[str, Any]]) -> None:
    """Judge a list of named answers: each that is right earns its share, the first wrong is told.

    Raises:
        Mistake: the first that `judge` raises, with the share of the others that are right.
    """
    first, n_right = None, 0
    for name, answer in answers:
        try:
            judge(name, answer)
            n_right += 1
        except Mistake as mistake:
            first = first or mistake
    if first is not None:
        with earned(n_right / len(answers)):
            raise first


def call(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call the learner's function; an empty result means that the stub is still there."""
    if not callable(function):
        raise Mistake(f"this needs a function, but it is a {type(function).__name__}")
    with undisturbed(generators=False):  # what it switches off must not spoil the comparison
        result = function(*args, **kwargs)
    if result is None or result is ...:
        raise NotImplementedError
    return result


def as_tensor(value: Any, name: str) -> Tensor:
    """The answer, be it tensor, array or number, as a detached CPU tensor of doubles."""
    try:
        if isinstance(value, np.ndarray):
            value = value.copy()  # a view with a negative stride is no tensor's memory
        return torch.as_tensor(value).detach().cpu().double()
    except Exception:  # also OverflowError, and whatever a strange object's own methods raise
        kind = type(value).__name__
        raise Mistake(f"{name} should be a number or a tensor, but it is a {kind}") from None


def need_shape(value: Any, shape: tuple[int, ...], name: str, hint: str = "") -> Tensor:
    """The answer as a tensor of `shape`, or a `Mistake` that names both shapes.

    Where one number is asked for, `[3.0]` is one.
    """
    tensor = as_tensor(value, name)
    if shape == () and tuple(tensor.shape) == (1,):
        tensor = tensor[0]
    if tuple(tensor.shape) != shape:
        message = f"{name} has shape {tuple(tensor.shape)}, but it should be {shape}. {hint}"
        raise Mistake(message.strip())
    return tensor


def need_number(value: Any, name: str, hint: str = "") -> Tensor:
    """The answer as one number, of shape `()`; a tensor of shape `[1]` is one as well."""
    tensor = as_tensor(value, name)
    return tensor[0] if tuple(tensor.shape) == (1,) else need_shape(tensor, (), name, hint)


def difference(value: Any, right: Any) -> str:
    """Where an answer differs most from what was expected, for a hint that fits no known mistake.

    Args:
        value: the answer, of the right shape.
        right: what was expected.
    """
    came, expected = as_tensor(value, "your answer"), as_tensor(right, "the target")
    if not came.numel():
        return "it is empty."
    gap = (came - expected).abs().nan_to_num(nan=float("inf"))
    index = np.unravel_index(int(gap.argmax()), gap.shape)
    at = f" at {[int(i) for i in index]}" if index else ""
    return f"On our input{at}: expected {expected[index]:.4g}, came {came[index]:.4g}."


def close(value: Any, target: Any, *, rtol: float = 1e-4, atol: float = 1e-6) -> bool:
    """Whether the answer equals `target` within tolerance; shapes must agree."""
    a, b = as_tensor(value, "your answer"), torch.as_tensor(target).detach().cpu().double()
    return a.shape == b.shape and torch.allclose(a, b, rtol=rtol, atol=atol)


def diagnose(value: Any, right: Any, wrong: dict[str, Any], otherwise: str, **tolerance: float):
    """Compare a number or tensor with the right value and with the values of typical mistakes.

    Args:
        value: the learner's result.
        right: what it should be, computed by the check itself.
        wrong: hint -> the value that this mistake gives.
        otherwise: the hint if it is none of them.
    """
    if close(value, right, **tolerance):
        return
    for hint, mistaken in wrong.items():
        if close(value, mistaken, **tolerance):
            raise Mistake(hint)
    raise Mistake(otherwise)
