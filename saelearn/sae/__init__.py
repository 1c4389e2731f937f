"""Sparse autoencoders: `base`, then one file for each architecture, with a loss if it has its own.

What a loss is, and those that fit several architectures, stand in `objectives`; what SAEs of others
look like, in `formats`.
"""

from saelearn.sae.base import (
    CENTERS,
    CONFIG_FILE,
    SAE,
    WEIGHTS_FILE,
    SAEOutput,
    Units,
    geometric_median,
    load,
)
from saelearn.sae.end_to_end import EndToEnd
from saelearn.sae.gated import Gated, GatedL1
from saelearn.sae.jumprelu import JumpL0, JumpReLU
from saelearn.sae.matching_pursuit import MatchingPursuit
from saelearn.sae.matryoshka import Matryoshka
from saelearn.sae.objectives import (
    AT_FULL,
    DECODER_NORMS,
    L1,
    Loss,
    Now,
    Objective,
    Squared,
    l1_loss,
    output_of,
    squared_error,
)
from saelearn.sae.topk import BatchTopK, TopK
from saelearn.sae.transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUTranscoder,
    SkipTranscoder,
    Transcoder,
)

__all__ = [
    "AT_FULL", "CENTERS", "CONFIG_FILE", "DECODER_NORMS", "L1", "SAE", "WEIGHTS_FILE", "BatchTopK",
    "EndToEnd", "Gated", "GatedL1", "JumpL0", "JumpReLU", "JumpReLUSkipTranscoder",
    "JumpReLUTranscoder", "Loss", "MatchingPursuit", "Matryoshka", "Now",
    "Objective", "SAEOutput", "SkipTranscoder", "Squared", "TopK", "Transcoder", "Units",
    "geometric_median", "l1_loss", "load", "output_of", "squared_error",
]  # fmt: skip
