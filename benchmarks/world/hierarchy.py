"""Do features split as dictionaries grow, and does a child absorb its parent?

Parents are the classes of animals, children the animals. Absorption after Chanin et al. (2024,
"A is for Absorption"), with the projection on the probe in place of the ablation effect (Karvonen
et al., 2025, "SAEBench"): at a word where the probe rightly finds the parent, none of the parent's
main features fires, and one other feature alone accounts for at least 0.4 of what the probe reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.world.sample import Sample
from saelearn import features, metrics

SHARE, COSINE, GAIN = 0.4, 0.025, 0.03  # of the definition
PEAK = 0.2  # of a feature's maximum, above which it counts as firing for splitting


def splitting(sample: Sample, names: dict[str, str], parent: str = "class:dog") -> dict[str, int]:
    """How many features are precise (0.9) for a class and catch 1 % of it, per dictionary."""
    found, label_N = {}, sample.holds(parent)
    for size, name in names.items():
        f_NF = sample.encoded(name)
        fires_NF = f_NF > PEAK * f_NF.amax(0)
        hits_F = fires_NF[label_N].sum(0)
        precise_F = hits_F >= 0.9 * fires_NF.sum(0)
        found[size] = int((precise_F & (hits_F >= 0.01 * label_N.sum())).sum())
    return found


def absorption(sample: Sample, name: str) -> dict[str, float]:
    """Share of the probe's true positives at which the parent is absorbed, for each class."""
    x_ND, sae = sample.acts().x_ND, sample.sae(name)
    half, f_NF = len(x_ND) // 2, sample.encoded(name)
    found = {}
    for parent in (n for n in sample.held.names if n.startswith("class:")):
        label_N = sample.holds(parent)
        score_N = features.linear_probe(x_ND, label_N[:, None])[:, 0]
        probe_D = _probe_direction(x_ND, score_N)
        right_N = (score_N > 0) & label_N
        right_N[:half] = False
        main = main_features(f_NF[:half], label_N[:half])
        silent_N = right_N & ~(f_NF[:, main] > 0).any(1)
        share_NF = f_NF[silent_N] * (sae.W_dec @ probe_D)
        total_N = (x_ND[silent_N] - x_ND[:half].mean(0)) @ probe_D
        cosine_F = metrics.cosine_matrix(sae.W_dec, probe_D[None])[:, 0]
        top_N, which_N = share_NF.max(1) if len(share_NF) else (total_N, total_N.long())
        absorbed_N = (top_N >= SHARE * total_N) & (cosine_F[which_N] > COSINE) & (total_N > 0)
        found[parent] = float(absorbed_N.sum()) / max(1, int(right_N.sum()))
    return found


def main_features(f_NF: Tensor, label_N: Tensor, most: int = 12) -> list[int]:
    """The parent's features: taken one by one while F1 of "one of them fires" rises by GAIN."""
    fires_NF, chosen, best = f_NF > 0, [], 0.0
    covered_N = torch.zeros_like(label_N)
    while len(chosen) < most:
        hits_F = (fires_NF[label_N & ~covered_N]).sum(0) + (label_N & covered_N).sum()
        fired_F = fires_NF[~covered_N].sum(0) + covered_N.sum()
        f1_F = 2 * hits_F / (fired_F + label_N.sum())
        i = int(f1_F.argmax())
        if chosen and f1_F[i] < best + GAIN:
            break
        best, covered_N = float(f1_F[i]), covered_N | fires_NF[:, i]
        chosen.append(i)
    return chosen


def _probe_direction(x_ND: Tensor, score_N: Tensor) -> Tensor:
    """The unit direction in x along which a linear score rises."""
    centred_ND = x_ND - x_ND.mean(0)
    direction_D = torch.linalg.lstsq(centred_ND, (score_N - score_N.mean())[:, None]).solution[:, 0]
    return direction_D / direction_D.norm()
