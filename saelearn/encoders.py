"""Which entries of ReLU(x W + b) are active, and their values: three ways, one answer. Layer 2.

After ReLU almost everything is zero, so what a training step needs is a short list, not a matrix.
Finding it is the only dense product that is left. Shapes: K SAEs, B batch, D width, F features,
A active entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

PROBE_SHARE, PROBE_STRIDE = 32, 8  # one row and one feature in so many tell how much is active
CHUNK_ROWS = 1_024
ROUND_UP = 1 + 2**-6  # more than a length loses when it is rounded to bf16


class Active(NamedTuple):
    """Active entries in order: the flat index (k B + b) F + f of each, and its value."""

    index_A: np.ndarray
    value_A: Tensor


class Memory:
    """Uninitialised tensors that are used again: fresh pages cost more than what fills them."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size, kept = math.prod(shape), self._kept.get(name)
        if kept is None or kept.numel() < size or kept.dtype != dtype:
            kept = self._kept[name] = torch.empty(size, dtype=dtype)
        return kept[:size].view(shape)


Values = Callable[[np.ndarray], Active]
Find = Callable[[int, int], tuple[np.ndarray, Values]]
"""Rows from, to of each batch -> flat indices, in these rows' `[K, to - from, F]`, of what may be
active, and what turns these into exact `Active`."""


def few(x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, *, limit: float) -> Tensor:
    """For each SAE: is at most a share `limit` of its entries active, as a sample of them tells?"""
    x_KBD = x_KBD[:, : -(-x_KBD.shape[1] // PROBE_SHARE)]
    W_KFD, b_K1F = W_KFD[:, ::PROBE_STRIDE], b_KF[:, None, ::PROBE_STRIDE]
    active_K = (torch.baddbmm(b_K1F, x_KBD, W_KFD.mT) > 0).sum((1, 2))
    return active_K <= limit * x_KBD.shape[1] * W_KFD.shape[1]


def active_entries(
    encoder: str, x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, memory: Memory
) -> Active:
    """All active entries of ReLU(x W^T + b); fp32, CPU.

    Args:
        encoder: of `ENCODERS`.
        x_KBD, W_KFD, b_KF: what is encoded, one row of weights a feature, biases.
        memory: where the matrices in between live.
    """
    (K, B, _), F = x_KBD.shape, b_KF.shape[1]
    find = ENCODERS[encoder](x_KBD, W_KFD, b_KF, memory)
    found = []
    for low in range(0, B, CHUNK_ROWS):
        high = min(low + CHUNK_ROWS, B)
        index_A, values = find(low, high)
        active = values(index_A)
        if high - low < B:  # from a place among these rows to one among all
            k_A, within_A = np.divmod(active.index_A, (high - low) * F)
            active = Active((k_A * B + low) * F + within_A, active.value_A)
        found.append(active)
    if len(found) == 1:
        return found[0]
    index_A = np.concatenate([active.index_A for active in found])
    value_A = torch.cat([active.value_A for active in found])
    if K > 1:
        order_A = np.argsort(index_A, kind="stable")
        index_A, value_A = index_A[order_A], value_A[torch.from_numpy(order_A)]
    return Active(index_A, value_A)


def _plain(x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, memory: Memory) -> Find:
    """All pre-activations in fp32, by the library that PyTorch takes by itself."""

    def find(low: int, high: int) -> tuple[np.ndarray, Values]:
        z_KBF = memory("z", (len(b_KF), high - low, b_KF.shape[1]), torch.float32)
        torch.baddbmm(b_KF[:, None], x_KBD[:, low:high], W_KFD.mT, out=z_KBF)
        return _positive(z_KBF, memory), lambda index_A: _taken(z_KBF, index_A)

    return find


def _onednn(x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, memory: Memory) -> Find:
    """The same by oneDNN, which on some processors is twice as fast."""
    weights = [(W_FD.to_mkldnn(), b_F.to_mkldnn()) for W_FD, b_F in zip(W_KFD, b_KF, strict=True)]

    def find(low: int, high: int) -> tuple[np.ndarray, Values]:
        z = [
            linear(x_BD[low:high].to_mkldnn(), *weight).to_dense()
            for x_BD, weight in zip(x_KBD, weights, strict=True)
        ]
        z_KBF = z[0][None] if len(z) == 1 else torch.stack(z)
        return _positive(z_KBF, memory), lambda index_A: _taken(z_KBF, index_A)

    return find


def _screen(x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, memory: Memory) -> Find:
    """In bf16 with a margin that the error cannot exceed; then fp32 for the few that are left.

    With x' and w' the rounded vectors, x.w - x'.w' = (x - x').w + x'.(w - w'). Rounding to 8 bits
    takes at most one part in 2^8, so the error is at most (||x - x'|| + 2^-8 ||x'||) ||w|| (Cauchy
    and Schwarz). Margin and bias ride along as three more columns of the product, the bias in two
    parts, since 8 bits would be too rough. Inside, sums are fp32, and rounding a sum to bf16 does
    not change its sign.
    """
    K, F, D = W_KFD.shape
    x_KBE, W_KFE = _rounded("x", x_KBD, memory), _rounded("w", W_KFD, memory)
    lost_KBD = memory("lost", tuple(x_KBD.shape), torch.float32)
    lost_KBD.copy_(x_KBE[..., :D]).sub_(x_KBD)
    sums = D * 2.0**-23  # what sums of D terms in fp32 may lose
    margin_KB = lost_KBD.norm(dim=2) + x_KBD.norm(dim=2) * (2.0**-8 * (1 + 2.0**-8) + sums)
    x_KBE[..., D : D + 2] = 1
    W_KFE[..., D] = b_KF
    W_KFE[..., D + 1] = b_KF - W_KFE[..., D] + b_KF.abs() * 2.0**-15
    x_KBE[..., D + 2], W_KFE[..., D + 2] = margin_KB * ROUND_UP, W_KFD.norm(dim=2) * ROUND_UP
    W_GD, b_G = W_KFD.flatten(0, 1), b_KF.flatten()

    def find(low: int, high: int) -> tuple[np.ndarray, Values]:
        B = high - low
        z_KBF = memory("z16", (K, B, F), torch.bfloat16)
        torch.bmm(x_KBE[:, low:high], W_KFE.mT, out=z_KBF)

        def values(index_A: np.ndarray) -> Active:
            starts_R = torch.from_numpy(np.searchsorted(index_A, np.arange(K * B + 1) * F))
            row_A, g_A = np.divmod(index_A, F)
            if K > 1:
                g_A += row_A // B * F
            g_A = torch.from_numpy(g_A)
            may = torch.sparse_csr_tensor(starts_R, g_A, b_G[g_A], size=(K * B, K * F))
            x_RD = x_KBD[:, low:high].flatten(0, 1)
            z_A = torch.sparse.sampled_addmm(may, x_RD, W_GD.T).values()
            true_A = np.flatnonzero(z_A.numpy() > 0)
            return Active(index_A[true_A], z_A[torch.from_numpy(true_A)])

        # the bits of a bf16, read as an integer, have its sign
        return _positive(z_KBF.view(torch.int16), memory), values

    return find


def _rounded(name: str, full_KND: Tensor, memory: Memory) -> Tensor:
    """Rows in bf16 with room for three columns, and one of zeros: even widths are faster."""
    K, N, D = full_KND.shape
    half_KNE = memory(name, (K, N, D + 4), torch.bfloat16)
    half_KNE[..., :D], half_KNE[..., D + 3] = full_KND, 0
    return half_KNE


def _positive(z_KBF: Tensor, memory: Memory) -> np.ndarray:
    mask_KBF = memory("mask", tuple(z_KBF.shape), torch.bool).numpy()
    np.greater(z_KBF.numpy(), 0, out=mask_KBF)
    return np.flatnonzero(mask_KBF)  # several times as fast as torch.nonzero


def _taken(z_KBF: Tensor, index_A: np.ndarray) -> Active:
    return Active(index_A, z_KBF.flatten()[torch.from_numpy(index_A)])


ENCODERS = {"plain": _plain, "onednn": _onednn, "screen": _screen}
