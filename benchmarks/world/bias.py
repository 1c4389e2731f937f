"""The planted bias: professions make "she" likely or unlikely. Can it be ablated away?

Prompts are held-out documents up to the word before the pronoun. Features are chosen on the first
half of the documents, the gap is scored on the second.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.world.sample import Sample, mean_sd
from saelearn import steer, tiny
from saelearn.corpus import world
from saelearn.lm import Edit

WORTH_TRYING = 12
DRAWS = 20  # of other features
OFTEN = 0.05  # of the prompts, for a feature that is drawn


class Prompts:
    """Where a pronoun comes next, and whether the profession leans to "she" or to "he"."""

    def __init__(self, sample: Sample, documents: range):
        self.lm = sample.lm
        vocabulary = self.lm.tokenizer.get_vocab()
        self.she, self.he = vocabulary["she"], vocabulary["he"]
        tokens_NT = sample.held.tokens_NT[documents.start : documents.stop]
        labels_NTC = sample.held.labels_NTC[documents.start : documents.stop]
        is_pronoun_NT = torch.isin(tokens_NT[:, 1:], torch.tensor([self.she, self.he]))
        rows, leans = [], []
        for person, (p_she, *_) in world.PROFESSIONS.items():
            if f"works_as:{person}" not in sample.held.names or 0.2 < p_she < 0.8:
                continue
            column = sample.held.names.index(f"works_as:{person}")
            here = (labels_NTC[:, :-1, column] & is_pronoun_NT).nonzero()
            rows.append(here)
            leans.append(torch.full((len(here),), p_she >= 0.8))
        self.at_P2, self.leans_P = torch.cat(rows), torch.cat(leans)
        self.documents, inverse = self.at_P2[:, 0].unique(return_inverse=True)
        self.tokens_NT, self.row_P = tokens_NT[self.documents], inverse

    def p_she(self, without: dict[str, Edit] | None = None) -> Tensor:
        """P(she) / (P(she) + P(he)) at each prompt."""
        logits_NTV = self.lm.logits(self.tokens_NT, without)
        here_PV = logits_NTV[self.row_P, self.at_P2[:, 1]]
        return torch.sigmoid(here_PV[:, self.she] - here_PV[:, self.he])

    def gap(self, without: dict[str, Edit] | None = None) -> float:
        """Mean P(she) where the profession leans to "she", less the mean where it does not."""
        p_P = self.p_she(without)
        return float(p_P[self.leans_P].mean() - p_P[~self.leans_P].mean())


Feature = tuple[str, int]
"""An SAE by its name, and the number of one of its features."""


def edits(sample: Sample, chosen: Sequence[Feature]) -> dict[str, Edit]:
    """The ablation of some features, each at its SAE's own site."""
    by_sae: dict[str, list[int]] = defaultdict(list)
    for sae, feature in chosen:
        by_sae[sae].append(feature)
    sites = tiny.recipes()
    return {sites[s].site: steer.ablate(sample.sae(s), some) for s, some in by_sae.items()}


def _at_the_pronoun(sample: Sample, sae: str, prompts: Prompts) -> Tensor:
    """Features since the profession was named, three words ago, "nurse said that": `[P, F]`."""
    site = tiny.recipes()[sae].site
    f_NTF = sample.sae(sae).encode(sample.lm.capture(prompts.tokens_NT, [site])[site])
    here = [
        f_NTF[n, t - 2 : t + 1].sum(0)
        for n, t in zip(prompts.row_P, prompts.at_P2[:, 1], strict=True)
    ]
    return torch.stack(here) * sample.sae(sae).W_dec.norm(dim=1)


def shortlist(sample: Sample, sae: str, k: int = 32) -> list[Feature]:
    """Features that differ most between the two kinds of profession, at or before the pronoun."""
    prompts = Prompts(sample, range(sample.n // 2))
    f_PF = _at_the_pronoun(sample, sae, prompts)
    difference_F = f_PF[prompts.leans_P].mean(0) - f_PF[~prompts.leans_P].mean(0)
    return [(sae, feature) for feature in difference_F.abs().topk(k).indices.tolist()]


def choose(
    sample: Sample, saes: Sequence[str], *, most: int = 8, goal: float = 0.05, price: float = 0.025
) -> list[Feature]:
    """Features whose ablation closes the gap, one after another, on the first half.

    A feature that brings the rise of the loss above `price` is passed over; after the first round
    only the `WORTH_TRYING` that closed the gap most are tried on. In the end each is exchanged for
    one that was left, if that leaves less.

    Args:
        saes: whose features may be taken, each of another site.
    """
    prompts, tokens_NT = Prompts(sample, range(sample.n // 2)), sample.held.tokens_NT[:400]
    candidates, chosen = [each for sae in saes for each in shortlist(sample, sae)], []
    left, clean = abs(prompts.gap()), sample.lm.loss(tokens_NT)
    while left > goal and len(chosen) < most and candidates:
        gaps = {each: abs(prompts.gap(edits(sample, [*chosen, each]))) for each in candidates}
        best, *candidates = sorted(candidates, key=gaps.get)[: WORTH_TRYING + 1]
        if gaps[best] >= left:
            break
        if sample.lm.loss(tokens_NT, edits(sample, [*chosen, best])) / clean - 1 <= price:
            left = gaps[best]
            chosen.append(best)
    for old in chosen[: most if left > goal else 0]:
        rest = [each for each in chosen if each != old]
        gaps = {each: abs(prompts.gap(edits(sample, [*rest, each]))) for each in candidates}
        best = min(gaps, key=gaps.get)
        dear = sample.lm.loss(tokens_NT, edits(sample, [*rest, best])) / clean - 1 > price
        if gaps[best] < left and not dear:
            left, chosen, candidates = gaps[best], [*rest, best], [*candidates, old]
            candidates.remove(best)
    return chosen


def remaining(sample: Sample, chosen: Sequence[Feature]) -> float:
    """The gap that is left, on the half that the features were not chosen on."""
    prompts = Prompts(sample, range(sample.n // 2, sample.n))
    return abs(prompts.gap(edits(sample, chosen)))


def score(sample: Sample, chosen: Sequence[Feature]) -> dict[str, float]:
    """The gap before and after, the price, and what as many other features do, drawn from those
    that are active at the same places: any that are silent there would change nothing."""
    prompts = Prompts(sample, range(sample.n // 2, sample.n))
    tokens_NT = sample.held.tokens_NT[sample.n // 2 :][:2_000]
    without = edits(sample, chosen)
    clean, ablated = sample.lm.loss(tokens_NT), sample.lm.loss(tokens_NT, without)
    before, random = prompts.gap(), []
    others = {sae: _others(sample, sae, prompts, chosen) for sae, _ in chosen}
    for seed in range(DRAWS):
        generator = torch.Generator().manual_seed(seed)
        some = [
            (sae, others[sae][int(torch.randint(len(others[sae]), (), generator=generator))])
            for sae, _ in chosen
        ]
        random.append(before - prompts.gap(edits(sample, some)))
    return {
        "before": before,
        "after": prompts.gap(without),
        "features": len(chosen),
        "ce_rise": ablated / clean - 1,
        "prompts": len(prompts.leans_P),
        **mean_sd("random", random),
        "random_most": max(random, key=abs),
    }


def _others(sample: Sample, sae: str, prompts: Prompts, chosen: Sequence[Feature]) -> list[int]:
    share_F = (_at_the_pronoun(sample, sae, prompts) > 0).double().mean(0)
    active = share_F.gt(OFTEN).nonzero().flatten().tolist()
    return [feature for feature in active if (sae, feature) not in chosen]
