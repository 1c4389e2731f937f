"""Neurons that answer to several registers, and the features that take them apart."""

from __future__ import annotations

import torch

from benchmarks.world.sample import Sample
from saelearn import features, tiny

UNRELATED = 4.0  # registers over which the activation mass spreads


def spread(sample: Sample) -> torch.Tensor:
    """Effective number of registers of each neuron of the middle block, `[S]`."""
    register_N = sample.held.flat()[1]
    return features.effective_registers(sample.acts(tiny.NEURONS).x_ND.clamp(min=0), register_N)


def taken_apart(sample: Sample, neuron: int, sae: str) -> dict[str, tuple[str, int, float]]:
    """For the registers where a neuron is strongest: a text, the feature there, its own spread."""
    register_N = sample.held.flat()[1]
    f_NF, a_N = sample.encoded(sae), sample.acts(tiny.NEURONS).x_ND[:, neuron]
    spread_F = features.effective_registers(f_NF, register_N)
    size_F = sample.sae(sae).W_dec.norm(dim=1)
    per_document = sample.held.tokens_NT.shape[1] - 1
    found = {}
    for r, name in enumerate(sample.held.registers):
        rows = (register_N == r).nonzero().flatten()
        row = int(rows[a_N[rows].argmax()])
        near_F = f_NF[rows[a_N[rows].topk(min(10, len(rows))).indices]].mean(0) * size_F
        feature = int(near_F.argmax())
        document, position = divmod(row, per_document)
        words = sample.held.tokens_NT[document, max(0, position - 5) : position + 2]
        label = f"{float(a_N[row]):.1f} {sample.lm.text(words)}"
        found[name.removeprefix("register:")] = (label, feature, float(spread_F[feature]))
    return found
