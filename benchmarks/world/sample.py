"""What all measures share: the model, held-out text with its truth, activations, SAEs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from saelearn import features, tiny
from saelearn.activations import Activations, collect
from saelearn.lm import LM
from saelearn.sae import SAE

REPRESENTED = 0.8  # F1 of a probe from which on a concept counts as represented
ENOUGH = 5  # tokens that a concept needs in either half to be scored


def is_concept(name: str) -> bool:
    """A register is where a text comes from, not something that a word means."""
    return not name.startswith("register:")


@dataclass
class Sample:
    """Held-out documents `start` to `start + n` and what the model makes of them.

    The first half of the documents is for choosing, the second for scoring.
    """

    n: int
    start: int = 0
    _acts: dict = field(default_factory=dict)
    _saes: dict = field(default_factory=dict)

    @cached_property
    def lm(self) -> LM:
        return tiny.load_lm()

    @cached_property
    def held(self) -> tiny.HeldOut:
        return tiny.held_out(self.n, start=self.start)

    @cached_property
    def labels_NC(self) -> Tensor:
        return self.held.flat()[0]

    def holds(self, name: str) -> Tensor:
        """Where a concept holds, `[N]`."""
        return self.labels_NC[:, self.held.names.index(name)]

    @cached_property
    def scored(self) -> tuple[str, ...]:
        """Represented concepts that are frequent enough here to be scored."""
        probe, half = tiny.probe_f1(), len(self.labels_NC) // 2
        counts = torch.minimum(self.labels_NC[:half].sum(0), self.labels_NC[half:].sum(0))
        return tuple(
            name
            for name, count in zip(self.held.names, counts.tolist(), strict=True)
            if is_concept(name) and probe.get(name, 0) >= REPRESENTED and count >= ENOUGH
        )

    @cached_property
    def scored_NC(self) -> Tensor:
        return self.labels_NC[:, [self.held.names.index(name) for name in self.scored]]

    def acts(self, site: str = tiny.SITE, model: str = "lm") -> Activations:
        """Activations of a site, collected once."""
        if (site, model) not in self._acts:
            lm = self.lm if model == "lm" else tiny.load_random_lm()
            self._acts[site, model] = collect(lm, self.held.tokens_NT, site)
        return self._acts[site, model]

    def sae(self, name: str = tiny.name_of(tiny.L1_DEFAULT)) -> SAE:
        """One of the shipped SAEs."""
        if name not in self._saes:
            self._saes[name] = tiny.load_named(name).requires_grad_(False)
        return self._saes[name]

    def encoded(self, name: str) -> Tensor:
        """Features `f_NF` of an SAE on the activations of its own site and model."""
        recipe = tiny.recipes()[name]
        return features.encode(self.sae(name), self.acts(recipe.site, recipe.model).x_ND)


def mean_sd(name: str, values: list[float]) -> dict[str, float]:
    """`name`: the mean, and `name_sd`: the standard deviation over seeds."""
    values = torch.tensor(values, dtype=torch.double)
    spread = float(values.std()) if len(values) > 1 else 0.0
    return {name: float(values.mean()), f"{name}_sd": spread}
