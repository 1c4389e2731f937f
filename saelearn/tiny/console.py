"""What the steering console shows: texts pushed toward a thing, and a control. Lesson 00.

The direction is chosen by data, as lesson 09 does it step by step: which feature makes the word
likelier, and of those, whose texts speak of the thing and stay well formed. Shapes: N texts, B
batch, T positions, D width, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saelearn import activations, features, steer
from saelearn.errors import Refusal, check_range
from saelearn.lm import LM
from saelearn.tiny import shipped

PUSHED = 8  # words at which is pushed: the text then goes on by itself
NEW = 31  # words of a text


class Written(NamedTuple):
    """Texts, which of them speak of the thing, and the share of their 4-grams the corpus has."""

    texts: list[str]
    mentions: list[bool]
    validity: float

    @property
    def rate(self) -> float:
        """Share of the texts that speak of the thing."""
        return sum(self.mentions) / len(self.mentions)


@dataclass(frozen=True)
class Console:
    """A model, a direction to push along and, beside it, directions that know nothing.

    Args:
        lm: the model that writes.
        name: the thing, a key of `shipped.MENTIONS`.
        directions: title -> direction [D]; the first is the steered one.
        unit: the site's `steer.typical_norm`, in which strengths are counted.
        prompt_T: what every text begins with, token ids.
    """

    lm: LM
    name: str
    directions: dict[str, Tensor]
    unit: float
    prompt_T: Tensor

    @classmethod
    def load(cls, name: str = "golden_retriever", *, control_seed: int = 0) -> Console:
        """The course's model and the feature of its SAE that brings the thing in (seconds)."""
        lm, sae = shipped.load_lm(), shipped.load_sae()
        tokens_NT = shipped.held_out(200).tokens_NT
        unit = steer.typical_norm(activations.collect(lm, tokens_NT[:60], shipped.SITE).x_ND)
        row_FD = sae.W_dec.detach()
        direction_D = row_FD[choose_writer(lm, row_FD, tokens_NT, unit=unit, name=name)]
        control_D = features.random_directions(1, sae.d_in, seed=control_seed)[0]
        directions = {name.replace("_", " "): direction_D, "random direction": control_D}
        return cls(lm, name, directions, unit, tokens_NT[0, :1])

    def write(self, title: str | Tensor, strength: float, *, n: int = 32, seed: int = 1) -> Written:
        """`n` texts pushed along one of the directions.

        Args:
            title: of the direction, or another direction `[D]`, whose length does not matter.
            strength: length of the push in typical norms; 0 writes what the model itself would.
            seed: of the draws; the same one at another strength changes as little as can be.
        """
        check_range(strength, "strength", 0.0)
        direction_D = title if isinstance(title, Tensor) else self.directions.get(title)
        if direction_D is None:
            raise Refusal(f"one of {', '.join(map(repr, self.directions))}", repr(title))
        push = {"unit": self.unit, "n": n, "seed": seed}
        tokens_NT = _texts(self.lm, direction_D, strength, self.prompt_T, **push)
        start = len(self.prompt_T)
        return Written(
            [self.lm.text(row_T[start:]) for row_T in tokens_NT],
            shipped.mentions(tokens_NT, self.name).tolist(),
            shipped.validity(tokens_NT),
        )

    def luckiest(self, n_candidates: int = shipped.D_SAE, *, seed: int = 0) -> Tensor:
        """The best of random directions `[D]`, chosen as `load` chooses among the SAE's.

        What choosing does by itself: a direction that was picked needs rivals that were, too.
        """
        (width,) = next(iter(self.directions.values())).shape
        row_FD = features.random_directions(n_candidates, width, seed=seed)
        tokens_NT, how = shipped.held_out(200).tokens_NT, {"unit": self.unit, "name": self.name}
        return row_FD[choose_writer(self.lm, row_FD, tokens_NT, **how)]

    def dose(
        self, strengths: Sequence[float], *, n: int = 48, n_controls: int = 4, seed: int = 2
    ) -> dict[str, dict[str, list[float]]]:
        """Rate and validity at each strength: title -> quantity -> values.

        The control here is the mean over `n_controls` random directions, since a single one can be
        lucky.
        """
        title, direction_D = next(iter(self.directions.items()))
        random_ID = features.random_directions(n_controls, len(direction_D), seed=seed)
        unit_D = direction_D / direction_D.norm()
        row_ND = torch.cat([unit_D[None], random_ID]).repeat_interleave(n, dim=0)
        measured = {name: {"rate": [], "validity": []} for name in (title, "random direction")}
        for strength in strengths:
            tokens_NT = self._rows(strength * self.unit * row_ND, seed)
            for name, part_NT in zip(measured, (tokens_NT[:n], tokens_NT[n:]), strict=True):
                measured[name]["rate"].append(shipped.mention_rate(part_NT, self.name))
                measured[name]["validity"].append(shipped.validity(part_NT))
        return measured

    def _rows(self, push_ND: Tensor, seed: int) -> Tensor:
        """One text for each row, pushed by that row: a few large passes, not many small ones."""
        start = len(self.prompt_T)

        def edit(x_NTD: Tensor, positions_T: Tensor) -> Tensor:
            pushed_T = (positions_T >= start) & (positions_T < start + PUSHED)
            return x_NTD + pushed_T[:, None] * push_ND[:, None].to(x_NTD)

        how = {"max_new_tokens": NEW, "n": len(push_ND), "seed": seed}
        return self.lm.generate(self.prompt_T[None], edits={shipped.SITE: edit}, **how)


def _texts(
    lm: LM,
    direction_D: Tensor,
    strength: float,
    prompt_T: Tensor,
    *,
    unit: float,
    n: int,
    seed: int,
) -> Tensor:
    """Texts `tokens_NT`, pushed at the first words that follow the prompt."""
    start = len(prompt_T)
    where = range(start, start + PUSHED)
    edits = {shipped.SITE: steer.add(direction_D, strength * unit, positions=where)}
    edits = edits if strength else {}
    return lm.generate(prompt_T[None], max_new_tokens=NEW, n=n, seed=seed, edits=edits)


@torch.no_grad()
def choose_writer(
    lm: LM, row_FD: Tensor, tokens_NT: Tensor, *, unit: float, name: str, shortlist: int = 6
) -> int:
    """The row whose push brings a thing in and leaves the text well formed.

    Two rounds: the rows that raise the thing's first word most where it could come, then for
    each of those the texts it writes, by the share that names the thing in the first of its
    languages, which readers of the course read, times validity.

    Args:
        row_FD: the candidates, such as the decoder rows of an SAE.
        tokens_NT: text in which the thing occurs; the places before it are where it could come.
        unit: length of the push, the site's `steer.typical_norm`.
        name: a key of `shipped.MENTIONS`.
    """
    vocabulary = lm.tokenizer.get_vocab()
    phrase = [vocabulary[word] for word in shipped.MENTIONS[name][0].split()]
    prompts = _places_before(tokens_NT, phrase)
    effects_PF = torch.stack([_effect_on(lm, row_FD, phrase[0], p_T, unit) for p_T in prompts])

    def score(row: int) -> float:
        direction_D, start_T = row_FD[row], tokens_NT[0, :1]
        texts_NT = _texts(lm, direction_D, 1.0, start_T, unit=unit, n=32, seed=0)
        return float(_holds(texts_NT, phrase).any(1).double().mean()) * shipped.validity(texts_NT)

    return max(effects_PF.mean(0).topk(shortlist).indices.tolist(), key=score)


def _holds(tokens_NT: Tensor, phrase: Sequence[int]) -> Tensor:
    """Where a phrase begins, true or false."""
    return (tokens_NT.unfold(1, len(phrase), 1) == torch.tensor(phrase)).all(-1)


def _places_before(tokens_NT: Tensor, phrase: Sequence[int], most: int = 2) -> list[Tensor]:
    """Short openings of texts that go on with these words, no two of one length."""
    here_NT = _holds(tokens_NT, phrase)
    rows = here_NT.any(1).nonzero()[:, 0].tolist()
    at = {int(here_NT[row].int().argmax()): row for row in reversed(rows)}
    found = [tokens_NT[at[t], :t] for t in sorted(at) if t > 1][:most]
    if not found:
        raise Refusal("text in which the thing occurs", "none that does", "take more documents")
    return found


def _effect_on(lm: LM, row_FD: Tensor, word: int, prompt_T: Tensor, unit: float) -> Tensor:
    """Change of a next word's log-probability by a push along each row, `[F]`, in nats."""
    last, unit_FD = len(prompt_T) - 1, row_FD / row_FD.norm(dim=1, keepdim=True)
    before = lm.logits(prompt_T[None])[0, -1].log_softmax(-1)[word]
    after = []
    for row_BD in unit_FD.split(256):

        def edit(x_BTD: Tensor, positions_T: Tensor, row_BD: Tensor = row_BD) -> Tensor:
            return x_BTD + (positions_T == last)[:, None] * unit * row_BD[:, None].to(x_BTD)

        logits_BTV = lm.logits(prompt_T.repeat(len(row_BD), 1), {shipped.SITE: edit})
        after.append(logits_BTV[:, -1].log_softmax(-1)[:, word])
    return torch.cat(after) - before
