"""What does feature 317 mean? Evidence about features, as arrays. Lesson 08.

Shapes: N documents of T tokens (flattened, N rows), D activation width, F features, C concepts,
R registers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saelearn.activations import Activations
from saelearn.errors import (
    Refusal,
    check_activations,
    check_pieces,
    check_range,
    check_whole,
    check_width,
    checked,
    number,
    whole,
)
from saelearn.lm import LM, warn_if_others
from saelearn.metrics import BestF1, best_f1, cosine_matrix, effective_number
from saelearn.sae import SAE

ABSORBED, ALIKE = 0.4, 0.025  # least share of the probe's reading; least cosine with it


@torch.no_grad()
@checked(batch_size=whole(1))
def encode(sae: SAE, x_ND: Tensor | Activations, *, batch_size: int = 16_384) -> Tensor:
    """Features `f_NF` of many rows, in pieces (4 N F bytes).

    Args:
        x_ND: rows; with where they come from, another place than the SAE's own warns (`Misplaced`).
    """
    if isinstance(x_ND, Activations):
        warn_if_others(sae.metadata, x_ND.about)
        x_ND = x_ND.x_ND
    return torch.cat([sae.encode(x_BD) for x_BD in x_ND.split(batch_size)])


AT_ONCE = 2**24
"""Numbers of features that are computed at once: 64 MiB of them."""


@dataclass(frozen=True)
class Firings:
    """Where features fire, and nothing of where they do not: E entries in place of N F.

    A row has some tens of active features of thousands, so this is a hundredth of what `encode`
    gives. Entries are sorted by feature, then by row.

    Attributes:
        rows: N.
        row_E, value_E: the row of each entry, and how active the feature is there.
        starts_F: where each feature's entries begin, and, at F, where they end.
    """

    rows: int
    row_E: Tensor
    value_E: Tensor
    starts_F: Tensor

    def of(self, feature: int) -> Tensor:
        """One feature at every row, `f_N`, as `contexts` takes it."""
        return self.dense(feature, feature + 1)[:, 0]

    def dense(self, first: int, stop: int) -> Tensor:
        """Some neighbouring features at every row, `[N, stop - first]`."""
        some = slice(int(self.starts_F[first]), int(self.starts_F[stop]))
        f_Nf = torch.zeros(self.rows, stop - first)
        feature_E = torch.repeat_interleave(self.starts_F[first : stop + 1].diff())
        f_Nf[self.row_E[some].long(), feature_E] = self.value_E[some]
        return f_Nf

    @property
    def frequency_F(self) -> Tensor:
        """Share of rows in which each feature is active."""
        return self.starts_F.diff().double() / self.rows

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """Each feature's largest activations and their rows, `[F, k]`; 0 and -1 if it has fewer."""
        check_whole(k, "k", 1)
        n_features = len(self.starts_F) - 1
        value_Fk, row_Fk = torch.zeros(n_features, k), torch.full((n_features, k), -1)
        for feature, (a, b) in enumerate(pairwise(self.starts_F.tolist())):
            best = self.value_E[a:b].topk(min(k, b - a))
            value_Fk[feature, : len(best.values)] = best.values
            row_Fk[feature, : len(best.values)] = self.row_E[a:b][best.indices].long()
        return value_Fk, row_Fk

    def histogram(self, edges_H: Tensor) -> Tensor:
        """How many activations lie in each interval `(edge, next edge]`, `[F, H + 1]`.

        The first counts up to the first edge, the last above the last.
        """
        n_features, n_bins = len(self.starts_F) - 1, len(edges_H) + 1
        code_E = torch.repeat_interleave(self.starts_F.diff()) * n_bins
        code_E += torch.bucketize(self.value_E, edges_H)
        return torch.bincount(code_E, minlength=n_features * n_bins).reshape(n_features, n_bins)

    def best_f1(self, labels_NC: Tensor, *, n_thresholds: int = 24) -> BestF1:
        """`metrics.best_f1` over all features, some of them at a time."""
        size, n_features = max(1, AT_ONCE // self.rows), len(self.starts_F) - 1
        best = None
        for first in range(0, n_features, size):
            scores_Nf = self.dense(first, min(first + size, n_features))
            found = best_f1(scores_Nf, labels_NC, n_thresholds=n_thresholds)
            found = found._replace(candidate_C=found.candidate_C + first)
            if best is None:
                best = found
                continue
            better_C = found.chosen_f1_C > best.chosen_f1_C
            best = BestF1(*(torch.where(better_C, a, b) for a, b in zip(found, best, strict=True)))
        return best


@checked()
@torch.no_grad()
def search(sae: SAE, x: Tensor | Activations | Iterable[Tensor]) -> Firings:
    """Where each feature fires: as `encode`, without N F numbers in memory.

    Args:
        x: rows `x_ND`; with where they come from, another place than the SAE's own warns; or
            pieces `x_BD` of them, which need not fit in memory together.
    """
    if isinstance(x, Activations):
        warn_if_others(sae.metadata, x.about)
        x = x.x_ND
    at_once, rows, parts = max(1, AT_ONCE // sae.d_sae), 0, []
    for piece_BD in [x] if isinstance(x, Tensor) else check_pieces(x, "rows of activations"):
        check_activations(piece_BD, sae.d_in)
        for x_BD in piece_BD.split(at_once):
            f_BF = sae.encode(x_BD.to(sae.W_dec)).cpu()
            row_E, feature_E = f_BF.nonzero(as_tuple=True)
            parts.append(((row_E + rows).int(), feature_E.int(), f_BF[row_E, feature_E].float()))
            rows += len(x_BD)
    if not parts:
        raise Refusal("rows of activations", "none")
    row_E, feature_E, value_E = (torch.cat(column) for column in zip(*parts, strict=True))
    order_E = feature_E.argsort(stable=True)
    ends_F = torch.bincount(feature_E, minlength=sae.d_sae).cumsum(0)
    starts_F = torch.cat([ends_F.new_zeros(1), ends_F])
    return Firings(rows, row_E[order_E], value_E[order_E], starts_F)


@dataclass(frozen=True)
class Context:
    """A place where a feature fires: `words` around it, their `activations`, and which is `center`.

    `document` and `position` say where it lies in the tokens that were searched. Joined by
    `separator`, the words are the text that they came from.
    """

    document: int
    position: int
    words: list[str]
    activations: list[float]
    center: int
    separator: str = " "


_MARGIN = 8  # tokens beside a cut: characters that it goes through begin and end in them


@checked(k=whole(1), window=whole(0), quantile=number(0, 1))
def contexts(
    f_N: Tensor, source: Activations, lm: LM, *, k: int = 8, window: int = 8, quantile: float = 1.0
) -> list[Context]:
    """Documents in which a feature fires, one context each, strongest first.

    Args:
        f_N: the feature's activation at every row of `source`.
        k: how many documents.
        window: words shown on either side.
        quantile: 1 for the strongest; 0.5 starts at the median of the documents in which it
            fires. The strongest examples alone flatter a label. Peaks equal to four digits
            stay in the order of their documents.
    """
    places_NT = source.places_NT
    if f_N.shape != (int(places_NT.sum()),):
        raise Refusal(f"one activation a row, [{int(places_NT.sum())}]", str(f_N.shape))
    f_NT = torch.zeros(places_NT.shape, dtype=f_N.dtype)
    f_NT[places_NT] = f_N.detach().cpu()
    peak_N, at_N = f_NT.max(1)
    # rounded and stable: documents that begin alike tie, and machines differ in the last bits
    rounded_N = (peak_N / peak_N.max().clamp(min=1e-12) * 1e4).round()
    order = rounded_N.argsort(descending=True, stable=True)[: int((peak_N > 0).sum())]
    start = round((1 - quantile) * max(0, len(order) - k))
    separator = lm.separator
    found = []
    for document in order[start : start + k].tolist():
        position = int(at_N[document])
        first, last = (int(places_NT[document].nonzero()[end]) for end in (0, -1))
        low, high = max(first, position - window), min(last, position + window) + 1
        words = _words(lm, source.tokens_NT[document], low, high, separator)
        values = f_NT[document, low:high].tolist()
        found.append(Context(document, position, words, values, position - low, separator))
    return found


def _words(lm: LM, tokens_T: Tensor, low: int, high: int, separator: str) -> list[str]:
    """Tokens from `low` to `high` as the parts of their text."""
    if separator:  # each token is a word
        return lm.words(tokens_T[low:high])
    start = max(0, low - _MARGIN)
    return lm.pieces(tokens_T[start : high + _MARGIN])[low - start : high - start]


class LogitEffect(NamedTuple):
    """Mean change of each word's logit, `effect_V`, and the words it raises and lowers most."""

    effect_V: Tensor
    raised: list[tuple[str, float]]
    lowered: list[tuple[str, float]]


@checked(k=whole(1))
def logit_effect(
    lm: LM,
    site: str,
    direction_D: Tensor,
    tokens_NT: Tensor,
    *,
    mask_NT: Tensor | None = None,
    k: int = 6,
) -> LogitEffect:
    """What adding a direction at a site does to the next-token logits, measured, not read off.

    It is the mean over all positions but the first of logits(x + direction) - logits(x), less its
    mean over the vocabulary (a shift common to all words changes no probability). It counts the
    way through later blocks too, and works for any model.

    Args:
        mask_NT: true where a token stands, if documents are filled up; None: everywhere.
        k: how many words to name.
    """

    def edit(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        check_width(direction_D, x_BTD.shape[-1], name="direction_D")
        return x_BTD + (positions_T > 0)[:, None] * direction_D.to(x_BTD)

    pushed_NTV, plain_NTV = (
        lm.logits(tokens_NT, edits, mask_BT=mask_NT) for edits in ({site: edit}, None)
    )
    change_NTV = pushed_NTV - plain_NTV
    if mask_NT is None:
        effect_V = change_NTV[:, 1:].mean((0, 1)).cpu()
    else:
        later_NT = mask_NT.bool() & (mask_NT.cumsum(1) > 1)
        effect_V = change_NTV[later_NT.to(change_NTV.device)].mean(0).cpu()
    effect_V = effect_V - effect_V.mean()
    top, bottom = effect_V.topk(k), (-effect_V).topk(k)
    raised = list(zip(lm.words(top.indices), top.values.tolist(), strict=True))
    lowered = list(zip(lm.words(bottom.indices), (-bottom.values).tolist(), strict=True))
    return LogitEffect(effect_V, raised, lowered)


@checked()
def register_shares(f_NF: Tensor, register_N: Tensor) -> Tensor:
    """What share of each feature's mass lies in each register, `[R, F]`; 0 where it never fires.

    The mass is the mean activation there, so that a register's size does not count.

    Args:
        f_NF: activations; negative ones count by their size, so that neurons can be compared.
        register_N: the register of each row, 0 to R - 1.
    """
    n_registers = int(register_N.max()) + 1
    mass_RF = torch.zeros(n_registers, f_NF.shape[1]).index_add_(0, register_N, f_NF.abs())
    rows_R = torch.bincount(register_N, minlength=n_registers).clamp(min=1)
    mass_RF = mass_RF / rows_R[:, None]
    return mass_RF / mass_RF.sum(0).clamp(min=1e-9)


@checked()
def effective_registers(f_NF: Tensor, register_N: Tensor) -> Tensor:
    """Over how many registers each feature's activation mass spreads, `[F]`, from 1 to R.

    Args: as for `register_shares`.
    """
    return effective_number(register_shares(f_NF, register_N).T)


@checked(iterations=whole(1))
def linear_probe(x_ND: Tensor, labels_NC: Tensor, *, iterations: int = 100) -> Tensor:
    """Scores `[N, C]` of one logistic regression for each concept, fitted on the first half.

    The ceiling for a single direction: if the probe cannot find a concept at a site, no feature
    can be blamed for missing it. Dimensions are standardised; L-BFGS on all concepts at once,
    with a light weight decay.
    """
    half = len(x_ND) // 2
    mean_D, std_D = x_ND[:half].mean(0), x_ND[:half].std(0).clamp(min=1e-6)
    z_ND = (x_ND - mean_D) / std_D
    n_concepts = labels_NC.shape[1]
    W_DC = torch.zeros(x_ND.shape[1], n_concepts, requires_grad=True)
    b_C = torch.full((n_concepts,), -4.0, requires_grad=True)  # concepts are rare
    target_NC = labels_NC[:half].float()
    optimizer = torch.optim.LBFGS(
        [W_DC, b_C], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(
            z_ND[:half] @ W_DC + b_C, target_NC, reduction="none"
        )
        loss = loss.mean(0).sum() + 1e-5 * W_DC.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (z_ND @ W_DC + b_C).detach()


@checked(n=whole(1), d=whole(1), seed=whole(0))
def random_directions(n: int, d: int, *, seed: int = 0) -> Tensor:
    """`n` random unit vectors, `[n, D]`: the control beside which a feature has to be better."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(n, d, generator=generator)
    return directions / directions.norm(dim=1, keepdim=True)


@checked(k=whole(1))
def most_telling(scores_NS: Tensor, labels_NC: Tensor, k: int) -> Tensor:
    """For each concept the k candidates whose means differ most between its rows and the others.

    Differences count in units of each candidate's standard deviation, on the first half of the
    rows (Gurnee et al., 2023, "Finding Neurons in a Haystack"). Strongest first, `[C, k]`.
    """
    check_range(k, "k", 1, scores_NS.shape[1])
    half = len(scores_NS) // 2
    scores_NS, labels_NC = scores_NS[:half], labels_NC[:half].to(scores_NS.dtype)
    held_C1 = labels_NC.sum(0)[:, None]
    sum_CS = labels_NC.T @ scores_NS
    with_CS = sum_CS / held_C1.clamp(min=1)
    without_CS = (scores_NS.sum(0) - sum_CS) / (half - held_C1).clamp(min=1)
    apart_CS = (with_CS - without_CS).abs() / scores_NS.std(0).clamp(min=1e-6)
    return apart_CS.topk(k).indices


@checked(k=whole(1))
def sparse_probe_f1(scores_NS: Tensor, labels_NC: Tensor, k: int) -> Tensor:
    """Held-out F1 of a probe that reads k candidates for each concept, `[C]`.

    The candidates are `most_telling`; the probe is the least-squares discriminant on them, with
    its threshold, all from the first half of the rows. With few features a probe says how
    concentrated a concept is; with all of them it is a linear probe, whatever the basis.
    """
    half, f1_C = len(scores_NS) // 2, []
    scores_SN = scores_NS.T.contiguous()  # a candidate's scores side by side: gathered at once
    for c, columns in enumerate(most_telling(scores_NS, labels_NC, k)):
        z_kN = scores_SN[columns].double()
        z_kN = z_kN - z_kN[:, :half].mean(1, keepdim=True)
        holds_N = labels_NC[:half, c].double()
        ridge_kk = 1e-6 * half * torch.eye(k, dtype=torch.double)
        gram_kk = z_kN[:, :half] @ z_kN[:, :half].T + ridge_kk
        w_k = torch.linalg.solve(gram_kk, z_kN[:, :half] @ (holds_N - holds_N.mean()))
        read_N1 = (w_k @ z_kN).float()[:, None]
        f1_C.append(best_f1(read_N1, labels_NC[:, [c]], n_thresholds=40).f1_C[0])
    return torch.stack(f1_C)


@checked()
@torch.no_grad()
def absorption(
    f_NF: Tensor, W_dec_FD: Tensor, x_ND: Tensor, holds_N: Tensor, reads_N: Tensor
) -> float:
    """Share of the rows where a concept is rightly read and another feature stands in for its own.

    Such a row is one of the second half at which the probe finds the concept and it holds, none of
    the concept's main features fires, and one other feature alone brings at least 0.4 of what the
    probe reads. (Chanin et al., 2024, "A is for Absorption"; the projection on the probe in place
    of an ablation after Karvonen et al., 2025, "SAEBench".)

    Args:
        f_NF, W_dec_FD: features and decoder.
        x_ND: the activations.
        holds_N: where the concept holds.
        reads_N: a linear probe's score for it, above 0 where it says yes (`linear_probe`).
    """
    half = len(x_ND) // 2
    probe_D = probe_direction(x_ND, reads_N)
    right_N = (reads_N > 0) & holds_N
    right_N[:half] = False
    main = main_features(f_NF[:half], holds_N[:half])
    silent_N = right_N & ~(f_NF[:, main] > 0).any(1)
    if not silent_N.any():
        return 0.0
    total_N = (x_ND[silent_N] - x_ND[:half].mean(0)) @ probe_D
    top_N, which_N = (f_NF[silent_N] * (W_dec_FD @ probe_D)).max(1)
    cosine_F = cosine_matrix(W_dec_FD, probe_D[None])[:, 0]
    stands_in_N = (top_N >= ABSORBED * total_N) & (total_N > 0) & (cosine_F[which_N] > ALIKE)
    return float(stands_in_N.sum()) / int(right_N.sum())


@checked(most=whole(1), gain=number(0, 1))
def main_features(
    f_NF: Tensor, holds_N: Tensor, *, most: int = 12, gain: float = 0.03
) -> list[int]:
    """A concept's features: taken one by one while F1 of "one of them fires" rises by `gain`."""
    fires_NF, chosen, best = f_NF > 0, [], 0.0
    covered_N = torch.zeros_like(holds_N)
    while len(chosen) < most:
        hits_F = fires_NF[holds_N & ~covered_N].sum(0) + (holds_N & covered_N).sum()
        fired_F = fires_NF[~covered_N].sum(0) + covered_N.sum()
        f1_F = 2 * hits_F / (fired_F + holds_N.sum())
        i = int(f1_F.argmax())
        if chosen and f1_F[i] < best + gain:
            break
        best, covered_N = float(f1_F[i]), covered_N | fires_NF[:, i]
        chosen.append(i)
    return chosen


@checked()
def probe_direction(x_ND: Tensor, reads_N: Tensor) -> Tensor:
    """The unit direction in x along which a linear score rises."""
    centred_ND = x_ND - x_ND.mean(0)
    direction_D = torch.linalg.lstsq(centred_ND, (reads_N - reads_N.mean())[:, None]).solution[:, 0]
    return direction_D / direction_D.norm()
