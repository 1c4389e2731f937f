"""What training eats: batches without end, checked, and the scale of the data. Layer 1.

Shapes: N rows of data, B batch, D activation width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from saelearn.errors import Refusal, check_activations, check_range


def batches(
    data: Tensor | Iterable[Tensor], batch_size: int, *, seed: int = 0
) -> tuple[Iterator[Tensor], Tensor]:
    """Batches without end, and rows to take scale and centre from.

    Args:
        data: activations `x_ND`, which get shuffled, or batches `x_BD`, taken as they come.
        batch_size: B, for activations in one tensor.
        seed: of the shuffling.
    """
    check_range(batch_size, "batch_size", 1)
    if isinstance(data, Tensor):
        check_activations(data)
        return shuffled(data, batch_size, seed=seed), data[: 2**16]
    stream = iter(data)
    first = next(stream, None)
    if first is None:
        raise Refusal("batches of activations", "an empty stream")
    check_activations(first)
    return _checked(itertools.chain([first], stream), first.shape[1]), first


def _checked(stream: Iterable[Tensor], d_in: int) -> Iterator[Tensor]:
    for x_BD in stream:
        yield check_activations(x_BD, d_in, name="a batch")
    raise Refusal("batches until the last step", "a stream that ended early", "train fewer steps")


def shuffled(x_ND: Tensor, batch_size: int, *, seed: int = 0) -> Iterator[Tensor]:
    """Batches `x_BD` without end; every epoch visits each row at most once, in a new order.

    What is left over at an epoch's end, less than a batch, is left out of that epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, len(x_ND))
    while True:
        order_N = torch.randperm(len(x_ND), generator=generator)
        for start in range(0, len(order_N) - size + 1, size):
            yield x_ND[order_N[start : start + size]]


def mean_norm_scale(x_ND: Tensor) -> float:
    """The scalar that brings the mean squared norm of the rows to D."""
    mean_square = float(x_ND.detach().cpu().double().square().sum(1).mean())
    if mean_square == 0:
        raise Refusal("activations that are not all zero", "only zeros", "check the site")
    return math.sqrt(x_ND.shape[1] / mean_square)
