"""The loops' threads: those of PyTorch itself, where they can be had.

After each of PyTorch's operations its threads go on looking for work for milliseconds, each on a
core of its own. Threads of ours would have to share the cores with them: half of what a second one
brings was lost. OpenMP runs any function in its threads (`GOMP_parallel`, in the interface that
compilers use), and the waiting ones begin at once. Elsewhere than on Linux, and after a fork, there
is a pool of our own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

WORTH = 2**21  # numbers, about half a millisecond
TURNS = 3  # of each thread: one that is disturbed takes fewer

_forked = False
_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def spread(function: Callable, n: int, work: float, *given: object) -> None:
    """`function(*given, low, high)` on parts of `range(n)`, by as many threads as PyTorch has.

    Args:
        function: lets go of the interpreter's lock while it computes.
        work: about how many numbers are touched: a thread must be worth its start.
    """
    n_threads = min(torch.get_num_threads(), n, int(work / WORTH))
    if n_threads <= 1:
        function(*given, 0, n)
        return
    n_parts = min(n, n_threads * TURNS)
    parts = iter(list(pairwise(n * i // n_parts for i in range(n_parts + 1))))
    failed: list[BaseException] = []

    def body(_: object = None) -> None:
        try:
            for low, high in parts:  # shared: each is taken once
                function(*given, low, high)
        except BaseException as error:  # what calls this is not Python and passes nothing on
            failed.append(error)

    if parallel := _openmp():
        parallel(_Body(body), None, n_threads, 0)
    else:
        others = [_pool(n_threads - 1).submit(body) for _ in range(n_threads - 1)]
        body()
        for other in others:
            other.result()
    if failed:
        raise failed[0]


@cache
def _openmp() -> Callable | None:
    """`GOMP_parallel(function, argument, threads, flags)` of the OpenMP that PyTorch uses."""
    if sys.platform != "linux" or _forked:
        return None
    try:
        parallel = ctypes.CDLL(
            str(Path(torch.__file__).parent / "lib/libtorch_cpu.so")
        ).GOMP_parallel
    except (OSError, AttributeError):  # built without OpenMP, or as one library
        return None
    parallel.argtypes = [_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


@cache
def _pool(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, "saelearn-loops")


def _after_fork() -> None:
    """Threads do not come along, and OpenMP would wait for its own."""
    global _forked
    _forked = True
    _openmp.cache_clear()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
