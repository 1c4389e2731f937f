"""Second looks at SAEs of the default site: what cures leave, and what no other SAE has. Lesson 11.

Shapes: N rows, D activation width, F features, K features that are on, I chosen features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saelearn import features, metrics
from saelearn.lm import LM
from saelearn.sae import SAE
from saelearn.tiny import shipped

CURES = ("as it is", "scaled", "decoder", "strengths")
JUDGED = 2_000  # rows, since strengths are solved for each by itself


def refit(f_NF: Tensor, x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder rows `[F, D]` and the offset `[D]` that reconstruct best. Built in lesson 11."""
    f_F, x_D = f_NF.mean(0), x_ND.mean(0)
    f_NF, x_ND = (f_NF - f_F).double(), (x_ND - x_D).double()
    W_dec_FD = (torch.linalg.pinv(f_NF.T @ f_NF, hermitian=True) @ (f_NF.T @ x_ND)).to(x_D.dtype)
    return W_dec_FD, x_D - f_F @ W_dec_FD


def most_useful(f_NF: Tensor, x_ND: Tensor, n: int) -> list[int]:
    """n features, chosen one by one: each the one that explains most of what the others leave.

    The others' rows are refitted at each step, as `refit` would.

    Args:
        f_NF: activations.
        x_ND: what is to be explained.
        n: how many.
    """
    f_NF, left_ND, chosen = f_NF - f_NF.mean(0), x_ND - x_ND.mean(0), []
    for _ in range(n):
        size_F = f_NF.square().sum(0)
        gain_F = (f_NF.T @ left_ND).square().sum(1) / size_F.clamp(min=1e-6)
        gain_F[chosen] = -1
        chosen.append(i := int(gain_F.argmax()))
        unit_N = f_NF[:, i] / size_F[i].sqrt().clamp(min=1e-6)
        left_ND = left_ND - torch.outer(unit_N, unit_N @ left_ND)
        f_NF = f_NF - torch.outer(unit_N, unit_N @ f_NF)
    return chosen


def best_strengths(sae: SAE, x_ND: Tensor, f_NF: Tensor, *, most: int = 24) -> Tensor:
    """Reconstructions `[N, D]` by the features that are on, each as strong as serves its row best.

    Args:
        sae: whose rows they are.
        x_ND: what is reconstructed.
        f_NF: which features are on.
        most: as many of a row's features, the largest, have a say.
    """
    top = f_NF.topk(min(most, f_NF.shape[1]), dim=1)
    rows_NDK = (sae.W_dec[top.indices] * (top.values > 0)[..., None]).mT
    goal_ND1 = (x_ND - sae.b_dec)[..., None]
    best_NK1 = torch.linalg.pinv(rows_NDK, rtol=1e-4) @ goal_ND1
    return (rows_NDK @ best_NK1)[..., 0] + sae.b_dec


@torch.no_grad()
def cures(sae: SAE, x_ND: Tensor, fit_ND: Tensor, *, refit=refit) -> dict[str, float]:
    """Share of the variance that is left unexplained, as it is and after each cure for shrinkage.

    Args:
        sae: an SAE.
        x_ND: activations; the last `JUDGED` rows are judged.
        fit_ND: other activations, on which scale and decoder are fitted.
        refit: finds the best decoder.

    Returns:
        For each of `CURES` a share.
    """
    x_ND = x_ND[-JUDGED:]
    f_NF, g_NF = features.encode(sae, x_ND), features.encode(sae, fit_ND)
    x_hat_ND, fitted_ND = sae.reconstruct(x_ND, f_NF), sae.reconstruct(fit_ND, g_NF)
    mean_D = fitted_ND.mean(0)
    longer = ((fit_ND - mean_D) * (fitted_ND - mean_D)).sum()
    longer = longer / (fitted_ND - mean_D).square().sum()
    W_dec_FD, b_dec_D = refit(g_NF, fit_ND)
    versions = (
        x_hat_ND,
        mean_D + longer * (x_hat_ND - mean_D),
        f_NF @ W_dec_FD + b_dec_D,
        best_strengths(sae, x_ND, f_NF),
    )
    left = (1 - metrics.explained_variance(x_ND, v_ND) for v_ND in versions)
    return dict(zip(CURES, left, strict=True))


class Harm(NamedTuple):
    """What taking features out does to the predictions, medians over features.

    Attributes:
        cosine: mean over them of the largest cosine with a row of the other SAE.
        own: KL in millinats for each token at which the feature fires.
        random: the same if as long a random direction is taken out there.
    """

    cosine: float
    own: float
    random: float


@torch.no_grad()
def harms(
    lm: LM, sae: SAE, other: SAE, x_ND: Tensor, tokens_NT: Tensor, *, each: int = 20,
    rarest: float = 0.008, seed: int = 4,
) -> dict[str, Harm]:  # fmt: skip
    """How much the model needs the features that another SAE lacks, and those that it has as well.

    Args:
        lm: the model.
        sae, other: SAEs of the default site; features of the first are taken out one by one.
        x_ND: activations, for how often each feature fires.
        tokens_NT: documents on which predictions are compared.
        each: how many features of either kind, those least and best matched by a row of `other`.
        rarest: features that fire at a smaller share of the tokens are left out.
        seed: of the random directions.

    Returns:
        For "no twin" and "twin" a `Harm`.
    """
    rate_F = (features.encode(sae, x_ND) > 0).double().mean(0)
    twin_F = metrics.cosine_matrix(sae.W_dec, other.W_dec).amax(1)
    noise_FD = features.random_directions(*sae.W_dec.shape, seed=seed)
    noise_FD = noise_FD * sae.W_dec.norm(dim=1, keepdim=True)
    usable_I = (rate_F > rarest).nonzero()[:, 0]
    order_I = usable_I[twin_F[usable_I].argsort()]
    each = min(each, len(order_I))

    def harm(i: int, row_D: Tensor) -> float:
        def edit(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
            part_BTD = sae.encode(x_BTD)[..., i, None] * row_D
            return torch.where((positions_T > 0)[:, None], x_BTD - part_BTD, x_BTD)

        return 1_000 * lm.compare(tokens_NT, {shipped.SITE: edit}).kl / float(rate_F[i])

    found = {}
    for label, chosen_I in (("no twin", order_I[:each]), ("twin", order_I[-each:])):
        medians = (
            float(torch.tensor([harm(i, rows_FD[i]) for i in chosen_I.tolist()]).quantile(0.5))
            for rows_FD in (sae.W_dec, noise_FD)
        )
        found[label] = Harm(float(twin_F[chosen_I].mean()), *medians)
    return found
