"""Replies to predictions: a guess that can be read is never wrong, and nothing is graded.

A reader commits to a number before the cell runs that computes it; the reply depends on both.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from saelearn.exercises import Mistake, Verdict, told


def prediction(replies: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """Let a reply never raise: what it compares a guess with is a name that a learner may reuse."""

    @functools.wraps(replies)
    def guarded(*given: Any, **named: Any) -> Verdict:
        try:
            return replies(*given, **named)
        except Exception as error:
            message = (
                f"what it is compared with cannot be used ({type(error).__name__}): run the cell "
                "that computes it again, then this one"
            )
            return Verdict("open", "Your prediction", message)

    return guarded


def reply(name: str, guess: Any, answer: Callable[[Any], str]) -> Verdict:
    """What to say to a guess.

    Args:
        name: what was to be predicted.
        guess: the reader's; `...` or None while there is none.
        answer: guess -> reply; raises `Mistake` for a guess that cannot be read.
    """
    title = f"Your prediction: {name}"
    if guess is ... or guess is None:
        return Verdict("open", title, "no guess yet: write one down above, run both cells again")
    verdict = told(title, "", lambda: answer(guess), (guess,))
    return dataclasses.replace(verdict, state="noted") if verdict.passed else verdict


def reply_to_number(
    name: str,
    guess: Any,
    truth: float,
    *,
    within: float,
    span: tuple[float, float] = (0, 1),
    near: str,
    low: str,
    high: str,
) -> Verdict:
    """A reply to a guess of `truth`: `near` it (at most `within` away), too `low` or too `high`."""

    def answer(guess: Any) -> str:
        value = number(guess, *span)
        if abs(value - truth) <= within:
            return near
        return low if value < truth else high

    return reply(name, guess, answer)


def number(guess: Any, lowest: float = 0, highest: float = 1) -> float:
    """The guess as a number in a span.

    Raises:
        Mistake: it is none, or lies outside.
    """
    kind = type(guess).__name__
    try:
        value = None if isinstance(guess, bool | str) else float(guess)
    except Exception:  # OverflowError, and whatever a strange object raises
        value = None
    if value is None:
        raise Mistake(f"a guess is a number here, but this is a {kind}")
    if not lowest <= value <= highest:  # NaN too
        raise Mistake(
            f"a guess between {lowest:g} and {highest:g} is needed, but this is {value:g}"
        )
    return value
