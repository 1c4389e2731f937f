"""The planted bias: professions make "she" likely or unlikely. Can it be ablated away?

Prompts are held-out documents up to the word before the pronoun. Features are chosen on the first
half of the documents, the gap is scored on the second.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.world.sample import Sample, mean_sd
from saelearn import steer, tiny, world
from saelearn.lm import Edit


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


def edits(sample: Sample, sae: str, features: list[int]) -> dict[str, Edit]:
    """The ablation of some features at the SAE's own site."""
    return {tiny.recipes()[sae].site: steer.ablate(sample.sae(sae), features)}


def shortlist(sample: Sample, sae: str, k: int = 32) -> list[int]:
    """Features that differ most between the two kinds of profession, at or before the pronoun."""
    prompts, site = Prompts(sample, range(sample.n // 2)), tiny.recipes()[sae].site
    f_NTF = sample.sae(sae).encode(sample.lm.capture(prompts.tokens_NT, [site])[site])
    here = [  # since the profession was named, three words ago: "nurse said that"
        f_NTF[n, t - 2 : t + 1].sum(0)
        for n, t in zip(prompts.row_P, prompts.at_P2[:, 1], strict=True)
    ]
    f_PF = torch.stack(here) * sample.sae(sae).W_dec.norm(dim=1)
    difference_F = f_PF[prompts.leans_P].mean(0) - f_PF[~prompts.leans_P].mean(0)
    return difference_F.abs().topk(k).indices.tolist()


def choose(
    sample: Sample, sae: str, *, most: int = 8, goal: float = 0.05, price: float = 0.025
) -> list[int]:
    """Features whose ablation closes the gap, one after another, on the first half.

    A feature that brings the rise of the loss above `price` is passed over.
    """
    prompts, tokens_NT = Prompts(sample, range(sample.n // 2)), sample.held.tokens_NT[:400]
    candidates, chosen = shortlist(sample, sae), []
    left, clean = abs(prompts.gap()), sample.lm.loss(tokens_NT)
    while left > goal and len(chosen) < most and candidates:
        gaps = {i: abs(prompts.gap(edits(sample, sae, [*chosen, i]))) for i in candidates}
        best = min(gaps, key=gaps.get)
        if gaps[best] >= left:
            break
        candidates.remove(best)
        if sample.lm.loss(tokens_NT, edits(sample, sae, [*chosen, best])) / clean - 1 <= price:
            left = gaps[best]
            chosen.append(best)
    return chosen


def score(sample: Sample, sae: str, chosen: list[int]) -> dict[str, float]:
    """The gap before and after, the price, and what as many random features do."""
    prompts = Prompts(sample, range(sample.n // 2, sample.n))
    without = edits(sample, sae, chosen)
    tokens_NT = sample.held.tokens_NT[sample.n // 2 :]
    clean, ablated = sample.lm.loss(tokens_NT), sample.lm.loss(tokens_NT, without)
    before = prompts.gap()
    f_NF = sample.encoded(sae)
    living = (f_NF > 0).double().mean(0).gt(1e-4).nonzero().flatten()
    random = []
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        some = living[torch.randperm(len(living), generator=generator)[: len(chosen)]].tolist()
        random.append(before - prompts.gap(edits(sample, sae, some)))
    return {
        "before": before,
        "after": prompts.gap(without),
        "features": len(chosen),
        "ce_rise": ablated / clean - 1,
        "prompts": len(prompts.leans_P),
        **mean_sd("random", random),
    }
