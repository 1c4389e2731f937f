"""Clipping, Adam and decoder rows of length 1 on a CPU, in two passes over the weights (`loops`).

Shapes: K SAEs side by side, G rows of a parameter of all, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelearn.train.fast.active import loops
from saelearn.train.fast.threads import spread
from saelearn.train.update import Adam, rows_of


@torch.no_grad()
def move(
    slopes: Mapping[Tensor, Tensor | None],
    optimizer: Adam,
    *,
    clip_norm: float,
    unit: Tensor | None = None,
    n_saes: int = 1,
) -> bool:
    """Move parameters as `update.update_` does, if the loops can: says whether it did.

    The first move of a training is left to that: a dense step needs no loops, and most trainings
    begin with one, so that none waits for the loops to load before it begins.

    Args:
        slopes: for each parameter its gradient, which is not changed; None moves nothing.
        unit: the parameter whose rows stay at length 1.
        n_saes: K; if there are several, each parameter is `[K, ...]`.
    """
    moved = {p: slope for p, slope in slopes.items() if slope is not None}
    if not all(optimizer.state.get(p) for p in moved):
        return False
    compiled = loops()
    pairs = [(_matrix(slope, p), _kept(p, optimizer)) for p, slope in moved.items()]
    if compiled is None or any(slope_GD is None or kept is None for slope_GD, kept in pairs):
        return False
    if unit is not None and not unit.is_contiguous():
        return False
    factor_K = np.ones(n_saes, np.float32)
    if clip_norm < np.inf:
        square_K = np.zeros(n_saes)
        for p, (slope_GD, kept) in zip(moved, pairs, strict=True):
            square_G, W_GD = np.empty(len(slope_GD)), kept.W_GD
            spread(compiled.squares, len(W_GD), W_GD.size, slope_GD, W_GD, p is unit, square_G)
            square_K += square_G.reshape(n_saes, -1).sum(1)
        factor_K = np.minimum(1, clip_norm / (np.sqrt(square_K) + 1e-6)).astype(np.float32)
    for p, (slope_GD, kept) in zip(moved, pairs, strict=True):
        kept.step[...] += 1
        t, W_GD = float(kept.step), kept.W_GD
        lr = np.float32(optimizer.lr * optimizer.factor_of(p) / (1 - 0.9**t))
        root = np.float32((1 - 0.999**t) ** -0.5)
        given = slope_GD, W_GD, kept.mean_GD, kept.square_GD, factor_K, lr, root, p is unit
        spread(compiled.adam, len(W_GD), 4 * W_GD.size, *given)
    return True


class _Kept(NamedTuple):
    """A parameter and its optimizer's state as the loops take them, and where these lie."""

    at: tuple[object, ...]
    W_GD: np.ndarray
    mean_GD: np.ndarray
    square_GD: np.ndarray
    step: np.ndarray


def _kept(parameter: Tensor, optimizer: Adam) -> _Kept | None:
    """Kept by the optimizer from move to move, for in a small step finding them takes as long as
    moving them; looked for again where one lies elsewhere."""
    state, kept = optimizer.state[parameter], optimizer.kept.get(parameter)
    own = parameter, state["exp_avg"], state["exp_avg_sq"], state["step"]
    at = *[tensor.data_ptr() for tensor in own], parameter.stride()
    if kept is None or kept.at != at:
        matrices, step = [_matrix(tensor, parameter) for tensor in own[:3]], own[3]
        if step.device.type != "cpu" or any(matrix is None for matrix in matrices):
            return None
        kept = optimizer.kept[parameter] = _Kept(at, *matrices, step.numpy())
    return kept


def _matrix(tensor: Tensor, parameter: Tensor) -> np.ndarray | None:
    """Rows as they lie in memory, if the loops can go by them."""
    if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
        return None
    rows = rows_of(tensor.detach(), parameter).numpy()
    return rows.reshape(-1, rows.shape[-1]) if rows.flags.c_contiguous else None
