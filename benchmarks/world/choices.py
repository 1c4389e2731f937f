"""What has to be chosen before it is scored: SAEs, features, strengths. Other text, other seeds."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.world import bias, detectors, steering
from benchmarks.world.sample import Sample
from saelearn import artifacts, tiny

STEERING_SAES = (tiny.name_of(tiny.L1_DEFAULT), "topk")
BIAS_SAES = (*STEERING_SAES, "block2_l1", "block2_topk")
START = 60_000  # documents that nothing is scored on


def make(n_documents: int) -> dict:
    """Choose everything anew; minutes."""
    sample = Sample(n_documents, start=START)
    f1 = detectors.of_all(sample, [n for n in tiny.recipes() if n not in ("random_lm", "large")])
    sweep = [tiny.name_of(c) for c in tiny.L1_COEFFICIENTS]
    sparse = [name for name in sweep if f1[name][1] <= 20]
    settings = {}
    for name in steering.TARGETS:
        first, everywhere = steering.choose(sample, name, saes=STEERING_SAES)
        settings[name] = {"first": list(first), "everywhere": list(everywhere)}
    biased = {name: bias.choose(sample, name) for name in BIAS_SAES}
    gaps = {name: bias.score(sample, name, chosen) for name, chosen in biased.items()}
    best = min(biased, key=lambda n: (gaps[n]["after"] > 0.1, gaps[n]["features"]))
    return {
        "best_sae": max(f1, key=lambda n: f1[n][0]),
        "best_l1": max(sparse, key=lambda n: f1[n][0]),
        "f1_and_l0": {name: [round(v, 4) for v in values] for name, values in f1.items()},
        "steering": settings,
        "bias": {"sae": best, "features": biased[best]},
    }


def path() -> Path:
    """Where the choices of the last full run lie."""
    return artifacts.data_dir() / "world.json"


def load() -> dict:
    """The choices of the last full run."""
    return json.loads(path().read_text("utf-8"))["choices"]
