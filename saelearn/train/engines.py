"""Which engine computes a training's steps: the fastest that fits."""

from __future__ import annotations

import torch

from saelearn.sae import SAE, Objective
from saelearn.train import parallel
from saelearn.train.autograd import Autograd, Engine, Plan
from saelearn.train.fast.kernels import SparseL1, SparseTopK
from saelearn.train.fast.tuning import measured_plan

FAST = [SparseL1, SparseTopK]
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
            shape = sae.d_in, sae.d_sae, batch_size
            plan = plan or measured_plan(*shape, device=device)
            return engine(plan, precision=precision, compile=compile)
    return Autograd(precision=precision, compile=compile)
