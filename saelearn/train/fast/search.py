"""Which entries of ReLU(x W + b) are active, and their values: three ways, one answer; and which
are the largest.

After ReLU almost everything is zero, so what a training step needs is a short list, not a matrix.
Finding it is the only dense product that is left. It is taken as W x^T, so that the list comes
feature by feature, in the order in which the gradients are computed. Shapes: K SAEs, B batch, N of
its rows, D width, F features, G = K F of them in all, A active entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn.functional import linear

from saelearn.train.fast.active import Active

PROBE_ROWS, PROBE_STRIDE = 32, 8  # some rows and one feature in so many tell how much is active
ROUND_UP = 1 + 2**-6  # more than a length loses when it is rounded to bf16


class Scratch:
    """Uninitialised tensors that are used again: fresh pages cost more than what fills them."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size, kept = math.prod(shape), self._kept.get(name)
        if kept is None or kept.numel() < size or kept.dtype != dtype:
            kept = self._kept[name] = torch.empty(size, dtype=dtype)
        return kept[:size].view(shape)


Find = Callable[[slice], Active]
"""Some rows of each batch -> their active entries, `[K F, K N]`."""


def few(x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, *, limit: float) -> Tensor:
    """For each SAE: is at most a share `limit` of its entries active, as a sample of them tells?"""
    x_KBD = x_KBD[:, : min(PROBE_ROWS, -(-x_KBD.shape[1] // PROBE_ROWS))]
    W_KFD, b_K1F = W_KFD[:, ::PROBE_STRIDE], b_KF[:, None, ::PROBE_STRIDE]
    active_K = (torch.baddbmm(b_K1F, x_KBD, W_KFD.mT) > 0).sum((1, 2))
    return active_K <= limit * x_KBD.shape[1] * W_KFD.shape[1]


def _plain(x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, scratch: Scratch) -> Find:
    """All products in fp32, by the library that PyTorch takes by itself."""

    def find(rows: slice) -> Active:
        x_KND = x_KBD[:, rows]
        z_KFN = scratch("z", (*b_KF.shape, x_KND.shape[1]), torch.float32)
        torch.bmm(W_KFD, x_KND.mT, out=z_KFN)
        return _taken(z_KFN, b_KF, scratch)

    return find


def _onednn(x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, scratch: Scratch) -> Find:
    """The same by oneDNN, which on some processors is twice as fast."""
    weights = [W_FD.to_mkldnn() for W_FD in W_KFD]

    def find(rows: slice) -> Active:
        z = [
            linear(W_FD, x_BD[rows].to_mkldnn()).to_dense()
            for x_BD, W_FD in zip(x_KBD, weights, strict=True)
        ]
        return _taken(z[0][None] if len(z) == 1 else torch.stack(z), b_KF, scratch)

    return find


def _screen(x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, scratch: Scratch) -> Find:
    """In bf16 with a margin that the error cannot exceed; then fp32 for the few that are left.

    With x' and w' the rounded vectors, x.w - x'.w' = (x - x').w + x'.(w - w'). Rounding to 8 bits
    takes at most one part in 2^8, so the error is at most (||x - x'|| + 2^-8 ||x'||) ||w|| (Cauchy
    and Schwarz). Margin and bias ride along as three more columns of the product, the bias in two
    parts, since 8 bits would be too rough. Inside, sums are fp32, and rounding a sum to bf16 does
    not change its sign.
    """
    K, F, _ = W_KFD.shape
    x_KBE, W_KFE = _with_margin(x_KBD, W_KFD, b_KF, scratch)
    W_GD, b_G = W_KFD.flatten(0, 1), b_KF.flatten()

    def find(rows: slice) -> Active:
        x_KND = x_KBD[:, rows]
        z_KFN = scratch("z16", (K, F, x_KND.shape[1]), torch.bfloat16)
        torch.bmm(W_KFE, x_KBE[:, rows].mT, out=z_KFN)
        # the bits of a bf16, read as an integer, have its sign
        may = _listed(z_KFN.view(torch.int16).numpy(), 0, scratch)
        plus_A = b_G.index_select(0, may.g_A)
        z_A = may.dots(W_GD, x_KND.flatten(0, 1), plus_A)
        true_A = np.flatnonzero(z_A.numpy() > 0)
        g_A, row_A = may.g_A.numpy()[true_A], may.row_A.numpy()[true_A]
        return Active.of(g_A, row_A, z_A[torch.from_numpy(true_A)], K * F)

    return find


def _with_margin(
    x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """Rows in bf16, with the three columns, whose product is at least x.w + b.

    The last but one holds the two factors of the margin, which the product exceeds it by at most
    twice, and by 2^-14 |b|.
    """
    D = x_KBD.shape[2]
    x_KBE, W_KFE = _rounded("x", x_KBD, scratch), _rounded("w", W_KFD, scratch)
    lost_KBD = scratch("lost", tuple(x_KBD.shape), torch.float32)
    lost_KBD.copy_(x_KBE[..., :D]).sub_(x_KBD)
    sums = D * 2.0**-23  # what sums of D terms in fp32 may lose
    margin_KB = lost_KBD.norm(dim=2) + x_KBD.norm(dim=2) * (2.0**-8 * (1 + 2.0**-8) + sums)
    x_KBE[..., D : D + 2] = 1
    W_KFE[..., D] = b_KF
    W_KFE[..., D + 1] = b_KF - W_KFE[..., D] + b_KF.abs() * 2.0**-15
    x_KBE[..., D + 2], W_KFE[..., D + 2] = margin_KB * ROUND_UP, W_KFD.norm(dim=2) * ROUND_UP
    return x_KBE, W_KFE


def _rounded(name: str, full_KND: Tensor, scratch: Scratch) -> Tensor:
    """Rows in bf16 with room for three columns, and one of zeros: even widths are faster."""
    K, N, D = full_KND.shape
    half_KNE = scratch(name, (K, N, D + 4), torch.bfloat16)
    half_KNE[..., :D], half_KNE[..., D + 3] = full_KND, 0
    return half_KNE


def _taken(z_KFN: Tensor, b_KF: Tensor, scratch: Scratch) -> Active:
    """Where z + b > 0, and what it is there."""
    active = _listed(z_KFN.numpy(), -b_KF.numpy()[:, :, None], scratch)
    K, _, N = z_KFN.shape
    column_A = active.row_A if K == 1 else active.row_A % N
    z_A = z_KFN.flatten()[active.g_A.long() * N + column_A]
    return active._replace(value_A=z_A + b_KF.flatten().index_select(0, active.g_A))


# --- the largest ----------------------------------------------------------------------------------

GROUP = 32  # features whose largest is looked at in their place
Entries = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows, features and values of entries, row by row."""


def largest(
    x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, scratch: Scratch, *, k: int, of_batch: bool,
    encoder: str = "plain",
) -> Find:  # fmt: skip
    """The k largest entries above 0 of each row of one SAE (K = 1), or the k B largest of a batch.

    Of the maxima of small groups of features the k-th largest is no larger than the k-th largest
    entry, for k groups hold an entry each that is at least as large; and it is not much smaller. So
    the groups tell which few entries to sort. The same holds for numbers that no maximum is below:
    those of a product in bf16, less its margin.

    Args:
        encoder: of `ENCODERS`: by which product.
    """
    given = x_KBD, W_KFD, b_KF, scratch
    n_features = W_KFD.shape[1]
    scores = (_Screened if encoder == "screen" else _Full)(*given, encoder=encoder, k=k)
    if of_batch:
        B = x_KBD.shape[1]
        maxima, above = scores(slice(0, B))
        least = np.partition(maxima.reshape(-1), maxima.size - k * B)[maxima.size - k * B]
        row_A, f_A, z_A = _kept(above(np.full((B, 1), least, np.float32)), k * B)

        def find(rows: slice) -> Active:
            low, high = np.searchsorted(row_A, (rows.start, rows.stop))
            own = slice(low, high)
            n_rows = rows.stop - rows.start
            return _by_feature(row_A[own] - rows.start, f_A[own], z_A[own], n_rows, n_features)

        return find

    def find(rows: slice) -> Active:
        maxima_NG, above = scores(rows)
        place = maxima_NG.shape[1] - k
        least_N1 = np.partition(maxima_NG, place, axis=1)[:, place, None]
        n_rows = len(maxima_NG)
        return _by_feature(*_kept_of_rows(above(least_N1), k, n_rows), n_rows, n_features)

    return find


class _Full:
    """Some rows -> each group's maximum, and a function that lists what is not below a bound."""

    def __init__(
        self, x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, scratch: Scratch, *, encoder: str, k: int
    ):
        (self.x_BD,), (self.W_FD,), (self.b_F,) = x_KBD, W_KFD, b_KF
        self.scratch, self.size = scratch, _group_size(W_KFD.shape[1], k)
        if encoder == "onednn":
            W_own, b_own = self.W_FD.to_mkldnn(), self.b_F.to_mkldnn()
            self.product = lambda x_ND: linear(x_ND.to_mkldnn(), W_own, b_own).to_dense()
        else:
            self.product = self._plain

    def _plain(self, x_ND: Tensor) -> Tensor:
        z_NF = self.scratch("z by row", (len(x_ND), len(self.W_FD)), torch.float32)
        return torch.addmm(self.b_F, x_ND, self.W_FD.T, out=z_NF)

    def __call__(self, rows: slice) -> tuple[np.ndarray, Callable[[np.ndarray], Entries]]:
        z_NF = self.product(self.x_BD[rows])

        def above(least_N1: np.ndarray) -> Entries:
            below_N1 = np.maximum(0.0, np.nextafter(least_N1, np.float32(-np.inf)))
            z = z_NF.numpy()
            index_A = _places(z, below_N1, self.scratch)
            return *_row_and_column(index_A, z.shape[1]), z.reshape(-1)[index_A]

        return z_NF.view(len(z_NF), -1, self.size).amax(2).numpy(), above


class _Screened(_Full):
    """The same by a product in bf16 that no entry exceeds; what it lists is multiplied out."""

    def __init__(
        self, x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, scratch: Scratch, *, encoder: str, k: int
    ):
        super().__init__(x_KBD, W_KFD, b_KF, scratch, encoder=encoder, k=k)
        (self.x_BE,), (self.W_FE,) = _with_margin(x_KBD, W_KFD, b_KF, scratch)
        D = x_KBD.shape[2]
        self.margin_B1 = self.x_BE[:, D + 2, None].float() * (2 * ROUND_UP)
        by_group = (-1, self.size)
        self.margin_G = self.W_FE[:, D + 2].float().view(by_group).amax(1)
        self.rest_G = self.b_F.abs().view(by_group).amax(1) * 2.0**-13

    def __call__(self, rows: slice) -> tuple[np.ndarray, Callable[[np.ndarray], Entries]]:
        x_NE = self.x_BE[rows]
        z_NF = self.scratch("z16", (len(x_NE), len(self.W_FE)), torch.bfloat16)
        torch.mm(x_NE, self.W_FE.T, out=z_NF)
        bits_NF = z_NF.view(torch.int16)  # their order is that of the numbers, above 0
        top_NG = bits_NF.view(len(x_NE), -1, self.size).amax(2).view(torch.bfloat16).float()
        top_NG -= top_NG.abs() * 2.0**-7  # they were rounded
        top_NG -= self.margin_B1[rows] * self.margin_G + self.rest_G

        def above(least_N1: np.ndarray) -> Entries:
            low_N1 = np.maximum(0.0, least_N1 * np.float32(1 - 2**-7))
            below_N1 = np.maximum(0, (low_N1.view(np.int32) >> 16) - 1).astype(np.int16)
            index_A = _places(bits_NF.numpy(), below_N1, self.scratch)
            row_A, f_A = _row_and_column(index_A, len(self.W_FD))
            z_A = self._multiplied(rows, row_A, f_A)
            true_A = np.flatnonzero(z_A > 0)
            return row_A[true_A], f_A[true_A], z_A[true_A]

        return top_NG.numpy(), above

    def _multiplied(self, rows: slice, row_A: np.ndarray, f_A: np.ndarray) -> np.ndarray:
        """Feature by feature, for more rows of x than of W stay in a core's own cache."""
        x_ND, F = self.x_BD[rows], len(self.W_FD)
        place_A = np.arange(len(f_A), dtype=np.int32)
        wanted = _by_feature(row_A, f_A, place_A, len(x_ND), F)
        z_A = wanted.dots(self.W_FD, x_ND, self.b_F.index_select(0, wanted.g_A))
        by_row_A = np.empty(len(f_A), np.float32)
        by_row_A[wanted.value_A.numpy()] = z_A.numpy()
        return by_row_A


def _group_size(n_features: int, k: int) -> int:
    """Groups are so small that there are 2 k of them, or single entries."""
    size = GROUP
    while size > 1 and (n_features % size or n_features < 2 * k * size):
        size //= 2
    return size


def _row_and_column(index_A: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    row_A = index_A // width
    return row_A, index_A - row_A * width


def _kept(entries: Entries, n: int) -> Entries:
    """The n largest of some entries."""
    value_A = entries[2]
    if len(value_A) <= n:
        return entries
    kept_A = np.sort(np.argpartition(value_A, len(value_A) - n)[-n:])
    return tuple(each_A[kept_A] for each_A in entries)


def _kept_of_rows(entries: Entries, k: int, n_rows: int) -> Entries:
    """The k largest of each row."""
    row_A, _, value_A = entries
    count_N = np.bincount(row_A, minlength=n_rows)
    most = count_N.max(initial=0)
    if most <= k:
        return entries
    place_A = np.arange(len(row_A)) - np.repeat(np.cumsum(count_N) - count_N, count_N)
    value_NP = np.full((n_rows, most), -np.inf, dtype=np.float32)
    value_NP[row_A, place_A] = value_A
    kept_NP = np.zeros(value_NP.shape, dtype=bool)
    top_NK = np.argpartition(value_NP, most - k, axis=1)[:, most - k :]
    np.put_along_axis(kept_NP, top_NK, True, axis=1)
    kept_A = kept_NP[row_A, place_A]
    return tuple(each_A[kept_A] for each_A in entries)


def _by_feature(
    row_A: np.ndarray, f_A: np.ndarray, z_A: np.ndarray, n_rows: int, n_features: int
) -> Active:
    """A list that goes row by row, feature by feature; `z_A` is whatever goes with an entry."""
    starts_N = np.searchsorted(row_A, np.arange(n_rows + 1)).astype(np.int32)
    by_row = csr_matrix((z_A, f_A.astype(np.int32), starts_N), shape=(n_rows, n_features))
    by_feature = by_row.tocsc()
    g_A = np.repeat(np.arange(n_features, dtype=np.int32), np.diff(by_feature.indptr))
    row_A = by_feature.indices.astype(np.int32, copy=False)
    return Active.of(g_A, row_A, torch.from_numpy(by_feature.data), n_features)


def _places(z: np.ndarray, least: np.ndarray | float, scratch: Scratch) -> np.ndarray:
    """Flat places of what is larger than `least`, ascending.

    Eight answers are looked at together, as one number: most of them are eight times no.
    """
    size = z.size
    mask = scratch("mask", (-(-size // 8) * 8,), torch.bool).numpy()
    mask[size:] = False
    np.greater(z, least, out=mask[:size].reshape(z.shape))
    eights = mask.view(np.int64)
    some = np.flatnonzero(eights != 0)
    index_A = np.flatnonzero(eights[some].view(bool))
    return (some[index_A >> 3] << 3) + (index_A & 7)


def _listed(z_KFN: np.ndarray, least_KF1: np.ndarray | int, scratch: Scratch) -> Active:
    """Places of what is larger than `least`; the values are still missing."""
    K, F, N = z_KFN.shape
    index_A = _places(z_KFN, least_KF1, scratch)
    g_A = (index_A // N).astype(np.int32)
    row_A = (index_A - g_A * N).astype(np.int32)
    if K > 1:
        row_A += g_A // F * N
    return Active.of(g_A, row_A, torch.empty(0), K * F)


ENCODERS = {"plain": _plain, "onednn": _onednn, "screen": _screen}
