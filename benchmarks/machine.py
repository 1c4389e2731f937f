"""What the figures were measured on, and how: interleaved, so that a busy machine is fair."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch.nn.functional import linear

from saelearn.train.fast import processor

COPIED = 2**26  # bytes
PEERS = ("sae-lens", "dictionary-learning", "overcomplete", "eai-sparsify")


def describe() -> dict:
    """The processor, threads and versions."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: v for name in ("torch", "numpy", *PEERS) if (v := version(name))},
    }


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def interleaved(
    ways: Mapping[str, Callable[[], object]], *, rounds: int, seconds: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of one call, for each way and round; all ways take turns.

    Args:
        rounds: how many turns each gets, after one that is not counted.
        seconds: a turn repeats the call for about this long and counts the mean.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    repeats = {}
    for name, way in ways.items():
        way()
        started = time.perf_counter()
        way()
        repeats[name] = max(1, int(seconds / max(1e-6, time.perf_counter() - started)))
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            for _ in range(repeats[name]):
                way()
            times[name].append((time.perf_counter() - started) / repeats[name])
    return times


def ratio(theirs: list[float], ours: list[float]) -> float:
    """How many times as fast ours is: the median over rounds of theirs / ours."""
    return statistics.median(t / o for t, o in zip(theirs, ours, strict=True))


@torch.no_grad()
def products(B: int, D: int, F: int) -> dict[str, Callable[[], object]]:
    """The encoder's product [B, D] x [D, F] in fp32, by the libraries that PyTorch brings."""
    x_BD, W_DF = torch.randn(B, D), torch.randn(D, F)
    W_FD, out_BF = W_DF.T.contiguous(), torch.empty(B, F)
    ways = {
        "product_mkl": lambda: torch.mm(x_BD, W_DF, out=out_BF),
        "product_mkl_transposed": lambda: torch.mm(x_BD, W_FD.T, out=out_BF),
    }
    if torch.backends.mkldnn.is_available():
        chunks, weight = [c.to_mkldnn() for c in x_BD.split(512)], W_FD.to_mkldnn()
        ways["product_onednn"] = lambda: [linear(chunk, weight) for chunk in chunks]
    return ways


def copy() -> Callable[[], object]:
    """A plain copy of `COPIED` bytes, more than caches hold: the memory's share in what is slow."""
    source, target = torch.ones(COPIED // 4), torch.empty(COPIED // 4)
    return lambda: target.copy_(source)


def slowest_tenth(way: Callable[[], object], *, calls: int) -> float:
    """The mean of the slowest tenth of single calls, over the median of all."""
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        way()
        times.append(time.perf_counter() - started)
    return statistics.mean(sorted(times)[-max(1, calls // 10) :]) / statistics.median(times)


STREAM = """
import os, sys
import numpy as np
if len(sys.argv) > 1:
    os.sched_setaffinity(0, {int(sys.argv[1])})
source, target = np.ones(2**25), np.empty(2**25)
print("streams", flush=True)
while os.getppid() > 1:
    target[:] = source
"""


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """Another process that copies 256 MB again and again, where the system allows it on a core of
    its own: what a browser, or another student, does to this one's memory."""
    pin = getattr(os, "sched_setaffinity", None)
    cores = sorted(os.sched_getaffinity(0)) if pin else []
    process = subprocess.Popen(
        [sys.executable, "-c", STREAM, *([str(cores[1])] if len(cores) > 1 else [])],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout and process.stdout.readline() == "streams\n"
        if len(cores) > 1:
            pin(0, set(cores) - {cores[1]})
        yield
    finally:
        if len(cores) > 1:
            pin(0, set(cores))
        process.kill()
        process.wait()
