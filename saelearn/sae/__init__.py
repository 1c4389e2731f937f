"""Sparse autoencoders: equations, losses, files. One file for each architecture."""

from saelearn.sae.base import (
    CENTERS,
    CONFIG_FILE,
    DECODER_NORMS,
    SAE,
    WEIGHTS_FILE,
    Loss,
    SAEOutput,
    geometric_median,
    l1_loss,
)
from saelearn.sae.topk import TopK, load

__all__ = [
    "CENTERS",
    "CONFIG_FILE",
    "DECODER_NORMS",
    "SAE",
    "WEIGHTS_FILE",
    "Loss",
    "SAEOutput",
    "TopK",
    "geometric_median",
    "l1_loss",
    "load",
]
