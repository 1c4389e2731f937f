"""Where a store's rows lie while they are given out: memory of a device, and what is read into it.

If all rows fit, each block is read once and stays. Else two windows take turns: while batches come
from one, the other is filled. A GPU's memory is filled through pinned pieces, by a stream of its
own; it gathers a batch in a hundredth of the time that a processor takes.

Shapes: N rows, B batch, D activation width; K blocks, each of neighbours in a shard.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from saelearn.activations.shards import Shards, block_rows
from saelearn.errors import ArtifactError

# Threads that read and compare: no more than half the cores, for they ask for the interpreter's
# lock, and so does the thread that trains
READERS = min(8, max(4, (os.cpu_count() or 4) // 2))
LOT = 2**24  # bytes that one of them reads before another's turn, and sends to a GPU at once
HANDS = 4  # that gather a batch's rows on a CPU
HANDFUL = 2**20  # bytes that are worth a hand
Run = tuple[int, int]  # a first row, and how many
NEVER = threading.Event()


class Held:
    """Rows in memory, looked at before, as the one shard of a source."""

    def __init__(self, x_ND: Tensor):
        self.x_ND = x_ND

    def read(self, shard: int, runs: Sequence[Run], out_ND: Tensor, *, finite: bool = True) -> None:
        """Fill `out_ND` with some runs of rows."""
        at = 0
        for first, n in runs:
            np.copyto(_bytes(out_ND[at : at + n]), _bytes(self.x_ND[first : first + n]))
            at += n


class Room:
    """Memory for a store's rows, and where in it which of its blocks lie.

    Args:
        source: where rows come from.
        blocks_K3: of each block its shard, its first row there, and its number of rows.
        x_ND: the memory, to be filled: of all rows or of two windows. Or all rows themselves.
        state: "keeps" what was read, each block once; has two windows in "turns"; or is "full".
    """

    def __init__(self, source: Shards | Held, blocks_K3: np.ndarray, x_ND: Tensor, *, state: str):
        self._source, self._blocks_K3, self.x_ND = source, blocks_K3, x_ND
        count_K = blocks_K3[:, 2]
        self._keeps, self._next = state != "turns", 0
        self._place_K = np.full(len(count_K), -1)
        if state == "full":
            self._place_K, self._next = count_K.cumsum() - count_K, len(x_ND)
        self._pieces: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()  # not in use
        self._stream = _loading_stream(x_ND.device) if x_ND.is_cuda else None
        if self._stream:  # whoever had this memory before may not have done with it
            self._stream.wait_stream(torch.cuda.current_stream(x_ND.device))

    @property
    def _near(self) -> bool:
        """Whether files can be read right into the memory."""
        return self.x_ND.device.type == "cpu"

    @property
    def full(self) -> bool:
        """Whether all rows are there to stay."""
        return self._keeps and self._next == len(self.x_ND)

    def asked(self) -> torch.cuda.Event | None:
        """What a GPU was asked for so far, to be waited for before rows lose their place."""
        if self._stream is None or self._keeps:
            return None
        asked = torch.cuda.Event(blocking=True)
        asked.record(torch.cuda.current_stream(self.x_ND.device))
        return asked

    def load(
        self,
        blocks_K: np.ndarray,
        draw: Callable[[], np.ndarray],
        asked: torch.cuda.Event | None,
        stop: threading.Event = NEVER,
    ) -> Tensor:
        """Read those blocks that are not there; all their rows' places, in an order.

        Waits until all that can be read has arrived, so that any stream may use it.

        Args:
            blocks_K: ascending.
            draw: gives which of their rows, counted through, comes when; called meanwhile.
            asked: what used the memory before.
            stop: set when nobody wants them any more.

        Raises:
            CancelledError: it was.
        """
        if asked is not None:
            asked.synchronize()
        new_K = blocks_K[self._place_K[blocks_K] < 0] if self._keeps else blocks_K
        count_K = self._blocks_K3[new_K, 2]
        self._place_K[new_K] = self._next + count_K.cumsum() - count_K
        order_N = self._read(new_K, draw, stop)
        self._next += int(count_K.sum()) if self._keeps else len(self.x_ND) // 2 - 2 * self._next
        if self.full:
            self._pieces.clear()
        count_K = self._blocks_K3[blocks_K, 2]
        moved_K = self._place_K[blocks_K] - (count_K.cumsum() - count_K)
        if (moved_K == moved_K[0]).all():  # they follow each other
            order_N += moved_K[0]
        else:
            order_N += moved_K.repeat(count_K)[order_N]
        with self._streaming():
            return torch.from_numpy(order_N).to(self.x_ND.device)

    def take(self, rows_B: Tensor, hands: ThreadPoolExecutor) -> Tensor:
        """The rows at some places, as a tensor of their own.

        On a CPU by threads of our own: PyTorch's are a team for each thread that calls it, and
        teams wait for each other's cores (on a busy machine three times as long as one thread
        takes). Where a GPU is in use, they come in memory that it can fetch them from.
        """
        x_ND = self.x_ND
        if rows_B.is_cuda:  # whose memory is the loader's to give away
            rows_B.record_stream(torch.cuda.current_stream(rows_B.device))
        if x_ND.device.type != "cpu" or not x_ND.is_contiguous():
            return x_ND.index_select(0, rows_B)
        shape = (len(rows_B), x_ND.shape[1])
        pinned = torch.cuda.is_initialized()
        out_BD = torch.empty(shape, dtype=x_ND.dtype, device="cpu", pin_memory=pinned)
        parts = max(1, min(HANDS, torch.get_num_threads(), out_BD.nbytes // HANDFUL))
        rows_P = np.array_split(rows_B.numpy(), parts)
        out_P = np.array_split(_bytes(out_BD), parts)
        take = functools.partial(_bytes(x_ND).take, axis=0, mode="clip")
        if parts == 1:
            take(rows_P[0], out=out_P[0])
            return out_BD
        for job in [hands.submit(take, r, out=out) for r, out in zip(rows_P, out_P, strict=True)]:
            job.result()
        return out_BD

    # --- reading ----------------------------------------------------------------------------------

    def _read(
        self, blocks_K: np.ndarray, draw: Callable[[], np.ndarray], stop: threading.Event
    ) -> np.ndarray:
        """Blocks into the memory from `_next` on, by several threads; what was drawn meanwhile."""
        at, jobs, blocks = self._next, [], self._blocks_K3[blocks_K].tolist()
        read = self._source.read if self._near else self._send

        def wanted(shard: int, runs: list[Run], out_ND: Tensor) -> Tensor | None:
            return None if stop.is_set() else read(shard, runs, out_ND)

        with self._arrived(), ThreadPoolExecutor(READERS) as readers:
            for shard, group in itertools.groupby(blocks, key=lambda block: block[0]):
                for runs in self._lots([(first, n) for _, first, n in group]):
                    out_ND = self.x_ND[at : at + sum(n for _, n in runs)]
                    jobs.append(readers.submit(wanted, shard, runs, out_ND))
                    at += len(out_ND)
            drawn = draw()
            found = [job.result() for job in jobs]
            if stop.is_set():
                raise CancelledError
            if found and not self._near:
                self._check_finite(found, blocks)
        return drawn

    def _send(self, shard: int, runs: list[Run], out_ND: Tensor) -> Tensor:
        """Rows into a GPU's memory; what it looks for NaN in: the least and the largest number."""
        with self._streaming():
            piece_ND, sent = self._piece()
            if sent is not None:
                sent.synchronize()
            part_ND = piece_ND[: len(out_ND)]
            self._source.read(shard, runs, part_ND, finite=False)
            out_ND.copy_(part_ND, non_blocking=True)
            if sent is not None:
                sent.record()
            self._pieces.append((piece_ND, sent))
            return torch.stack(out_ND.aminmax())

    def _piece(self) -> tuple[Tensor, torch.cuda.Event | None]:
        """Memory for a lot, and when what it held last has been sent; two for each reader.

        They are kept as long as anything is read: to pin memory takes longer than to fill it, and
        what lies unused is let go at each recording of a step's launches.
        """
        if len(self._pieces) >= READERS:
            return self._pieces.popleft()
        shape = min(self._lot_rows, len(self.x_ND)), self.x_ND.shape[1]
        on_gpu, how = self.x_ND.is_cuda, {"dtype": self.x_ND.dtype, "device": "cpu"}
        piece_ND = torch.empty(shape, pin_memory=on_gpu, **how)
        return piece_ND, torch.cuda.Event(blocking=True) if on_gpu else None

    def _check_finite(self, found: list[Tensor], blocks: list[list[int]]) -> None:
        with self._streaming():
            if bool(torch.stack(found).isfinite().all()):
                return
        for shard, first, n in blocks:  # their source says what it is, and where
            piece_ND = torch.empty(n, self.x_ND.shape[1], dtype=self.x_ND.dtype)
            self._source.read(shard, [(first, n)], piece_ND)
        raise ArtifactError("rows that reach the GPU as they were read", "NaN or infinity there")

    @contextlib.contextmanager
    def _streaming(self) -> Iterator[None]:
        """What a GPU is asked for inside goes the room's own way; a thread begins on the first."""
        if self._stream is None:
            yield
            return
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            yield

    @contextlib.contextmanager
    def _arrived(self) -> Iterator[None]:
        """Afterwards nothing is on its way any more, also if something went wrong."""
        try:
            yield
        finally:
            if self._stream is not None:
                self._stream.synchronize()

    @property
    def _lot_rows(self) -> int:
        """Rows of a lot at most: where one is cut, a checksum's block ends."""
        width, dtype = self.x_ND.shape[1], self.x_ND.dtype
        block = block_rows(width, dtype)
        return max(1, LOT // (width * dtype.itemsize * block)) * block

    def _lots(self, runs: list[Run]) -> Iterator[list[Run]]:
        """Runs in lots."""
        size = self._lot_rows
        lot, room = [], size
        for first, n in runs:
            for start in range(first, first + n, size):
                rows = min(size, first + n - start)
                if rows > room:
                    yield lot
                    lot, room = [], size
                lot.append((start, rows))
                room -= rows
        yield lot


@functools.cache
def _loading_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all rooms of a GPU, of the urgent ones.

    The others are handed out in turns, again and again, and one of these is what a step's launches
    are recorded on: what others put there meanwhile would be recorded, and not done.
    """
    return torch.cuda.Stream(device, priority=-1)


def _bytes(x_ND: Tensor) -> np.ndarray:
    """Contiguous rows as NumPy sees them: it knows no bfloat16."""
    return x_ND.detach().view(torch.uint8).numpy()
