"""The check of exercise 5.4: one L1 coefficient in three conventions. Lesson 05."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from saelearn.exercises import Mistake, close, diagnose, each_earns, exercise

L1 = 0.3  # on raw data; D = 32, F = 128, B = 256
DIALECTS = {  # name -> the right coefficient, and those of typical mistakes by the hint's key
    "scaled": (L1 * 5.6, {"multiply": L1 / 5.6, "square": L1 * 5.6**2}),
    "averaged": (
        L1 / 32,
        {"divide": L1 * 32, "root": L1 / 32**0.5, "batch": L1 / (32 * 256), "F": L1 / 128},
    ),
    "both": (
        L1 * 128 / 32,
        {
            "upside down": L1 * 32 / 128,
            "error": L1 / 32,
            "penalty": L1 * 128,
            "same way": L1 / 32 / 128,
            "divide": L1 * 32 * 128,
            "batch": L1 * 128 / (32 * 256),
            "batch twice": L1 * 256 * 128 / 32,
        },
    ),
}
DIALECT_HINTS = {
    "multiply": "the wrong way round: the error grows with s², the penalty only with s.",
    "square": "too large: the error grows with s², the penalty with s, so one s is left.",
    "divide": "the wrong way round: a weaker error needs a weaker penalty beside it.",
    "root": "off: a mean over D divides the squared error by D itself, not by its root.",
    "batch": "divided by the batch as well, but that mean was there before.",
    "batch twice": "multiplied by the batch as well, but both terms are batch means already.",
    "F": "off: the error is a mean over the 32 dimensions of x, not over the 128 features.",
    "upside down": "upside down: what is the new error beside the old, and the new penalty?",
    "error": "one of two steps: the penalty too is F times smaller now.",
    "penalty": "one of two steps: the error too is D times smaller now.",
    "same way": "divided twice: a mean over F makes the penalty weaker, so λ must make good.",
}


@exercise(
    "Exercise 5.4: translate λ",
    passed="the same trade-off in three dialects. Ask of every published λ: which units, which "
    "sums, which means?",
)
def translations(scaled: float, averaged: float, both: float) -> None:
    """What lambda 0.3 is on data times 5.6, with mse over D, and with f.mean() over F as well."""
    each_earns(_judge_dialect, list(zip(DIALECTS, (scaled, averaged, both), strict=True)))


def _judge_dialect(name: str, answer: Any) -> None:
    right, wrong = DIALECTS[name]
    answer = _one_number(answer, name)
    if close(answer, L1):
        raise Mistake(f"`{name}` is unchanged; write both losses down and compare the terms.")
    named = {f"`{name}` is {DIALECT_HINTS[key]}": value for key, value in wrong.items()}
    otherwise = f"`{name}` is not it: multiply the whole loss until the error terms agree."
    if not close(answer, right, rtol=0.03) and close(answer, right, rtol=0.2):
        raise Mistake(f"`{name}` is nearly right: write it as a formula, without rounding.")
    diagnose(answer, right, named, otherwise, rtol=0.03)


def _one_number(answer: Any, name: str) -> float:
    """Python's, NumPy's or torch's number, but no text that looks like one."""
    with contextlib.suppress(Exception):
        if not isinstance(answer, bool | str | bytes) and math.isfinite(float(answer)):
            return float(answer)
    raise Mistake(f"`{name}` should be a number, but it is a {type(answer).__name__}")
