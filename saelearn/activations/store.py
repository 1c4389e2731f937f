"""Shuffled batches of activations, from memory or disk, that go on where they stopped.

How rows from disk get mixed with little memory: the shards (themselves shuffled when they were
written) are cut into blocks of neighbours. Each epoch puts all blocks into a new random order and
deals them into windows that fit in memory; the rows of a window are given out in random order
while a thread reads the next window. The seed, the epoch and the window's number decide
everything, so any batch can be reached by reading one window.

Shapes: N rows, B batch, D activation width; S shards, K blocks.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelearn.activations.room import HANDS, Held, Room
from saelearn.activations.shards import Shards, block_rows
from saelearn.errors import Refusal, brief, check_activations, check_whole, checked, whole

MEMORY_LIMIT = 2**30


class _Window(NamedTuple):
    epoch: int
    number: int  # in the epoch, from 1
    blocks_K: np.ndarray
    skip: int  # rows that were given out before
    last: bool


class ActivationStore:
    """Batches `x_BD`, shuffled: each row exactly once an epoch, in the dtype it is stored in.

    `train` takes it as `data`. A loop over it begins at the beginning, or, after
    `load_state_dict`, with the batch that would have come next, equal to the bit.

    Args:
        data: activations `x_ND`; or a folder that `activations.write` made, by one writer or in
            parts; or several folders, such as parts that lie on several disks.
        batch_size: B. An epoch's last batch is smaller if B does not divide N.
        epochs: how often to go through the rows; None: without end.
        seed: of all orders. Another seed, epoch or memory_limit is another order.
        drop_last: leave out an epoch's last batch if it is smaller; other rows in each epoch.
        memory_limit: bytes for rows from disk. If all fit, they are read once and kept; else two
            windows share it: one in use, one being read. More memory mixes better.
        about: what an SAE of these rows has to remember (`LM.about`); folders know it themselves.

    Attributes:
        rows, d_in, dtype: of the data.
        tokens: what became of each token that was read (`shards.Tokens`); None for a tensor.
        batches_per_epoch: number of batches.
        windows: in how many pieces an epoch is read; with 1 its order is a full permutation.
        about: what an SAE of these rows has to remember; `train` takes it over.
        taken: bytes of a GPU's memory that `on_device` took for rows; 0 elsewhere.
        finite: its rows were looked at, when it was made or when they were read.
        fresh: each batch is a tensor of its own.

    Raises:
        Refusal: rows that are not finite, or a memory_limit in which they cannot be mixed.
        ArtifactError: a folder with something missing, cut short, or not of our making.
    """

    finite = fresh = True

    @checked(batch_size=whole(1), epochs=whole(0), seed=whole(0), memory_limit=whole(0))
    def __init__(
        self,
        data: Tensor | str | os.PathLike | Sequence[str | os.PathLike],
        *,
        batch_size: int = 1_024,
        epochs: int | None = None,
        seed: int = 0,
        drop_last: bool = False,
        memory_limit: int = MEMORY_LIMIT,
        about: Mapping[str, Any] | None = None,
    ):
        self.batch_size, self.epochs = batch_size, epochs
        self.seed, self.drop_last = seed, drop_last
        self._x_ND = _checked(data) if isinstance(data, Tensor) else None
        self._shards = None if isinstance(data, Tensor) else Shards.open(*_folders(data))
        self.about = dict(self._shards.about if about is None and self._shards else about or {})
        source = self._shards or data
        self.tokens = self._shards and self._shards.tokens
        self.dtype, self.d_in = source.dtype, self._shards.d_in if self._shards else data.shape[1]
        self.rows = sum(self._shards.rows_S) if self._shards else len(data)
        self._cut(memory_limit)
        self._device = torch.device("cpu") if self._shards else data.device
        self._stays, self._room, self.taken = self.windows == 1, None, 0
        self.batches_per_epoch = self.rows // batch_size
        self.batches_per_epoch += self.rows % batch_size > 0 and not drop_last
        if self.batches_per_epoch == 0:
            raise Refusal(f"at least {batch_size} rows", f"{self.rows}", "drop_last=False")
        self._start, self._given = 0, [0]  # the second is shared with what `on_device` gives

    def __iter__(self) -> Iterator[Tensor]:
        start, self._start = self._start, 0
        self._given[0] = start
        return self._give(start)

    def state_dict(self, batches: int | None = None) -> dict:
        """Where the loop is, as JSON.

        Args:
            batches: how many have been used since the first epoch's beginning; by default as
                many as were given out. Who takes batches ahead of their use says it here.
        """
        return {"batches": self._given[0] if batches is None else batches} | self._order

    def load_state_dict(self, state: dict) -> None:
        """Let the next loop go on from there.

        Raises:
            Refusal: the state is one of other data, or of arguments that make another order.
        """
        for key, mine in self._order.items():
            if state.get(key) != mine:
                raise Refusal(
                    f"a state with {key} = {mine!r}",
                    repr(state.get(key)),
                    "make the store from the same data with the same arguments",
                )
        self._start = self._given[0] = check_whole(state.get("batches"), "batches", 0)

    def on_device(self, device: str | torch.device, memory: int) -> ActivationStore:
        """The same batches from the same place on, gathered by a GPU out of its own memory.

        Their order does not depend on it, so that a training can go on on another machine. `train`
        asks for it.

        Args:
            device: such as "cuda".
            memory: bytes that may be taken there. If all rows fit they stay, and each is read once;
                else two windows, as large as on the CPU, take turns.

        Returns:
            a store to be used in place of this one; or this one, if there is no room for that, or
            its rows are on a GPU already.
        """
        whole, windows = (n * self._row_bytes for n in (self.rows, 2 * self._window_rows))
        taken = whole if whole <= memory or not self._shards else windows
        in_order = self._x_ND is None or self._x_ND.is_contiguous()
        if self._device.type != "cpu" or not in_order or taken > memory:
            return self
        there = copy.copy(self)
        there._device, there._stays, there._room = torch.device(device), taken == whole, None
        there.taken, self._start = taken, 0
        return there

    @functools.cached_property
    def _order(self) -> dict:
        """All that decides the order of the rows."""
        if self._shards:
            made_of = [self._shards.settings, self._shards.rows_S, self._shards.marks]
            digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode())
        else:
            some_ND = self._x_ND[:: math.ceil(self.rows / 1_000)].detach().float().cpu()
            digest = hashlib.sha256(some_ND.contiguous().numpy().tobytes())
        return {
            "rows": self.rows, "data": digest.hexdigest(), "seed": self.seed,
            "windows": self.windows, "blocks": len(self._blocks_K3),
            "batch_size": self.batch_size, "drop_last": self.drop_last,
        }  # fmt: skip

    # --- blocks and windows -----------------------------------------------------------------------

    def _cut(self, memory_limit: int) -> None:
        """Blocks, and how many windows they make."""
        self._row_bytes = row_bytes = self.d_in * self.dtype.itemsize + 16  # 16: its place in order
        self.windows, block = 1, self.rows
        if self._shards and self.rows * row_bytes > memory_limit:
            window = memory_limit // (2 * row_bytes)
            block = max(1, min(block_rows(self.d_in, self.dtype), window // 64))
            if window - block < self.batch_size:
                raise Refusal(
                    "a memory_limit of two windows, each of more than a batch",
                    f"{memory_limit:,} bytes",
                    f"memory_limit={2 * row_bytes * max(64, 2 * self.batch_size):,} or more",
                )
            self.windows = math.ceil(self.rows / (window - block))
        rows_S = self._shards.rows_S if self._shards else (self.rows,)
        self._blocks_K3 = np.array(  # shard, first row, rows
            [(s, i, min(block, n - i)) for s, n in enumerate(rows_S) for i in range(0, n, block)]
        )
        self._window_rows = min(self.rows, math.ceil(self.rows / self.windows) + block)

    def _windows(self, batches: int) -> Iterator[_Window]:
        """From the window in which the next batch begins, through all epochs."""
        first, batch = divmod(batches, self.batches_per_epoch)
        skip = batch * self.batch_size
        for epoch in itertools.count(first) if self.epochs is None else range(first, self.epochs):
            order_K = self._deal(np.random.default_rng((self.seed, epoch)))
            ends_K = self._blocks_K3[order_K, 2].cumsum()
            number_K = (ends_K - 1) * self.windows // self.rows  # equal shares, none left over
            parts = np.split(order_K, np.flatnonzero(np.diff(number_K)) + 1)
            for number, blocks_K in enumerate(parts, 1):
                n = self._blocks_K3[blocks_K, 2].sum()
                if skip < n:
                    yield _Window(epoch, number, blocks_K, skip, number == len(parts))
                skip = max(0, skip - n)

    def _deal(self, rng: np.random.Generator) -> np.ndarray:
        """All blocks in a random order in which each stretch has its share of every shard.

        A shard's blocks get random ranks, and those are spread evenly over the epoch.
        """
        shard_K, n_blocks = self._blocks_K3[:, 0], len(self._blocks_K3)
        by_shard_K = np.lexsort((rng.random(n_blocks), shard_K))
        count_S = np.bincount(shard_K)
        rank_K = np.arange(n_blocks) - (count_S.cumsum() - count_S)[shard_K]
        when_K = (rank_K + rng.random(n_blocks)) / count_S[shard_K]
        return by_shard_K[when_K.argsort()]

    def _enter(self) -> Room:
        """Where windows are read into: room for all rows, or for two windows."""
        if self._room:
            return self._room
        x_ND = self._x_ND
        if x_ND is not None and x_ND.device == self._device:
            return Room(Held(x_ND), self._blocks_K3, x_ND, state="full")
        source = self._shards if x_ND is None else Held(x_ND)
        try:
            return Room(source, self._blocks_K3, **self._memory())
        except torch.OutOfMemoryError:  # others took it meanwhile
            self._device, self._stays = torch.device("cpu"), self.windows == 1
            self.taken = 0
            return self._enter()

    def _memory(self) -> dict[str, Any]:
        n, state = (self.rows, "keeps") if self._stays else (2 * self._window_rows, "turns")
        x_ND = torch.empty(n, self.d_in, dtype=self.dtype, device=self._device)
        return {"x_ND": x_ND, "state": state}

    def _load(self, room: Room, window: _Window, *asked: Any) -> Tensor:
        """Read a window; where its rows lie, in the order in which to give them out."""
        blocks_K = np.sort(window.blocks_K)  # forward through the files
        n = int(self._blocks_K3[blocks_K, 2].sum())

        def draw() -> np.ndarray:
            rng = np.random.default_rng((self.seed, window.epoch, window.number))
            return rng.permutation(n)[window.skip :]

        rows_N = room.load(blocks_K, draw, *asked)
        if room.full:
            self._room = room
        return rows_N

    def _ahead(self, room: Room, windows: Iterator[_Window]) -> Iterator[tuple[_Window, Tensor]]:
        """Windows with the places of their rows; while one is in use, a thread reads the next, for
        which nobody waits who wants no more."""
        stop = threading.Event()
        with ThreadPoolExecutor(1) as thread:

            def begin() -> tuple[_Window, Future] | None:
                window, given = next(windows, None), (room.asked(), stop)
                return window and (window, thread.submit(self._load, room, window, *given))

            try:
                job = begin()
                while job:
                    window, loading = job
                    rows_N = loading.result()
                    job = begin()  # to where the window before this one was
                    yield window, rows_N
            finally:
                stop.set()

    def _give(self, given: int) -> Iterator[Tensor]:
        pieces, held, room = [], 0, self._enter()
        with ThreadPoolExecutor(HANDS) as hands:
            for window, rows_N in self._ahead(room, self._windows(given)):
                while len(rows_N):
                    missing = self.batch_size - held
                    rows_B, rows_N = rows_N[:missing], rows_N[missing:]
                    pieces.append(room.take(rows_B, hands))
                    held += len(rows_B)
                    short = window.last and not len(rows_N) and not self.drop_last
                    if held == self.batch_size or short:
                        given += 1
                        self._given[0] = given
                        yield pieces[0] if len(pieces) == 1 else torch.cat(pieces)
                        pieces, held = [], 0
                if window.last:
                    pieces, held = [], 0


def _folders(data: Any) -> list[str | os.PathLike]:
    folders = [data] if isinstance(data, str | os.PathLike) else data
    if not isinstance(folders, list | tuple) or not folders:
        raise Refusal("activations x_ND, or at least one folder of some", brief(data))
    for folder in folders:
        if not isinstance(folder, str | os.PathLike):
            raise Refusal("the path of each folder", brief(folder))
    return list(folders)


def _checked(x_ND: Tensor) -> Tensor:
    """The rows, if they are sound; looked at in parts, since the looking takes memory too."""
    for part_ND in x_ND.split(2**14) if x_ND.ndim else [x_ND]:
        check_activations(part_ND)
    return x_ND
