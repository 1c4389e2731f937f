"""Active entries as a list, and products that are computed at these alone.

They read rows of a table in an order that nobody can foresee, so the speed is that of the memory
in which the table lies. A core's own cache holds about `TABLE` numbers and is several times as
fast as the next: larger tables are taken column by column (`sums`), or rows by rows (`chunks`).

Shapes: G features of all SAEs, R rows of all SAEs, A active entries, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

TABLE = 2**19  # numbers of fp32 in 2 MB
COLUMNS = 64  # of a larger table at once
CHUNK_ROWS = 4_096


class Active(NamedTuple):
    """Active entries feature by feature, a sparse matrix `[G, R]` in CSR form.

    Feature g is active in the rows `row_A[starts_G[g] : starts_G[g + 1]]`, in ascending order.
    """

    starts_G: Tensor  # G + 1 of them
    g_A: Tensor
    row_A: Tensor
    value_A: Tensor

    @classmethod
    def of(cls, g_A: np.ndarray, row_A: np.ndarray, value_A: Tensor, n_features: int) -> Active:
        """From features and rows, features ascending."""
        starts_G = starts(np.bincount(g_A, minlength=n_features))
        return cls(starts_G, torch.from_numpy(g_A), torch.from_numpy(row_A), value_A)

    def by_row(self, n_rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same row by row: where each row starts, features, and their places in this list."""
        place_A = np.arange(len(self.row_A), dtype=np.int32)
        by_feature = (place_A, self.row_A.numpy(), self.starts_G.numpy())
        by_row = csr_matrix(by_feature, shape=(len(self.starts_G) - 1, n_rows)).tocsc()
        parts = (by_row.indptr, by_row.indices, by_row.data)
        return tuple(torch.from_numpy(part) for part in parts)

    def dots(self, rows_GD: Tensor, rows_RD: Tensor, plus_A: Tensor, scale: float = 1) -> Tensor:
        """plus + scale times the product of both rows, at each entry."""
        size = (len(rows_GD), len(rows_RD))
        pattern = torch.sparse_csr_tensor(self.starts_G, self.row_A, plus_A, size=size)
        return torch.sparse.sampled_addmm(pattern, rows_GD, rows_RD.T, alpha=scale).values()


def table(matrix_ND: Tensor) -> tuple[Tensor, ...]:
    """A matrix as `sums` reads it: whole if it is small, else in blocks of columns."""
    if matrix_ND.numel() <= TABLE:
        return (matrix_ND,)
    return tuple(block.contiguous() for block in matrix_ND.split(COLUMNS, dim=1))


def sums(starts_M: Tensor, index_A: Tensor, weight_A: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    """`[M, D]`: for each m, the weighted sum of a table's rows `index_A[starts[m]:starts[m+1]]`.

    PyTorch has this as the sum of a bag of embeddings.
    """
    # not scaled by frequency, summed, dense gradient, weights, the last start is the end
    options = (False, 0, False, weight_A, True)
    bags = (torch.embedding_bag(block, index_A, starts_M, *options)[0] for block in blocks)
    if len(blocks) == 1:
        return next(bags)
    sum_MD = torch.empty(len(starts_M) - 1, sum(block.shape[1] for block in blocks))
    for columns, found in zip(sum_MD.split(blocks[0].shape[1], dim=1), bags, strict=True):
        columns.copy_(found)
    return sum_MD


def joined(parts: Sequence[tuple[int, Active, Tensor]]) -> tuple[Active, Tensor]:
    """Lists of several chunks of rows as one.

    Args:
        parts: for each chunk its first row, its list, and numbers `[A]` that go with it.
    """
    if len(parts) == 1:
        return parts[0][1:]
    starts_CG = np.stack([active.starts_G.numpy() for _, active, _ in parts])
    count_CG = np.diff(starts_CG).astype(np.int64)
    starts_G = starts(count_CG.sum(0))
    n = int(starts_G[-1])
    row_A, value_A, more_A = np.empty(n, np.int32), *(np.empty(n, np.float32) for _ in range(2))
    first_CG = starts_G.numpy()[:-1] + count_CG.cumsum(0) - count_CG  # of each chunk's entries
    for (low, active, numbers_A), shift_G, count_G in zip(
        parts, first_CG - starts_CG[:, :-1], count_CG, strict=True
    ):
        place_A = np.arange(len(active.g_A)) + np.repeat(shift_G, count_G)
        row_A[place_A] = active.row_A.numpy() + low
        value_A[place_A], more_A[place_A] = active.value_A.numpy(), numbers_A.numpy()
    g_A = np.repeat(np.arange(len(starts_G) - 1, dtype=np.int32), count_CG.sum(0))
    *lists, more_A = (torch.from_numpy(a) for a in (g_A, row_A, value_A, more_A))
    return Active(starts_G, *lists), more_A


def starts(count_M: np.ndarray) -> Tensor:
    """Where each of M lists begins if they lie one after the other, and where the last ends."""
    starts_M = np.zeros(len(count_M) + 1, dtype=np.int32)
    np.cumsum(count_M, out=starts_M[1:])
    return torch.from_numpy(starts_M)


def at_once(n_saes: int, n_rows: int, width: int) -> int:
    """How many SAEs go through one list: as many as fit with all their rows, or one by chunks."""
    if n_rows > _chunk(width):
        return 1
    return min(n_saes, max(1, TABLE // (n_rows * width)))


def chunks(n_rows: int, width: int) -> Iterator[slice]:
    """Rows, as many at a time as fit into a core's own cache."""
    size = _chunk(width)
    return (slice(low, min(low + size, n_rows)) for low in range(0, n_rows, size))


def _chunk(width: int) -> int:
    return min(CHUNK_ROWS, max(64, TABLE // width))
