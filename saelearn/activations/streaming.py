"""Activations made while training, from text that is read only once. Lesson 07.

The rows follow each other in the order of the text and are cut into windows that fit in memory; the
rows of a window are given out in random order. So the seed and the number of a window decide its
batches, and any of them can be reached by running the model on the documents of one window.

Shapes: N rows, B batch, T positions, D activation width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelearn.activations.source import Leave, Source, fingerprint, read_into
from saelearn.errors import Refusal, check_pieces, checked, number, whole
from saelearn.lm import LM, Batch


@checked(
    batch_size=whole(1), buffer_size=whole(1), skip=whole(0), max_norm=number(1), seed=whole(0)
)
def stream(
    lm: LM,
    documents: Iterable[Tensor | Batch],
    site: str,
    *,
    batch_size: int = 1_024,
    buffer_size: int = 65_536,
    skip: int = 1,
    leave_tokens: Sequence[int] = (),
    max_norm: float | None = None,
    seed: int = 0,
) -> Stream:
    """Shuffled batches `x_BD` made while training, for text that is read only once.

    Each row is given out once; the last batch is as small as it has to be. Rows are mixed with
    those of their neighbourhood in the text alone, unlike those that `gather` keeps, which is also
    faster from the second epoch on. A training that was stopped goes on where it was: documents
    that were used are read again, but the model runs on those of two buffers at most.

    Args:
        documents: batches `tokens_BT` of token ids (or `Batch`es, with masks), as long as the
            training needs, such as `chunks` gives; to go on, the same again from their beginning.
        buffer_size: rows that are mixed.
        skip, leave_tokens, max_norm: as for `collect`.
    """
    check_pieces(documents, "documents")
    source = Source(lm, documents, (site,), Leave(skip, tuple(leave_tokens), max_norm))
    return Stream(source, batch_size, max(1, buffer_size // batch_size), seed)


class _Start(NamedTuple):
    """Where rows begin: at which batch of documents, at which of its rows, and what came before."""

    documents: int
    row: int
    sha256: str


class _Piece(NamedTuple):
    x_ND: Tensor
    start: _Start


class Stream(Iterator[Tensor]):
    """What `stream` returns: batches that know their place, which `train` saves and finds again.

    Attributes:
        batch_size: B.
        about: what an SAE of these rows has to remember; `train` takes it over.
        taken: bytes of a GPU's memory that `on_device` took for rows; 0 elsewhere.
        finite: its rows were looked at.
    """

    finite = True

    def __init__(self, source: Source, batch_size: int, batches: int, seed: int):
        self._source, self._batches, self._seed = source, batches, seed
        self.batch_size, self.taken, self._device = batch_size, 0, torch.device("cpu")
        (site,) = source.sites
        self.about = source.lm.about(site)
        self._documents, self._read, self._digest = iter(source), 0, hashlib.sha256()
        self._held: list[_Piece] = []  # rows that were made and are in no window yet
        self._window, self._number, self._at = (), -1, 0
        self._begun = self._start()
        leave = source.leave
        self._order = {
            "model": fingerprint(source.lm), "site": site, "seed": seed, "batch_size": batch_size,
            "buffer_size": batches * batch_size, "skip": leave.first,
            "leave_tokens": list(leave.tokens), "max_norm": leave.max_norm,
        }  # fmt: skip

    @property
    def d_in(self) -> int:
        """D."""
        return next(iter(self._source.widths().values()))

    def on_device(self, device: str | torch.device, memory: int) -> Stream:
        """This stream, whose next rows stay on the GPU that the model runs on, if they fit.

        `train` asks for it. The rows and their order are the same.

        Args:
            device: where the rows are wanted.
            memory: bytes that may be taken there: a buffer, what it is made of, and what is next.
        """
        device, there = torch.device(device), self._source.lm.device
        taken = 3 * self._batches * self.batch_size * self.d_in * 4
        alike = device.type == there.type and device.index in (None, there.index)
        if device.type == "cuda" and alike and taken <= memory and not self._held:
            self._device, self.taken = there, taken
        return self

    def __next__(self) -> Tensor:
        if self._at == len(self._window):
            self._fill()
        self._at += 1
        return self._window[self._at - 1]

    def state_dict(self) -> dict:
        """The window, where its rows begin, and the next batch in it, as JSON."""
        number, start, at = self._number, self._begun, self._at
        if at == len(self._window):
            number, start, at = number + 1, self._start(), 0
        return {"window": number, "start": list(start), "batch": at} | self._order

    def load_state_dict(self, state: dict) -> None:
        """Go on with the batch that came next then; the documents are read forward to it.

        Raises:
            Refusal: a state of another stream, or one behind what was read; other documents.
        """
        for key, mine in self._order.items():
            if state.get(key) != mine:
                remedy = "make the stream from the same model with the same arguments"
                raise Refusal(f"a state with {key} = {mine!r}", repr(state.get(key)), remedy)
        number, start, at = state["window"], _Start(*state["start"]), state["batch"]
        if number != self._number:
            self._forward(start)
            self._window, self._number = (), number - 1
            if at:
                self._fill()
        elif self._begun != start:
            raise _others()
        self._at = at

    def _start(self) -> _Start:
        """Where the rows begin that are in no window yet."""
        if self._held:
            return self._held[0].start
        return _Start(self._read, 0, self._digest.hexdigest())

    def _forward(self, start: _Start) -> None:
        """To the rows that begin there; those before are not made."""
        if self._start() != start and self._read > start.documents:
            raise Refusal("a state ahead of what was read", "one behind", "make the stream again")
        if self._start() == start:
            return
        self._held = []
        while self._read < start.documents:
            if self._next_documents() is None:
                raise _others()
        if self._digest.hexdigest() != start.sha256:
            raise _others()
        if start.row and self._make() is not None:
            self._drop(start.row)

    def _next_documents(self) -> Batch | None:
        documents = next(self._documents, None)
        if documents is not None:
            self._read += 1
            read_into(self._digest, documents)
        return documents

    def _make(self) -> Batch | None:
        """Run the model on the next documents; None if there are no more."""
        start = _Start(self._read, 0, self._digest.hexdigest())
        if (documents := self._next_documents()) is not None:
            x_ND = self._source.only_rows(documents).float().to(self._device)
            self._held += [_Piece(x_ND, start)] if len(x_ND) else []
        return documents

    def _drop(self, rows: int) -> None:
        """Leave the first of the rows that are held to others."""
        while rows and rows >= len(self._held[0].x_ND):
            rows -= len(self._held.pop(0).x_ND)
        if rows:
            x_ND, start = self._held[0]
            self._held[0] = _Piece(x_ND[rows:].clone(), start._replace(row=start.row + rows))

    def _fill(self) -> None:
        """Make the next window, of full batches while there are documents."""
        wanted = self._batches * self.batch_size
        while (held := sum(len(piece.x_ND) for piece in self._held)) < wanted:
            if self._make() is None:
                break
        if not held:
            raise StopIteration
        self._begun, rows = self._start(), min(held, wanted)
        for x_ND in (piece.x_ND for piece in self._held if piece.x_ND.is_cuda):
            x_ND.record_stream(torch.cuda.current_stream(x_ND.device))  # made on another, perhaps
        x_ND = torch.cat([piece.x_ND for piece in self._held])[:rows]
        self._drop(rows)
        self._number, self._at = self._number + 1, 0
        order_N = np.random.default_rng((self._seed, self._number)).permutation(rows)
        self._window = x_ND[torch.from_numpy(order_N).to(x_ND.device)].split(self.batch_size)


def _others() -> Refusal:
    return Refusal(
        "the documents that the stream had before, from their beginning",
        "others, or fewer",
        "the same call as before",
    )
