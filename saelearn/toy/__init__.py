"""Small data whose truth is known: superposition, planted features, sparse coding."""

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
    "ToyModel",
    "ToyRun",
    "dimensionality",
    "sample_features",
    "toy_loss",
    "train_toy",
]
