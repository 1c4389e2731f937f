"""Loss and gradients by automatic differentiation: slow, and right for any pair of architecture
and objective. What is faster is held against it.

Shapes: B batch, D activation width, F features, P processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from saelearn.sae import SAE, Loss, Now, Objective


@dataclass(frozen=True)
class Plan:
    """Which way a fast engine goes on a machine (`fast.measured_plan`).

    encoder: how active entries are found, of `fast.ENCODERS`; the result is the same.
    sparse_below: share of active entries below which the sparse way is taken; 0 is always dense.
    otherwise: the encoder that takes over where rows are too uneven for "bytes" or "shorts".
    """

    encoder: str = "plain"
    sparse_below: float = 0.15  # full products win from 0.2 on, at the earliest
    otherwise: str = "plain"


class Seen(NamedTuple):
    """What an engine found on a batch; the gradients it left in the parameters' `.grad`.

    Attributes:
        loss: before the update.
        count_F: in how many rows each feature was active.
        rows: how many rows there were, of all processes.
        observed_P: what the SAE wants to remember of the features (`SAE.observe`), or None.
    """

    loss: Loss
    count_F: Tensor
    rows: int | Tensor
    observed_P: Tensor | None


class Engine(Protocol):
    """How loss and gradients are computed.
    One that can go several ways has a `plan`, which a checkpoint holds; one that has a faster
    update than `update.update_` has it as `update`, with the same arguments.

    Those of `engines.FAST` also have `fits(sae, objective, *, device, precision, processes)`, and
    are made as `Autograd` is, with a `Plan` before the rest.
    """

    def __call__(self, sae: SAE, x_BD: Tensor, objective: Objective, now: Now) -> Seen:
        """Write the gradient of `objective` into the parameters' `.grad`."""


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Products of fp32 in TF32 for a while, and afterwards as before."""
    if not on:
        yield
        return
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


class Autograd:
    """The engine that works for all.

    Args:
        precision: "fp32", "tf32", or "bf16" products by autocast with fp32 weights.
        compile: hand the objective to torch.compile; pays on a GPU.
    """

    def __init__(self, *, precision: str = "fp32", compile: bool = False):
        self._half, self._tf32, self._compile = precision == "bf16", precision == "tf32", compile

    def __call__(self, sae: SAE, x_BD: Tensor, objective: Objective, now: Now) -> Seen:
        for parameter in sae.parameters():
            parameter.grad = None
        loss_of = torch.compile(objective.__call__) if self._compile else objective
        with tf32(self._tf32):
            with (
                torch.enable_grad(),
                torch.autocast(x_BD.device.type, torch.bfloat16, enabled=self._half),
            ):
                loss, output = loss_of(sae, x_BD, now)
            loss.total.backward()
        for parameter in sae.parameters():  # all processes exchange the same numbers
            if parameter.grad is None and parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        f_BF = output.f.detach()
        observed = sae.observe(f_BF)
        return Seen(
            Loss(loss.total.detach(), {n: t.detach() for n, t in loss.terms.items()}),
            (f_BF > 0).sum(0),
            len(x_BD),
            None if observed is None else observed[None],
        )
