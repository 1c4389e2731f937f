"""One SAE trained by several processes, on one machine or many.

Each process holds the whole SAE and takes its share of every batch. A batch's gradient is the
mean over its rows, so the shares' gradients, each weighted with its rows, add up to the gradient
that one process would have got; then all clip it and step alike. PyTorch's
DistributedDataParallel does the same from inside autograd's backward pass; our gradients are
written by hand, so one `all_reduce` of one flat tensor does it: all gradients, the loss, and the
counts of active features travel together.

Outside `torchrun` everything here does nothing. Shapes: B batch, D activation width, F features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from saelearn.errors import Refusal
from saelearn.sae import SAE, Loss, Now, Objective
from saelearn.train.autograd import Engine, Seen
from saelearn.train.stopping import Stop

TIMEOUT = 120.0  # seconds without an answer after which a process gives the others up
GIVE_UP = 5.0  # seconds it still waits once it is told to end: torchrun kills after 30
LOOK_EVERY = 50  # steps between two looks at a GPU's stop flag: each look waits for the GPU

_deadline = float("inf")  # on the monotonic clock; set by `told_to_end`


@contextlib.contextmanager
def started(device: str = "cpu", *, timeout: float = TIMEOUT) -> Iterator[str]:
    """Join the processes that `torchrun` started, if it did; gives this process's device.

    gloo connects CPUs, nccl connects GPUs. Processes on one machine meet on loopback, so no
    network is needed.

    Args:
        device: "cpu", or "cuda": each process then takes the GPU of its number on its machine.
        timeout: seconds after which a process that hears nothing ends with an error.
    """
    n = int(os.environ.get("WORLD_SIZE", "1"))
    if n == 1:
        yield device
        return
    kind = torch.device(device).type
    if kind == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    if neighbours() == n:
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    backend = "nccl" if kind == "cuda" else "gloo"
    with _peers():
        distributed.init_process_group(backend, timeout=timedelta(seconds=timeout))
    yield device
    distributed.destroy_process_group()  # not after an error: the others may be gone


def _active() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _active() else 1


def rank() -> int:
    """This process's number among them; number 0 writes and reports."""
    return distributed.get_rank() if _active() else 0


def neighbours() -> int:
    """How many of them share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def share(x_BD: Tensor) -> Tensor:
    """This process's rows of a batch."""
    return x_BD if size() == 1 else x_BD[_rows(len(x_BD))]


def _rows(n: int) -> slice:
    if n < size():
        raise Refusal(f"batches of at least {size()} rows, one for each process", str(n))
    return slice(n * rank() // size(), n * (rank() + 1) // size())


def gather(t_N: Tensor) -> Tensor:
    """What all processes hold, one after the other along the first axis, however much each has."""
    if size() == 1:
        return t_N
    n_P = torch.zeros(size(), dtype=torch.int64, device=t_N.device)
    n_P[rank()] = len(t_N)
    _exchange(distributed.all_reduce, n_P)
    end = int(n_P[: rank() + 1].sum())
    all_N = t_N.new_zeros(int(n_P.sum()), *t_N.shape[1:])
    all_N[end - len(t_N) : end] = t_N  # the others add theirs to zeros: exact
    _exchange(distributed.all_reduce, all_N)
    return all_N


def same(tensors: Iterable[Tensor]) -> None:
    """Give all processes what number 0 has: they may round differently."""
    if size() == 1:
        return
    for t in tensors:
        sent = t.detach().contiguous()
        _exchange(distributed.broadcast, sent, 0)
        t.detach().copy_(sent)


def agree(value: Any, what: str, device: str = "cpu") -> None:
    """Refuse if the processes do not all have the same value (of JSON's kinds)."""
    if size() == 1:
        return
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    number = int.from_bytes(digest[:7])
    ends_2 = torch.tensor([number, -number], device=device)
    _exchange(distributed.all_reduce, ends_2, distributed.ReduceOp.MAX)
    if ends_2.sum() != 0:
        raise Refusal(
            f"the same {what} in all {size()} processes",
            f"another in some than {value!r:.200} in process {rank()}",
            "give all machines the same files, and a folder for checkpoints that all can read",
        )


class Shared:
    """An engine whose loss, gradients and counts are those of the whole batch.

    With one process it is the engine itself; with several, `stop` is obeyed by all at one step.
    """

    def __init__(self, engine: Engine, stop: Stop):
        self._engine, self._stop = engine, stop
        if size() == 1 and hasattr(engine, "update"):
            self.update = engine.update  # it may know more of its own gradients than is in `.grad`
        self._calls, self.stopped = 0, False
        self._flat: Tensor | None = None

    def __call__(self, sae: SAE, x_BD: Tensor, objective: Objective, now: Now) -> Seen:
        """As any `Engine`."""
        asked = self._stop.requested  # before the work: all see the same answer after it
        seen = self._engine(sae, x_BD, objective, now)
        if size() == 1:
            return seen
        n = len(x_BD)
        gradients = [p.grad for p in sae.parameters() if p.grad is not None]
        losses = torch.stack([seen.loss.total, *seen.loss.terms.values()])
        means = [*gradients, losses]  # to be weighted with the share's rows
        sums = [seen.count_F, torch.tensor([n, asked], device=x_BD.device)]
        self._flat = _room(self._flat, sum(t.numel() for t in (*means, *sums)), x_BD)
        parts = self._flat.split([t.numel() for t in (*means, *sums)])
        for part, t in zip(parts, (*means, *sums), strict=True):
            part.copy_(t.reshape(-1))
        for part in parts[: len(means)]:
            part *= n
        _exchange(distributed.all_reduce, self._flat)
        rows = parts[-1][0]
        for part, gradient in zip(parts, gradients, strict=False):
            gradient.copy_(part.view(gradient.shape)).div_(rows)
        self._calls += 1
        if x_BD.device.type == "cpu" or self._calls % LOOK_EVERY == 0:
            self.stopped = bool(parts[-1][1] > 0)
        total, *terms = parts[len(gradients)] / rows
        loss = Loss(total, dict(zip(seen.loss.terms, terms, strict=True)))
        observed_P = None if seen.observed_P is None else gather(seen.observed_P)
        return Seen(loss, parts[-2].clone(), rows.clone(), observed_P)

    def stop_now(self) -> bool:
        """Whether to end before the next step; the same answer in all processes."""
        return self._stop.requested if size() == 1 else self.stopped


def _room(flat: Tensor | None, n: int, like: Tensor) -> Tensor:
    if flat is not None and flat.numel() == n:
        return flat
    return torch.empty(n, device=like.device, dtype=torch.float32)


def told_to_end() -> None:
    """Wait no longer than GIVE_UP for the others: someone asked this process to end."""
    global _deadline
    _deadline = min(_deadline, time.monotonic() + GIVE_UP)


def _exchange(collective: Callable[..., distributed.Work], *args: Any) -> None:
    """`collective` with the others, given up when they are lost or this process must end.

    gloo mostly notices at once that another process is dead, but now and then it waits on until
    its timeout. torchrun notices always, tells the rest to end, and kills them 30 s later. So
    here is no wait in which a signal goes unheard.
    """
    with _peers():
        work = collective(*args, async_op=True)
        if args[0].device.type != "cpu":  # queued on the GPU; a timeout would make it wait
            work.wait()
            return
        while True:
            try:
                work.wait(timedelta(seconds=1))
                return
            except RuntimeError:
                if work.is_completed():
                    raise
            if time.monotonic() > _deadline:
                raise RuntimeError(f"no answer within {GIVE_UP:.0f} s of being told to end")


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """What a lost process means for the others, in words."""
    try:
        yield
    except RuntimeError as error:
        # torchrun now tells this process to end as well; it must not cut the reason short
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Refusal(
            f"all {os.environ.get('WORLD_SIZE', '1')} processes to go on",
            f"process {os.environ.get('RANK', '0')} lost another: {reason:.200}",
            "the same command again: it goes on from the last checkpoint",
        ) from error
