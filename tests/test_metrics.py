"""Metrics against closed forms, brute force, and formulas written in another way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saelearn import metrics
from saelearn.errors import Refusal

seeds = st.integers(0, 10_000)
quick = settings(deadline=None, max_examples=25)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


# --- counting -------------------------------------------------------------------------------------


def test_counts_of_activity_by_hand() -> None:
    f = torch.tensor([[0.0, 2.0, 0.0, 1e-9], [0.0, 0.0, 0.0, 3.0], [0.0, 1.0, 0.0, 0.0]])
    assert metrics.l0(f) == pytest.approx((2 + 1 + 1) / 3)
    assert metrics.dead_fraction(f) == pytest.approx(2 / 4)
    assert metrics.firing_frequency(f).tolist() == pytest.approx([0, 2 / 3, 0, 2 / 3])


@quick
@given(seeds)
def test_l0_is_the_sum_of_the_frequencies(seed: int) -> None:
    f = normal(seed, 30, 9).relu() * (normal(seed + 1, 30, 9) > 0)
    frequency = metrics.firing_frequency(f)
    assert metrics.l0(f) == pytest.approx(float(frequency.sum()))
    assert metrics.dead_fraction(f) == float((frequency == 0).double().mean())


def test_surprise_is_the_cross_entropy_of_the_next_token() -> None:
    logits_TV, tokens_T = normal(0, 6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    p_TV = np.exp(logits_TV.numpy()) / np.exp(logits_TV.numpy()).sum(1, keepdims=True)
    by_hand = [-math.log(p_TV[t - 1, tokens_T[t]]) for t in range(1, 6)]
    assert metrics.surprise(logits_TV, tokens_T).tolist() == pytest.approx(by_hand)


# --- explained variance and shrinkage -------------------------------------------------------------


@quick
@given(seeds, st.floats(-50, 50), st.floats(0.01, 100))
def test_explained_variance_is_the_weighted_mean_of_r_squared(
    seed: int, shift: float, scale: float
) -> None:
    """R^2 of each column, weighted by the column's variance; shift and scale change nothing."""
    x = normal(seed, 40, 3) * torch.tensor([1.0, 2.0, 5.0])
    x_hat = x + 0.5 * normal(seed + 1, 40, 3)
    columns = [
        (np.var(x[:, j].numpy()), 1 - ((x - x_hat)[:, j] ** 2).mean() / np.var(x[:, j].numpy()))
        for j in range(3)
    ]
    expected = sum(v * r for v, r in columns) / sum(v for v, _ in columns)
    assert metrics.explained_variance(x, x_hat) == pytest.approx(float(expected))
    moved = metrics.explained_variance(scale * (x + shift), scale * (x_hat + shift))
    assert moved == pytest.approx(float(expected), rel=1e-6)


def test_the_mean_is_a_vector() -> None:
    """Subtracting one number (the mean over everything, or its square) is a known mistake."""
    x = normal(0, 2000, 4) + torch.tensor([10.0, -10.0, 0.0, 3.0])
    mean = x.mean(0).expand_as(x)
    assert metrics.explained_variance(x, mean) == pytest.approx(0, abs=1e-12)
    assert metrics.explained_variance(x, x) == 1
    noisy = x + 0.5 * normal(1, 2000, 4)
    assert metrics.explained_variance(x, noisy) == pytest.approx(0.75, abs=0.02)
    one_number = 1 - ((x - noisy) ** 2).sum() / ((x - x.mean()) ** 2).sum()
    assert one_number > 0.99


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_do_not_vary_are_refused(value: float, dtype: torch.dtype) -> None:
    x = torch.full((7, 3), value, dtype=dtype)
    with pytest.raises(Refusal, match="vary"):
        metrics.explained_variance(x, x + 1)


@quick
@given(seeds, st.floats(0.05, 3))
def test_shrinkage_of_a_shortened_copy_is_the_factor(seed: int, factor: float) -> None:
    x = normal(seed, 20, 4)
    assert metrics.shrinkage(x, factor * x) == pytest.approx(factor)


@quick
@given(seeds)
def test_one_over_shrinkage_is_the_factor_that_fits_best(seed: int) -> None:
    x = normal(seed, 50, 4)
    x_hat = 0.4 * x + 0.3 * normal(seed + 1, 50, 4)
    best = np.linalg.lstsq(x_hat.flatten()[:, None].numpy(), x.flatten().numpy(), rcond=None)[0][0]
    assert 1 / metrics.shrinkage(x, x_hat) == pytest.approx(best)


def test_loss_recovered_is_linear_and_names_its_ablation() -> None:
    for spliced, value in ((2.0, 1.0), (6.0, 0.0), (3.0, 0.75), (8.0, -0.5), (1.0, 1.25)):
        result = metrics.loss_recovered(2.0, spliced, 6.0, ablation="zero")
        assert result.value == pytest.approx(value)
        assert result[1:] == ("zero", 2.0, spliced, 6.0, None)
    with pytest.raises(Refusal, match="zero, mean"):
        metrics.loss_recovered(2.0, 3.0, 6.0, ablation="")
    with pytest.raises(Refusal, match="changes the loss"):
        metrics.loss_recovered(2.0, 3.0, 2.0, ablation="mean")


# --- directions -----------------------------------------------------------------------------------


@quick
@given(seeds)
def test_cosines_are_angles_between_rows(seed: int) -> None:
    a, b = normal(seed, 3, 4), normal(seed + 1, 5, 4)
    a[1] = 0
    cosine = metrics.cosine_matrix(a, b)
    for i, j in itertools.product(range(3), range(5)):
        lengths = math.sqrt(float((a[i] ** 2).sum()) * float((b[j] ** 2).sum()))
        expected = float((a[i] * b[j]).sum()) / lengths if lengths else 0
        assert cosine[i, j].item() == pytest.approx(expected, abs=1e-12)
    paired = metrics.encoder_decoder_cosine(b.T, b.flip(0))
    assert paired.tolist() == pytest.approx(metrics.cosine_matrix(b, b.flip(0)).diag().tolist())


@quick
@given(seeds, st.integers(1, 5), st.integers(1, 5))
def test_recovery_is_the_best_of_all_assignments(seed: int, n_rows: int, n_true: int) -> None:
    rows, truth = normal(seed, n_rows, 3), normal(seed + 1, n_true, 3)
    cosine = metrics.cosine_matrix(truth, rows)
    found = metrics.recovery(rows, truth, threshold=0.5)
    assert found.max_cosine_G.tolist() == pytest.approx([max(line) for line in cosine.tolist()])
    assert found.n_recovered == sum(max(line) > 0.5 for line in cosine.tolist())
    small = min(n_rows, n_true)
    best = max(
        sum(float(cosine[g, f]) for g, f in zip(some, others, strict=True))
        for some in itertools.combinations(range(n_true), small)
        for others in itertools.permutations(range(n_rows), small)
    )
    assert float(found.matched_cosine_G.sum()) == pytest.approx(best, abs=1e-6)
    used = [f for f in found.matched_G.tolist() if f >= 0]
    assert len(used) == len(set(used)) == small
    for g, f in enumerate(found.matched_G.tolist()):
        expected = float(cosine[g, f]) if f >= 0 else 0
        assert float(found.matched_cosine_G[g]) == pytest.approx(expected, abs=1e-6)


def test_recovery_of_a_shuffled_scaled_truth_is_complete_and_of_its_negative_none() -> None:
    truth = normal(0, 6, 8)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    found = metrics.recovery(2.5 * truth[order], truth)
    assert found.n_recovered == 6
    assert order[found.matched_G].tolist() == list(range(6))
    assert metrics.recovery(-truth, truth).n_recovered == 0


def test_recovery_takes_the_parameters_of_an_sae() -> None:
    rows = torch.nn.Parameter(normal(0, 6, 8))
    found = metrics.recovery(rows, rows.detach())
    assert found.n_recovered == 6 and not found.max_cosine_G.requires_grad


# --- effective number -----------------------------------------------------------------------------


def test_effective_number_of_known_shares() -> None:
    mass = torch.tensor([[1.0, 0, 0, 0], [2, 2, 0, 0], [5, 5, 5, 5], [0, 0, 0, 0], [3, 1, 0, 0]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    expected = [1, 2, 4, 1, math.exp(entropy)]
    assert metrics.effective_number(mass).tolist() == pytest.approx(expected)


@quick
@given(seeds, st.integers(1, 8), st.floats(0.001, 1000))
def test_effective_number_lies_between_1_and_n(seed: int, n: int, scale: float) -> None:
    mass = normal(seed, n).abs()
    number = float(metrics.effective_number(mass))
    assert 1 - 1e-9 <= number <= n + 1e-9
    assert float(metrics.effective_number(scale * mass)) == pytest.approx(number)
    assert float(metrics.effective_number(mass.flip(0))) == pytest.approx(number)


# --- F1 -------------------------------------------------------------------------------------------


def f1_by_hand(fires: list[bool], holds: list[bool]) -> float:
    pairs = list(zip(fires, holds, strict=True))
    both, fired, held = (sum(p) for p in (map(all, pairs), fires, holds))
    if both == 0:
        return 0.0
    precision, recall = both / fired, both / held
    return 2 * precision * recall / (precision + recall)


def slow_best_f1(
    scores: Tensor, labels: Tensor, n_thresholds: int, both_signs: bool
) -> list[tuple[float, float]]:
    """For each concept (best F1 on the first half, F1 of that choice on the second), by loops."""
    half = len(scores) // 2
    signs = (1, -1) if both_signs else (1,)
    silent = [1 - 10 ** (-4 + 3.7 * k / max(1, n_thresholds - 1)) for k in range(n_thresholds)]
    results = []
    for c in range(labels.shape[1]):
        holds = labels[:, c].tolist()
        best, later = -1.0, 0.0
        for share in silent:
            for sign in signs:
                for s in range(scores.shape[1]):
                    column = (sign * scores[:, s]).tolist()
                    threshold = sorted(column[:half])[int(np.float32(share) * (half - 1))]
                    fires = [value > threshold for value in column]
                    score = f1_by_hand(fires[:half], holds[:half])
                    if score > best + 1e-7:
                        best, later = score, f1_by_hand(fires[half:], holds[half:])
        results.append((best, later))
    return results


def concepts(seed: int, n: int = 60) -> tuple[Tensor, Tensor]:
    """Sparse scores, and labels that some of them predict."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, 5, generator=generator) * (torch.rand(n, 5, generator=generator) < 0.4)
    scores[:, 4] = torch.randn(n, generator=generator)  # a direction, with two sides
    noise = torch.rand(n, 3, generator=generator) < 0.1
    return scores, torch.stack([scores[:, 0] > 0.5, scores[:, 1] > 0, scores[:, 4] < -1], 1) ^ noise


@settings(deadline=None, max_examples=12)
@given(seeds, st.sampled_from([1, 5, 12]), st.booleans())
def test_best_f1_is_what_slow_loops_find(seed: int, n_thresholds: int, both_signs: bool) -> None:
    scores, labels = concepts(seed)
    found = metrics.best_f1(scores, labels, n_thresholds=n_thresholds, both_signs=both_signs)
    slow = slow_best_f1(scores, labels, n_thresholds, both_signs)
    assert found.chosen_f1_C.tolist() == pytest.approx([best for best, _ in slow], abs=1e-6)
    assert found.f1_C.tolist() == pytest.approx([later for _, later in slow], abs=1e-6)
    assert int(found.candidate_C.min()) >= 0 and int(found.candidate_C.max()) < 5


@quick
@given(seeds)
def test_the_second_half_has_no_say_in_the_choice(seed: int) -> None:
    scores, labels = concepts(seed)
    honest = metrics.best_f1(scores, labels)
    shuffled, inverted = labels.clone(), labels.clone()
    shuffled[30:] = labels[30:][torch.randperm(30, generator=torch.Generator().manual_seed(seed))]
    inverted[30:] = ~labels[30:]
    moved = scores.clone()
    moved[30:] += 7
    for changed in (
        metrics.best_f1(scores, shuffled),
        metrics.best_f1(scores, inverted),
        metrics.best_f1(moved, labels),
    ):
        for name in ("candidate_C", "threshold_C", "chosen_f1_C"):
            assert torch.equal(getattr(changed, name), getattr(honest, name))
    assert not torch.equal(metrics.best_f1(scores, inverted).f1_C, honest.f1_C)


def test_a_perfect_detector_is_found_and_scores_1() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(4000, 1, generator=generator) < 0.1
    scores = torch.rand(4000, 6, generator=generator)
    scores[:, 3] = labels[:, 0] * (1 + torch.rand(4000, generator=generator))
    found = metrics.best_f1(scores, labels)
    assert found.candidate_C.item() == 3 and found.f1_C.item() > 0.97
    assert metrics.best_f1(-scores, labels).f1_C.item() < 0.5
    assert metrics.best_f1(-scores, labels, both_signs=True).candidate_C.item() == 3
    assert metrics.best_f1(-scores, labels, both_signs=True).f1_C.item() > 0.97


def test_unlike_lengths_are_refused() -> None:
    for n, m, said in ((10, 9, "same N"), (3, 3, "4 rows")):
        with pytest.raises(Refusal, match=said):
            metrics.best_f1(torch.zeros(n, 2), torch.zeros(m, 2, dtype=torch.bool))


@quick
@given(seeds)
def test_f1_is_the_harmonic_mean(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    fires, holds = torch.rand(2, 12, 3, generator=generator) < 0.3
    expected = [f1_by_hand(fires[:, c].tolist(), holds[:, c].tolist()) for c in range(3)]
    assert metrics.f1(fires, holds).tolist() == pytest.approx(expected)


@quick
@given(seeds)
def test_token_identity_is_the_best_set_of_words(seed: int) -> None:
    """Of all subsets of six words the one with the best F1 on the first half; no tie allowed."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(6, (80,), generator=generator)
    rate = torch.rand(6, generator=generator)
    labels = torch.rand(80, 1, generator=generator) < rate[tokens][:, None]
    scores: dict[float, set[float]] = {}
    for size in range(1, 7):
        for words in itertools.combinations(range(6), size):
            fires = [int(t) in words for t in tokens]
            first, second = (
                f1_by_hand(fires[part], labels[part, 0].tolist())
                for part in (slice(40), slice(40, None))
            )
            scores.setdefault(round(first, 9), set()).add(round(second, 9))
    found = metrics.token_identity_f1(tokens, labels)
    assert round(float(found[0]), 9) in scores[max(scores)]


def test_token_identity_is_1_for_a_word_and_low_for_its_context() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, (2000,), generator=generator)
    word = tokens == 7
    after_7 = torch.cat([torch.tensor([False]), word[:-1]])
    found = metrics.token_identity_f1(tokens, torch.stack([word, after_7], 1))
    assert found[0] == 1 and found[1] < 0.15
