"""By which product a training step finds its active entries is measured on the machine at hand,
once for each shape.

It decides the speed alone: entries, and so the weights, are the same to the bit (`search`), and
what is sparse is a rule (`Plan.sparse_below`). The answer is kept in the user's cache;
`$SAELEARN_CACHE` names another folder, and without a writable one it lasts as long as the process.
Shapes: B batch, D width, F features.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache

import torch
from torch import Tensor

from saelearn import artifacts
from saelearn.compiled import cache_dir, can_loop
from saelearn.errors import ArtifactError
from saelearn.train.fast.active import loops
from saelearn.train.fast.kernels import Case, Kernel, Plan, Stack
from saelearn.train.fast.machine import processor
from saelearn.train.fast.search import ENCODERS, ROUGH

SMALL = 2**21  # multiplications of one product; below, lists cost what they save
MOST_OPERATIONS = 6e9  # of one product in the measurement; larger batches are cut
DENSITY = 0.01
ROUNDS = 5
HOPELESS = 1.5  # times the fastest's first turn
DENSE = Plan("plain", 0.0)


def measured_plan(d_in: int, d_sae: int, batch_size: int, *, device: str = "cpu") -> Plan:
    """The fastest plan for a shape on this machine: measured once, then remembered.

    Args:
        d_in, d_sae, batch_size: D, F and B; batch sizes count as the next power of two.
        device: on anything but "cpu" the plan is dense, as it is for what is small.
    """
    rows = 2 ** (max(1, batch_size) - 1).bit_length()
    if torch.device(device).type != "cpu" or rows * d_in * d_sae < SMALL:
        return DENSE
    rows = int(max(64, min(rows, MOST_OPERATIONS / (2 * d_in * d_sae))))
    return _remembered(rows, d_in, d_sae, torch.get_num_threads())


@cache
def _remembered(B: int, D: int, F: int, threads: int) -> Plan:
    name = {"shape": [B, D, F], "threads": threads, "processor": processor()}
    name["torch"] = torch.__version__
    name |= {"level": torch.backends.cpu.get_cpu_capability(), "loops": can_loop()}
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


@torch.no_grad()
def measure(B: int, D: int, F: int) -> Plan:
    """Time every encoder on made-up weights and data; the one with the best median counts.

    One that fails, or leads to other entries than the plain one, is out of the running. Without
    the loops, or if the plain one fails, all steps are dense.
    """
    if loops() is None:
        return DENSE
    generator = torch.Generator().manual_seed(0)
    x_BD = torch.randn(B, D, generator=generator)
    rows_1FD = torch.randn(1, F, D, generator=generator) / D**0.5
    at = -torch.special.ndtri(torch.tensor(1 - DENSITY)).float()
    sae = Stack(rows_1FD, torch.full((1, F), float(at)), rows_1FD, torch.zeros(1, D))
    ways = {name: _step(Plan(name, 1.1), sae, x_BD) for name in ENCODERS}
    found = {name: _counts(way) for name, way in ways.items()}
    plain = found["plain"]
    if plain is None:
        return DENSE
    able = {n: way for n, way in ways.items() if found[n] is not None and found[n].equal(plain)}
    seconds = _seconds(able)
    best, *others = sorted(able, key=seconds.__getitem__)
    return Plan(best, otherwise=next((name for name in others if name not in ROUGH), "plain"))


def _step(plan: Plan, sae: Stack, x_BD: Tensor) -> Callable[[], tuple]:
    kernel, case = Kernel(plan), Case(torch.ones(len(sae.b_enc_KF)), "weighted", centred=True)
    return lambda: kernel.stacked(sae, x_BD, case)


def _counts(way: Callable[[], tuple]) -> Tensor | None:
    try:
        return way()[1]
    except RuntimeError:  # this build of PyTorch cannot
        return None


def _seconds(ways: dict[str, Callable[[], tuple]]) -> dict[str, float]:
    """Of a step, the median over rounds in which all take turns: one that was disturbed counts no
    more than any other. What is far behind in the first has that one alone."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        best = min((times[0] for times in seconds.values() if times), default=float("inf"))
        for name, way in ways.items():
            if seconds[name] and seconds[name][0] > HOPELESS * best:
                continue
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}
