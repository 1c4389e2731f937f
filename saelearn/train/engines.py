"""Which engine computes a training's steps: the fastest that fits."""

from __future__ import annotations

import torch

from saelearn.sae import SAE, Objective
from saelearn.train import parallel
from saelearn.train.autograd import Autograd, Engine
from saelearn.train.fast.kernels import Plan, SparseL1, SparseTopK

FAST = [SparseL1, SparseTopK]
"""The first that `fits` is taken; one of your own is appended."""


def engine_for(
    sae: SAE,
    objective: Objective,
    *,
    device: str | torch.device = "cpu",
    plan: Plan | None = None,
    precision: str = "fp32",
    compile: bool = False,
) -> Engine:
    """The fastest engine for a pair of architecture and objective.

    A class that changes anything of an architecture is another, and goes by `Autograd`.

    Args:
        sae, objective: what is trained, and for what.
        device, precision, compile: as for `train`.
        plan: how a fast engine goes (`fast.measured_plan`).
    """
    kind = torch.device(device).type
    for engine in FAST:
        if engine.fits(sae, objective, device=kind, precision=precision, processes=parallel.size()):
            return engine(plan, precision=precision, compile=compile)
    return Autograd(precision=precision, compile=compile)
