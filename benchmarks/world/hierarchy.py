"""Do features split as dictionaries grow, and does a child absorb its parent?

Parents are the classes of animals, children the animals; `features.absorption` has the definition.
"""

from __future__ import annotations

from benchmarks.world.sample import Sample
from saelearn import features

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
    x_ND, sae, found = sample.acts().x_ND, sample.sae(name), {}
    for parent in (n for n in sample.held.names if n.startswith("class:")):
        holds_N = sample.holds(parent)
        reads_N = features.linear_probe(x_ND, holds_N[:, None])[:, 0]
        found[parent] = features.absorption(
            sample.encoded(name), sae.W_dec, x_ND, holds_N, reads_N
        )  # fmt: skip
    return found
