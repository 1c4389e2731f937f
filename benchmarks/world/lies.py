"""Does a feature know that the speaker lies, and does pushing it make an honest speaker lie?

Read where the value is chosen: at "is", right before the colour that somebody claims. Chosen on
the first half of the documents, scored on the second.

Where one pushes decides. Behind the MLP that joins who speaks with what is true, "lies" is not one
direction: there it says "not blue" or "not red", a direction for each colour, and their mean says
little. Before that MLP, in what attention brings to "is", the colours share a part of it. So the
difference of means is tried at the output of each attention, MLP and block; the default site's
figure stands beside the chosen one's, and how alike the directions of the colours are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.world.sample import Sample, mean_sd
from saelearn import features, steer, tiny

STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)


class Push(NamedTuple):
    """A direction with the site at which it is added, and how far in typical norms of the site."""

    site: str
    direction_D: Tensor
    strength: float = 0.0


class Claims:
    """Places of held-out text where a typed speaker is about to name a colour.

    `x_PD` activations, `lies_P` whether the speaker is a liar, `true_P` the fact's colour.
    """

    def __init__(self, sample: Sample, chosen: slice):
        self.lm = sample.lm
        vocabulary = self.lm.tokenizer.get_vocab()
        names = sample.held.names
        labels_NTC = sample.held.labels_NTC[chosen, :-1]
        self.colours = [name.split(":")[1] for name in names if name.startswith("fact:")]
        self.ids = torch.tensor([vocabulary[c] for c in self.colours])
        facts_NTC = labels_NTC[..., [names.index(f"fact:{c}") for c in self.colours]]
        liar_NT = labels_NTC[..., names.index("speaker:liar")]
        honest_NT = labels_NTC[..., names.index("speaker:honest")]
        at_P2 = (liar_NT | honest_NT).nonzero()
        documents, self.row_P = at_P2[:, 0].unique(return_inverse=True)
        self.at_P = at_P2[:, 1]
        self.tokens_NT = sample.held.tokens_NT[chosen][documents]
        self.lies_P = liar_NT[at_P2[:, 0], self.at_P]
        self.true_P = facts_NTC[at_P2[:, 0], self.at_P].float().argmax(-1)
        self.last_NT = torch.zeros(len(self.tokens_NT), 64, dtype=torch.bool)
        self.last_NT[self.row_P, self.at_P] = True

    @cached_property
    def with_honest(self) -> Claims:
        """The same in those documents in which somebody honest speaks: a push needs no others."""
        kept_N = torch.zeros(len(self.tokens_NT), dtype=torch.bool)
        kept_N[self.row_P[~self.lies_P]] = True
        kept_P, few = kept_N[self.row_P], copy.copy(self)
        few.tokens_NT, few.last_NT = self.tokens_NT[kept_N], self.last_NT[kept_N]
        few.row_P = (kept_N.cumsum(0) - 1)[self.row_P[kept_P]]
        few.at_P, few.lies_P, few.true_P = (
            each_P[kept_P] for each_P in (self.at_P, self.lies_P, self.true_P)
        )
        return few

    def activations(self, site: str) -> Tensor:
        """`x_PD` at the places."""
        return self.lm.capture(self.tokens_NT, [site])[site][self.row_P, self.at_P]

    def p(self, edits: dict | None = None) -> tuple[Tensor, Tensor]:
        """P(the true colour) and P(one of the two others) at each place."""
        p_NTV = self.lm.logits(self.tokens_NT, edits).softmax(-1)
        p_PC = p_NTV[self.row_P, self.at_P][:, self.ids]
        true_P = p_PC.gather(1, self.true_P[:, None])[:, 0]
        return true_P, p_PC.sum(1) - true_P

    def unit(self, site: str) -> float:
        """The site's typical norm, in which strengths are counted."""
        x_NTD = self.lm.capture(self.tokens_NT, [site])[site]
        return steer.typical_norm(x_NTD[:, 1:].flatten(0, 1))

    def means(self, site: str) -> Tensor:
        """Liars less honest speakers, `[D]`."""
        return steer.difference_of_means(self.activations(site), self.lies_P)

    def alike(self, site: str) -> float:
        """Mean cosine between the differences of means of the colours, each taken alone."""
        x_PD, rows = self.activations(site), []
        for colour in range(len(self.colours)):
            here_P = self.true_P == colour
            rows.append(steer.difference_of_means(x_PD[here_P], self.lies_P[here_P]))
        cosines = [torch.cosine_similarity(a, b, dim=0) for a, b in combinations(rows, 2)]
        return float(torch.stack(cosines).mean())

    def pushed(self, push: Push, unit: float) -> tuple[float, float]:
        """P(true) and P(lie) of honest speakers, pushed at their places alone."""
        step_D = push.strength * unit * push.direction_D / push.direction_D.norm()

        few = self.with_honest

        def edit(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
            return x_BTD + few.last_NT[..., None] * step_D

        true_P, lie_P = few.p({push.site: edit})
        return float(true_P[~few.lies_P].mean()), float(lie_P[~few.lies_P].mean())


def measure(
    sample: Sample, readers: Sequence[str], writers: Sequence[str]
) -> dict[str, float | str]:
    """All figures.

    Args:
        readers: SAEs among whose features the one is looked for that knows who lies.
        writers: SAEs whose features are pushed, beside the difference of means.
    """
    first = Claims(sample, slice(0, sample.n // 2))
    second = Claims(sample, slice(sample.n // 2, None))
    blocks = [site.removesuffix(":out") for site in sample.lm.residual_sites()]
    sites = [f"{block}{part}" for block in blocks for part in (".attn:out", ".mlp:out", ":out")]
    units = {site: first.unit(site) for site in sites}
    found: dict[str, float | str] = {}
    reader, liar = _best_reader(sample, readers, first)
    site = tiny.recipes()[reader].site
    f_P = sample.sae(reader).encode(second.activations(site))[:, liar]
    found["auroc"] = float(auroc(f_P[:, None], second.lies_P))
    p_true_P, _ = second.p()
    found["p_true_before"] = float(p_true_P[~second.lies_P].mean())
    found["p_true_liar"] = float(p_true_P[second.lies_P].mean())
    means = [Push(each, first.means(each)) for each in sites]
    tried = {
        "": means,
        "default_": [means[sites.index(tiny.SITE)]],
        "feature_": [Push(tiny.SITE, each_D) for each_D in _writers(sample, writers, first)],
    }
    for name, pushes in tried.items():
        chosen = _choose(first, pushes, units)
        true, lie = second.pushed(chosen, units[chosen.site])
        found |= {f"{name}p_true_steered": true, f"{name}p_lie_steered": lie}
        found |= {f"{name}site": chosen.site, f"{name}strength": chosen.strength}
    for name in ("", "default_"):
        found[f"{name}alike"] = second.alike(found[f"{name}site"])
    at, strength = found["site"], found["strength"]
    random = [
        second.pushed(Push(at, direction_D, strength), units[at])
        for direction_D in features.random_directions(5, len(means[0].direction_D))
    ]
    for key, values in zip(("p_true", "p_lie"), zip(*random, strict=True), strict=True):
        found |= mean_sd(f"random_{key}_steered", list(values))
    ablated = {site: steer.ablate(sample.sae(reader), [liar])}
    found["p_true_liar_ablated"] = float(second.p(ablated)[0][second.lies_P].mean())
    return found | {"reader": reader, "feature": liar, "places": len(second.lies_P)}


def auroc(f_PF: Tensor, positive_P: Tensor) -> Tensor:
    """Area under the ROC curve of each column: P(a positive's value is higher), ties half."""
    high, low = f_PF[positive_P], f_PF[~positive_P]
    above = (high[:, None] > low[None]).double() + 0.5 * (high[:, None] == low[None]).double()
    return above.mean((0, 1))


def _best_reader(sample: Sample, saes: Sequence[str], claims: Claims) -> tuple[str, int]:
    best = (0.0, saes[0], 0)
    for name in saes:
        f_PF = sample.sae(name).encode(claims.activations(tiny.recipes()[name].site))
        living = (f_PF > 0).double().mean(0).gt(0.1).nonzero().flatten()
        area = auroc(f_PF[:, living], claims.lies_P)
        best = max(best, (float(area.max()), name, int(living[area.argmax()])))
    return best[1], best[2]


def _writers(sample: Sample, saes: Sequence[str], claims: Claims) -> list[Tensor]:
    """The features that are most active at liars and not at honest speakers."""
    x_PD, rows = claims.activations(tiny.SITE), []
    for name in saes:
        f_PF = sample.sae(name).encode(x_PD) * sample.sae(name).W_dec.norm(dim=1)
        more_F = f_PF[claims.lies_P].mean(0) - f_PF[~claims.lies_P].mean(0)
        rows += [sample.sae(name).W_dec[i] for i in more_F.topk(5).indices.tolist()]
    return rows


def _choose(claims: Claims, pushes: list[Push], units: dict[str, float]) -> Push:
    """The push with the most probability on lies and the least on the truth."""

    def turned(push: Push) -> float:
        p_true, p_lie = claims.pushed(push, units[push.site])
        return p_lie - p_true

    tried = [push._replace(strength=strength) for push in pushes for strength in STRENGTHS]
    return max(tried, key=turned)
