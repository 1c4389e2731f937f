"""One context that gives a check a known world, and gives the reader's back afterwards.

An answer may leave gradients switched off, another default type of numbers, a seeded generator,
another folder or a filter of warnings behind. None of it may make a right answer wrong, change
what the reader draws next, or break a later cell.
"""

from __future__ import annotations

import contextlib
import os
import random
import warnings
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def undisturbed(*, generators: bool = True) -> Iterator[None]:
    """Within the block torch is as it starts up; after it everything is as it was before.

    Covered: gradient and inference mode, `autocast`, default `dtype` and device, deterministic
    algorithms, the number of threads; torch's, NumPy's and Python's generators; the working
    folder, the environment's variables and the filters of warnings.

    Args:
        generators: whether the generators go back too. Between two calls of one check they must
            not: a function that draws without its generator would look as if it had used it.
    """
    with contextlib.ExitStack() as stack:
        for restore in (_flags, _surroundings, *([_generators] if generators else [])):
            stack.enter_context(restore())
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(torch.enable_grad())
        yield


@contextlib.contextmanager
def _flags() -> Iterator[None]:
    grad, dtype, device = torch.is_grad_enabled(), torch.get_default_dtype(), _device()
    strict, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    _set_device("cpu")
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        _set_device(device)
        torch.use_deterministic_algorithms(strict)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _device() -> str:
    return str(torch.get_default_device())


def _set_device(name: str) -> None:
    """None where it is the CPU: a default that is set makes each call of torch slower."""
    if _device() != name:
        torch.set_default_device(None if name == "cpu" else name)


@contextlib.contextmanager
def _generators() -> Iterator[None]:
    drawn, of_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            np.random.set_state(drawn)
            random.setstate(of_python)


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    folder, variables = _folder(), dict(os.environ)
    try:
        yield
    finally:
        if folder != _folder():
            with contextlib.suppress(OSError):  # it was deleted: there is nothing to return to
                os.chdir(folder)
        if dict(os.environ) != variables:
            os.environ.clear()
            os.environ.update(variables)


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # deleted while we stand in it
        return ""
