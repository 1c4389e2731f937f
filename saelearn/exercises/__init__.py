"""Checks for the exercises: what an answer must do, and the likely mistake named.

A check is a function of the learner's answer. It returns if the answer is right and raises
`Mistake` with a hint if it is not; `@exercise` turns that into a friendly box. For a learner a
check never raises, so a lesson with unsolved exercises still runs to its end. Where the
environment has `SAELEARN_GRADE=1` (the autograder) the same check raises `NotPassed` instead.
No check imports a solution: each tests properties, and numbers that it computes on its own.
"""

from __future__ import annotations

import functools
import html
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saelearn import style


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
    """What a check shows: `state` is one of `MARKS`; "noted" answers a prediction."""

    state: str
    title: str
    message: str

    @property
    def passed(self) -> bool:
        return self.state in ("passed", "noted")

    def __repr__(self) -> str:
        return f"{MARKS[self.state][0]} {self.title}: {self.message}"

    def _repr_html_(self) -> str:
        mark, colour = MARKS[self.state]
        text = html.escape(self.message).replace("\n", "<br>")
        return (
            f'<div role="status" style="border-left:6px solid {colour};background:#ffffff;'
            f'color:#222222;padding:8px 14px;margin:4px 0;max-width:46em">'
            f"<b>{mark} {html.escape(self.title)}</b><br>{text}</div>"
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
            verdict = _judge(judge, answers, title, passed)
            if os.environ.get("SAELEARN_GRADE") == "1" and not verdict.passed:
                raise NotPassed(repr(verdict))
            return verdict

        check.title = title
        return check

    return decorate


def _judge(judge: Callable[..., None], answers: tuple, title: str, passed: str) -> Verdict:
    if any(answer is ... or answer is None for answer in answers):
        return Verdict("open", title, "not answered yet: replace the dots, then run the cell again")
    try:
        with torch.random.fork_rng(devices=[]):  # a check must not change what the reader draws
            judge(*answers)
    except Mistake as mistake:
        return Verdict("wrong", title, str(mistake))
    except NotImplementedError as missing:
        nothing = "the function returns nothing so far (print shows a value, return gives it back)"
        return Verdict("open", title, f"not written yet: {str(missing) or nothing}")
    except Exception as error:  # the learner's code raised: show where, without a page of frames
        frame = traceback.extract_tb(error.__traceback__)[-1]
        message = (
            f"your code raised {type(error).__name__}: {error}\nat: {frame.line or frame.name}"
        )
        if "torch.return_types" in message:
            message += "\nalong a dim you get values and indices: take .values or .indices"
        return Verdict("wrong", title, message)
    return Verdict("passed", title, passed)


def call(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call the learner's function; an empty result means that the stub is still there."""
    if not callable(function):
        raise Mistake(f"this needs a function, but it is a {type(function).__name__}")
    result = function(*args, **kwargs)
    if result is None or result is ...:
        raise NotImplementedError
    return result


def as_tensor(value: Any, name: str) -> Tensor:
    """The answer, be it tensor, array or number, as a detached CPU tensor of doubles."""
    try:
        return torch.as_tensor(value).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError):
        kind = type(value).__name__
        raise Mistake(f"{name} should be a number or a tensor, but it is a {kind}") from None


def need_shape(value: Any, shape: tuple[int, ...], name: str, hint: str = "") -> Tensor:
    """The answer as a tensor of `shape`, or a `Mistake` that names both shapes."""
    tensor = as_tensor(value, name)
    if tuple(tensor.shape) != shape:
        message = f"{name} has shape {tuple(tensor.shape)}, but it should be {shape}. {hint}"
        raise Mistake(message.strip())
    return tensor


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
