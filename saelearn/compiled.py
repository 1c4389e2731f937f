"""Loops that numba compiles, and the folder for what can be made again.

A module of such loops is imported by the first step that needs one, for numba takes half a second
to load. Where it is `MISSING` the caller has another way, in PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

FAST = {"reassoc", "contract", "nsz"}  # sums may be vectorised; a NaN stays one
# What a module of loops raises where numba is not there, lacks a library or finds no place to keep
MISSING = ImportError, OSError, RuntimeError


def cache_dir() -> Path:
    """The folder for what can be made again: `$SAELEARN_CACHE`, or the system's place."""
    if named := os.environ.get("SAELEARN_CACHE"):
        return Path(named)
    import platformdirs  # a checkout trains on a GPU without it

    return platformdirs.user_cache_path("saelearn")


def can_loop() -> bool:
    """Whether numba is there, without the half second that it takes to load."""
    try:
        return find_spec("numba") is not None
    except ValueError:  # a module that says nothing of where it comes from
        return False


def loop(signature: str | None = None) -> Callable[[Callable], Callable]:
    """A decorator: compile the function for arguments of this signature, or when it first runs.

    What was compiled is kept on disk, beside the function's file or, if its folder cannot be
    written to, in `cache_dir()`.
    """
    import numba

    def compiled(function: Callable) -> Callable:
        beside = Path(function.__code__.co_filename).parent / "__pycache__"
        others = numba.config.CACHE_DIR  # what others compile is kept where they want
        kept = os.access(beside if beside.exists() else beside.parent, os.W_OK) or bool(others)
        try:  # numba asks its configuration at the moment when a function is wrapped
            if not kept and (folder := _folder()):
                kept, numba.config.CACHE_DIR = True, str(folder)
            how = {"cache": kept, "nogil": True, "fastmath": FAST, "error_model": "numpy"}
            return numba.njit(signature, **how)(function)
        finally:
            numba.config.CACHE_DIR = others

    return compiled


def _folder() -> Path | None:
    """Where loops are kept that cannot lie beside their file, if there is such a place."""
    folder = cache_dir() / "loops"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
