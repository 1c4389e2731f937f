"""What training eats: batches without end that know their place, and the data's scale.

What is to be reconstructed, if it is not the input, lies beside it in the same rows: so it is
shuffled, saved and shared out with it. A run that was stopped goes on with the batch that would
have come next. So whatever the data are, they have a position that can be saved: `state_dict` and
`load_state_dict`.

Shapes: N rows of data, B batch, D activation width, W width of a row with its target.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from saelearn.errors import (
    Refusal,
    check_activations,
    check_pieces,
    check_whole,
    check_width,
    checked,
    whole,
)

SAMPLE_ROWS = 2**16
CHECK_BYTES = 2**26  # looked at for NaN at a time, which makes a mask
AHEAD = 3  # batches that are drawn before they are used
FINGERPRINT_BYTES = 2**28  # larger data are compared by rows at equal distances


def batches(
    data: Tensor | Iterable[Tensor],
    batch_size: int,
    *,
    seed: int = 0,
    target: Tensor | None = None,
    tokens: bool = False,
) -> Shuffled | Streamed:
    """Batches without end, with `sample_ND`: rows to take scale and centre from.

    Args:
        data: activations `x_ND`, which get shuffled, or batches `x_BD`, taken as they come; or
            pairs of an input and what is to be reconstructed.
        batch_size: B, for activations in one tensor.
        seed: of the shuffling.
        target: what is to be reconstructed, `[N, D']`, if `data` is one tensor.
        tokens: the rows are documents of token ids.
    """
    check_whole(batch_size, "batch_size", 1)
    if not isinstance(data, Tensor):
        if target is not None:
            raise Refusal("pairs of input and target from the stream", "a stream and a target")
        check_pieces(data, "activations [N, D], or batches of them")
        return Streamed(data, tokens=tokens)
    if tokens:
        return Shuffled(check_tokens(data), batch_size, seed=seed)
    if target is not None:
        check_rows(target)
        if len(target) != len(data):
            raise Refusal(f"a target with {len(data):,} rows, as the data", f"{len(target):,}")
    return Shuffled(check_rows(data), batch_size, seed=seed, target_ND=target)


def check_rows(x_ND: Tensor) -> Tensor:
    """`errors.check_activations` piece by piece: looking for NaN makes a mask of all it sees."""
    if not isinstance(x_ND, Tensor) or x_ND.ndim != 2 or x_ND.nbytes <= CHECK_BYTES:
        return check_activations(x_ND)
    for part_ND in x_ND.split(max(1, CHECK_BYTES // x_ND[0].nbytes)):
        check_activations(part_ND)
    return x_ND


def check_tokens(tokens_NT: Tensor) -> Tensor:
    """Documents of token ids, at least two tokens long; else refused."""
    if not isinstance(tokens_NT, Tensor) or tokens_NT.is_floating_point() or tokens_NT.ndim != 2:
        got = type(tokens_NT).__name__
        if isinstance(tokens_NT, Tensor):
            got = f"{tokens_NT.dtype} of shape {tuple(tokens_NT.shape)}"
        raise Refusal("token ids [N, T] as whole numbers: this objective runs the model", got)
    if len(tokens_NT) == 0 or tokens_NT.shape[1] < 2:
        raise Refusal("documents of at least two tokens", f"shape {tuple(tokens_NT.shape)}")
    return tokens_NT


class Shuffled(Iterator[Tensor]):
    """Batches `x_BD` of one tensor; every epoch visits each row at most once, in a new order.

    What is left over at an epoch's end, less than a batch, is left out of that epoch. With a target
    its columns follow those of the input.

    Attributes:
        sample_ND: rows to take scale and centre from.
        d_in: how many columns of a row are the input; the rest is the target.
    """

    def __init__(
        self, x_ND: Tensor, batch_size: int, *, seed: int = 0, target_ND: Tensor | None = None
    ):
        self.x_ND, self.size = x_ND, min(batch_size, len(x_ND))
        self._target_ND, self.d_in = target_ND, x_ND.shape[1]
        self.sample_ND = self._rows(slice(SAMPLE_ROWS))
        self._generator = torch.Generator().manual_seed(seed)
        self._waits = x_ND.is_cuda  # an epoch's order takes a processor as long as a hundred steps
        self._thread = ThreadPoolExecutor(1)
        self._drawn: Future[tuple[Tensor, Tensor]] | None = None
        self._order_N: Tensor | None = None
        self._begin_epoch()

    def _rows(self, which: slice | Tensor) -> Tensor:
        rows_NX = _taken(self.x_ND, which)
        if self._target_ND is None:
            return rows_NX
        return torch.cat([rows_NX, _taken(self._target_ND, which).to(rows_NX)], dim=1)

    def _begin_epoch(self) -> None:
        """A new order; for a GPU a thread draws the next one meanwhile."""
        drawing = self._generator, len(self.x_ND), self.x_ND.is_cuda
        self._epoch_state, order_N = self._drawn.result() if self._drawn else _drawn(*drawing)
        self._last_order_N = self._order_N  # a GPU may still read it: let nobody have its memory
        self._order_N = order_N.to(self.x_ND.device, non_blocking=True)  # once: a copy waits
        self._row, self._drawn = 0, self._thread.submit(_drawn, *drawing) if self._waits else None

    def __next__(self) -> Tensor:
        if self._row + self.size > len(self.x_ND):
            self._begin_epoch()
        self._row += self.size
        return self._rows(self._order_N[self._row - self.size : self._row])

    def fingerprint(self) -> dict[str, str]:
        """What tells these data from others."""
        if self._target_ND is None:
            return fingerprint(self.x_ND)
        theirs = {f"target, {name}": value for name, value in fingerprint(self._target_ND).items()}
        return fingerprint(self.x_ND) | theirs

    def state_dict(self) -> dict:
        """The generator as it was before this epoch's order was drawn, and the next row in it."""
        return {"epoch": self._epoch_state, "row": self._row}

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was called."""
        if self._drawn:
            self._drawn.result()
            self._drawn = None
        self._generator.set_state(state["epoch"])
        self._begin_epoch()
        self._row = state["row"]


def _drawn(generator: torch.Generator, n: int, pinned: bool) -> tuple[Tensor, Tensor]:
    """The generator's state, and the order of n rows that it gives."""
    return generator.get_state(), torch.randperm(n, generator=generator, pin_memory=pinned)


def _taken(x_ND: Tensor, which: slice | Tensor) -> Tensor:
    """Some rows; on a CPU twice as fast as by indexing."""
    return x_ND[which] if isinstance(which, slice) else x_ND.index_select(0, which)


@checked(batch_size=whole(1), seed=whole(0))
def shuffled(x_ND: Tensor, batch_size: int, *, seed: int = 0) -> Shuffled:
    """Batches `x_BD` without end; every epoch visits each row at most once, in a new order."""
    return Shuffled(x_ND, batch_size, seed=seed)


class Streamed(Iterator[Tensor]):
    """Batches `x_BD` as an iterable gives them, each one checked.

    If the iterable (or its iterator) has `state_dict` and `load_state_dict`, its place is saved
    and found again with these. Any other is read forward from its beginning: exact if it gives
    the same batches each time it is made, and refused if it does not begin with the same one.
    One that has looked for NaN itself says so by an attribute `finite`, one whose batches are new
    tensors, and not a buffer that is filled again, by `fresh`.
    """

    def __init__(self, data: Iterable[Tensor | tuple[Tensor, Tensor]], *, tokens: bool = False):
        self._stream, self._tokens = iter(data), tokens
        able = [each for each in (data, self._stream) if hasattr(each, "load_state_dict")]
        self._holder = able[0] if able else None
        self._looked_at, self.fresh = (getattr(data, n, False) for n in ("finite", "fresh"))
        self._first = next(self._stream, None)
        if self._first is None:
            raise Refusal("batches of activations", "an empty stream")
        self.sample_ND = self._joined(self._first)
        first_BD = self._first[0] if isinstance(self._first, tuple) else self._first
        self.d_in, self.size, self._drawn = first_BD.shape[1], len(first_BD), 0

    def __next__(self) -> Tensor:
        x_BD, self._first = self._first, None
        if x_BD is None:
            x_BD = next(self._stream, None)
        if x_BD is None:
            raise Refusal(
                "batches until the last step", "a stream that ended early", "train fewer steps"
            )
        width = self.sample_ND.shape[1]
        x_BD = self._joined(x_BD, width)
        self._drawn += 1
        return x_BD

    def _joined(self, batch: Tensor | tuple[Tensor, Tensor], width: int | None = None) -> Tensor:
        """One batch, checked; a pair side by side."""
        if isinstance(batch, tuple):
            x_BD, target_BD = (check_activations(each, name="a batch") for each in batch)
            if len(x_BD) != len(target_BD):
                raise Refusal("as many rows of both in a pair", f"{len(x_BD)}, {len(target_BD)}")
            batch = torch.cat([x_BD, target_BD.to(x_BD)], dim=1)
        if self._tokens:
            return check_tokens(batch)
        there = isinstance(batch, Tensor) and batch.device.type != "cpu"
        if width and len(batch) and (there or self._looked_at):
            check_width(batch, width, name="a batch")  # looking for NaN would wait for the GPU
            return batch
        name = "a batch" if width else "activations"
        return check_activations(batch, width, name=name)

    def fingerprint(self) -> dict[str, str]:
        """What tells these data from others: the first batch."""
        return fingerprint(self.sample_ND)

    def state_dict(self) -> dict:
        """How many batches were drawn, and the stream's own state if it has one."""
        own = self._holder.state_dict() if self._holder and self._drawn else None
        return {"drawn": self._drawn, "own": own}

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was called."""
        if self._holder and state["own"] is not None:
            if hasattr(self._stream, "close") and self._stream is not self._holder:
                self._stream.close()
            self._holder.load_state_dict(state["own"])
            self._stream, self._first = iter(self._holder), None
            self._drawn = state["drawn"]
        while self._drawn < state["drawn"]:
            next(self)


class Feed(Iterator[Tensor]):
    """Batches on the device that trains, in fp32; to a GPU the next ones travel meanwhile.

    There a thread draws from the source, `AHEAD` batches before they are used, with a CUDA stream
    of its own for what the source computes, and sends off what comes from the CPU, from pinned
    memory and in the dtype it has. Errors are raised when the batch is asked for at which they
    happened. To be closed when it is no longer used.

    Args:
        source: batches of any floating dtype, on the CPU or already on the device.
        device: where they are needed.
        cut: which rows of each batch this process takes; all by default.

    Attributes:
        rows: of the batch given out last, before the cut.
    """

    def __init__(
        self,
        source: Shuffled | Streamed,
        device: str | torch.device,
        cut: Callable[[Tensor], Tensor] = lambda x_BD: x_BD,
    ):
        self._source, self._device, self._cut = source, torch.device(device), cut
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device(
                "cuda", torch.cuda.current_device()
            )  # another thread's is 0
        self._ahead: _Ahead | None = None
        self.rows = 0
        self._state: dict | None = None  # the source's, after the batch that was given out

    def __next__(self) -> Tensor:
        if self._device.type != "cuda":
            x_BD = next(self._source)
            self.rows = len(x_BD)
            return _numbers(self._cut(x_BD).to(self._device))
        if self._ahead is None:
            self._state = self._source.state_dict()
            self._ahead = _Ahead(self._source, self._device, self._cut)
        sent = self._ahead.next()
        here = torch.cuda.current_stream(self._device)
        here.wait_event(sent.arrived)
        sent.x_BD.record_stream(here)  # its memory is not given away before the step has used it
        self.rows, self._state = sent.rows, sent.state
        return _numbers(sent.x_BD)

    def state_dict(self) -> dict:
        """The source's place after the last batch that was given out."""
        return self._source.state_dict() if self._ahead is None else self._state

    def close(self) -> None:
        """Draw no more; afterwards the source is nobody's."""
        if self._ahead is not None:
            self._ahead.close()


class _Sent(NamedTuple):
    x_BD: Tensor
    rows: int
    state: dict
    arrived: torch.cuda.Event


class _Ahead:
    """Batches on their way to a GPU."""

    def __init__(self, source: Shuffled | Streamed, device: torch.device, cut: Callable):
        self._source, self._device, self._cut = source, device, cut
        self._fresh = getattr(source, "fresh", False)
        self._queue: queue.Queue[_Sent | BaseException] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._after = torch.cuda.current_stream(device)
        self._drawer = threading.Thread(target=self._draw, daemon=True)
        self._drawer.start()

    def next(self) -> _Sent:
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._queue.put(item)  # for whoever asks again
            raise item
        return item

    def close(self) -> None:
        self._closed.set()
        self._drawer.join()

    def _draw(self) -> None:
        try:
            stream = _drawing_stream(self._device)
            stream.wait_stream(self._after)
            with torch.cuda.device(self._device), torch.cuda.stream(stream):
                try:
                    while not self._closed.is_set():
                        whole_BD = next(self._source)
                        x_BD = self._sent(self._cut(whole_BD))
                        arrived = torch.cuda.Event()
                        arrived.record(stream)
                        self._put(_Sent(x_BD, len(whole_BD), self._source.state_dict(), arrived))
                finally:  # what it reads may be given away
                    stream.synchronize()
        except BaseException as error:
            self._put(error)

    def _sent(self, x_BD: Tensor) -> Tensor:
        """On its way; PyTorch keeps pinned memory until what was asked of it is done."""
        if x_BD.device.type != "cpu":
            return x_BD
        if not (self._fresh and x_BD.is_pinned()):
            pinned_BD = torch.empty(x_BD.shape, dtype=x_BD.dtype, device="cpu", pin_memory=True)
            x_BD = pinned_BD.copy_(x_BD)
        return x_BD.to(self._device, non_blocking=True)

    def _put(self, item: _Sent | BaseException) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return


@functools.cache
def _drawing_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each GPU, urgent: of the others one is what a step's launches are recorded on."""
    return torch.cuda.Stream(device, priority=-1)


def _numbers(x_BD: Tensor) -> Tensor:
    """Activations in fp32; token ids as they are."""
    return x_BD.float() if x_BD.is_floating_point() else x_BD


def fingerprint(x_ND: Tensor) -> dict[str, str]:
    """Shape and content of activations, as words."""
    stride = max(1, math.ceil(x_ND.numel() * x_ND.element_size() / FINGERPRINT_BYTES))
    digest = hashlib.sha256()
    for part_ND in x_ND[::stride].split(2**14):
        part_ND = part_ND.detach().cpu().contiguous()
        digest.update(part_ND.view(torch.uint8).numpy().data)
    name = f"{tuple(x_ND.shape)} {str(x_ND.dtype).removeprefix('torch.')}"
    return {"data's shape": name, "data's sha256": digest.hexdigest()}


@checked()
def mean_norm_scale(x_ND: Tensor) -> float:
    """The scalar that brings the mean squared norm of the rows to D."""
    mean_square = float(x_ND.detach().cpu().double().square().sum(1).mean())
    if mean_square == 0:
        raise Refusal("activations that are not all zero", "only zeros", "check the site")
    return math.sqrt(x_ND.shape[1] / mean_square)
