"""What to measure about a sparse autoencoder: pure functions of arrays.

Shapes: N rows (tokens or samples), D activation width, F SAE features, G true features, S scored
candidates (features, neurons or directions), C concepts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saelearn.errors import Refusal, check_choice, check_tensor, checked, number, whole

ABLATIONS = ("zero", "mean")


def _exact(x: Tensor) -> Tensor:
    """In double precision, on the CPU: Apple's GPUs have none."""
    return x.detach().cpu().double()


@checked()
def l0(f_NF: Tensor) -> float:
    """Mean number of active features (f > 0) in a row."""
    return float((f_NF > 0).sum()) / (f_NF.numel() // f_NF.shape[-1])


@checked()
def firing_frequency(f_NF: Tensor) -> Tensor:
    """Share of rows in which each feature is active, `[F]`."""
    return (f_NF > 0).sum(0).cpu().double() / len(f_NF)


@checked()
def dead_fraction(f_NF: Tensor) -> float:
    """Share of features that are active in none of the N rows (report N with it)."""
    return float((~(f_NF > 0).any(0)).sum()) / f_NF.shape[-1]


@torch.no_grad()
@checked()
def explained_variance(x_ND: Tensor, x_hat_ND: Tensor) -> float:
    """1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2, the mean being a vector over the rows.

    1 is perfect, 0 is what the mean alone achieves. It does not change if all is scaled. Two
    well-known packages subtract something else than the mean vector, and then it does.
    """
    x_ND, x_hat_ND = _exact(x_ND), _exact(x_hat_ND)
    residual = (x_ND - x_hat_ND).square().sum()
    variance = (x_ND - x_ND.mean(0)).square().sum()
    if (x_ND == x_ND[0]).all():  # rounding of the mean can make the variance more than 0
        raise Refusal("activations that vary", "all rows equal", "use more than one row")
    return float(1 - residual / variance)


@torch.no_grad()
@checked()
def shrinkage(x_ND: Tensor, x_hat_ND: Tensor) -> float:
    """gamma = mean ||x_hat||^2 / mean <x, x_hat>: 1 without shrinkage, below 1 if too short.

    1 / gamma is the factor that x_hat would have to be multiplied by to fit x best
    (Rajamanoharan et al., 2024, "Improving Dictionary Learning with Gated SAEs").
    """
    x_ND, x_hat_ND = _exact(x_ND), _exact(x_hat_ND)
    return float(x_hat_ND.square().sum() / (x_ND * x_hat_ND).sum())


class LossRecovered(NamedTuple):
    """How much of a model's loss an SAE's reconstruction keeps: 1 all, 0 as bad as the ablation.

    Cross-entropies in nats per token: `clean` of the model itself, `spliced` with x replaced by
    x_hat at the site, `ablated` with x replaced by zeros or by the mean; `ablation` says which.
    `kl` is the mean KL(model || spliced model) in nats per token, None where it was not measured.
    """

    value: float
    ablation: str
    clean: float
    spliced: float
    ablated: float
    kl: float | None = None


@checked(clean=number(), spliced=number(), ablated=number(), kl=number())
def loss_recovered(
    clean: float, spliced: float, ablated: float, *, ablation: str, kl: float | None = None
) -> LossRecovered:
    """(ablated - spliced) / (ablated - clean), with the name of the ablation, and `kl` beside it.

    On a residual stream the mean can be a worse ablation than zero, so the value says nothing
    without its name.
    """
    check_choice(ablation, "ablation", ABLATIONS)
    if ablated == clean:
        raise Refusal("an ablation that changes the loss", "no change", "ablate another site")
    value = (ablated - spliced) / (ablated - clean)
    return LossRecovered(value, ablation, clean, spliced, ablated, kl)


@checked()
def cosine_matrix(a_FD: Tensor, b_GD: Tensor) -> Tensor:
    """Cosines between all rows of `a` and all rows of `b`, `[F, G]`; rows of zeros give 0."""
    a_FD = a_FD / a_FD.norm(dim=1, keepdim=True).clamp(min=1e-12)
    b_GD = b_GD / b_GD.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return a_FD @ b_GD.T


class Recovery(NamedTuple):
    """How well decoder rows match true directions.

    `max_cosine_G`: for each truth, the cosine of the row most like it; `n_recovered`: truths with
    a cosine above the threshold; `matched_G`: the row that each truth gets if no row may serve
    two truths (-1 for none), and `matched_cosine_G` its cosine.
    """

    max_cosine_G: Tensor
    n_recovered: int
    matched_G: Tensor
    matched_cosine_G: Tensor


@torch.no_grad()
@checked(threshold=number(-1, 1))
def recovery(W_dec_FD: Tensor, true_GD: Tensor, *, threshold: float = 0.9) -> Recovery:
    """Compare decoder rows with the planted directions (or with another SAE's rows).

    The one-to-one match is the assignment with the largest summed cosine (Kuhn, 1955).
    """
    cosine_GF = cosine_matrix(true_GD, W_dec_FD)
    max_cosine_G = cosine_GF.max(1).values
    rows, columns = linear_sum_assignment(cosine_GF.double().cpu().numpy(), maximize=True)
    matched_G = torch.full((len(true_GD),), -1)
    matched_G[rows] = torch.as_tensor(columns)
    matched_cosine_G = torch.zeros(len(true_GD))
    matched_cosine_G[rows] = cosine_GF[rows, columns].float()
    return Recovery(
        max_cosine_G, int((max_cosine_G > threshold).sum()), matched_G, matched_cosine_G
    )


@torch.no_grad()
@checked()
def encoder_decoder_cosine(W_enc_DF: Tensor, W_dec_FD: Tensor) -> Tensor:
    """Cosine between what each feature looks for and what it writes, `[F]`."""
    return torch.cosine_similarity(W_enc_DF.T, W_dec_FD, dim=1)


@checked()
def surprise(logits_TV: Tensor, tokens_T: Tensor) -> Tensor:
    """Nats of tokens 1 to T - 1 of one text, `[T - 1]`, each given all tokens before it.

    -log p of the token that came: the scores at one place are about the next. Lesson 06 builds it.
    """
    log_p_TV = logits_TV[:-1].log_softmax(-1)
    return -log_p_TV.gather(1, tokens_T[1:, None])[:, 0]


def effective_number(mass: Tensor) -> Tensor:
    """exp(entropy) of shares along the last dimension: 1 if all mass is in one place, n if even.

    With a neuron's activation mass per register it says over how many registers the neuron
    spreads (Hill's number of order 1, 1973). Rows without mass give 1.
    """
    mass = _exact(check_tensor(mass, "mass", "...C"))
    share = mass / mass.sum(-1, keepdim=True).clamp(min=1e-300)
    return torch.exp(-torch.special.xlogy(share, share).sum(-1))


class BestF1(NamedTuple):
    """For each concept the best single detector: chosen on one half, scored on the other.

    `f1_C` is the score on the second half; `candidate_C` its column; `threshold_C` the
    activation above which it says yes; `chosen_f1_C` the (optimistic) score on the first half.
    """

    f1_C: Tensor
    candidate_C: Tensor
    threshold_C: Tensor
    chosen_f1_C: Tensor


@torch.no_grad()
@checked(n_thresholds=whole(1, 255))
def best_f1(
    scores_NS: Tensor, labels_NC: Tensor, *, n_thresholds: int = 24, both_signs: bool = False
) -> BestF1:
    """The F1 of the best candidate for each concept, honestly held out.

    Candidate and threshold are chosen on the first half of the rows and scored on the second;
    order the rows so that no document lies in both. Thresholds are quantiles of each candidate's
    own values, dense at the top, since concepts are rare.

    Args:
        scores_NS: activations of the candidates.
        labels_NC: whether each concept holds, bool.
        n_thresholds: how many thresholds to try for each candidate.
        both_signs: let a candidate also fire when it is low: fair to directions, which have no
            sign of their own.
    """
    if len(scores_NS) < 4:
        raise Refusal("4 rows or more, halves to choose and to score on", f"{len(scores_NS)}")
    if both_signs:
        scores_NS = torch.cat([scores_NS, -scores_NS], dim=1)
    half = len(scores_NS) // 2
    labels_NC = labels_NC.float()
    chosen, candidate, threshold = _choose(scores_NS[:half], labels_NC[:half], n_thresholds)
    fires_NC = scores_NS[half:, candidate] > threshold
    f1_C = f1(fires_NC, labels_NC[half:] > 0)
    if both_signs:
        candidate = candidate % (scores_NS.shape[1] // 2)
    return BestF1(f1_C, candidate, threshold, chosen)


def _choose(
    scores_NS: Tensor, labels_NC: Tensor, n_thresholds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (F1, candidate, threshold) for each concept over a grid of thresholds.

    Each score is reduced to how many thresholds it exceeds, so that one histogram over the rows
    where a concept holds gives the hits at all thresholds: concepts are rare, and this costs in
    proportion to the rows that hold, where a product of matrices would cost the same for zeros.
    """
    n_rows, n_candidates = scores_NS.shape
    grid_ST = _thresholds(scores_NS, n_thresholds)
    level_NS = sum((scores_NS > grid_ST[:, t]).to(torch.uint8) for t in range(n_thresholds))
    level_NS, size = level_NS.cpu().numpy(), n_thresholds + 1
    offset_S = np.arange(n_candidates) * size

    def exceed(rows: np.ndarray) -> Tensor:  # of these rows, how many exceed each threshold
        codes = (level_NS[rows] + offset_S).ravel()
        counts = np.bincount(codes, minlength=n_candidates * size).reshape(n_candidates, size)
        return torch.from_numpy(counts[:, :0:-1].cumsum(1).T.copy())

    fired_TS = sum(exceed(rows) for rows in np.array_split(np.arange(n_rows), 1 + n_rows // 2_048))
    found = []
    for holds_N in labels_NC.bool().T.cpu().numpy():
        rows = np.flatnonzero(holds_N)
        f1_TS = 2 * exceed(rows).float() / (fired_TS + len(rows)).clamp(min=1)
        t, s = divmod(int(f1_TS.argmax()), n_candidates)
        found.append((f1_TS[t, s], torch.tensor(s), grid_ST[s, t].cpu()))
    best_C, candidate_C, threshold_C = (torch.stack(column) for column in zip(*found, strict=True))
    return best_C, candidate_C, threshold_C


def _thresholds(scores_NS: Tensor, n: int) -> Tensor:
    """Quantiles of each candidate's scores, `[S, T]`, highest first, dense at the top."""
    shares = 1 - torch.logspace(-4, -0.3, n)  # of rows that stay silent
    index = (shares * (len(scores_NS) - 1)).long()
    sorted_SN = np.sort(scores_NS.T.contiguous().cpu().numpy(), axis=1)
    return torch.from_numpy(sorted_SN[:, index.numpy()]).to(scores_NS)


@checked("C")
def f1(fires_NC: Tensor, labels_NC: Tensor) -> Tensor:
    """F1 = 2 hits / (fired + held) of each bool column, or of one held against all.

    0 if nothing fired or held.
    """
    hits_C = (fires_NC & labels_NC).sum(0).double()
    total_C = fires_NC.sum(0) + labels_NC.sum(0)
    return 2 * hits_C / total_C.clamp(min=1)


@checked()
def token_identity_f1(tokens_N: Tensor, labels_NC: Tensor) -> Tensor:
    """F1 of the best rule "the concept holds at these words", `[C]`: a baseline for features.

    The set of words is chosen on the first half of the rows (words in the order of how often the
    concept holds at them, as many as maximise F1), and scored on the second.
    """
    half = len(tokens_N) // 2
    n_words = int(tokens_N.max()) + 1
    labels_NC = labels_NC.double()
    count_V = torch.bincount(tokens_N[:half], minlength=n_words).double()
    held_VC = torch.zeros(n_words, labels_NC.shape[1], dtype=torch.double)
    held_VC.index_add_(0, tokens_N[:half], labels_NC[:half])
    rate_VC = held_VC / count_V.clamp(min=1)[:, None]
    order_VC = rate_VC.argsort(dim=0, descending=True)
    hits_VC = held_VC.gather(0, order_VC).cumsum(0)
    fired_VC = count_V[:, None].expand_as(order_VC).gather(0, order_VC).cumsum(0)
    best_C = (2 * hits_VC / (fired_VC + held_VC.sum(0)).clamp(min=1)).argmax(0)
    rank_VC = order_VC.argsort(dim=0)
    fires_NC = (rank_VC <= best_C)[tokens_N[half:]]
    return f1(fires_NC, labels_NC[half:] > 0)
