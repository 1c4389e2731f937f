"""The checks of exercise 2.4: superposition is a matter of counting. Lesson 02."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, rand, randn

from saelearn.exercises import Mistake, as_tensor, call, exercise
from saelearn.exercises.trainable import unchanged


def _turned(W: list[list[float]], degrees: float) -> Tensor:
    a = math.radians(degrees)
    turn = torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
    return torch.tensor(W, dtype=torch.float32) @ turn


def _models() -> list[tuple[Tensor, bool, str]]:
    """Directions, whether that is superposition, and the mistake if the answer differs."""
    turns = [2 * math.pi * k / 5 for k in range(5)]
    pentagon = [[1.15 * math.cos(a), 1.15 * math.sin(a)] for a in turns]
    square = [[1, 0], [0, 1], [-1, 0], [0, -1]]
    dropped = [[1, 0], [0, 1], [0.02, 0.01], [0, 0], [0.01, 0]]
    short = [[0.6, 0], [0, 0.6], [-0.6, 0]]
    slanted = [[1, 0], [0.5, 0.87]]
    faint = [[0.45, 0], [0, 0.45], [-0.45, 0]]
    roomy_GD = torch.cat([0.7 * torch.eye(3), torch.zeros(3, 2)], 1)
    mixed = "two features in two turned dimensions: both neurons are mixed, yet nothing is shared"
    entry = "three directions of length 0.6 count, however they are turned: take the length"
    close_by = "two features in two dimensions, even 60 degrees apart, are not more than two"
    axes = "four features in two dimensions are superposition, also when they lie on the axes"
    below = "directions of length 0.45 do not count: the bound is 0.5"
    tilted = "a direction (0.3, 0.3) is 0.42 long, too short to count: sum squares, not amounts"
    pair = "two features on one line of a plane are two in two dimensions: count the columns of "
    pair += "W_GD, not how many dimensions are used"
    return [
        (_turned([[1, 0], [0, 1]], 40), False, mixed),
        (torch.eye(2), False, "two features, a neuron for each, are no superposition"),
        (_turned(pentagon, 20), True, "five features in two dimensions are superposition"),
        (_turned(square, 0), True, axes),
        (_turned(dropped, 30), False, "features with (almost) no direction do not count"),
        (_turned(short, 45), True, entry),
        (_turned(slanted, 0), False, close_by),
        (_turned(faint, 0), False, below),
        (torch.tensor([[0.3, 0.3], [-0.3, 0.3], [0.3, -0.3]]), False, tilted),
        (_turned([[1, 0], [-1, 0]], 30), False, pair),
        (roomy_GD, False, "three features in five dimensions have room: count the columns too"),
        (torch.tensor([[1.0], [-1.0]]), True, "two features on one neuron, + and -, share it"),
    ]


def _drawn(seed: int) -> list[tuple[Tensor, bool, str]]:
    """Random directions of lengths away from the bound: just enough features, and one more."""
    draw, models = torch.Generator().manual_seed(seed), []
    for D in (2, 3, 4):
        for n_kept in (D, D + 1):
            W_GD = randn(n_kept + 2, D, generator=draw)
            length_G = 0.6 + rand(n_kept + 2, generator=draw)
            length_G[n_kept:] *= 0.25
            W_GD *= (length_G / W_GD.norm(dim=1))[:, None]
            W_GD = W_GD[torch.randperm(len(W_GD), generator=draw)]
            said = f"{n_kept} of {len(W_GD)} directions in {D} dimensions are longer than 0.5"
            models.append((W_GD, n_kept > D, said))
    return models


@exercise(
    "Exercise 2.4: mend it",
    passed="more features than dimensions: turning the axes changes nothing",
)
def superposed(is_superposed: Callable) -> None:
    """`is_superposed(W_GD)` -> whether more features have a direction than there are dimensions."""
    for W_GD, right, mistake in _models() + _drawn(seed=25):
        answer = _true_or_false(call(is_superposed, given := W_GD.clone()))
        unchanged(given, W_GD, "W_GD")
        if answer != right:
            raise Mistake(f"a case fails: {mistake}")


def more_than_fit(W_GD: Tensor) -> bool:
    """What the lesson goes on with while exercise 2.4 is open: directions counted by length."""
    return int((W_GD.norm(dim=1) > 0.5).sum()) > W_GD.shape[1]


def _true_or_false(answer: Any) -> bool:
    try:
        value = as_tensor(answer, "the answer")
    except Mistake:
        raise Mistake(f"True or False is wanted, but this is {answer!r}") from None
    if value.numel() != 1:
        raise Mistake("one True or False for the whole model, not one for each feature")
    if value.isnan():
        raise Mistake("True or False is wanted, but this is NaN")
    if float(value) not in (0.0, 1.0):
        raise Mistake("True or False, not a count: compare it with W_GD.shape[1]")
    return bool(value)


@exercise(
    "Exercise 2.4: the wrong line",
    passed="that model shares nothing: its axes are only turned, so its neurons are mixed. The "
    "function measures polysemanticity.",
)
def bug(wrong_line: str) -> None:
    """`wrong_line`: the name of the model that is called superposed, and is not."""
    if not isinstance(wrong_line, str):
        raise Mistake(f"the model's name as text is needed, but this is {wrong_line!r}")
    name = " ".join(wrong_line.lower().replace(",", " ").replace(":", " ").split())
    if name in ("", "..."):
        raise NotImplementedError
    if name in ("5 in 2 trained", "5 in 2 trained true", "5 in 2"):
        raise Mistake("five features in two dimensions: True is right there")
    if name in ("2 in 2 by hand", "2 in 2 by hand false", "by hand"):
        raise Mistake("a neuron for each feature: False is right there")
    if name not in ("2 in 2 trained", "2 in 2 trained true"):
        raise Mistake('one of the three names that are printed, as in "5 in 2, trained"')
