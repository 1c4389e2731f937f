"""Sparse coding: codes by iteration, dictionaries by alternation, photographs as data.

Built by hand in lesson 03. The objective is the course's own, for each row x

    ||x - f W_dec||^2 + l1_coefficient * sum_i |f_i|

without the factor 1/2 that many texts put before the error: their lambda is half of ours. A
dictionary is a matrix `W_dec_FD` whose rows (atoms) are added up, as an SAE's decoder's rows are.
Shapes: B batch, D width of a row, F atoms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from saelearn.errors import (
    ABOVE_0,
    Refusal,
    brief,
    check_range,
    check_series,
    check_tensor,
    checked,
    number,
    whole,
)


@checked()
def soft_threshold(a: Tensor, threshold: float | Tensor, *, nonnegative: bool = False) -> Tensor:
    """Move every number toward 0 by `threshold`, and to 0 what would pass it.

    It is the z with the least (a - z)^2 + 2 threshold |z|. With `nonnegative` only z >= 0 may be
    chosen, and the answer is ReLU(a - threshold). (Daubechies, Defrise and De Mol, 2004.)
    """
    check_tensor(a, "a", "...")
    if not isinstance(threshold, Tensor):
        check_range(threshold, "threshold", 0.0)
    elif threshold.is_complex() or threshold.dtype == torch.bool or not _spreads(threshold, a):
        raise Refusal(f"a threshold, or {a.shape[-1]} of them", brief(threshold))
    return _moved_to_zero(a, threshold, nonnegative)


def _spreads(threshold: Tensor, a: Tensor) -> bool:
    return threshold.numel() == 1 or threshold.shape in (a.shape, a.shape[-1:])


def _moved_to_zero(a: Tensor, threshold: float | Tensor, nonnegative: bool) -> Tensor:
    if nonnegative:
        return torch.relu(a - threshold)
    return a.sign() * torch.relu(a.abs() - threshold)


@checked("B", l1_coefficient=number(0))
def objective(x_BD: Tensor, f_BF: Tensor, W_dec_FD: Tensor, l1_coefficient: float) -> Tensor:
    """Squared error summed over D plus l1_coefficient * sum |f|, one number for each row, `[B]`."""
    return (x_BD - f_BF @ W_dec_FD).square().sum(1) + l1_coefficient * f_BF.abs().sum(1)


@checked()
def curvature(W_dec_FD: Tensor) -> Tensor:
    """The largest eigenvalue of W_dec W_dec^T: how steep the error can become, one number.

    The squared error's gradient changes by at most 2 * curvature per unit of f, so a step of
    1 / (2 * curvature) along it never overshoots.
    """
    return torch.linalg.matrix_norm(W_dec_FD, 2).square()


@checked("B", l1_coefficient=number(0))
def ista_step(
    x_BD: Tensor,
    f_BF: Tensor,
    W_dec_FD: Tensor,
    l1_coefficient: float,
    curvature: float | Tensor,
    *,
    nonnegative: bool = False,
) -> Tensor:
    """One iteration of ISTA: a step down the squared error, then a soft threshold.

    The step is 1 / (2 * curvature) times the gradient -2 (x - f W_dec) W_dec^T, and the threshold
    is l1_coefficient / (2 * curvature), with the dictionary's `curvature`.
    """
    if not isinstance(curvature, Tensor):
        check_range(curvature, "curvature", ABOVE_0)
    elif curvature.numel() != 1 or curvature.is_complex():
        raise Refusal("curvature as one number", brief(curvature))
    return _ista_step(x_BD, f_BF, W_dec_FD, l1_coefficient, curvature, nonnegative)


def _ista_step(
    x_BD: Tensor,
    f_BF: Tensor,
    W_dec_FD: Tensor,
    l1_coefficient: float,
    curvature: float | Tensor,
    nonnegative: bool,
) -> Tensor:
    downhill_BF = f_BF + (x_BD - f_BF @ W_dec_FD) @ W_dec_FD.T / curvature
    return _moved_to_zero(downhill_BF, l1_coefficient / (2 * curvature), nonnegative)


@checked(l1_coefficient=number(0))
def ista_steps(
    x_BD: Tensor,
    W_dec_FD: Tensor,
    l1_coefficient: float,
    *,
    nonnegative: bool = False,
    accelerate: bool = False,
) -> Iterator[Tensor]:
    """The codes `f_BF` after each iteration of ISTA (or FISTA) that starts at 0, without end.

    After k steps of ISTA (Daubechies et al., 2004) the objective lies above its minimum, taken at
    f*, by at most curvature * ||f*||^2 / k. FISTA takes the same step from a point ahead, further
    along the last move; its bound is 4 * curvature * ||f*||^2 / (k + 1)^2 (Beck and Teboulle,
    2009).

    Args:
        nonnegative: only codes f >= 0.
        accelerate: FISTA in place of ISTA.
    """
    steepest = curvature(W_dec_FD)
    f_BF = ahead_BF = x_BD.new_zeros(len(x_BD), len(W_dec_FD))
    t = 1.0
    while True:
        last_BF = f_BF
        f_BF = _ista_step(x_BD, ahead_BF, W_dec_FD, l1_coefficient, steepest, nonnegative)
        yield f_BF
        ahead_BF = f_BF
        if accelerate:
            last_t, t = t, (1 + math.sqrt(1 + 4 * t * t)) / 2
            ahead_BF = f_BF + (last_t - 1) / t * (f_BF - last_BF)


@checked(l1_coefficient=number(0), steps=whole(1))
def ista(
    x_BD: Tensor,
    W_dec_FD: Tensor,
    l1_coefficient: float,
    *,
    steps: int = 300,
    nonnegative: bool = False,
) -> Tensor:
    """Sparse codes `f_BF` after so many steps of `ista_steps`."""
    iterates = ista_steps(x_BD, W_dec_FD, l1_coefficient, nonnegative=nonnegative)
    return next(islice(iterates, steps - 1, None))


@checked(l1_coefficient=number(0), steps=whole(1))
def fista(
    x_BD: Tensor,
    W_dec_FD: Tensor,
    l1_coefficient: float,
    *,
    steps: int = 100,
    nonnegative: bool = False,
) -> Tensor:
    """The same, accelerated: fewer steps for the same precision."""
    iterates = ista_steps(x_BD, W_dec_FD, l1_coefficient, nonnegative=nonnegative, accelerate=True)
    return next(islice(iterates, steps - 1, None))


@checked(l1_coefficient=number(0))
def one_step_encoder(W_dec_FD: Tensor, l1_coefficient: float) -> tuple[Tensor, Tensor]:
    """ISTA's first step from 0 with f >= 0, written as ReLU(x W_enc + b_enc).

    Returns:
        `W_enc_DF` and `b_enc_F`. Learned in place of computed, and a few layers of them: that is
        LISTA (Gregor and LeCun, 2010). One layer is an SAE's encoder.
    """
    steepest = curvature(W_dec_FD)
    b_enc_F = -l1_coefficient / (2 * steepest) * torch.ones_like(W_dec_FD[:, 0])
    return W_dec_FD.T / steepest, b_enc_F


@checked(l1_coefficient=number(0), steps=whole(1), lr=number(0))
def fit_encoder(
    batches: Iterable[Tensor],
    W_dec_FD: Tensor,
    l1_coefficient: float,
    *,
    steps: int = 1_000,
    lr: float = 5e-3,
) -> tuple[Tensor, Tensor]:
    """The best one-pass encoder for a fixed dictionary: Adam on the mean objective.

    Starts at W_enc = W_dec^T with the threshold of an atom that stands alone, l1_coefficient / 2;
    the learning rate falls to 0 along a cosine.

    Args:
        batches: fresh `x_BD`, at least `steps` of them.

    Returns:
        `W_enc_DF` and `b_enc_F`.
    """
    W_enc_DF = W_dec_FD.T.clone().requires_grad_()
    b_enc_F = torch.full_like(W_dec_FD[:, 0], -l1_coefficient / 2).requires_grad_()
    optimizer = torch.optim.Adam([W_enc_DF, b_enc_F], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for x_BD in islice(batches, steps):
        f_BF = torch.relu(x_BD @ W_enc_DF + b_enc_F)
        optimizer.zero_grad()
        objective(x_BD, f_BF, W_dec_FD, l1_coefficient).mean().backward()
        optimizer.step()
        schedule.step()
    return W_enc_DF.detach(), b_enc_F.detach()


@checked(rate=number(0))
def dictionary_step(W_dec_FD: Tensor, x_BD: Tensor, f_BF: Tensor, *, rate: float = 1.0) -> Tensor:
    """Move each atom by the mean of what is left over, weighted by its use; length 1 again.

    For atom i the move is rate * sum_b f_bi r_b / sum_b f_bi^2 with the residual r = x - f W_dec:
    a gradient step as in Olshausen and Field (1996), each atom at the pace at which it would fit
    best if it moved alone (as in the sweep over columns of Mairal et al., 2009, but all at once).
    An atom that no row of the batch uses stays.
    """
    residual_BD = x_BD - f_BF @ W_dec_FD
    used_F = f_BF.square().sum(0).clamp(min=1e-12)
    moved_FD = W_dec_FD + rate * f_BF.T @ residual_BD / used_F[:, None]
    return moved_FD / moved_FD.norm(dim=1, keepdim=True)


class Dictionary(NamedTuple):
    """A learned dictionary `W_dec` [F, D], and the mean objective of each step's batch."""

    W_dec: Tensor
    history: list[float]


@checked(
    n_atoms=whole(1), l1_coefficient=number(0), steps=whole(1), code_steps=whole(1), seed=whole(0)
)
def learn_dictionary(
    batches: Iterable[Tensor],
    n_atoms: int,
    l1_coefficient: float,
    *,
    steps: int = 300,
    code_steps: int = 30,
    nonnegative: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Dictionary:
    """Alternate: codes by FISTA for the dictionary that is there, then one `dictionary_step`.

    Starts from random atoms. The last 30 % of the steps move at a fifth of the rate, which
    averages over more rows.

    Args:
        batches: rows `x_BD`, at least `steps` batches.
        code_steps: FISTA's steps for each batch.
    """
    batches = iter(batches)
    x_BD = next(batches)
    generator = torch.Generator().manual_seed(seed)
    W_dec_FD = torch.randn(n_atoms, x_BD.shape[1], generator=generator)
    W_dec_FD /= W_dec_FD.norm(dim=1, keepdim=True)
    history = []
    for step in tqdm(range(steps), desc="dictionary", disable=not progress):
        x_BD = x_BD if step == 0 else next(batches)
        f_BF = fista(x_BD, W_dec_FD, l1_coefficient, steps=code_steps, nonnegative=nonnegative)
        history.append(float(objective(x_BD, f_BF, W_dec_FD, l1_coefficient).mean()))
        rate = 1.0 if step < 0.7 * steps else 0.2
        W_dec_FD = dictionary_step(W_dec_FD, x_BD, f_BF, rate=rate)
    return Dictionary(W_dec_FD, history)


@checked(shrink=whole(1, 64))
def photographs(shrink: int = 2) -> list[Tensor]:
    """scikit-learn's two photographs, a temple in China and a flower, grey, values in [0, 1].

    They lie in the package: no network. Shrinking by averages over blocks takes away most of
    what JPEG compression left.
    """
    from sklearn.datasets import load_sample_images  # only this needs it, and it takes a second

    grey = [torch.tensor(image).float().mean(2) / 255 for image in load_sample_images().images]
    return [torch.nn.functional.avg_pool2d(image[None], shrink)[0] for image in grey]


@checked()
def phase_scrambled(image_HW: Tensor, *, generator: torch.Generator) -> Tensor:
    """The same power at every frequency with random phases: brightness blobs without an edge."""
    noise_HW = torch.fft.fft2(torch.randn(image_HW.shape, generator=generator))
    spectrum_HW = torch.fft.fft2(image_HW).abs() * noise_HW / noise_HW.abs()
    return torch.fft.ifft2(spectrum_HW).real


@checked(size=whole(1), n=whole(1))
def draw_patches(
    images: Sequence[Tensor], size: int, n: int, *, generator: torch.Generator
) -> Tensor:
    """`n` square patches from random places, as rows `[n, size * size]`, each with mean 0.

    The images give equally many; places may repeat.
    """
    rows = []
    for i, image_HW in enumerate(check_series(images, "images", least=1)):
        check_tensor(image_HW, "image_HW", "HW")
        count = n // len(images) + (i < n % len(images))
        if min(image_HW.shape) < size:
            raise Refusal(f"images of at least {size} x {size}", f"{tuple(image_HW.shape)}")
        windows = image_HW.unfold(0, size, 1).unfold(1, size, 1)
        top = torch.randint(windows.shape[0], (count,), generator=generator)
        left = torch.randint(windows.shape[1], (count,), generator=generator)
        rows.append(windows[top, left].reshape(count, size * size))
    x_ND = torch.cat(rows)
    x_ND = x_ND[torch.randperm(n, generator=generator)]
    return x_ND - x_ND.mean(1, keepdim=True)


@checked(floor=number(0))
def whiten(x_ND: Tensor, *, floor: float = 0.1) -> Tensor:
    """Make all directions about equally loud, all rows too; mean squared length 1.

    Directions: x V (variance + floor * mean variance)^(-1/2) V^T with the eigenvectors V of the
    covariance, which for patches keeps a pixel a pixel (ZCA; Bell and Sejnowski, 1997). The floor
    keeps the quietest directions, mostly noise, from being blown up. Rows: divided by their
    length plus the median length, so that a few strong edges don't outshout all others.
    """
    variance_D, V_DD = torch.linalg.eigh(torch.atleast_2d(torch.cov(x_ND.T, correction=0)))
    variance_D = variance_D.clamp(min=0) + floor * variance_D.mean()
    white_ND = x_ND @ (V_DD * variance_D.rsqrt()) @ V_DD.T
    length_N1 = white_ND.norm(dim=1, keepdim=True)
    white_ND = white_ND / (length_N1 + length_N1.median())
    return white_ND / white_ND.square().sum(1).mean().sqrt()


@checked(batch_size=whole(1), seed=whole(0))
def random_batches(x_ND: Tensor, batch_size: int, *, seed: int = 0) -> Iterator[Tensor]:
    """Random batches of the rows without end, drawn with repetition."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield x_ND[torch.randint(len(x_ND), (batch_size,), generator=generator)]
