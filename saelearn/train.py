"""Train sparse autoencoders: one visible loop for one, a sweep for many. Layer 2. Lessons 05, 07.

Shapes: N rows of data, B batch, D activation width, F features.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm.auto import tqdm

from saelearn.batches import batches, mean_norm_scale
from saelearn.errors import Refusal, check_range
from saelearn.kernels import loss_and_gradients
from saelearn.sae import DECODER_NORMS, SAE, Loss, l1_loss

PRECISIONS = ("fp32", "bf16")
Record = dict[str, float]


@dataclass
class Trained:
    """What training gives.

    Attributes:
        sae: the SAE, on the CPU, for raw activations (the scale is folded in).
        history: one record every `log_every` steps: step, loss, reconstruction, sparsity, l0,
            dead (share of features silent since the last record), decoder_norm (mean), lr.
            Losses are in training units (after scaling).
        scale: what the activations were multiplied by.
        steps: how many steps were done; fewer than asked for if it was interrupted.
    """

    sae: SAE
    history: list[Record] = field(default_factory=list)
    scale: float = 1.0
    steps: int = 0

    def column(self, name: str) -> list[float]:
        """One quantity over time."""
        return [record[name] for record in self.history]


def train(
    data: Tensor | Iterable[Tensor],
    d_sae: int,
    *,
    l1_coefficient: float,
    steps: int,
    batch_size: int = 1_024,
    lr: float = 1e-3,
    lr_warmup: float = 0.02,
    lr_decay: float = 0.2,
    l1_warmup: float = 0.05,
    decoder_norm: str = "weighted",
    center: str = "mean",
    normalize: bool = True,
    clip_norm: float = 1.0,
    resample_at: Sequence[float] = (),
    seed: int = 0,
    device: str = "cpu",
    precision: str = "fp32",
    log_every: int = 50,
    progress: bool = True,
    callback: Callable[[Record, SAE], None] | None = None,
) -> Trained:
    """Train one L1 sparse autoencoder with Adam (betas 0.9 and 0.999).

    Args:
        data: activations `x_ND`, reshuffled every epoch, or batches `x_BD` without end.
        d_sae: number of features F.
        l1_coefficient: lambda of `sae.l1_loss`, for activations as they are after scaling.
        steps: optimizer steps.
        batch_size: B, if `data` is one tensor.
        lr: peak learning rate.
        lr_warmup, lr_decay: shares of the steps in which it rises from 0, and falls to 0.
        l1_warmup: share of the steps in which lambda rises from 0; without it many features die.
        decoder_norm: "weighted", "unit_norm" (rows kept at length 1) or "free" (cheats).
        center: where `b_dec` starts: "mean", "geometric_median" or "zero".
        normalize: multiply activations by one scalar so that their mean squared norm is D;
            the scalar is folded into the weights at the end.
        clip_norm: the gradient's norm is clipped at this.
        resample_at: shares of the steps at which dead features start anew (`resample`): those
            that were silent in the second half of the time since the last such step.
        seed: of the initial weights, the shuffling and the resampling: same seed, same result.
        device: "cpu", "cuda", "mps".
        precision: "fp32", or "bf16" products with fp32 weights.
        log_every: steps between records of the history.
        progress: show a progress bar.
        callback: called with each new record and the SAE in training.

    Raises:
        Refusal: data or arguments that cannot be trained on; or the loss became NaN.

    Ctrl-C ends training early and returns what was trained so far.
    """
    check_arguments(l1_coefficient, steps, lr, decoder_norm, precision, log_every)
    stream, sample_ND = batches(data, batch_size, seed=seed)
    scale = mean_norm_scale(sample_ND) if normalize else 1.0
    init_norm = 1.0 if decoder_norm == "unit_norm" else 0.1
    sae = SAE.from_data(
        sample_ND * scale, d_sae, center=center, decoder_init_norm=init_norm, seed=seed
    ).to(device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr, fused=True)
    generator = torch.Generator().manual_seed(seed)
    resample_steps = sorted(round(share * steps) for share in resample_at)
    watch_steps = {(a + b) // 2 for a, b in itertools.pairwise([0, *resample_steps])}
    fired_F = torch.zeros(d_sae, dtype=torch.bool, device=device)  # since the last record
    alive_F = fired_F.clone()  # since the last of the watch_steps
    result = Trained(sae, scale=scale)
    bar = tqdm(range(steps), desc="SAE", unit="step", disable=not progress, mininterval=0.5)
    with contextlib.suppress(KeyboardInterrupt):
        for i in bar:
            x_BD = next(stream).to(device, torch.float32, non_blocking=True) * scale
            for group in optimizer.param_groups:
                group["lr"] = lr * lr_factor(i, steps, warmup=lr_warmup, decay=lr_decay)
            strength = l1_coefficient * min(1.0, (i + 1) / max(1, l1_warmup * steps))
            loss, f_BF = step(
                sae, x_BD, optimizer, l1_coefficient=strength, decoder_norm=decoder_norm,
                clip_norm=clip_norm, precision=precision,
            )  # fmt: skip
            active_F = (f_BF > 0).any(0)
            fired_F, alive_F = fired_F | active_F, alive_F | active_F
            result.steps = i + 1
            if (i + 1) % log_every == 0 or i + 1 == steps:
                record = _record(i + 1, loss, f_BF, fired_F, sae, optimizer)
                result.history.append(record)
                bar.set_postfix(l0=f"{record['l0']:.1f}", dead=f"{record['dead']:.0%}")
                fired_F.zero_()
                if callback:
                    callback(record, sae)
            if i + 1 in watch_steps:
                alive_F.zero_()
            if i + 1 in resample_steps:
                resample(sae, optimizer, ~alive_F, x_BD, generator=generator)
    bar.close()
    result.sae = sae.cpu().fold_scale_(scale)
    return result


def step(
    sae: SAE,
    x_BD: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    l1_coefficient: float,
    decoder_norm: str = "weighted",
    clip_norm: float = 1.0,
    precision: str = "fp32",
) -> tuple[Loss, Tensor]:
    """One step: forward, backward, update. A faster engine replaces this function, nothing else.

    Returns:
        the loss before the update, and the features `f_BF` of the batch, both detached.
    """
    if precision == "fp32" and x_BD.device.type == "cpu" and x_BD.dtype == torch.float32:
        loss, f_BF = loss_and_gradients(
            sae, x_BD, l1_coefficient=l1_coefficient, decoder_norm=decoder_norm
        )
    else:
        with torch.autocast(x_BD.device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = sae(x_BD)
            loss = l1_loss(
                x_BD, output, sae.W_dec, l1_coefficient=l1_coefficient, decoder_norm=decoder_norm
            )
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        loss, f_BF = Loss(*(term.detach() for term in loss)), output.f.detach()
    if decoder_norm == "unit_norm":  # moves along the row only change its length
        along_F1 = (sae.W_dec.grad * sae.W_dec.data).sum(1, keepdim=True)
        sae.W_dec.grad -= along_F1 * sae.W_dec.data
    torch.nn.utils.clip_grad_norm_(sae.parameters(), clip_norm)
    optimizer.step()
    if decoder_norm == "unit_norm":
        sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    return loss, f_BF


def sweep(
    data: Tensor | Callable[[], Iterable[Tensor]],
    d_sae: int,
    l1_coefficients: Sequence[float],
    *,
    seeds: Sequence[int] = (0,),
    progress: bool = True,
    callback: Callable[[float, int, Trained], None] | None = None,
    **arguments,
) -> list[Trained]:
    """Train one SAE for each coefficient and seed; each equals `train` called by itself.

    Args:
        data: activations `x_ND`, or a function that starts the stream of batches anew.
        l1_coefficients: the values of lambda.
        seeds: trained for each of them.
        progress: one bar over the whole sweep.
        callback: called with (coefficient, seed, result) as soon as each is done.
        arguments: as for `train`.

    Returns:
        the results, coefficients outermost. Ctrl-C ends the sweep: the last result then has
        done fewer steps.
    """
    pairs = list(itertools.product(l1_coefficients, seeds))
    results = []
    for coefficient, seed in tqdm(pairs, desc="sweep", unit="SAE", disable=not progress):
        stream = data if isinstance(data, Tensor) else data()
        trained = train(
            stream, d_sae, l1_coefficient=coefficient, seed=seed, progress=False, **arguments
        )
        results.append(trained)
        if callback:
            callback(coefficient, seed, trained)
        if trained.steps < arguments["steps"]:
            break
    return results


@torch.no_grad()
def resample(
    sae: SAE,
    optimizer: torch.optim.Optimizer,
    dead_F: Tensor,
    x_BD: Tensor,
    *,
    generator: torch.Generator,
) -> int:
    """Give dead features a new start where the SAE is bad, and return how many there were.

    Their decoder rows point to inputs drawn with probability proportional to the squared loss;
    encoder columns get 0.2 times the mean norm of the living ones, biases 0, and Adam forgets
    them. Decoder rows keep the mean length of the living ones (Bricken et al., 2023).
    """
    dead_I = dead_F.nonzero().squeeze(1)
    if len(dead_I) == 0:
        return 0
    alive_F = ~dead_F if not dead_F.all() else torch.ones_like(dead_F)
    loss_B = (x_BD - sae(x_BD).x_hat).square().sum(-1)
    weight_B = loss_B.square().cpu()
    chosen_I = torch.multinomial(weight_B, len(dead_I), replacement=True, generator=generator)
    target_ID = x_BD[chosen_I.to(x_BD.device)] - sae.b_dec
    target_ID = target_ID / target_ID.norm(dim=1, keepdim=True).clamp(min=1e-12)
    sae.W_dec[dead_I] = target_ID * sae.W_dec[alive_F].norm(dim=1).mean()
    sae.W_enc[:, dead_I] = 0.2 * sae.W_enc[:, alive_F].norm(dim=0).mean() * target_ID.T
    sae.b_enc[dead_I] = 0.0
    for name, index in (("W_dec", dead_I), ("b_enc", dead_I), ("W_enc", (slice(None), dead_I))):
        state = optimizer.state.get(getattr(sae, name), {})
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in state:
                state[moment][index] = 0.0
    return len(dead_I)


def lr_factor(i: int, steps: int, *, warmup: float, decay: float) -> float:
    """The learning rate at step `i` as a share of its peak: rises, stays, falls, all linearly."""
    rise = (i + 1) / max(1, warmup * steps)
    fall = (steps - i) / max(1, decay * steps)
    return min(1.0, rise, fall)


def check_arguments(
    l1_coefficient: float, steps: int, lr: float, decoder_norm: str, precision: str, log_every: int
) -> None:
    """Refuse what cannot be trained with, before any work is done."""
    check_range(l1_coefficient, "l1_coefficient", 0.0)
    check_range(steps, "steps", 1)
    check_range(lr, "lr", 0.0)
    check_range(log_every, "log_every", 1)
    for value, name, known in (
        (decoder_norm, "decoder_norm", DECODER_NORMS),
        (precision, "precision", PRECISIONS),
    ):
        if value not in known:
            raise Refusal(f"{name} as one of {', '.join(known)}", repr(value))


def _record(
    i: int, loss: Loss, f_BF: Tensor, fired_F: Tensor, sae: SAE, optimizer: torch.optim.Optimizer
) -> Record:
    record = {
        "step": i,
        "loss": loss.total.item(),
        "reconstruction": loss.reconstruction.item(),
        "sparsity": loss.sparsity.item(),
        "l0": (f_BF > 0).sum(1).float().mean().item(),
        "dead": 1 - fired_F.float().mean().item(),
        "decoder_norm": sae.W_dec.detach().norm(dim=1).mean().item(),
        "lr": optimizer.param_groups[0]["lr"],
    }
    if not math.isfinite(record["loss"]):
        raise Refusal(
            "a finite loss", f"{record['loss']} at step {i}", "lower lr, or raise lr_warmup"
        )
    return record
