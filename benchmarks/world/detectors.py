"""How well single features find concepts, beside what is not an SAE, under the same rules.

Detector and threshold are chosen on the first half of the documents and scored on the second.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.world.sample import Sample, mean_sd
from saelearn import features, metrics, tiny
from saelearn.toy import linear

N_THRESHOLDS = 24
SEEDS = (
    tiny.name_of(tiny.L1_DEFAULT),
    *(f"{tiny.name_of(tiny.L1_DEFAULT)}_seed{s}" for s in (1, 2)),
)


def scores(sample: Sample, f_NS: Tensor, **how) -> Tensor:
    """F1 of the best single detector for each scored concept."""
    return metrics.best_f1(f_NS, sample.scored_NC, n_thresholds=N_THRESHOLDS, **how).f1_C


def of_saes(sample: Sample, names: tuple[str, ...] = SEEDS) -> dict[str, float]:
    """The default SAE with its seeds: F1, share of concepts found well, OR of three, L0."""
    rows = []
    for name in names:
        f_NF = sample.encoded(name)
        f1_C = scores(sample, f_NF)
        rows.append((
            float(f1_C.mean()),
            float((f1_C >= 0.8).double().mean()),
            float(best_or(f_NF, sample.scored_NC).mean()),
            metrics.l0(f_NF),
        ))  # fmt: skip
    keys = ("f1_sae", "f1_share_over_0_8", "f1_or3", "sae_l0")
    found = {}
    for key, values in zip(keys, zip(*rows, strict=True), strict=True):
        found |= mean_sd(key, list(values))
    return found


def of_all(sample: Sample, names: list[str]) -> dict[str, tuple[float, float]]:
    """Mean F1 and L0 of each named SAE."""
    found = {}
    for name in names:
        f_NF = sample.encoded(name)
        found[name] = (float(scores(sample, f_NF).mean()), metrics.l0(f_NF))
    return found


def controls(sample: Sample, seeds: int = 3) -> dict[str, float]:
    """Neurons, raw dimensions, principal components, random directions, an untrained model."""
    x_ND = sample.acts().x_ND
    half = len(x_ND) // 2
    centred_ND = x_ND - x_ND[:half].mean(0)
    both = {"both_signs": True}
    pca_DD = linear.pca(x_ND[:half]).components_DD
    random = [
        float(
            scores(
                sample, centred_ND @ features.random_directions(tiny.D_SAE, 128, seed=s).T
            ).mean()
        )
        for s in range(seeds)
    ]
    return {
        "f1_neuron": float(scores(sample, sample.acts(tiny.NEURONS).x_ND, **both).mean()),
        "f1_raw": float(scores(sample, centred_ND, **both).mean()),
        "f1_pca": float(scores(sample, centred_ND @ pca_DD.T, **both).mean()),
        "f1_random_init": float(scores(sample, sample.encoded("random_lm")).mean()),
    } | mean_sd("f1_random", random)


@torch.no_grad()
def best_or(f_NF: Tensor, labels_NC: Tensor, *, n: int = 3, shortlist: int = 48) -> Tensor:
    """F1 of "one of `n` features fires", `[C]`: chosen greedily on the first half of the rows.

    Each round adds the feature and threshold that raise F1 most, out of the `shortlist` that are
    best alone; a round that raises nothing adds nothing.
    """
    half = len(f_NF) // 2
    level_NF, grid_FT = _levels(f_NF[:half])
    size, fired_FT = grid_FT.shape[1] + 1, None
    fired_FT = np.stack([_exceed(level_NF[:, s, None], size)[0] for s in range(f_NF.shape[1])])
    found = []
    for c in range(labels_NC.shape[1]):
        label_N = labels_NC[:half, c].numpy()
        alone_FT = _exceed(level_NF[label_N], size)
        f1_FT = 2 * alone_FT / np.maximum(fired_FT + label_N.sum(), 1)
        short_S = f1_FT.max(1).argsort()[::-1][:shortlist]
        level_NS, covered_N, best, chosen = level_NF[:, short_S], np.zeros(half, bool), 0.0, []
        for _ in range(n):
            hits_ST = _exceed(level_NS[label_N & ~covered_N], size)
            more_ST = fired_FT[short_S] - _exceed(level_NS[covered_N], size)
            hits, fired = (label_N & covered_N).sum() + hits_ST, covered_N.sum() + more_ST
            f1_ST = 2 * hits / np.maximum(fired + label_N.sum(), 1)
            s, t = np.unravel_index(f1_ST.argmax(), f1_ST.shape)
            if f1_ST[s, t] <= best:
                break
            best = f1_ST[s, t]
            chosen.append((int(short_S[s]), float(grid_FT[short_S[s], t])))
            covered_N = covered_N | (level_NS[:, s] > t)
        fires_N = torch.zeros(len(f_NF) - half, dtype=torch.bool)
        for feature, threshold in chosen:
            fires_N |= f_NF[half:, feature] > threshold
        found.append(metrics.f1(fires_N[:, None], labels_NC[half:, c, None])[0])
    return torch.stack(found)


def _levels(f_NF: Tensor, n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """How many thresholds each value exceeds (`level > t` is `value > grid[t]`), and the grid.

    Thresholds are quantiles of each feature's own positive values, from 0 up.
    """
    grid_FT = np.zeros((f_NF.shape[1], n), dtype=np.float32)
    level_NF = np.zeros(f_NF.shape, dtype=np.uint8)
    for s, column_N in enumerate(f_NF.T.contiguous().numpy()):
        if (positive := column_N[column_N > 0]).size:
            grid_FT[s, 1:] = np.quantile(positive, np.linspace(0, 1, n)[1:] * 0.98)
        level_NF[:, s] = np.searchsorted(grid_FT[s], column_N, side="left")
    return level_NF, grid_FT


def _exceed(level_NS: np.ndarray, size: int) -> np.ndarray:
    """How many rows exceed each threshold, `[S, T]`."""
    n_columns = level_NS.shape[1]
    codes = (level_NS + np.arange(n_columns) * size).ravel()
    counts = np.bincount(codes, minlength=n_columns * size).reshape(n_columns, size)
    return counts[:, :0:-1].cumsum(1)[:, ::-1]
