"""What the learner writes in lesson 08 equals what the library does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from taught import taught
from tiny_models import make, some_tokens

from saelearn import features, metrics
from saelearn.activations import Activations
from saelearn.exercises import lesson08 as check


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    return taught("08")


def rand(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_top_documents_are_those_of_contexts(lesson):
    f_NT = rand(0, 12, 9)
    source = Activations(torch.zeros(108, 16), some_tokens(12, 10), "site", 1)
    found = features.contexts(f_NT.flatten(), source, make("gpt2"), k=5)
    assert lesson["top_documents"](f_NT, 5).tolist() == [c.document for c in found]


def test_effect_is_the_logit_effect(lesson):
    lm, tokens_NT, site = make("gpt2"), some_tokens(3, 7), "transformer.h.0:out"
    direction_D = rand(5, 16) - 0.5

    def edit(x_BTD, positions_T):
        return x_BTD + (positions_T > 0)[:, None] * direction_D

    ours_V = lesson["effect"](lm.logits(tokens_NT), lm.logits(tokens_NT, {site: edit}))
    library_V = features.logit_effect(lm, site, direction_D, tokens_NT).effect_V
    torch.testing.assert_close(ours_V, library_V)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_f1(lesson, share):
    fires, holds = rand(1, 200) < share, rand(2, 200) < 0.3
    ours = metrics.f1(fires[:, None], holds[:, None])
    assert lesson["f1_score"](fires, holds) == pytest.approx(float(ours))


def test_honest_f1_is_best_f1_of_one_candidate(lesson):
    score = rand(3, 400)
    holds = rand(4, 400) < torch.sigmoid(12 * (score - 0.6))
    best = metrics.best_f1(score[:, None], holds[:, None])
    first = sorted(score[:200].tolist())
    shares = 1 - torch.logspace(-4, -0.3, 24)
    grid = [first[int(share * 199)] for share in shares]
    for one in (lesson["honest_f1"], check.honestly):  # the second while it is open
        assert one(score, holds, grid) == pytest.approx(float(best.f1_C))


@pytest.mark.parametrize("rate", [0.3, 0.02])
def test_precision_is_what_counting_gives(lesson, rate):
    holds = rand(6, 200_000) < rate
    fires = rand(7, 200_000) < torch.where(holds, 0.8, 0.05)
    counted = float((fires & holds).sum() / fires.sum())
    for one in (lesson["precision"], check.share_right):
        assert one(0.8, 0.05, rate) == pytest.approx(counted, abs=0.02)
