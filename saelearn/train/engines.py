"""Which engine computes a training's steps: the fastest that fits."""

from __future__ import annotations

import torch

from saelearn.sae import SAE, Objective
from saelearn.train import parallel
from saelearn.train.autograd import Autograd, Engine, Plan
from saelearn.train.fast.gpu import GpuKernel, GpuL1, GpuTopK, available
from saelearn.train.fast.kernels import Kernel, SparseL1, SparseTopK
from saelearn.train.fast.tuning import measured_plan

FAST = [GpuL1, GpuTopK, SparseL1, SparseTopK]
"""The first that `fits` is taken; one of your own is appended."""


def engine_for(
    sae: SAE,
    objective: Objective,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 1_024,
    plan: Plan | None = None,
    precision: str = "fp32",
    compile: bool = False,
) -> Engine:
    """The fastest engine for a pair of architecture and objective.

    A class that changes anything of an architecture is another, and goes by `Autograd`.

    Args:
        sae, objective: what is trained, and for what.
        device, precision, compile: as for `train`.
        batch_size: for which the fastest way is measured.
        plan: how a fast engine goes; by default `fast.measured_plan`.
    """
    how = {"device": torch.device(device).type, "precision": precision}
    for engine in FAST:
        if engine.fits(sae, objective, processes=parallel.size(), **how):
            if plan is None and how["device"] == "cpu":
                plan = measured_plan(sae.d_in, sae.d_sae, batch_size)
            return engine(plan, precision=precision, compile=compile)
    return Autograd(precision=precision, compile=compile)


def kernel_for(
    d_in: int, d_sae: int, batch_size: int, *, device: str | torch.device, precision: str
) -> Kernel | GpuKernel:
    """The kernel for L1 SAEs side by side."""
    if torch.device(device).type == "cuda" and available():
        return GpuKernel(precision=precision)
    plan = measured_plan(d_in, d_sae, batch_size, device=device)
    return Kernel(plan, precision=precision)
