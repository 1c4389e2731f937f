"""Active entries as lists, and all of a step that can be done at these alone (`loops`).

Loops read rows of a table in an order that nobody can foresee, so the speed is that of the memory
in which the table lies: rows are taken in chunks that a core's own cache holds.

Shapes: K SAEs, B batch, C chunks of rows, D width, F features, A entries that a chunk has room for.
"""

from __future__ import annotations

import math
from functools import cache
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelearn.compiled import MISSING
from saelearn.train.fast.threads import spread

TABLE = 2**19  # numbers of fp32 in 2 MB
CHUNK_ROWS = 1_024
ROOM = 0.03  # share of entries that lists begin with; they grow


@cache
def loops() -> ModuleType | None:
    """The compiled loops, or None where numba is missing: then every step is dense.

    Loaded by the first step that needs them: no training waits for them to begin.
    """
    try:
        from saelearn.train.fast import loops
    except MISSING:
        return None
    return loops


@cache
def shorts() -> ModuleType | None:
    """The product of bytes for processors with AVX2 alone, or None on any other."""
    try:
        from saelearn.train.fast import shorts
    except MISSING:
        return None
    return shorts


class Scratch:
    """Uninitialised tensors that are used again: fresh pages cost more than what fills them."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._given: dict[str, Tensor] = {}
        self.room = ROOM

    def __call__(self, name: str, shape: tuple[int, ...], dtype=torch.float32) -> Tensor:
        given = self._given.get(name)
        if given is not None and given.shape == shape and given.dtype == dtype:
            return given  # a view costs ten times what it takes to see that there is one
        size, kept = math.prod(shape), self._kept.get(name)
        if kept is None or kept.numel() < size or kept.dtype != dtype:
            room = np.empty(size * dtype.itemsize + 64, np.uint8)  # in large pages where it can
            begin = -room.ctypes.data % 64
            room = torch.from_numpy(room)[begin : begin + size * dtype.itemsize]
            kept = self._kept[name] = room.view(dtype)
        given = self._given[name] = kept[:size].view(shape)
        return given

    def on(self, like: Tensor, *given) -> Tensor | None:
        """The same on a CPU; elsewhere the allocator keeps memory by itself."""
        return self(*given) if like.device.type == "cpu" else None


def chunk_rows(n_rows: int, width: int) -> int:
    """Rows of a chunk, half of them at the most: a rule, not a measurement, for sums follow it."""
    return max(16, min(CHUNK_ROWS, TABLE // width, n_rows // 2) // 16 * 16)


class Lists(NamedTuple):
    """Active entries of each chunk, feature by feature, rows ascending.

    Feature f has the entries `starts_KCF[k, c, f] : starts_KCF[k, c, f + 1]` of chunk c.
    """

    chunk: int
    starts_KCF: np.ndarray  # F + 1 of them
    row_KCA: np.ndarray
    value_KCA: np.ndarray

    @classmethod
    def empty(cls, K: int, B: int, F: int, D: int, room: int, scratch: Scratch) -> Lists:
        """With room for so many entries in each chunk."""
        chunk = chunk_rows(B, D)
        C = -(-B // chunk)
        return cls(
            chunk,
            scratch("starts", (K, C, F + 1), torch.int32).numpy(),
            scratch("rows", (K, C, room), torch.int32).numpy(),
            scratch("values", (K, C, room)).numpy(),
        )

    def active(self) -> list[Tensor]:
        """The values of each chunk."""
        ends_T = self.starts_KCF[..., -1].reshape(-1)
        value_TA = torch.from_numpy(self.value_KCA).flatten(0, 1)
        return [value_A[:end] for value_A, end in zip(value_TA, ends_T, strict=True)]


class Parts(NamedTuple):
    """What every way computes of K SAEs: errors e (`[K, B, D]`), their sum over the rows and that
    of their squares; for each feature its sum, how often it was active, and the gradients of
    encoder row, bias and decoder row; and W_enc times the bias' gradient."""

    error_KBD: Tensor
    error_sum_KD: Tensor
    square_K: Tensor
    sum_f_KF: Tensor
    count_KF: Tensor
    W_enc_KFD: Tensor
    b_enc_KF: Tensor
    W_dec_KFD: Tensor
    moved_KD: Tensor


def at_entries(
    W_enc_KFD: Tensor, W_dec_KFD: Tensor, input_KBD: Tensor, target_KBD: Tensor,
    price_KF: Tensor, pull_K: Tensor, norm_KF: Tensor, lists: Lists, scratch: Scratch,
) -> Parts:  # fmt: skip
    """Errors and gradients from the entries of `lists`.

    Args:
        input_KBD: what the encoders see; `[1, B, D]` if it is the same for all.
        target_KBD: of f W_dec.
        price_KF: dL/df apart from the error.
        pull_K: of the norm: the decoder row w gets the gradient pull w / norm times the mean of f.
    """
    compiled, (K, F, D), B = loops(), W_dec_KFD.shape, target_KBD.shape[1]
    C, scale = lists.starts_KCF.shape[1], np.float32(2 / B)
    blocks = -(-F // compiled.BLOCK)
    error_KBD, sum_KCD = scratch("error", (K, B, D)), np.empty((K, C, D), np.float32)
    square_KC = np.empty((K, C))
    entries = lists.starts_KCF, lists.row_KCA, lists.value_KCA
    work = D * (2 * K * (F + B) + 3 * int(lists.starts_KCF[..., -1].sum()))
    W_enc, W_dec, x, target, price, pull, norm = (
        t.detach().numpy()
        for t in (W_enc_KFD, W_dec_KFD, input_KBD, target_KBD, price_KF, pull_K, norm_KF)
    )
    spread(
        compiled.decode, K * C, work, target, W_dec, lists.chunk, 0, *entries, error_KBD.numpy(),
        sum_KCD, square_KC,
    )  # fmt: skip
    d_W_enc_KFD, d_W_dec_KFD = scratch("d_enc", (K, F, D)), scratch("d_dec", (K, F, D))
    d_b_enc_KF, sum_f_KF = torch.empty(K, F), torch.empty(K, F)
    count_KF, moved_KGD = torch.empty(K, F, dtype=torch.int64), torch.empty(K, blocks, D)
    out = d_W_enc_KFD, d_W_dec_KFD, d_b_enc_KF, sum_f_KF, count_KF, moved_KGD
    spread(
        compiled.gradients, K * blocks, work, x, error_KBD.numpy(), W_enc, W_dec, scale, price,
        pull, norm, *entries, *(t.numpy() for t in out),
    )  # fmt: skip
    sums = torch.from_numpy(sum_KCD.sum(1)), torch.from_numpy(square_KC.sum(1)).float()
    gradients = d_W_enc_KFD, d_b_enc_KF, d_W_dec_KFD
    return Parts(error_KBD, *sums, sum_f_KF, count_KF, *gradients, moved_KGD.sum(1))
