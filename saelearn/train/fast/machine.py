"""What the fast ways know of the machine: its processor, and where a cache may lie."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path


def cache_dir() -> Path:
    """The folder for what can be made again: `$SAELEARN_CACHE`, or the system's place."""
    if named := os.environ.get("SAELEARN_CACHE"):
        return Path(named)
    import platformdirs  # a checkout trains on a GPU without it

    return platformdirs.user_cache_path("saelearn")


@cache
def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
