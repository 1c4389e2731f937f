"""Whether code that gives the right numbers can be trained, too. Lesson 05."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saelearn.exercises import Mistake, call


def unchanged(now: Tensor, before: Tensor, name: str) -> None:
    """Refuse a function that overwrote its input: the next step would get another batch."""
    if not torch.equal(now.detach(), before.detach()):
        raise Mistake(
            f"{name} itself is overwritten: sub_, -= and the like change what they are given. "
            "Make a new tensor, with - or +."
        )


def learns(result: Any, **inputs: Tensor) -> None:
    """Refuse a result, right in its numbers, through which no gradient reaches the inputs."""
    slopes = [None] * len(inputs)
    if isinstance(result, Tensor) and result.requires_grad:
        slopes = torch.autograd.grad(result.sum(), list(inputs.values()), allow_unused=True)
    for name, slope in zip(inputs, slopes, strict=True):
        if slope is None:
            raise Mistake(
                f"the numbers are right, but no gradient reaches {name}, so nothing could be "
                "trained: .item(), .detach(), float() and NumPy cut it. Return what torch computes."
            )


def call_with_torch(function: Callable, *inputs: Tensor | float) -> Any:
    """`call`, with a word on NumPy, which refuses tensors that are to be trained."""
    try:
        return call(function, *inputs)
    except RuntimeError as error:
        if "numpy()" not in str(error):
            raise
        raise Mistake(
            "NumPy knows no gradients, and without them nothing is trained: use torch throughout."
        ) from error
