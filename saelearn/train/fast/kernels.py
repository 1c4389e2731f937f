"""Gradients by hand: dense where much is active, at the active entries where little is.

A dense step costs 10 B D F operations: two products forward, three backward. After ReLU almost
everything is zero, and automatic differentiation multiplies all the zeros. With e = x_hat - x,
input = x - b_dec and the price p_f = l1_coefficient ||W_dec_f|| / B of a feature,

    dL/df     = 2/B e W_dec^T + p    where f > 0, else 0
    dL/dW_dec = 2/B f^T e            dL/dW_enc = input^T dL/df          dL/db_enc = sum_B dL/df
    dL/db_dec = 2/B sum_B e - W_enc dL/db_enc

and everything but the search for the active entries (`search`) can be done at these alone, in loops
that numba compiles (`active`, `loops`); without numba all steps are dense. Loss and gradient are
the same up to rounding: tests compare them with float64 autograd. Lesson 07.

A TopK SAE is the case with p = 0 and another search (`search.largest`).

A sweep of K SAEs on the same data runs through the same lines; a single one is K = 1. Shapes: B
batch, D width, F features each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from saelearn.sae import L1, SAE, BatchTopK, Loss, Now, Objective, Squared, TopK
from saelearn.train.autograd import Plan, Seen
from saelearn.train.fast.active import Parts, Scratch, at_entries, loops
from saelearn.train.fast.search import ROUGH, active, few, largest
from saelearn.train.fast.updates import move
from saelearn.train.update import Adam, update_

DENSE_ABOVE = 0.2  # share of active entries above which full products are faster
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


class Stack(NamedTuple):
    """The parameters of K SAEs of one shape, encoders feature by feature; or their gradients."""

    W_enc_KFD: Tensor
    b_enc_KF: Tensor
    W_dec_KFD: Tensor
    b_dec_KD: Tensor

    @classmethod
    def of(cls, sae: SAE) -> Stack:
        """Views of one SAE's parameters (K = 1)."""
        W_enc_DF, *others = (p.detach() for p in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
        return cls(W_enc_DF.T[None], *(t[None] for t in others))


class Sums(NamedTuple):
    """`l1_loss` and its terms, of one SAE or of K."""

    total: Tensor
    reconstruction: Tensor
    sparsity: Tensor

    def seen(self, count_F: Tensor, rows: int) -> Seen:
        """What an engine returns for one SAE with the L1 objective."""
        terms = {"reconstruction": self.reconstruction, "sparsity": self.sparsity}
        return Seen(Loss(self.total, terms), count_F, rows, None)


class Case(NamedTuple):
    """Which loss K SAEs have.

    l1_K: lambda of each.
    decoder_norm: as for `L1`.
    centred: they subtract `b_dec` from their input.
    """

    l1_K: Tensor
    decoder_norm: str
    centred: bool

    @classmethod
    def of(cls, sae: SAE, l1: float, decoder_norm: str) -> Case:
        """Of one SAE (K = 1)."""
        l1_K = torch.full((1,), l1, device=sae.W_dec.device)
        return cls(l1_K, decoder_norm, sae.apply_b_dec_to_input)


class Price(NamedTuple):
    """What the penalty adds: to dL/df of each feature, and to the gradient of a decoder row w the
    mean of f times pull w / norm."""

    of_f_KF: Tensor
    pull_K: Tensor
    norm_KF: Tensor


PartsOf = Callable[[Stack, Tensor, Tensor, Price], Parts]


class Kernel:
    """What the fast engines share: loss and gradients of K SAEs side by side.

    Args:
        plan: which way to go; None finds active entries the plain way.
        precision: "fp32", or "bf16" for dense products in bf16 (weights stay fp32).
        compile: hand the dense way to torch.compile; pays on a GPU.
    """

    def __init__(self, plan: Plan | None = None, *, precision: str = "fp32", compile: bool = False):
        self.plan, self.precision, self._scratch = plan or Plan(), precision, Scratch()
        self._encoder = self.plan.encoder
        self._dense = torch.compile(_dense) if compile else _dense

    def _alone(
        self, sae: SAE, x_BD: Tensor, l1: float, decoder_norm: str, parts_of: PartsOf | None = None
    ) -> tuple[Sums, Tensor]:
        """One SAE: what is summed up and `count_F`; gradients are written into `.grad`."""
        case = Case.of(sae, l1, decoder_norm)
        sums, count_KF, gradient = self.stacked(Stack.of(sae), x_BD, case, parts_of=parts_of)
        sae.W_enc.grad = _laid_out_as(sae.W_enc, gradient.W_enc_KFD[0].T)
        sae.b_enc.grad, sae.W_dec.grad, sae.b_dec.grad = (g[0] for g in gradient[1:])
        return Sums(*(term[0] for term in sums)), count_KF[0]

    @torch.no_grad()
    def stacked(
        self, sae: Stack, x_BD: Tensor, case: Case, *, parts_of: PartsOf | None = None
    ) -> tuple[Sums, Tensor, Stack]:
        """`l1_loss` of K SAEs on the same data `[K]`, `count_KF`, and gradients.

        Args:
            parts_of: another search than for what is above zero.
        """
        (l1_K, decoder_norm, centred), B = case, len(x_BD)
        sae = Stack(*(parameter.contiguous() for parameter in sae))
        norm_KF = torch.linalg.vector_norm(sae.W_dec_KFD, dim=2)
        weighted = decoder_norm == "weighted"
        weight_KF = norm_KF if weighted else torch.ones_like(norm_KF)
        price = Price(weight_KF * (l1_K[:, None] / B), l1_K * weighted, norm_KF)
        b_dec_K1D = sae.b_dec_KD[:, None]
        target_KBD = self._scratch.on(x_BD, "target", (len(norm_KF), *x_BD.shape))
        target_KBD = torch.sub(x_BD, b_dec_K1D, out=target_KBD)  # of f W_dec
        input_KBD = target_KBD if centred else x_BD.contiguous()[None]
        parts = (parts_of or self._parts)(sae, input_KBD, target_KBD, price)
        d_b_dec_KD = parts.error_sum_KD * (2 / B)
        if centred:  # the way through the encoder
            d_b_dec_KD -= parts.moved_KD
        mean_f_KF = parts.sum_f_KF / B
        reconstruction_K = parts.square_K / B
        sparsity_K = (mean_f_KF * weight_KF).sum(1)
        loss = Sums(reconstruction_K + l1_K * sparsity_K, reconstruction_K, sparsity_K)
        gradient = Stack(parts.W_enc_KFD, parts.b_enc_KF, parts.W_dec_KFD, d_b_dec_KD)
        return loss, parts.count_KF, gradient

    def _parts(self, sae: Stack, input_KBD: Tensor, target_KBD: Tensor, price: Price) -> Parts:
        """Each SAE goes its own way: what one does never depends on its neighbours."""
        given, limit = (sae, input_KBD, target_KBD, price), self.plan.sparse_below
        on_cpu = target_KBD.device.type == "cpu"
        if self.precision != "fp32" or not on_cpu or not limit:
            return self._dense_parts(*given)
        few_K = few(input_KBD, sae.W_enc_KFD, sae.b_enc_KF, limit=limit)
        if not few_K.any() or loops() is None:
            return self._dense_parts(*given)
        if few_K.all():
            return self._sparse_parts(*given)
        place_K = torch.cat([few_K.nonzero(), (~few_K).nonzero()])[:, 0].argsort()
        sparse = self._sparse_parts(*_some(few_K, *given))
        both = zip(sparse, self._dense_parts(*_some(~few_K, *given)), strict=True)
        return Parts(*(torch.cat(parts)[place_K] for parts in both))

    def _sparse_parts(
        self, sae: Stack, input_KBD: Tensor, target_KBD: Tensor, price: Price
    ) -> Parts:
        given = input_KBD, sae.W_enc_KFD, sae.b_enc_KF, self._scratch
        lists, proposed = active(*given, encoder=self._encoder)
        if proposed > ROUGH.get(self._encoder, math.inf):
            self._encoder = self.plan.otherwise  # finds the same
        lists = lists or active(*given, encoder=self._encoder)[0]
        weights = sae.W_enc_KFD, sae.W_dec_KFD
        return at_entries(*weights, input_KBD, target_KBD, *price, lists, self._scratch)

    def _dense_parts(self, *given) -> Parts:
        return self._dense(*given, DTYPES[self.precision], self._scratch)

    @torch.no_grad()
    def update(
        self, sae: SAE, optimizer: Adam | torch.optim.Optimizer, *, clip_norm: float,
        unit_norm: bool,
    ) -> None:  # fmt: skip
        """As `update.update_`, in two passes over the weights; a dense plan needs no loops."""
        slopes, unit = {p: p.grad for p in sae.parameters()}, sae.W_dec if unit_norm else None
        sparse = bool(self.plan.sparse_below) and type(optimizer) is Adam
        if not (sparse and move(slopes, optimizer, clip_norm=clip_norm, unit=unit)):
            update_(sae, optimizer, clip_norm=clip_norm, unit_norm=unit_norm)


class SparseL1(Kernel):
    """The engine of the standard SAE with the L1 objective."""

    @staticmethod
    def fits(sae: SAE, objective: Objective, **_: object) -> bool:
        """On any device, by any number of processes."""
        return type(sae) is SAE and type(objective) is L1

    @torch.no_grad()
    def __call__(self, sae: SAE, x_BD: Tensor, objective: L1, now: Now) -> Seen:
        l1 = float(objective.coefficient * now.warmup)
        sums, count_F = self._alone(sae, x_BD, l1, objective.decoder_norm)
        return sums.seen(count_F, len(x_BD))


class SparseTopK(Kernel):
    """The engine of TopK and BatchTopK with the squared error: the price of a feature is zero."""

    @staticmethod
    def fits(
        sae: SAE, objective: Objective, *, device: str, precision: str, processes: int = 1
    ) -> bool:
        """On one CPU in fp32, as `chooses_few`."""
        if device != "cpu" or precision != "fp32" or loops() is None:
            return False
        return chooses_few(sae, objective, below=DENSE_ABOVE, processes=processes)

    @torch.no_grad()
    def __call__(self, sae: TopK | BatchTopK, x_BD: Tensor, objective: Squared, now: Now) -> Seen:
        found, plan = {}, self.plan
        # by "shorts" there are no maxima
        encoder = plan.otherwise if plan.encoder == "shorts" else plan.encoder

        def parts_of(stack: Stack, input_KBD: Tensor, target_KBD: Tensor, price: Price) -> Parts:
            lists = largest(
                input_KBD, stack.W_enc_KFD, stack.b_enc_KF, self._scratch, k=sae.k,
                of_batch=isinstance(sae, BatchTopK), encoder=encoder,
            )  # fmt: skip
            weights = stack.W_enc_KFD, stack.W_dec_KFD
            parts = at_entries(*weights, input_KBD, target_KBD, *price, lists, self._scratch)
            found.update(error_BD=-parts.error_KBD[0], values=torch.cat(lists.active()))
            return parts

        sums, count_F = self._alone(sae, x_BD, 0.0, "free", parts_of)
        terms, total = {"reconstruction": sums.reconstruction}, sums.reconstruction
        if objective.aux_k:
            terms["auxiliary"] = revive(sae, x_BD, objective, found["error_BD"], now)
            total = total + objective.aux_coefficient * terms["auxiliary"]
        observed = sae.observe(found["values"])
        observed_P = None if observed is None else observed[None]
        return Seen(Loss(total, terms), count_F, len(x_BD), observed_P)


def chooses_few(sae: SAE, objective: Objective, *, below: float, processes: int) -> bool:
    """Whether this is TopK or BatchTopK with the squared error, no more than that share active; a
    batch that several processes share has no largest entries here."""
    if type(objective) is not Squared or getattr(sae, "k", 0) > below * sae.d_sae:
        return False
    return type(sae) is TopK or (type(sae) is BatchTopK and processes == 1)


def revive(sae: SAE, x_BD: Tensor, objective: Squared, error_BD: Tensor, now: Now) -> Tensor:
    """The auxiliary term, whose few features go by automatic differentiation."""
    with torch.enable_grad():
        extra = objective.auxiliary(sae, x_BD, error_BD, now)
        if extra is None or not extra.requires_grad:
            return error_BD.new_zeros(())
        (objective.aux_coefficient * extra).backward()  # adds to what `.grad` holds
    return extra.detach()


def _some(
    chosen: Tensor, sae: Stack, input_KBD: Tensor, target_KBD: Tensor, price: Price
) -> tuple[Stack, Tensor, Tensor, Price]:
    some = input_KBD if len(input_KBD) == 1 else input_KBD[chosen]
    stack, price = Stack(*(p[chosen] for p in sae)), Price(*(p[chosen] for p in price))
    return stack, some, target_KBD[chosen], price


def _dense(
    sae: Stack, input_KBD: Tensor, target_KBD: Tensor, price: Price, dtype: torch.dtype,
    scratch: Scratch,
) -> Parts:  # fmt: skip
    """By full products, in `dtype`."""
    K, B, _ = target_KBD.shape
    F = sae.b_enc_KF.shape[1]

    def room(name: str, shape: tuple[int, ...], dtype: torch.dtype = dtype) -> Tensor | None:
        return scratch.on(target_KBD, name, shape, dtype)

    x_KBD, W_enc_KFD, W_dec_KFD = (t.to(dtype) for t in (input_KBD, sae.W_enc_KFD, sae.W_dec_KFD))
    x_KBD = x_KBD.expand(K, -1, -1)
    bias_K1F, price_K1F = (t[:, None].to(dtype) for t in (sae.b_enc_KF, price.of_f_KF))
    f_KBF = torch.baddbmm(bias_K1F, x_KBD, W_enc_KFD.mT, out=room("u", (K, B, F))).relu_()
    error_KBD = torch.bmm(f_KBF, W_dec_KFD).float() - target_KBD
    slope_KBD = (error_KBD * (2 / B)).to(dtype)
    d_f_KBF = torch.baddbmm(price_K1F, slope_KBD, W_dec_KFD.mT, out=room("d_f", (K, B, F)))
    torch.ops.aten.threshold_backward.grad_input(d_f_KBF, f_KBF, 0, grad_input=d_f_KBF)
    d_W_dec_KFD = torch.bmm(f_KBF.mT, slope_KBD).float()
    d_W_enc_KFD = torch.bmm(d_f_KBF.mT, x_KBD).float()
    sum_f_KF, d_b_enc_KF = _sums(f_KBF), _sums(d_f_KBF)
    count_KF = _sums(f_KBF.sign_()).long()
    pull_KF = price.pull_K[:, None] * (sum_f_KF / B) / price.norm_KF.clamp(min=1e-12)
    d_W_dec_KFD.addcmul_(sae.W_dec_KFD, pull_KF[:, :, None])
    square_K = torch.linalg.vector_norm(error_KBD, dim=(1, 2)).square()
    moved_KD = torch.bmm(d_b_enc_KF[:, None], sae.W_enc_KFD)[:, 0]
    gradients = d_W_enc_KFD, d_b_enc_KF, d_W_dec_KFD
    return Parts(error_KBD, error_KBD.sum(1), square_K, sum_f_KF, count_KF, *gradients, moved_KD)


def _sums(t_KBF: Tensor) -> Tensor:
    """Over B, in fp32; on a CPU a product with ones is the fastest sum, and exact for counts."""
    if t_KBF.dtype == torch.float32:
        return torch.bmm(t_KBF.new_ones(len(t_KBF), 1, t_KBF.shape[1]), t_KBF)[:, 0]
    return t_KBF.sum(1, dtype=torch.float32)


def _laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """In memory as its parameter is: Adam's fused update takes that for granted."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
