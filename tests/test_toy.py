"""Toy models: closed forms of the geometry, the loss by hand, the law of the sampler."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from saelearn import toy
from saelearn.errors import Refusal


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def polygon(n: int, radius: float = 1.0) -> torch.Tensor:
    angle = torch.arange(n, dtype=torch.float64) * 2 * math.pi / n
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


@pytest.mark.parametrize(
    ("W_GD", "share"),
    [
        (torch.eye(4), 1.0),
        (3.7 * torch.eye(2), 1.0),
        (torch.tensor([[1.0], [-1.0]]), 1 / 2),
        (polygon(3), 2 / 3),
        (polygon(4), 1 / 2),
        (polygon(5), 2 / 5),
        (polygon(5, 1.15), 2 / 5),
        (polygon(7), 2 / 7),
        (torch.ones(6, 3), 1 / 6),
    ],
)
def test_dimensionality_of_known_shapes(W_GD, share):
    torch.testing.assert_close(toy.dimensionality(W_GD), torch.full_like(W_GD[:, 0], share))


def test_dimensionality_ignores_rotation_and_scale_but_not_forgotten_features():
    W_GD = torch.randn(6, 3, generator=generator(), dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator(1), dtype=torch.float64)).Q
    torch.testing.assert_close(toy.dimensionality(2 * W_GD @ turn), toy.dimensionality(W_GD))
    padded = torch.cat([W_GD, torch.zeros(1, 3, dtype=torch.float64)])
    torch.testing.assert_close(toy.dimensionality(padded)[:6], toy.dimensionality(W_GD))
    assert toy.dimensionality(padded)[6] == 0


def test_dimensionality_takes_many_models_at_once():
    W_KGD = torch.randn(3, 5, 2, generator=generator())
    expected = torch.stack([toy.dimensionality(W_GD) for W_GD in W_KGD])
    torch.testing.assert_close(toy.dimensionality(W_KGD), expected)


def test_model_and_loss_by_loops_in_double_precision():
    model = toy.ToyModel(4, 2, n_instances=3, seed=1)
    with torch.no_grad():
        model.b.copy_(torch.randn(3, 4, generator=generator(2)) / 3)
    f_BG = torch.rand(6, 4, generator=generator(3))
    importance_G = torch.tensor([1.0, 0.7, 2.0, 0.1])
    f, importance = f_BG.double().numpy(), importance_G.double().numpy()
    for k in range(3):
        W, b = model.W[k].detach().double().numpy(), model.b[k].detach().double().numpy()
        f_hat, total = np.zeros((6, 4)), 0.0
        for i in range(6):
            for g in range(4):
                pre = sum(W[g] @ W[h] * f[i, h] for h in range(4)) + b[g]
                f_hat[i, g] = max(0.0, pre)
                total += importance[g] * (f[i, g] - f_hat[i, g]) ** 2
        got = model(f_BG)[k].detach().numpy()
        np.testing.assert_allclose(got, f_hat, rtol=1e-5, atol=1e-6)
        loss = toy.toy_loss(f_BG, model(f_BG), importance_G)[k].item()
        assert loss == pytest.approx(total / 24, rel=1e-5)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
def test_sampler_follows_its_law(p):
    n, G = 40_000, 4
    f_BG = toy.sample_features(n, G, p, generator=generator()).double()
    on_BG = (f_BG > 0).double()
    error = 5 * math.sqrt(p * (1 - p) / n)
    torch.testing.assert_close(on_BG.mean(0), torch.full((G,), p).double(), atol=error, rtol=0)
    assert (on_BG[:, 0] * on_BG[:, 1]).mean().item() == pytest.approx(p * p, abs=2 * error)
    amplitude = f_BG[f_BG > 0]
    grid = torch.arange(1, 10) / 10
    cdf = torch.stack([(amplitude < x).double().mean() for x in grid])
    assert (cdf - grid).abs().max() < 5 / math.sqrt(4 * len(amplitude))
    assert amplitude.max() <= 1


def test_correlated_partners_share_a_coin_but_not_an_amplitude():
    f_BG = toy.sample_features(20_000, 5, 0.2, generator=generator(), correlated=True)
    on_BG = f_BG > 0
    assert torch.equal(on_BG[:, 0], on_BG[:, 1])
    assert torch.equal(on_BG[:, 2], on_BG[:, 3])
    assert on_BG[:, [0, 2]].all(1).double().mean().item() == pytest.approx(0.04, abs=0.01)
    assert on_BG.double().mean(0).sub(0.2).abs().max() < 0.02
    both = f_BG[on_BG[:, 0], :2]
    assert abs(torch.corrcoef(both.T)[0, 1]) < 0.05


def test_each_feature_may_have_its_own_probability():
    p_G = torch.tensor([0.0, 0.1, 0.5, 1.0])
    on_BG = toy.sample_features(20_000, 4, p_G, generator=generator()) > 0
    torch.testing.assert_close(on_BG.float().mean(0), p_G, atol=0.02, rtol=0)
    same = [
        toy.sample_features(9, 4, p, generator=generator()) for p in (0.5, torch.full((4,), 0.5))
    ]
    assert torch.equal(*same)


def test_same_seed_same_result():
    def run(seed):
        return toy.train_toy(3, 2, p=0.2, n_instances=2, steps=20, batch_size=64, seed=seed)

    a, b, c = run(4), run(4), run(5)
    assert torch.equal(a.W, b.W)
    assert torch.equal(a.loss, b.loss)
    assert a.history == b.history
    assert not torch.equal(a.W, c.W)
    assert [step for step, _ in a.history] == [0, 19]
    assert a.best() == int(a.loss.argmin())


def test_four_features_in_two_dimensions_become_a_square():
    run = toy.train_toy(4, 2, p=0.05, n_instances=8, steps=600)
    share_G = toy.dimensionality(run.W[run.best()])
    torch.testing.assert_close(share_G, torch.full((4,), 0.5), atol=0.02, rtol=0)


def test_five_features_in_two_dimensions_become_a_pentagon():
    run = toy.train_toy(5, 2, p=0.02, n_instances=8, steps=1000)
    W_GD, b_G = run.W[run.best()], run.b[run.best()]
    torch.testing.assert_close(toy.dimensionality(W_GD), torch.full((5,), 0.4), atol=0.02, rtol=0)
    torch.testing.assert_close(W_GD.norm(dim=1), torch.full((5,), 1.15), atol=0.03, rtol=0)
    torch.testing.assert_close(b_G, torch.full((5,), -0.27), atol=0.03, rtol=0)


def test_dense_features_keep_the_important_two():
    run = toy.train_toy(5, 2, p=1.0, importance_G=0.5 ** torch.arange(5.0), steps=600)
    assert (run.W[run.best()].norm(dim=1) > 0.5).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), "0.5", torch.tensor([0.5, 2.0, 0.1])])
def test_a_probability_outside_its_range_is_refused(p):
    with pytest.raises(Refusal, match="between 0 and 1"):
        toy.sample_features(5, 3, p, generator=generator())


def test_wrong_shapes_are_refused():
    with pytest.raises(Refusal, match=r"shape \(2,\)"):
        toy.sample_features(5, 3, torch.tensor([0.1, 0.2]), generator=generator())
    with pytest.raises(Refusal, match="importance"):
        toy.train_toy(5, 2, p=0.1, importance_G=torch.ones(4), steps=1)


def test_planted_features_are_what_the_data_are_made_of():
    planted = toy.PlantedFeatures.make(6, 4, 0.3, seed=1)
    torch.testing.assert_close(planted.directions_GD.norm(dim=1), torch.ones(6))
    x_BD, f_BG = planted.sample(50, generator=generator())
    by_hand = np.einsum("bg,gd->bd", f_BG.double(), planted.directions_GD.double())
    np.testing.assert_allclose(x_BD.numpy(), by_hand, rtol=1e-4, atol=1e-6)
    first, second = planted.batches(8, seed=3), planted.batches(8, seed=3)
    assert torch.equal(next(first), next(second))
    assert not torch.equal(next(first), planted.sample(8, generator=generator(3))[0])


def test_planted_pairs_follow_their_law_and_so_does_the_control():
    pairs = toy.PlantedPairs.make(5, 9, p=0.2, given=0.7, amplitudes=(0.8, 1.2), seed=3)
    for world, together in ((pairs, 0.2 * 0.7), (pairs.independent(), 0.2 * 0.2)):
        x_BD, f_BG = world.sample(200_000, generator=generator(1))
        on_BG = f_BG > 0
        assert on_BG.double().mean(0).tolist() == pytest.approx([0.2] * 10, abs=0.005)
        both_P = (on_BG[:, ::2] & on_BG[:, 1::2]).double().mean(0)
        assert both_P.tolist() == pytest.approx([together] * 5, abs=0.005)
        assert on_BG.double().sum(1).mean() == pytest.approx(world.l0, rel=0.01)
        amplitudes = f_BG[on_BG]
        assert amplitudes.min() >= 0.8 and amplitudes.max() <= 1.2
        torch.testing.assert_close(x_BD, f_BG @ pairs.directions_GD)
    assert torch.equal(pairs.directions_GD, pairs.independent().directions_GD)


def test_a_child_never_comes_without_its_parent():
    families = toy.PlantedPairs.make(4, 6, p=0.3, given=0.5, otherwise=0)
    _, f_BG = families.sample(20_000, generator=generator(2))
    child_BP, parent_BP = f_BG[:, 1::2] > 0, f_BG[:, ::2] > 0
    assert child_BP.any() and not (child_BP & ~parent_BP).any()
    assert families.l0 == pytest.approx(4 * (0.3 + 0.15))
    batch_BD = next(families.batches(7, seed=4))
    assert torch.equal(batch_BD, families.sample(7, generator=generator(4))[0])


def test_pairs_of_an_odd_number_are_refused():
    with pytest.raises(Refusal, match="even"):
        toy.PlantedPairs(torch.eye(3), 0.1, 0.5, 0.1)
    with pytest.raises(Refusal, match="given"):
        toy.PlantedPairs(torch.eye(4), 0.1, 1.5, 0.1)
