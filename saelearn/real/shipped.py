"""What is stored of the real model, so that lesson 13 runs without it: data/real.

Rebuilt by `saelearn data real`. Excerpts of Wikipedia in it are under CC BY-SA 4.0.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saelearn import artifacts
from saelearn.features import Context
from saelearn.sae import SAE, load


@cache
def load_sae() -> SAE:
    """The SAE of SmolLM2's residual stream after block 9, from half precision to single."""
    return load(artifacts.find("real/sae")).float()


@cache
def stored() -> dict[str, Any]:
    """What was measured with the model: sizes, norms, scores, labels, texts."""
    return artifacts.read_json(artifacts.find("real/lesson.json"))


@cache
def rows() -> dict[str, Tensor]:
    """Held-out text: rows `x_ND` at the site, norms `norm_LNT` at some depths, words `words_NT`."""
    return artifacts.read_tensors(artifacts.find("real/rows.safetensors"))


class Fires(NamedTuple):
    """Held-out text as indices of words, `words_NT`, and where each of K units fires in it.

    `fires_NPK` has no entry for a document's first word: position p is word p + 1.
    """

    words_NT: Tensor
    fires_NPK: Tensor


def fires(family: str) -> Fires:
    """Where the drawn "features", "neurons" or "random directions" fire in held-out text."""
    words_NT = rows()["words_NT"].long()
    n, t = words_NT.shape
    fires_NPK = torch.zeros(n, t - 1, len(stored()["drawn"]), dtype=torch.bool)
    fires_NPK.view(-1)[rows()[f"fires {family}"].long()] = True
    return Fires(words_NT, fires_NPK)


def contexts(feature: int) -> list[Context]:
    """The stored places where a feature fires, strongest first."""
    return [
        Context(**each, separator="") for each in stored()["features"][str(feature)]["contexts"]
    ]
