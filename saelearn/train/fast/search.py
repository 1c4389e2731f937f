"""Which entries of ReLU(x W + b) are active, and their values: five ways, one answer; and which
are the largest.

After ReLU almost everything is zero, so what a training step needs is a short list, not a matrix.
Finding it is the only dense product that is left, and it need not be exact: an encoder's product
comes with a margin that its error cannot exceed, and so proposes all entries that are active and a
few that are not. One loop multiplies those out (`loops.values`): the same bits, whoever proposed
them. The product is taken as W x^T, so that lists come feature by feature, in the order in which
the gradients are computed. Shapes: K SAEs, B batch, N of its rows, D width, F features, A entries.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from saelearn.train.fast.active import Lists, Scratch, chunk_rows, loops, shorts
from saelearn.train.fast.threads import spread

PROBE_ROWS, PROBE_STRIDE = 32, 8  # some rows and one feature in so many tell how much is active
ROUND_UP = 1 + 2**-6  # more than a length loses when it is rounded to bf16
MOST_BY_ROUGH = 0.3  # share of all entries
ROUNDED = 2.0**-23  # twice what fp32 rounds a number by, as a share of it


class Product(NamedTuple):
    """A product u `[K, F, N]` of some rows; an entry may be active if u + sum_i w_i x_i > 0.

    Or, in uint16, a bit for each entry that says so.
    """

    of: Callable[[slice], np.ndarray]
    w_K3F: np.ndarray
    x_K3B: np.ndarray


NO_SIDES = np.empty((0, 3, 0), np.float32), np.empty((0, 3, 0), np.float32)


def few(x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, *, limit: float) -> Tensor:
    """For each SAE: is at most a share `limit` of its entries active, as a sample of them tells?"""
    x_KBD = x_KBD[:, : min(PROBE_ROWS, -(-x_KBD.shape[1] // PROBE_ROWS))]
    W_KFD, b_K1F = W_KFD[:, ::PROBE_STRIDE], b_KF[:, None, ::PROBE_STRIDE]
    u_KBF = torch.baddbmm(b_K1F, x_KBD.expand(len(W_KFD), -1, -1), W_KFD.mT)
    active_K = (u_KBF > 0).sum((1, 2))
    return active_K <= limit * x_KBD.shape[1] * W_KFD.shape[1]


def active(
    x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, scratch: Scratch, *, encoder: str
) -> tuple[Lists | None, float]:
    """The entries above 0; and how many were proposed for each, or for 1 % of all if that is more.
    None if a rough encoder would propose so many that lists of them would not be short.

    Args:
        encoder: of `ENCODERS`: by which product.
    """
    compiled, (K, F, D), B = loops(), W_KFD.shape, x_KBD.shape[1]
    product = ENCODERS[encoder](x_KBD.expand(K, -1, -1), W_KFD, b_KF, scratch)
    x, W, b = (t.detach().numpy() for t in (x_KBD, W_KFD, b_KF))
    while True:
        lists = Lists.empty(K, B, F, D, _room(scratch.room, F, chunk_rows(B, D)), scratch)
        chunk, starts_KCF, row_KCA, _ = lists
        full_KC = np.zeros(starts_KCF.shape[:2], np.int64)
        seen_KC = np.zeros_like(full_KC)
        at_once = chunk * torch.get_num_threads()
        for low in range(0, B, at_once):
            rows = slice(low, min(B, low + at_once))
            n = K * -(-(rows.stop - low) // chunk)
            size, into = K * F * (rows.stop - low), (starts_KCF, row_KCA, full_KC)
            u_KFN = product.of(rows)
            if u_KFN.dtype == np.uint16:
                spread(shorts().listed, n, size, u_KFN, low, rows.stop, chunk, *into)
            else:
                sides = product.w_K3F, product.x_K3B
                spread(compiled.propose, n, size, u_KFN, low, *sides, chunk, *into)
            if full_KC.any():
                break
            work = scratch.room * size * D
            spread(compiled.values, n, work, x, W, b, low // chunk, *lists[1:], seen_KC)
        else:
            break
        share = float(full_KC.max()) / (F * chunk)
        if encoder in ROUGH and share > MOST_BY_ROUGH:
            return None, float("inf")
        scratch.room = 1.2 * share
    found = max(int(starts_KCF[..., -1].sum()), 0.01 * K * B * F)
    return lists, int(seen_KC.sum()) / found


def _room(share: float, F: int, chunk: int) -> int:
    return int(min(share, 1.0) * F * chunk) + 2 * chunk + 8


def _plain(x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, scratch: Scratch) -> Product:
    """All products in fp32, by the library that PyTorch takes by itself."""
    K, F, _ = W_KFD.shape

    def of(rows: slice) -> np.ndarray:
        u_KFN = scratch("u", (K, F, rows.stop - rows.start))
        return torch.bmm(W_KFD, x_KBD[:, rows].mT, out=u_KFN).numpy()

    return Product(of, *_sides(x_KBD, W_KFD, b_KF))


def _onednn(x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, scratch: Scratch) -> Product:
    """The same by oneDNN, which on some processors is twice as fast."""
    weights = [W_FD.to_mkldnn() for W_FD in W_KFD]

    def of(rows: slice) -> np.ndarray:
        u = [
            linear(W_FD, x_BD[rows].to_mkldnn()).to_dense()
            for x_BD, W_FD in zip(x_KBD, weights, strict=True)
        ]
        return (u[0][None] if len(u) == 1 else torch.stack(u)).numpy()

    return Product(of, *_sides(x_KBD, W_KFD, b_KF))


def _sides(x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What two sums of D terms in fp32, in whatever order, may differ by; and the bias."""
    K, B, D = x_KBD.shape
    x_K3B, w_K3F = torch.zeros(K, 3, B), torch.zeros(K, 3, W_KFD.shape[1])
    x_K3B[:, 0] = x_KBD.norm(dim=2) * (D * ROUNDED * ROUND_UP)
    x_K3B[:, 2], w_K3F[:, 0] = 1, W_KFD.norm(dim=2)
    w_K3F[:, 2] = b_KF + b_KF.abs() * 2.0**-20
    return w_K3F.numpy(), x_K3B.numpy()


def _screen(x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, scratch: Scratch) -> Product:
    """In bf16. With x' and w' the rounded vectors, x.w - x'.w' = (x - x').w + x'.(w - w').

    Rounding to 8 bits takes at most one part in 2^8, so the error is at most
    (||x - x'|| + 2^-8 ||x'||) ||w|| (Cauchy and Schwarz). Margin and bias ride along as three more
    columns of the product, the bias in two parts, since 8 bits would be too rough. Inside, sums are
    fp32, and rounding a sum to bf16 does not change its sign.
    """
    x_KBE, W_KFE = _with_margin(x_KBD, W_KFD, b_KF, scratch)
    K, F, _ = W_KFE.shape

    def of(rows: slice) -> np.ndarray:
        u_KFN = scratch("u16", (K, F, rows.stop - rows.start), torch.bfloat16)
        torch.bmm(W_KFE, x_KBE[:, rows].mT, out=u_KFN)
        # the bits of a bf16, read as an integer, have its sign
        return u_KFN.view(torch.int16).numpy()

    return Product(of, *NO_SIDES)


def _bytes(x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, scratch: Scratch) -> Product:
    """In whole numbers up to 127, whose product is exact: x.w - x'.w' as in `_screen`, with the
    lengths of what rounding took from each row and each feature. Four times as fast as fp32 where
    the processor has instructions for it; rows with a few large entries are rounded roughly."""
    K, F, D = W_KFD.shape
    x_KBD8, x_4R = _rounded_to("x8", x_KBD, D, torch.int8, scratch)
    W_KFD8, w_4G = _rounded_to("w8", W_KFD, D, torch.int8, scratch)

    def of(rows: slice) -> np.ndarray:
        u_KFN = scratch("u32", (K, F, rows.stop - rows.start), torch.int32)
        for k in range(K):
            torch._int_mm(W_KFD8[k], x_KBD8[k, rows].T, out=u_KFN[k])
        return u_KFN.numpy()

    return Product(of, *_sides_of_rounded(x_4R, w_4G, b_KF, D))


def _shorts(x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, scratch: Scratch) -> Product:
    """The same where the processor has AVX2 alone, numbers up to 90: three times as fast as fp32
    (`shorts`). Elsewhere as `_plain`."""
    tiles = shorts()
    if tiles is None:
        return _plain(x_KBD, W_KFD, b_KF, scratch)
    (K, F, D), B = W_KFD.shape, x_KBD.shape[1]
    G, P, Q = -(-F // tiles.FEATURES) * tiles.FEATURES, -(-B // tiles.ROWS), -(-D // 4)
    to_x = tiles.MOST_X, tiles.LONGEST_X, tiles.OFFSET
    x_KNE8, x_4KN = _rounded_to(
        "x8 of tiles", x_KBD, 4 * Q, torch.uint8, scratch, *to_x, rows=P * tiles.ROWS
    )
    to_w = tiles.MOST_W, tiles.LONGEST_W
    w_KGE8, w_4KG = _rounded_to("w8 of tiles", W_KFD, 4 * Q, torch.int8, scratch, *to_w, rows=G)
    panel_KPQR = scratch("panels", (K, P, Q, tiles.ROWS), torch.int32).numpy()
    spread(tiles.pack, K * P, x_KNE8.numel(), x_KNE8.view(torch.int32).numpy(), panel_KPQR)
    start_KGS2 = scratch("starts of sums", (K, G, -(-Q // tiles.QUADS), 2), torch.int16)
    both = w_KGE8.view(K * G, 4 * Q).numpy(), start_KGS2.view(K * G, -1, 2).numpy()
    spread(tiles.starts, K * G, w_KGE8.numel(), *both)
    w_K3G, x_K3N = _sides_of_rounded(x_4KN, w_4KG, b_KF, D)
    given = panel_KPQR, w_KGE8.numpy(), start_KGS2.numpy(), x_K3N, w_K3G

    def of(rows: slice) -> np.ndarray:
        panels = -(-(rows.stop - rows.start) // tiles.ROWS)
        mark_KGP = scratch("marks", (K, G, panels), torch.int16).numpy().view(np.uint16)
        n, size = K * -(-G // tiles.BLOCK), mark_KGP.size * tiles.ROWS * D
        spread(tiles.mark, n, size, *given, rows.start // tiles.ROWS, mark_KGP)
        return mark_KGP

    return Product(of, *NO_SIDES)


def _rounded_to(
    name: str, full_KND: Tensor, width: int, kind: torch.dtype, scratch: Scratch, most: int = 127,
    longest: int = 0, offset: int = 0, *, rows: int | None = None,
) -> tuple[Tensor, np.ndarray]:  # fmt: skip
    """Rows in whole numbers, filled up to a width and a number of rows, and what `loops.rounded`
    says of each."""
    K, N, D = full_KND.shape
    M = rows or N
    whole_KME, side_4KM = scratch(name, (K, M, width), kind), np.zeros((4, K, M), np.float32)
    if M > N:
        whole_KME[:, N:] = 0
    full, whole = full_KND.detach().numpy(), whole_KME.numpy()
    how = np.float32(most), np.float32(longest), np.int32(offset)
    for k in range(K):  # one after the other: those that were filled up have rows between them
        each = full[k], whole[k, :N], side_4KM[:, k]
        spread(loops().rounded, N, 3 * N * D, *each, *how)
    return whole_KME, side_4KM


def _sides_of_rounded(
    x_4KB: np.ndarray, w_4KF: np.ndarray, b_KF: Tensor, D: int
) -> tuple[np.ndarray, np.ndarray]:
    """By what the product of whole numbers may fall short of x.w, and the bias, in its units."""
    _, K, B = x_4KB.shape
    b, F = b_KF.detach().numpy(), b_KF.shape[1]
    sums = (D + 4) * ROUNDED * ROUND_UP  # what sums of D terms in fp32 may lose
    x_K3B, w_K3F = np.empty((K, 3, B), np.float32), np.empty((K, 3, w_4KF.shape[2]), np.float32)
    x_K3B[:, 0] = x_4KB[1] * ROUND_UP + x_4KB[3] * sums
    x_K3B[:, 1], x_K3B[:, 2] = x_4KB[2] * ROUND_UP, x_4KB[0]
    w_K3F[:, 0], w_K3F[:, 1] = w_4KF[3] * ROUND_UP, w_4KF[1] * ROUND_UP
    w_K3F[:, 2, :F] = (b + np.abs(b) * 2.0**-20) * w_4KF[0, :, :F]
    w_K3F[:, 2, F:] = 0  # there may be more, of zeros
    return w_K3F, x_K3B


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


ENCODERS = {"plain": _plain, "onednn": _onednn, "screen": _screen, "bytes": _bytes,
            "shorts": _shorts}  # fmt: skip
# would propose too much of uneven rows: where it is more for each entry, a finer product is faster
ROUGH = {"bytes": 5, "shorts": 12}


# --- the largest ----------------------------------------------------------------------------------

GROUP = 32  # features whose largest is looked at in their place
Entries = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows, features and values of entries, row by row, features ascending."""


def largest(
    x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, scratch: Scratch, *, k: int, of_batch: bool,
    encoder: str = "plain",
) -> Lists:  # fmt: skip
    """The k largest entries above 0 of each row of one SAE (K = 1), or the k B largest of a batch.

    Of the maxima of small groups of features the k-th largest is no larger than the k-th largest
    entry, for k groups hold an entry each that is at least as large; and it is not much smaller. So
    the groups tell which few entries to multiply out and to sort. The same holds for numbers that
    no maximum is below: those of an inexact product, less its margin. Among equals the first wins.

    Args:
        encoder: of `ENCODERS`: by which product; "bytes" goes by "screen", "shorts" by "plain".
    """
    (_, B, D), F = x_KBD.shape, W_KFD.shape[1]
    given = x_KBD, W_KFD, b_KF, scratch
    scores = (_Screened if encoder in ("screen", "bytes") else _Full)(*given, k=k, encoder=encoder)
    chunk = chunk_rows(B, D)
    rows_C = [slice(low, min(B, low + chunk)) for low in range(0, B, chunk)]
    if of_batch:
        maxima, above = scores(slice(0, B))
        least = np.partition(maxima.reshape(-1), maxima.size - k * B)[maxima.size - k * B]
        all_of_them = _kept(above(np.full((B, 1), least, np.float32)), k * B)
        ends_C = np.searchsorted(all_of_them[0], [0, *(rows.stop for rows in rows_C)])
        parts = [tuple(a[i:j] for a in all_of_them) for i, j in pairwise(ends_C)]
    else:
        parts = [_of_rows(scores, rows, k) for rows in rows_C]
    compiled, room = loops(), max(1, max(len(part[0]) for part in parts))
    lists = Lists.empty(1, B, F, D, room, scratch)
    for c, (row_A, f_A, z_A) in enumerate(parts):
        place_A = np.empty(len(f_A), np.int64)
        compiled.by_feature(f_A, lists.starts_KCF[0, c], place_A)
        lists.row_KCA[0, c, place_A], lists.value_KCA[0, c, place_A] = row_A, z_A
    return lists


def _of_rows(scores: _Full, rows: slice, k: int) -> Entries:
    maxima_NG, above = scores(rows)
    place = maxima_NG.shape[1] - k
    least_N1 = np.partition(maxima_NG, place, axis=1)[:, place, None]
    row_A, f_A, z_A = _kept_of_rows(above(least_N1), k, len(maxima_NG))
    return row_A + rows.start, f_A, z_A


class _Full:
    """Some rows -> for each group a number that its maximum is not below, and a function that lists
    what is not below a bound, and above 0."""

    def __init__(
        self, x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, scratch: Scratch, *, k: int, encoder: str
    ):
        (self.x_BD,), (self.W_FD,), (self.b_F,) = x_KBD, W_KFD, b_KF
        self.scratch, self.size = scratch, _group_size(W_KFD.shape[1], k)
        if encoder == "onednn":
            W_own, b_own = self.W_FD.to_mkldnn(), self.b_F.to_mkldnn()
            self.product = lambda x_ND: linear(x_ND.to_mkldnn(), W_own, b_own).to_dense()
        else:
            self.product = self._plain

    def _plain(self, x_ND: Tensor) -> Tensor:
        u_NF = self.scratch("u by row", (len(x_ND), len(self.W_FD)))
        return torch.addmm(self.b_F, x_ND, self.W_FD.T, out=u_NF)

    def __call__(self, rows: slice) -> tuple[np.ndarray, Callable[[np.ndarray], Entries]]:
        x_ND = self.x_BD[rows]
        u_NF = self.product(x_ND)
        length_N1 = x_ND.norm(dim=1, keepdim=True) * (ROUND_UP * x_ND.shape[1])
        margin_N1 = (length_N1 * self.W_FD.norm(dim=1).max() + self.b_F.abs().max()) * ROUNDED

        def above(least_N1: np.ndarray) -> Entries:
            below_N1 = np.maximum(least_N1, np.float32(0)) - 2 * margin_N1.numpy()
            return self._multiplied(rows, _places(u_NF.numpy(), below_N1, self.scratch))

        return (u_NF.view(len(u_NF), -1, self.size).amax(2) - margin_N1).numpy(), above

    def _multiplied(self, rows: slice, index_A: np.ndarray) -> Entries:
        """Feature by feature, for more rows of x than of W stay in a core's own cache."""
        x_ND, F, compiled = self.x_BD[rows].numpy(), len(self.W_FD), loops()
        row_A = index_A // F
        f_A = index_A - row_A * F
        starts_F, place_A = np.empty(F + 1, np.int32), np.empty(len(f_A), np.int64)
        compiled.by_feature(f_A, starts_F, place_A)
        wanted_A, z_A = np.empty(len(f_A), np.int32), np.empty(len(f_A), np.float32)
        wanted_A[place_A] = row_A
        given = x_ND, self.W_FD.numpy(), self.b_F.numpy(), starts_F, wanted_A, z_A
        spread(compiled.dots, F, len(f_A) * x_ND.shape[1], *given)
        z_A = z_A[place_A]
        true_A = np.flatnonzero(z_A > 0)
        return row_A[true_A], f_A[true_A], z_A[true_A]


class _Screened(_Full):
    """The same by a product in bf16 that no entry exceeds."""

    def __init__(
        self, x_KBD: Tensor, W_KFD: Tensor, b_KF: Tensor, scratch: Scratch, *, k: int, encoder: str
    ):
        super().__init__(x_KBD, W_KFD, b_KF, scratch, k=k, encoder=encoder)
        (self.x_BE,), (self.W_FE,) = _with_margin(x_KBD, W_KFD, b_KF, scratch)
        D = x_KBD.shape[2]
        self.margin_B1 = self.x_BE[:, D + 2, None].float() * (2 * ROUND_UP)
        by_group = (-1, self.size)
        self.margin_G = self.W_FE[:, D + 2].float().view(by_group).amax(1)
        self.rest_G = self.b_F.abs().view(by_group).amax(1) * 2.0**-13

    def __call__(self, rows: slice) -> tuple[np.ndarray, Callable[[np.ndarray], Entries]]:
        x_NE = self.x_BE[rows]
        u_NF = self.scratch("u16", (len(x_NE), len(self.W_FE)), torch.bfloat16)
        torch.mm(x_NE, self.W_FE.T, out=u_NF)
        bits_NF = u_NF.view(torch.int16)  # their order is that of the numbers, above 0
        top_NG = bits_NF.view(len(x_NE), -1, self.size).amax(2).view(torch.bfloat16).float()
        top_NG -= top_NG.abs() * 2.0**-7  # they were rounded
        top_NG -= self.margin_B1[rows] * self.margin_G + self.rest_G

        def above(least_N1: np.ndarray) -> Entries:
            low_N1 = np.maximum(0.0, least_N1 * np.float32(1 - 2**-7))
            below_N1 = np.maximum(0, (low_N1.view(np.int32) >> 16) - 1).astype(np.int16)
            return self._multiplied(rows, _places(bits_NF.numpy(), below_N1, self.scratch))

        return top_NG.numpy(), above


def _group_size(n_features: int, k: int) -> int:
    """Groups are so small that there are 2 k of them, or single entries."""
    size = GROUP
    while size > 1 and (n_features % size or n_features < 2 * k * size):
        size //= 2
    return size


def _kept(entries: Entries, n: int) -> Entries:
    """The n largest of some entries."""
    value_A = entries[2]
    if len(value_A) <= n:
        return entries
    least = np.partition(value_A, len(value_A) - n)[len(value_A) - n]
    kept_A = value_A > least
    kept_A[np.flatnonzero(value_A == least)[: n - int(kept_A.sum())]] = True
    return tuple(each_A[kept_A] for each_A in entries)


def _kept_of_rows(entries: Entries, k: int, n_rows: int) -> Entries:
    """The k largest of each row."""
    row_A, _, value_A = entries
    count_N = np.bincount(row_A, minlength=n_rows)
    most = count_N.max(initial=0)
    if most <= k:
        return entries
    first_N = np.cumsum(count_N) - count_N
    value_NP = np.full((n_rows, most), -np.inf, dtype=np.float32)
    value_NP[row_A, np.arange(len(row_A)) - first_N[row_A]] = value_A
    least_A = np.partition(value_NP, most - k, axis=1)[:, most - k][row_A]
    kept_A = value_A > least_A
    spare_N = k - np.bincount(row_A[kept_A], minlength=n_rows)
    equal_A = np.flatnonzero(value_A == least_A)
    rows = row_A[equal_A]
    kept_A[equal_A[np.arange(len(rows)) - np.searchsorted(rows, rows) < spare_N[rows]]] = True
    return tuple(each_A[kept_A] for each_A in entries)


def _places(u: np.ndarray, least: np.ndarray, scratch: Scratch) -> np.ndarray:
    """Flat places of what is larger than `least`, ascending.

    Eight answers are looked at together, as one number: most of them are eight times no.
    """
    size = u.size
    mask = scratch("mask", (-(-size // 8) * 8,), torch.bool).numpy()
    mask[size:] = False
    np.greater(u, least, out=mask[:size].reshape(u.shape))
    eights = mask.view(np.int64)
    some = np.flatnonzero(eights != 0)
    index_A = np.flatnonzero(eights[some].view(bool))
    return (some[index_A >> 3] << 3) + (index_A & 7)
