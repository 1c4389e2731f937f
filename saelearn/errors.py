"""Readable refusals: what was expected, what came, what to do."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real

import torch
from torch import Tensor


class Refusal(ValueError):
    """Input that cannot be used, told in three parts so that the reader can act on it.

    Args:
        expected: what the function needs.
        received: what it was given.
        remedy: what the caller can do about it.
    """

    def __init__(self, expected: str, received: str, remedy: str = ""):
        self.expected, self.received, self.remedy = expected, received, remedy
        lines = [f"expected {expected}", f"received {received}"]
        super().__init__("\n  ".join([*lines, f"try      {remedy}"] if remedy else lines))

    def __reduce__(self):
        """So that a refusal gets from a worker process to its parent."""
        return type(self), (self.expected, self.received, self.remedy)


class ArtifactError(Refusal, OSError):
    """A file that is missing, damaged, or could not be written."""


class Misplaced(UserWarning):
    """What was made for one model or site is used at another."""


def check_activations(x: Tensor, d_in: int | None = None, *, name: str = "activations") -> Tensor:
    """Return `x_ND` if it is a non-empty, finite, floating matrix of width `d_in`; else refuse.

    Args:
        x: the candidate, `[N, D]`.
        d_in: the width D that is needed; any width if None.
        name: what to call it in the message.
    """
    if not isinstance(x, Tensor):
        raise Refusal(
            f"{name} as a torch.Tensor [N, D]",
            type(x).__name__,
            "torch.as_tensor(x) turns arrays and lists into tensors",
        )
    check_width(x, d_in, name=name)
    if x.ndim != 2:
        raise Refusal(
            f"{name} of shape [N, D]",
            f"shape {tuple(x.shape)}",
            "flatten batch and position first: x.flatten(0, -2)",
        )
    if len(x) == 0:
        raise Refusal(f"at least one row of {name}", "an empty dataset", "collect some text first")
    if not x.is_floating_point():
        raise Refusal(f"{name} of a floating dtype", str(x.dtype), "call .float() on them")
    check_finite(x, name=name)
    return x


def check_width(x: Tensor, width: int | None, *, name: str = "activations") -> None:
    """Refuse a tensor whose last dimension is not `width`."""
    if x.ndim == 0 or (width is not None and x.shape[-1] != width):
        raise Refusal(
            f"{name} of width {width}" if width else f"{name} with at least one dimension",
            f"shape {tuple(x.shape)}",
            "check that the data comes from the site (and the model) this was made for",
        )


def check_finite(x: Tensor, *, name: str = "activations") -> None:
    """Refuse NaN and infinity before they silently poison everything computed from them."""
    if x.numel() and x.is_floating_point() and x.device.type == "cpu":
        x = x.detach()
        if math.isfinite(x.sum()):  # the fastest look: a single NaN or infinity spoils a sum
            return
        if all(map(math.isfinite, map(float, x.aminmax()))):  # the sum alone was too large
            return
    elif torch.isfinite(x).all():
        return
    n_nan, n_inf = int(x.isnan().sum()), int(x.isinf().sum())
    raise Refusal(
        f"finite {name}",
        f"{n_nan} NaN and {n_inf} infinite of {x.numel()} values",
        "look for overflow in half precision, a division by zero, or uninitialised memory",
    )


def check_series(values: Iterable, name: str, *, least: int = 0) -> list:
    """Return `values` as a list if they are several things in a row; else refuse.

    One text is no row of letters, and one thing no row of its parts: `[x]` makes it a row.

    Args:
        least: how many there have to be.
    """
    single = isinstance(values, str | bytes | Mapping | Iterator) or not isinstance(
        values, Iterable
    )
    if single or (isinstance(values, Tensor) and values.ndim == 0):
        raise Refusal(f"{name} as a list", brief(values), "put a single one into brackets: [x]")
    values = list(values)
    if len(values) < least:
        raise Refusal(f"at least {least} of {name}", f"{len(values)}")
    return values


def check_named(values: Mapping, name: str, *, least: int = 0) -> Mapping:
    """Return `values` if it is a mapping from names to things, `least` of them; else refuse."""
    if not isinstance(values, Mapping):
        raise Refusal(f"{name} by name, as a dict", brief(values), "{'a name': ...}")
    if len(values) < least:
        raise Refusal(f"at least {least} of {name}", f"{len(values)}")
    return values


def brief(value: object) -> str:
    """What a value is, for a message: its type, and its repr if that is short."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def check_range(value: float, name: str, low: float, high: float = float("inf")) -> float:
    """Return `value` if it is a finite number in [low, high]; else refuse."""
    if isinstance(value, Real) and low <= value <= high and value < float("inf"):
        return value
    span = f"{name} between {low:g} and {high:g}" if high < float("inf") else f"{name} >= {low:g}"
    raise Refusal(span, repr(value), f"pass a number for {name} in that range")


def check_whole(value: int, name: str, low: int, high: float = float("inf")) -> int:
    """Return `value` as an int if it is a whole number in [low, high]; else refuse."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise Refusal(f"{name} as a whole number", repr(value))
    return int(check_range(number, name, low, high))
