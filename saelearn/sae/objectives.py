"""What training minimises: pure functions of an SAE and a batch, each a small frozen object.

An objective is called as `objective(sae, x_BD, now)` and gives its loss, with its terms by name,
and the output that the loss is of. Its fields decide what a training comes to, so a checkpoint
remembers them; what changes from step to step comes in as `now`.

Shapes: B batch, D activation width, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from saelearn.errors import Refusal, check_choice, check_range, check_whole
from saelearn.sae.base import SAE, SAEOutput

DECODER_NORMS = ("weighted", "unit_norm", "free")


class Loss(NamedTuple):
    """A loss, which is minimised, and its terms by name, each a mean over the batch.

    A term is an attribute too: `loss.reconstruction` is the squared error summed over D. Terms are
    given before they are multiplied by a coefficient.
    """

    total: Tensor
    terms: dict[str, Tensor]

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.terms[name]
        except KeyError:
            raise AttributeError(f"a loss with the terms {', '.join(self.terms)}") from None


def _alone(t: Tensor) -> Tensor:
    return t


class Now(NamedTuple):
    """What an objective has to know of the moment in training.

    Attributes:
        warmup: share of its final strength that a penalty has by now, 0 to 1.
        rate: share of the learning rate that its fall has left by now, 1 until it begins to fall.
        dead_F: features that have not been active for long; None if nobody counts.
        target_BD: what is to be reconstructed, if it is not the input.
        gather: the rows that all processes hold of something, one after the other.
        batch: what the activations were made from, if they were made for this step.
        scale: what the activations were multiplied by.
    """

    warmup: float = 1.0
    rate: float = 0.0
    dead_F: Tensor | None = None
    target_BD: Tensor | None = None
    gather: Callable[[Tensor], Tensor] = _alone
    batch: Tensor | None = None
    scale: float = 1.0


AT_FULL = Now()
"""When training is over: penalties at their final strength, a rate of 0."""


class Objective:
    """The base of all objectives; a subclass is a frozen dataclass with `__call__`."""

    decoder_norm: str = "free"
    """"unit_norm": rows of the decoder are kept at length 1."""
    dead_after: int | None = None
    """After how many silent steps a feature counts as dead; None if it does not matter."""
    trains: ClassVar[tuple[type[SAE], ...]] = (SAE,)
    """The architectures that have what it differentiates."""
    any_axes: ClassVar[bool] = False
    """Whether it is the same along any axes, as squares and lengths are; each class says so for
    itself, or what it trains is trained along the axes given."""
    reads_tokens: bool = False
    """Whether batches are documents of token ids, from which it makes the activations."""

    def __call__(self, sae: SAE, x_BD: Tensor, now: Now = AT_FULL) -> tuple[Loss, SAEOutput]:
        """The loss of a batch, and the output that it is of."""
        raise NotImplementedError

    def activations(self, batch_BX: Tensor) -> Tensor:
        """The activations `x_BD` of a batch: the batch itself, unless it `reads_tokens`."""
        return batch_BX

    def check(self, sae: SAE) -> None:
        """Refuse an architecture that this objective cannot train."""
        mine, theirs = type(self).__name__, type(sae).__name__
        if sae.objectives and mine not in sae.objectives:
            all_of_it = " or ".join(sae.objectives)
            raise Refusal(f"an objective that trains all of a {theirs}: {all_of_it}", mine)
        if not isinstance(sae, self.trains):
            able = " or ".join(kind.__name__ for kind in self.trains)
            raise Refusal(f"an SAE that {mine} can train: {able}", theirs)

    def identity(self) -> dict[str, Any]:
        """What tells it from others, as JSON can hold it."""
        return {"objective": type(self).__name__} | asdict(self)


def output_of(sae: SAE, x_BD: Tensor, now: Now) -> SAEOutput:
    """The forward pass as training does it."""
    f_BF = sae.activate_in_training(sae.pre(x_BD), now)
    return SAEOutput(sae.reconstruct(x_BD, f_BF), f_BF)


def squared_error(x_BD: Tensor, x_hat_BD: Tensor, now: Now = AT_FULL) -> Tensor:
    """The error of a reconstruction: squared, summed over D, a mean over the batch."""
    target_BD = x_BD if now.target_BD is None else now.target_BD
    return (target_BD - x_hat_BD.float()).square().sum(-1).mean()


def check_norm(decoder_norm: str, known: tuple[str, ...] = DECODER_NORMS) -> None:
    """Refuse a decoder norm that is none of those known."""
    check_choice(decoder_norm, "decoder_norm", known)


@dataclass(frozen=True)
class L1(Objective):
    """The loss of an L1 sparse autoencoder: `l1_loss`, its coefficient rising from 0 at first.

    Args:
        coefficient: lambda, in units of the activations' size.
        decoder_norm: "weighted", "unit_norm" or "free".
    """

    any_axes = True
    coefficient: float
    decoder_norm: str = "weighted"

    def __post_init__(self):
        check_range(self.coefficient, "l1_coefficient", 0.0)
        check_norm(self.decoder_norm)

    def __call__(self, sae: SAE, x_BD: Tensor, now: Now = AT_FULL) -> tuple[Loss, SAEOutput]:
        output = output_of(sae, x_BD, now)
        target_BD = x_BD if now.target_BD is None else now.target_BD
        how = {"l1_coefficient": self.coefficient * now.warmup, "decoder_norm": self.decoder_norm}
        return l1_loss(target_BD, output, sae.W_dec, **how), output

    def identity(self) -> dict[str, Any]:
        mine = {"l1_coefficient": self.coefficient, "decoder_norm": self.decoder_norm}
        return {"objective": "L1", **mine}


@dataclass(frozen=True)
class Squared(Objective):
    """The squared error alone, for architectures whose sparsity is chosen and not penalised.

        mean_B sum_D (x - x_hat)^2  +  aux_coefficient * mean_B sum_D (e - e_hat)^2

    With `aux_k`, dead features are made to explain what is left: e = x - x_hat, not differentiated,
    and e_hat is the decoder's sum over the `aux_k` dead features with the largest pre-activations.
    (Gao et al., 2024, "Scaling and evaluating sparse autoencoders", A.2.)

    Args:
        aux_k: how many dead features a row may use; 0 for none.
        aux_coefficient: of the second term.
        dead_after: steps without being active after which a feature counts as dead.
        decoder_norm: "free", or "unit_norm".
    """

    any_axes = True
    aux_k: int = 0
    aux_coefficient: float = 1 / 32
    dead_after: int | None = 500
    decoder_norm: str = "free"

    def __post_init__(self):
        check_whole(self.aux_k, "aux_k", 0)
        check_range(self.aux_coefficient, "aux_coefficient", 0.0)
        check_whole(self.dead_after, "dead_after", 1)
        check_norm(self.decoder_norm, ("free", "unit_norm"))

    def __call__(self, sae: SAE, x_BD: Tensor, now: Now = AT_FULL) -> tuple[Loss, SAEOutput]:
        output = output_of(sae, x_BD, now)
        reconstruction = squared_error(x_BD, output.x_hat, now)
        target_BD = x_BD if now.target_BD is None else now.target_BD
        extra = self.auxiliary(sae, x_BD, target_BD - output.x_hat.detach(), now)
        if extra is None:
            return Loss(reconstruction, {"reconstruction": reconstruction}), output
        terms = {"reconstruction": reconstruction, "auxiliary": extra}
        return Loss(reconstruction + self.aux_coefficient * extra, terms), output

    def auxiliary(self, sae: SAE, x_BD: Tensor, error_BD: Tensor, now: Now) -> Tensor | None:
        """How badly dead features explain an error; None without `aux_k`, 0 if none is dead.

        Only the dead features' columns are multiplied, unless the architecture has a `pre` of its
        own.
        """
        if not self.aux_k or now.dead_F is None:
            return None
        dead_I = now.dead_F.nonzero().squeeze(1)
        if len(dead_I) == 0:
            return error_BD.new_zeros(())
        if type(sae).pre is SAE.pre:
            x_BD = x_BD - sae.b_dec if sae.apply_b_dec_to_input else x_BD
            pre_BI = x_BD @ sae.W_enc[:, dead_I] + sae.b_enc[dead_I]
        else:
            pre_BI = sae.pre(x_BD)[:, dead_I]
        top = pre_BI.topk(min(self.aux_k, len(dead_I)), dim=-1)
        f_BI = torch.zeros_like(pre_BI).scatter(-1, top.indices, top.values.relu())
        return (error_BD - (f_BI @ sae.W_dec[dead_I]).float()).square().sum(-1).mean()


def l1_loss(
    x_BD: Tensor,
    output: SAEOutput,
    W_dec_FD: Tensor,
    *,
    l1_coefficient: float | Tensor,
    decoder_norm: str = "weighted",
) -> Loss:
    """The loss of an L1 sparse autoencoder.

        mean_B sum_D (x - x_hat)^2  +  l1_coefficient * mean_B sum_F f_i ||W_dec_i||

    The penalty acts on activations, not on weights. Both terms are means over the batch, so the
    coefficient does not depend on the batch size. With unit-norm rows, or if `decoder_norm` is
    "free", the norm is left out. (Conerly et al., 2024, for the weighted form.)

    Args:
        x_BD: the activations.
        output: what the SAE made of them.
        W_dec_FD: the decoder, for its norms.
        l1_coefficient: lambda, in units of the activations' size.
        decoder_norm: "weighted", "unit_norm" or "free".
    """
    check_norm(decoder_norm)
    reconstruction = squared_error(x_BD, output.x_hat)
    f_BF = output.f * W_dec_FD.norm(dim=1) if decoder_norm == "weighted" else output.f
    sparsity = f_BF.sum(-1).mean()  # f >= 0, so its sum is its L1 norm
    terms = {"reconstruction": reconstruction, "sparsity": sparsity}
    return Loss(reconstruction + l1_coefficient * sparsity, terms)
