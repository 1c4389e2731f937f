"""What has to be chosen before it is scored: SAEs, features, strengths. Other text, other seeds."""

from __future__ import annotations

import json
import math
from pathlib import Path

from benchmarks.world import bias, detectors, steering
from benchmarks.world.sample import Sample
from saelearn import artifacts, tiny

STEERING_SAES = (tiny.name_of(0.3), tiny.name_of(tiny.L1_DEFAULT), "topk")
_BEHIND = ("block2_topk", "block2_l1")
BIAS_SAES = (  # alone, and with one behind it
    (tiny.name_of(tiny.L1_DEFAULT),),
    ("topk",),
    ("block2_topk",),
    *((name, behind) for name in ("topk", tiny.name_of(tiny.L1_DEFAULT)) for behind in _BEHIND),
)
READERS = tuple(name for name, recipe in tiny.recipes().items() if recipe.model == "lm")
START = 60_000  # documents that nothing is scored on


def make(n_documents: int) -> dict:
    """Choose everything anew; about ten minutes on one core."""
    sample = Sample(n_documents, start=START)
    return detectors_of(sample) | {"steering": steering_of(sample), "bias": bias_of(sample)}


def detectors_of(sample: Sample) -> dict:
    """The SAEs whose features find concepts best: of the sweep with L0 of at most 20, of all."""
    f1 = detectors.of_all(sample, [n for n in tiny.recipes() if n not in ("random_lm", "large")])
    sweep = [tiny.name_of(c) for c in tiny.L1_COEFFICIENTS]
    sparse = [name for name in sweep if f1[name][1] <= 20]
    return {
        "best_sae": max(f1, key=lambda n: f1[n][0]),
        "best_l1": max(sparse, key=lambda n: f1[n][0]),
        "f1_and_l0": {name: [round(v, 4) for v in values] for name, values in f1.items()},
    }


def steering_of(sample: Sample) -> dict:
    """For each target the setting at the first positions and the one at every position."""
    settings = {}
    for name in steering.TARGETS:
        first, everywhere = steering.choose(sample, name, saes=STEERING_SAES)
        settings[name] = {"first": list(first), "everywhere": list(everywhere)}
    return settings


def bias_of(sample: Sample) -> list[bias.Feature]:
    """The fewest features that leave a gap of at most 0.1, of as few the ones that leave least."""
    chosen = [bias.choose(sample, saes) for saes in BIAS_SAES]
    left = [bias.remaining(sample, each) for each in chosen]
    return min(zip(left, chosen, strict=True), key=_rank)[1]


def _rank(result: tuple[float, list[bias.Feature]]) -> tuple[float, float]:
    gap, chosen = result
    return (len(chosen) if gap <= 0.1 else math.inf), gap


def path() -> Path:
    """Where the choices of the last full run lie."""
    return artifacts.data_dir() / "world.json"


def load() -> dict:
    """The choices of the last full run."""
    return json.loads(path().read_text("utf-8"))["choices"]
