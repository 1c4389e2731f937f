"""Which way a training step goes is measured on the machine at hand, once for each shape.

The answer is kept in the user's cache, so that a second run takes the same way: two runs on one
machine agree to the bit. `$SAELEARN_CACHE` names another folder; without a writable one the
answer lasts as long as the process. Shapes: B batch, D width, F features.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saelearn import artifacts
from saelearn.errors import ArtifactError
from saelearn.train.fast.kernels import Kernel, Plan, Stack
from saelearn.train.fast.search import ENCODERS

MOST_OPERATIONS = 1e10  # of one dense step in the measurement; larger batches are cut
DENSITIES = (0.01, 0.06)
ROUNDS = 3


def measured_plan(d_in: int, d_sae: int, batch_size: int, *, device: str = "cpu") -> Plan:
    """The fastest plan for a shape on this machine: measured once, then remembered.

    Args:
        d_in, d_sae, batch_size: D, F and B; batch sizes count as the next power of two.
        device: on anything but "cpu" the plan is dense.
    """
    if torch.device(device).type != "cpu":
        return Plan("plain", 0.0)
    rows = 2 ** (max(1, batch_size) - 1).bit_length()
    rows = int(max(64, min(rows, MOST_OPERATIONS / (10 * d_in * d_sae))))
    return _remembered(rows, d_in, d_sae, torch.get_num_threads())


def cache_dir() -> Path:
    """The folder for what can be measured again: `$SAELEARN_CACHE`, or the system's place."""
    if named := os.environ.get("SAELEARN_CACHE"):
        return Path(named)
    import platformdirs  # a checkout trains on a GPU without it

    return platformdirs.user_cache_path("saelearn")


@cache
def _remembered(B: int, D: int, F: int, threads: int) -> Plan:
    name = {"shape": [B, D, F], "threads": threads, "processor": processor()}
    name["torch"] = torch.__version__
    name["level"] = torch.backends.cpu.get_cpu_capability()
    path = cache_dir() / "plans" / f"{B}x{D}x{F}-{threads}.json"
    try:
        kept = artifacts.read_json(path)
        if kept["for"] == name and kept["plan"]["encoder"] in ENCODERS:
            return Plan(**kept["plan"])
    except (ArtifactError, KeyError, TypeError):
        pass  # not measured yet, or for another machine
    plan = measure(B, D, F)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_json(path, {"for": name, "plan": asdict(plan)})
    except (ArtifactError, OSError):
        pass  # a home that cannot be written to: measured again next time
    return plan


@cache
def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@torch.no_grad()
def measure(B: int, D: int, F: int) -> Plan:
    """Time every way on made-up weights and data; of several rounds the fastest counts.

    An encoder that fails, or finds other entries than the plain one, is out of the running. The
    sparse way's time grows in a straight line with the share of active entries; where that line
    meets the dense way's time lies `sparse_below`.
    """
    generator = torch.Generator().manual_seed(0)
    x_BD = torch.randn(B, D, generator=generator)
    rows_1FD = torch.randn(1, F, D, generator=generator) / D**0.5

    def stack(density: float) -> Stack:
        at = -torch.special.ndtri(torch.tensor(1 - density)).float()
        return Stack(rows_1FD, torch.full((1, F), float(at)), rows_1FD, torch.zeros(1, D))

    sparse, *others = (_counts(Plan(name, 1.1), stack(DENSITIES[0]), x_BD) for name in ENCODERS)
    able = [name for name, found in zip(ENCODERS, (sparse, *others), strict=True)
            if found is not None and sparse is not None and torch.equal(found, sparse)]  # fmt: skip
    if not able:
        return Plan("plain", 0.0)
    ways = {(name, d): _step(Plan(name, 1.1), stack(d), x_BD) for name in able for d in DENSITIES}
    ways["dense"] = _step(Plan("plain", 0.0), stack(DENSITIES[1]), x_BD)
    seconds = _fastest(ways)
    best = min(able, key=lambda name: seconds[name, DENSITIES[0]])
    low, high = (seconds[best, d] for d in DENSITIES)
    slope = max(1e-12, (high - low) / (DENSITIES[1] - DENSITIES[0]))
    meet = DENSITIES[0] + (seconds["dense"] - low) / slope
    return Plan(best, round(float(np.clip(meet, 0.0, 0.5)), 4))


def _step(plan: Plan, sae: Stack, x_BD: Tensor) -> Callable[[], tuple]:
    kernel, l1_K = Kernel(plan), torch.ones(len(sae.b_enc_KF))
    return lambda: kernel.stacked(sae, x_BD, l1_K=l1_K, decoder_norm="weighted", centred=True)


def _counts(plan: Plan, sae: Stack, x_BD: Tensor) -> Tensor | None:
    try:
        return _step(plan, sae, x_BD)()[1]
    except RuntimeError:  # this build of PyTorch cannot
        return None


def _fastest(ways: dict) -> dict:
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds
