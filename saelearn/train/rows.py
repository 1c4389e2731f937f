"""From a batch as it comes to what a step needs: rows in training's units, and the moment.

Shapes: N rows of data, B batch, D input width, X width of a batch as it comes.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor

from saelearn.sae import SAE, Now
from saelearn.train import parallel
from saelearn.train.autograd import tf32
from saelearn.train.batches import Shuffled, Streamed, mean_norm_scale
from saelearn.train.frame import LEAST, Frame, enough, may_turn, principal_basis
from saelearn.train.settings import Settings
from saelearn.train.state import State
from saelearn.train.update import usual_lr

SAMPLE_DOCUMENTS = 256  # whose activations the scale is taken from, if the model has to be run
LONG, FEW = 10.0, 0.05
"""Rows so many times as long as the median row, if they are no larger share, are outliers."""


def _warn_if_few_carry(x_ND: Tensor) -> None:
    """Warn if a few long rows make up more than half of the squared length, which sets the scale.

    Such are "attention sinks" and BOS, also within packed texts. They are reconstructed first, and
    all others are trained as if they hardly mattered.
    """
    norm_N = x_ND.norm(dim=1)
    long_N = norm_N > LONG * norm_N.median()
    squares = norm_N.double().square()
    carried = float(squares[long_N].sum() / squares.sum().clamp(min=1e-300))
    if 0 < int(long_N.sum()) <= FEW * len(norm_N) and carried > 0.5 and parallel.rank() == 0:
        warnings.warn(
            f"{int(long_N.sum()):,} of {len(norm_N):,} rows are over {LONG:g} times as long as the "
            f"median row and make up {carried:.0%} of the squared length, so that all others are "
            f"trained {(1 - carried) ** -0.5:.3g} times too small. Leave them out: "
            "activations.collect (or gather, stream, write) with max_norm=10 or leave_tokens=[...]",
            stacklevel=2,
        )


class Rows:
    """How a training reads its batches.

    Args:
        settings: of the training.
        source: its batches; their sample gives scale, centre and axes.
        turned: whether the axes are to be found; a checkpoint has its own.

    Attributes:
        d_in, d_out: widths of the input, and of the target if it is another.
        batch_size: rows in a step.
        lr: peak learning rate.
        bias_lr: how many times the learning rate offsets move by.
    """

    def __init__(self, settings: Settings, source: Shuffled | Streamed, *, turned: bool = True):
        self.settings, self._objective = settings, settings.objective
        sample_NX, self.batch_size = source.sample_ND, source.size
        self._d_in = source.d_in
        if self._objective.reads_tokens:
            documents = sample_NX[:SAMPLE_DOCUMENTS]
            sample_NX = self._objective.activations(documents).cpu()
            self.batch_size = source.size * len(sample_NX) // len(documents)
            self._d_in = sample_NX.shape[1]
        x_ND, target_ND = self._split(sample_NX.cpu().float())  # wherever the data lie, the same
        self.d_in, self.d_out = self._d_in, None if target_ND is None else target_ND.shape[1]
        self._sample, self.scale, self.target_scale = (x_ND, target_ND), 1.0, 1.0
        to_width = mean_norm_scale(x_ND)
        if settings.normalize:
            self.scale = self.target_scale = to_width
            _warn_if_few_carry(x_ND)
            if target_ND is not None:
                self.target_scale = mean_norm_scale(target_ND)
        self.lr = settings.lr
        if settings.lr is None:
            self.lr = usual_lr(self.batch_size, self._d_in)
        typical_norm = self.scale * self._d_in**0.5 / to_width
        self.bias_lr = typical_norm if settings.bias_lr is None else settings.bias_lr
        self._bases = self._found() if turned else {}

    def _found(self) -> dict[str, Tensor]:
        """The bases of a `Frame`, if the training may be turned to them."""
        sae, widest = self.small_sae(), max(self.d_in, self.d_out or 0)
        few = len(self._sample[0]) < LEAST * widest
        if self.settings.basis == "given" or few or not may_turn(sae, self._objective):
            return {}
        on_gpu = torch.device(self.settings.device).type == "cuda"
        device = self.settings.device if on_gpu else "cpu"
        named = zip(("basis_DD", "target_basis_DD"), self._sample, strict=True)
        return {
            name: principal_basis(enough(t).to(device)).to(self.settings.device)
            for name, t in named
            if t is not None
        }

    def with_(self, settings: Settings) -> Rows:
        """The same rows for a training with other settings, which differ in their strength only."""
        other = copy.copy(self)
        other.settings, other._objective = settings, settings.objective
        return other

    def _split(self, batch_BX: Tensor) -> tuple[Tensor, Tensor | None]:
        if batch_BX.shape[1] == self._d_in:
            return batch_BX, None
        return batch_BX[:, : self._d_in], batch_BX[:, self._d_in :]

    def new_state(self, memory: dict[str, int] | None = None) -> State:
        """The state that a training starts with."""
        scales = {"scale": self.scale, "target_scale": self.target_scale}
        sae = self.settings.new_sae(*Frame(**scales).rows(*self._sample))
        frame = Frame(**scales, **self._bases)
        how = {"lr": self.lr, "bias_lr": self.bias_lr, "seed": self.settings.seed}
        return State(frame.enter_(sae), frame=frame, memory=memory, **how)

    def lr_at(self, i: int) -> float:
        """The learning rate of step `i`."""
        return self.lr * self.settings.lr_share_at(i)

    def small_sae(self) -> SAE:
        """One of the kind with as few features as it can have, to count with."""
        return self.settings.small_sae(self.d_in, self.d_out)

    def prepare(self, batch_BX: Tensor, state: State) -> tuple[Tensor, Now]:
        """The rows of a step, and the moment it is made in."""
        x_BD, target_BD = self._split(self._objective.activations(batch_BX))
        with tf32(x_BD.is_cuda and self.settings.precision != "fp32"):
            x_BD, target_BD = state.frame.rows(x_BD, target_BD)
        dead_after = self._objective.dead_after
        return x_BD, Now(
            warmup=self.settings.warmup_at(state.step),
            rate=self.settings.fall_at(state.step),
            dead_F=None if dead_after is None else state.dead(dead_after),
            target_BD=target_BD,
            gather=parallel.gather,
            batch=batch_BX,
            scale=state.frame.scale,
        )
