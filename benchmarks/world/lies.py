"""Does a feature know that the speaker lies, and does pushing it make an honest speaker lie?

Read where the value is chosen: at "is", right before the colour that somebody claims. Chosen on
the first half of the documents, scored on the second.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.world.sample import Sample
from saelearn import steer, tiny

STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5)


class Claims:
    """Places of held-out text where a typed speaker is about to name a colour.

    `x_PD` activations, `lies_P` whether the speaker is a liar, `true_P` the fact's colour.
    """

    def __init__(self, sample: Sample, documents: range, typed: bool = True):
        self.lm = sample.lm
        vocabulary = self.lm.tokenizer.get_vocab()
        names = sample.held.names
        labels_NTC = sample.held.labels_NTC[documents.start : documents.stop, :-1]
        self.colours = [name.split(":")[1] for name in names if name.startswith("fact:")]
        self.ids = torch.tensor([vocabulary[c] for c in self.colours])
        facts_NTC = labels_NTC[..., [names.index(f"fact:{c}") for c in self.colours]]
        liar_NT = labels_NTC[..., names.index("speaker:liar")]
        honest_NT = labels_NTC[..., names.index("speaker:honest")]
        at_P2 = (liar_NT | honest_NT).nonzero()
        self.documents, self.row_P = at_P2[:, 0].unique(return_inverse=True)
        self.at_P = at_P2[:, 1]
        self.tokens_NT = sample.held.tokens_NT[documents.start : documents.stop][self.documents]
        self.lies_P = liar_NT[at_P2[:, 0], self.at_P]
        self.true_P = facts_NTC[at_P2[:, 0], self.at_P].float().argmax(-1)
        self.last_NT = torch.zeros(len(self.tokens_NT), 64, dtype=torch.bool)
        self.last_NT[self.row_P, self.at_P] = True
        self.honest_NT = torch.zeros_like(self.last_NT)
        self.honest_NT[self.row_P[~self.lies_P], self.at_P[~self.lies_P]] = True

    def activations(self, site: str) -> Tensor:
        """`x_PD` at the places."""
        return self.lm.capture(self.tokens_NT, [site])[site][self.row_P, self.at_P]

    def p(self, edits: dict | None = None) -> tuple[Tensor, Tensor]:
        """P(the true colour) and P(one of the two others) at each place."""
        p_NTV = self.lm.logits(self.tokens_NT, edits).softmax(-1)
        p_PC = p_NTV[self.row_P, self.at_P][:, self.ids]
        true_P = p_PC.gather(1, self.true_P[:, None])[:, 0]
        return true_P, p_PC.sum(1) - true_P

    def push(self, direction_D: Tensor, amount: float) -> dict:
        """An edit at the places alone (all documents in one pass, in their order)."""

        def edit(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
            step_D = amount * direction_D / direction_D.norm()
            return x_BTD + self.last_NT[: len(x_BTD), : x_BTD.shape[1], None] * step_D

        return {tiny.SITE: edit}


def measure(
    sample: Sample, readers: Sequence[str], writers: Sequence[str]
) -> dict[str, float | str]:
    """All figures.

    Args:
        readers: SAEs among whose features the one is looked for that knows who lies.
        writers: SAEs whose features are pushed, beside the difference of means.
    """
    first = Claims(sample, range(sample.n // 2))
    second = Claims(sample, range(sample.n // 2, sample.n))
    unit = steer.typical_norm(sample.acts().x_ND)
    found: dict[str, float | str] = {}
    x_PD = first.activations(tiny.SITE)
    reader, liar = _best_reader(sample, readers, first)
    site = tiny.recipes()[reader].site
    f_P = sample.sae(reader).encode(second.activations(site))[:, liar]
    found["auroc"] = float(auroc(f_P[:, None], second.lies_P))
    p_true_P, p_lie_P = second.p()
    honest_P, lies_P = ~second.lies_P, second.lies_P
    found["p_true_before"] = float(p_true_P[honest_P].mean())
    found["p_true_liar"] = float(p_true_P[lies_P].mean())
    means_D = steer.difference_of_means(x_PD, first.lies_P)
    for name, directions in (("", [means_D]), ("feature_", _writers(sample, writers, first))):
        direction_D, strength = _choose(first, directions, unit)
        p_true_P, p_lie_P = second.p(second.push(direction_D, strength * unit))
        found |= {
            f"{name}p_true_steered": float(p_true_P[honest_P].mean()),
            f"{name}p_lie_steered": float(p_lie_P[honest_P].mean()),
            f"{name}strength": strength,
        }
    ablated = {site: steer.ablate(sample.sae(reader), [liar])}
    found["p_true_liar_ablated"] = float(second.p(ablated)[0][lies_P].mean())
    return found | {"reader": reader, "feature": liar, "places": len(lies_P)}


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


def _choose(claims: Claims, directions: list[Tensor], unit: float) -> tuple[Tensor, float]:
    """The direction and strength with the most probability on lies and the least on the truth."""
    best = (-2.0, 0, 0.0)
    for i, direction_D in enumerate(directions):
        for strength in STRENGTHS:
            p_true_P, p_lie_P = claims.p(claims.push(direction_D, strength * unit))
            honest_P = ~claims.lies_P
            value = float((p_lie_P - p_true_P)[honest_P].mean())
            best = max(best, (value, i, strength))
    return directions[best[1]], best[2]
