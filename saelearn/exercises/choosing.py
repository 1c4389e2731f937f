"""The check of exercise 5.5: choose lambda without the answer sheet. Lesson 05.

Shapes: K coefficients of a sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from saelearn.exercises import Mistake, as_tensor, call, exercise
from saelearn.tiny import dial

TRUE_L0, N_PLANTED = 3.0, 64  # behind the stored sweep
ENOUGH = 0.65  # the mean score that is asked for
SWEEPS = (  # which points of the stored sweep, the data's unit, how many independent copies of them
    (slice(None), 1.0, 6),
    (slice(0, None, 2), 5.7, 4),
    (slice(0, 13), 0.1, 20),
    (slice(1, 13, 2), 30.0, 7),
    (slice(8, None), 2.5, 12),
    (slice(0, 15, 3), 0.6, 3),
)


@exercise("Exercise 5.5: choose λ without the answer sheet", passed="a rule that sees the curve")
def choose(rule: Callable) -> str:
    """`rule(l1_K, l0_K, missed_K)`: one of `l1_K`."""
    got = scores(rule, dial.load_sweep())
    mean = sum(got) / len(got)
    told = f"{mean:.2f} on average over {len(got)} sweeps, least {min(got):.2f}"
    if mean < ENOUGH:
        raise Mistake(f"{told}, and {ENOUGH} is asked for. {_advice(rule)}")
    return f"{told}. Without the answer sheet nobody could tell."


def scores(rule: Callable, points: Sequence[dial.DialPoint]) -> list[float]:
    """What a rule's choice is worth in each of the hidden sweeps, from 0 to 1.

    The sweeps are parts of the stored one, restated exactly: data `unit` times as large ask for
    `unit` times the coefficient; of `copies` independent copies side by side `copies` times as
    many features are on. Units and numbers thus tell nothing; only the curve's shape does.

    Args:
        rule: `rule(l1_K, l0_K, missed_K)` -> one of `l1_K`.
        points: the stored sweep.

    Returns:
        planted found times nearness of L0 to the truth (the smaller over the larger), each over
        the best that its sweep offers.

    Raises:
        Mistake: the answer is none of the coefficients, or an argument was changed.
    """
    got = []
    for part, unit, copies in SWEEPS:
        numbers = [point.numbers for point in points][part]
        given = _curve(numbers, unit, copies)
        kept = [each_K.clone() for each_K in given]
        which = _which(call(rule, *given), kept[0])
        if not all(torch.equal(a, b) for a, b in zip(given, kept, strict=True)):
            raise Mistake("the sweep itself is changed: make new tensors.")
        worth = [_worth(each) for each in numbers]
        got.append(worth[which] / max(worth))
    return got


def elbow(l1_K: Tensor, l0_K: Tensor, missed_K: Tensor) -> Tensor:
    """What the lesson goes on with while exercise 5.5 is open: farthest below the chord."""
    seen_K = l0_K > 0.02 * l0_K.max()
    across_K, up_K = (_to_one(y_K[seen_K]) for y_K in (l0_K.log(), missed_K))
    return l1_K[seen_K][(across_K + up_K).argmin()]


def _to_one(y_K: Tensor) -> Tensor:
    return (y_K - y_K.min()) / (y_K.max() - y_K.min())


def _curve(numbers: Sequence[dial.Numbers], unit: float, copies: int) -> tuple[Tensor, ...]:
    columns = [[unit * n.l1_coefficient, copies * n.l0, n.unexplained] for n in numbers]
    return tuple(torch.tensor(columns).T.contiguous())


def _worth(numbers: dial.Numbers) -> float:
    l0 = max(numbers.l0, 1e-9)
    return numbers.n_recovered / N_PLANTED * min(l0 / TRUE_L0, TRUE_L0 / l0)


def _which(answer: Any, l1_K: Tensor) -> int:
    """The number of the coefficient that was chosen."""
    value = as_tensor(answer, "the choice")
    if value.numel() != 1:
        raise Mistake(f"one λ is wanted, not {value.numel()}")
    near_K = (l1_K.double() - value.flatten()).abs() < 1e-4 * l1_K.double()
    if not near_K.any():
        raise Mistake(f"{float(value):.4g} is none of l1_K: return the coefficient, not its index")
    return int(near_K.int().argmax())


def _advice(rule: Callable) -> str:
    """Which end of the sweep a rule leans to."""
    given = _curve([p.numbers for p in dial.load_sweep()], 1.0, 1)
    place = _which(call(rule, *(each_K.clone() for each_K in given)), given[0])
    side = "many are on for little error" if given[1][place] > TRUE_L0 else "much is missed"
    return f"It takes a λ at which {side}. Where does the curve bend?"
