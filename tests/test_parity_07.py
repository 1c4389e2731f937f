"""What the learner writes in lesson 07 equals what the library does."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from taught import taught

from saelearn import metrics
from saelearn.activations import collect
from saelearn.exercises import lesson07 as check
from saelearn.sae import L1, SAE
from saelearn.train import mean_norm_scale, memory
from saelearn.train.loop import step
from saelearn.train.resampling import resample


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    return taught("07", metrics=metrics)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rows(lesson):
    lm, tokens_NT = tiny_models.make("gpt2"), tiny_models.some_tokens(n=4)
    site = lm.residual_sites()[1]
    ours_ND = collect(lm, tokens_NT, site).x_ND
    assert torch.equal(lesson["to_rows"](lm.capture(tokens_NT, [site])[site]), ours_ND)


def test_scale(lesson):
    x_ND = 3 * rand(500, 16) + 1
    assert float(lesson["scale_of"](x_ND)) == pytest.approx(mean_norm_scale(x_ND), rel=1e-5)


def test_revive(lesson):
    """The same draws give the same new start as the library's."""
    x_BD, dead_F = rand(50, 6), torch.arange(20) < 8
    theirs, ours = SAE(6, 20, seed=1), SAE(6, 20, seed=1)
    optimizer = torch.optim.Adam(ours.parameters())
    lesson["revive"](theirs, dead_F, x_BD, torch.Generator().manual_seed(3))
    resample(ours, optimizer, dead_F, x_BD, generator=torch.Generator().manual_seed(3))
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_tables_explain_a_sum_of_tables(lesson):
    word_N, place_N = torch.arange(60) % 7, torch.arange(60) % 4
    x_ND = rand(7, 5)[word_N] + rand(4, 5, seed=1)[place_N]
    assert lesson["by_tables"](x_ND, word_N, place_N) == pytest.approx(1, abs=1e-3)
    assert lesson["by_tables"](x_ND, word_N) < 0.95


def test_recovered(lesson):
    ours = metrics.loss_recovered(1.0, 1.6, 3.5, ablation="mean").value
    assert lesson["recovered"](1.0, 1.6, 3.5) == pytest.approx(ours)


def test_explained_variance(lesson):
    x_ND = rand(300, 5) + 2
    x_hat_ND = x_ND + 0.3 * rand(300, 5, seed=1)
    theirs = float(lesson["mended_variance"](x_ND, x_hat_ND))
    assert theirs == pytest.approx(metrics.explained_variance(x_ND, x_hat_ND), rel=1e-5)
    assert lesson["theirs"](10 * x_ND, 10 * x_hat_ND) > 1  # the bug that is hunted


def test_quality(lesson):
    sae, x_ND = SAE(6, 20, seed=1), rand(200, 6)
    x_hat_ND, f_NF = (each.detach() for each in sae(x_ND))
    ours = (metrics.l0(f_NF), metrics.explained_variance(x_ND, x_hat_ND))
    assert lesson["quality"](sae, x_ND) == ours


def test_memory_counts_every_tensor_of_a_training(lesson):
    sae, buffer_ND = SAE(12, 40), rand(70, 12)
    adam = torch.optim.Adam(sae.parameters())
    step(sae, buffer_ND, adam, L1(1.0))
    moments = [m for s in adam.state.values() for m in (s["exp_avg"], s["exp_avg_sq"])]
    kept = [*sae.parameters(), *(p.grad for p in sae.parameters()), *moments, buffer_ND]
    for one in (lesson["training_bytes"], check.counted):  # the second while it is open
        assert one(12, 40, 70) == sum(x.numel() * x.element_size() for x in kept)


@pytest.mark.parametrize(("d_in", "d_sae"), [(12, 40), (768, 24_576), (12_288, 49_152)])
def test_memory_by_hand_is_the_librarys(d_in, d_sae, lesson):
    """The lesson's sum without a buffer; the library adds the step's own room and a batch."""
    parts = memory.needed(d_in, d_sae, 4_096)
    assert lesson["training_bytes"](d_in, d_sae, 0) == sum(
        parts[name] for name in ("weights", "gradients", "moments")
    )
