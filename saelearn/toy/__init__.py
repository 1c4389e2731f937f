"""Small data whose truth is known: superposition, planted features, sparse coding."""

from saelearn.toy.pairs import PlantedPairs
from saelearn.toy.superposition import (
    PlantedFeatures,
    ToyModel,
    ToyRun,
    dimensionality,
    sample_features,
    toy_loss,
    train_toy,
)

__all__ = [
    "PlantedFeatures",
    "PlantedPairs",
    "ToyModel",
    "ToyRun",
    "dimensionality",
    "sample_features",
    "toy_loss",
    "train_toy",
]
