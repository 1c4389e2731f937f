"""Sparse coding against closed forms, optimality conditions and scikit-learn.

scikit-learn halves the squared error, we don't: its alpha is our l1_coefficient / 2. Its Lasso
also divides the error by the number of entries of a row, D: there alpha is l1_coefficient / (2 D).
"""

from __future__ import annotations

import math
from itertools import islice

import pytest
import torch
from sklearn.decomposition import sparse_encode
from sklearn.linear_model import Lasso

from saelearn import metrics, toy
from saelearn.errors import Refusal
from saelearn.plots import patches
from saelearn.toy import sparse_coding

L1 = 0.1


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def unit(W: torch.Tensor) -> torch.Tensor:
    return W / W.norm(dim=1, keepdim=True)


@pytest.fixture(scope="module")
def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Observations, dictionary and planted codes, in double precision."""
    planted = toy.PlantedFeatures.make(seed=5)
    x_BD, f_BF = planted.sample(40, generator=torch.Generator().manual_seed(6))
    return x_BD.double(), planted.directions_GD.double(), f_BF.double()


@pytest.mark.parametrize("nonnegative", [False, True])
def test_soft_threshold_is_the_cheapest_number(nonnegative):
    z_Z = torch.linspace(-3, 3, 60_001, dtype=torch.double)
    z_Z = z_Z[z_Z >= 0] if nonnegative else z_Z
    for a in (-2.0, -0.3, 0.0, 0.1, 0.7, 2.5):
        for t in (0.0, 0.25, 0.6):
            cheapest = z_Z[((a - z_Z).square() + 2 * t * z_Z.abs()).argmin()]
            ours = sparse_coding.soft_threshold(torch.tensor(a), t, nonnegative=nonnegative)
            assert ours.item() == pytest.approx(cheapest.item(), abs=1e-4)


@pytest.mark.parametrize("solver", [sparse_coding.ista, sparse_coding.fista])
def test_at_right_angles_one_step_is_the_answer(solver):
    """For orthonormal atoms the closed form is soft(x W^T, l1 / 2)."""
    W_DD = torch.linalg.qr(draw(8, 8)).Q
    x_BD = draw(20, 8, seed=1)
    right_BD = torch.nn.functional.softshrink(x_BD @ W_DD.T, 0.3)
    torch.testing.assert_close(solver(x_BD, W_DD, 0.6, steps=1), right_BD)
    torch.testing.assert_close(solver(x_BD, W_DD, 0.6, steps=50), right_BD)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize(("solver", "steps"), [("ista", 6_000), ("fista", 2_000)])
def test_optimality_conditions(problem, solver, steps, nonnegative):
    """2 r W^T = l1 * sign(f) where f is not 0, and at most l1 in size (or at all) where it is."""
    x_BD, W_FD, _ = problem
    solve = getattr(sparse_coding, solver)
    f_BF = solve(x_BD, W_FD, L1, steps=steps, nonnegative=nonnegative)
    pull_BF = 2 * (x_BD - f_BF @ W_FD) @ W_FD.T
    on_BF = f_BF != 0
    assert 0.02 < on_BF.double().mean() < 0.2
    torch.testing.assert_close(pull_BF[on_BF], L1 * f_BF[on_BF].sign(), atol=1e-5, rtol=0)
    off = pull_BF[~on_BF]
    assert (off if nonnegative else off.abs()).max() <= L1 + 1e-5
    if nonnegative:
        assert (f_BF >= 0).all()
        assert (off < -L1).any()  # the side on which only f >= 0 keeps them at 0


@pytest.mark.parametrize("positive", [False, True])
def test_scikit_learns_sparse_encode_finds_the_same(problem, positive):
    x_BD, W_FD, _ = problem
    theirs = sparse_encode(
        x_BD.numpy(), W_FD.numpy(), algorithm="lasso_cd", alpha=L1 / 2, max_iter=20_000,
        positive=positive,
    )  # fmt: skip
    ours = sparse_coding.fista(x_BD, W_FD, L1, steps=2_000, nonnegative=positive)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=2e-3, rtol=0)
    cost = [
        sparse_coding.objective(x_BD, f, W_FD, L1).mean().item()
        for f in (ours, torch.from_numpy(theirs))
    ]
    assert cost[0] == pytest.approx(cost[1], rel=1e-5)


def test_scikit_learns_lasso_finds_the_same(problem):
    x_BD, W_FD, _ = problem
    lasso = Lasso(alpha=L1 / (2 * 32), fit_intercept=False, tol=1e-10, max_iter=50_000)
    lasso.fit(W_FD.T.numpy(), x_BD[:5].T.numpy())
    ours = sparse_coding.fista(x_BD[:5], W_FD, L1, steps=3_000)
    torch.testing.assert_close(ours, torch.from_numpy(lasso.coef_), atol=1e-4, rtol=0)


def test_objective_by_hand():
    x_BD, f_BF = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]])
    W_FD = torch.eye(2)
    assert sparse_coding.objective(x_BD, f_BF, W_FD, 0.2).item() == pytest.approx(
        0.5**2 + 3**2 + 0.2 * 1.5
    )


def test_curvature_is_the_largest_eigenvalue():
    W_FD = draw(9, 4)
    assert sparse_coding.curvature(W_FD) == pytest.approx(
        torch.linalg.eigvalsh(W_FD @ W_FD.T)[-1].item()
    )


@pytest.mark.parametrize("accelerate", [False, True])
def test_excess_stays_below_the_bound_at_every_iteration(problem, accelerate):
    x_BD, W_FD, _ = problem
    best_BF = sparse_coding.fista(x_BD, W_FD, L1, steps=5_000)
    best_B = sparse_coding.objective(x_BD, best_BF, W_FD, L1)
    reach_B = sparse_coding.curvature(W_FD) * best_BF.square().sum(1)
    steps = sparse_coding.ista_steps(x_BD, W_FD, L1, accelerate=accelerate)
    last_B = torch.full((len(x_BD),), math.inf, dtype=torch.double)
    for k, f_BF in enumerate(islice(steps, 300), start=1):
        cost_B = sparse_coding.objective(x_BD, f_BF, W_FD, L1)
        bound_B = 4 * reach_B / (k + 1) ** 2 if accelerate else reach_B / k
        assert (cost_B - best_B <= bound_B + 1e-9).all()
        if not accelerate:
            assert (cost_B <= last_B + 1e-12).all()
        last_B = cost_B


def test_fista_needs_fewer_steps(problem):
    x_BD, W_FD, _ = problem
    best = sparse_coding.objective(
        x_BD, sparse_coding.fista(x_BD, W_FD, L1, steps=3_000), W_FD, L1
    ).mean()
    needed = []
    for accelerate in (False, True):
        steps = sparse_coding.ista_steps(x_BD, W_FD, L1, accelerate=accelerate)
        costs = (sparse_coding.objective(x_BD, f, W_FD, L1).mean() for f in steps)
        needed.append(next(k for k, cost in enumerate(costs, start=1) if cost < 1.001 * best))
    assert needed[1] < needed[0] / 2.5


def test_an_ista_step_is_a_gradient_step_and_a_threshold():
    x_BD, W_FD = draw(5, 3), unit(draw(6, 3, seed=1))
    f_BF = draw(5, 6, seed=2).requires_grad_()
    (gradient_BF,) = torch.autograd.grad((x_BD - f_BF @ W_FD).square().sum(), f_BF)
    right_BF = torch.nn.functional.softshrink(f_BF.detach() - gradient_BF / (2 * 3.0), 0.4 / 6.0)
    ours_BF = sparse_coding.ista_step(x_BD, f_BF.detach(), W_FD, 0.4, 3.0)
    torch.testing.assert_close(ours_BF, right_BF)


def test_the_first_step_is_an_encoder(problem):
    x_BD, W_FD, _ = problem
    W_enc_DF, b_enc_F = sparse_coding.one_step_encoder(W_FD, L1)
    first_BF = sparse_coding.ista(x_BD, W_FD, L1, steps=1, nonnegative=True)
    torch.testing.assert_close(torch.relu(x_BD @ W_enc_DF + b_enc_F), first_BF)


def test_a_fitted_encoder_is_between_one_step_and_the_minimum():
    planted = toy.PlantedFeatures.make(seed=1)
    W_FD = planted.directions_GD
    W_enc_DF, b_enc_F = sparse_coding.fit_encoder(planted.batches(256), W_FD, L1, steps=400)
    x_BD, _ = planted.sample(500, generator=torch.Generator().manual_seed(3))
    codes = [
        sparse_coding.ista(x_BD, W_FD, L1, steps=1, nonnegative=True),
        torch.relu(x_BD @ W_enc_DF + b_enc_F),
        sparse_coding.fista(x_BD, W_FD, L1, steps=300, nonnegative=True),
    ]
    first, fitted, best = (sparse_coding.objective(x_BD, f, W_FD, L1).mean() for f in codes)
    assert 1.2 * best < fitted < 0.6 * first


def test_at_right_angles_there_is_no_gap():
    """One pass is then exact, and the fitted encoder stays at the closed form."""
    W_FD = torch.linalg.qr(draw(6, 6)).Q.float()
    f_BF = toy.sample_features(4_000, 6, 0.3, generator=torch.Generator().manual_seed(0))
    batches = (f_BF[torch.arange(i, i + 200) % 4_000] @ W_FD for i in range(0, 40_000, 200))
    W_enc_DF, b_enc_F = sparse_coding.fit_encoder(batches, W_FD, 0.2, steps=200)
    fitted_BF = torch.relu(f_BF @ W_FD @ W_enc_DF + b_enc_F)
    torch.testing.assert_close(fitted_BF, torch.relu(f_BF - 0.1), atol=0.02, rtol=0)


def test_the_dictionary_step_is_a_gradient_step_at_each_atoms_own_pace():
    W_FD, x_BD, f_BF = unit(draw(4, 3)).requires_grad_(), draw(9, 3, seed=1), draw(9, 4, seed=2)
    (gradient_FD,) = torch.autograd.grad((x_BD - f_BF @ W_FD).square().sum(), W_FD)
    right_FD = unit(W_FD - 0.3 * gradient_FD / (2 * f_BF.square().sum(0)[:, None])).detach()
    ours_FD = sparse_coding.dictionary_step(W_FD.detach(), x_BD, f_BF, rate=0.3)
    torch.testing.assert_close(ours_FD, right_FD)


def test_an_atom_alone_moves_to_its_best_place():
    x_BD, f_B1 = draw(9, 3), draw(9, 1, seed=1)
    best_1D = unit(torch.linalg.lstsq(f_B1, x_BD).solution)
    ours_1D = sparse_coding.dictionary_step(unit(draw(1, 3, seed=2)), x_BD, f_B1)
    torch.testing.assert_close(ours_1D, best_1D)


def test_an_unused_atom_stays():
    W_FD, f_BF = unit(draw(3, 4)), draw(5, 3, seed=1)
    f_BF[:, 1] = 0
    ours_FD = sparse_coding.dictionary_step(W_FD, draw(5, 4, seed=2), f_BF)
    torch.testing.assert_close(ours_FD[1], W_FD[1])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_dictionary_is_found(seed):
    planted = toy.PlantedFeatures.make(seed=seed)
    learned = sparse_coding.learn_dictionary(
        planted.batches(500, seed=seed), 64, 0.3, steps=150, nonnegative=True, seed=seed
    )
    found = metrics.recovery(learned.W_dec, planted.directions_GD)
    assert found.n_recovered >= 58
    assert learned.history[-1] < 0.8 * learned.history[0]
    torch.testing.assert_close(learned.W_dec.norm(dim=1), torch.ones(64))


def test_learning_cannot_see_which_pixels_are_neighbours():
    """A shuffle of the columns changes nothing but the columns, if the start is shuffled too."""
    x_BD, W_FD = draw(300, 16), unit(draw(20, 16, seed=1))
    shuffle = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    f_BF, g_BF = (
        sparse_coding.fista(x, W, 0.5, steps=30)
        for x, W in ((x_BD, W_FD), (x_BD[:, shuffle], W_FD[:, shuffle]))
    )
    torch.testing.assert_close(f_BF, g_BF)
    torch.testing.assert_close(
        sparse_coding.dictionary_step(W_FD, x_BD, f_BF)[:, shuffle],
        sparse_coding.dictionary_step(W_FD[:, shuffle], x_BD[:, shuffle], g_BF),
    )


def test_photographs_are_grey_and_shrink():
    china, flower = sparse_coding.photographs()
    assert china.shape == flower.shape == (213, 320)
    assert min(china.min(), flower.min()) >= 0
    assert max(china.max(), flower.max()) <= 1
    full = sparse_coding.photographs(shrink=1)[0]
    assert china[3, 5] == pytest.approx(full[6:8, 10:12].mean().item())


def test_scrambling_keeps_the_spectrum_and_loses_the_picture():
    image_HW = sparse_coding.photographs(shrink=4)[0]
    ghost_HW = sparse_coding.phase_scrambled(image_HW, generator=torch.Generator().manual_seed(0))
    spectra = [torch.fft.fft2(i.double()).abs() for i in (image_HW, ghost_HW)]
    torch.testing.assert_close(spectra[0], spectra[1], atol=1e-2, rtol=1e-3)
    pair = torch.stack([i.flatten() for i in (image_HW, ghost_HW)])
    assert abs(torch.corrcoef(pair)[0, 1]) < 0.5


def test_patches_are_windows_without_their_mean():
    image_HW = torch.arange(30.0).reshape(5, 6)
    x_ND = sparse_coding.draw_patches(
        [image_HW, -image_HW], 2, 51, generator=torch.Generator().manual_seed(0)
    )
    assert x_ND.shape == (51, 4)
    window = torch.tensor([0.0, 1.0, 6.0, 7.0]) - 3.5
    signs = [1 if torch.allclose(x, window) else -1 for x in x_ND]
    torch.testing.assert_close(x_ND, torch.tensor(signs)[:, None] * window)
    assert signs.count(1) in (25, 26)


def test_whitening_makes_directions_equally_loud():
    mix_DD = torch.diag(torch.tensor([5.0, 1.0, 0.3])) @ torch.linalg.qr(draw(3, 3)).Q.float()
    x_ND = draw(20_000, 3, seed=1).float() @ mix_DD
    white_ND = sparse_coding.whiten(x_ND - x_ND.mean(0), floor=0.0)
    assert white_ND.square().sum(1).mean().item() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(torch.cov(white_ND.T), torch.eye(3) / 3, atol=0.01, rtol=0)
    longest, shortest = white_ND.norm(dim=1).max(), white_ND.norm(dim=1).median()
    assert longest < 2 * shortest  # x / (|x| + m) stays below 1, and is 1/2 at the median


def test_batches_repeat_with_the_seed():
    x_ND = draw(50, 2)
    a, b, c = (next(sparse_coding.random_batches(x_ND, 8, seed=s)) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert all((row == x_ND).all(1).any() for row in a)


def test_refusals(problem):
    x_BD, W_FD, _ = problem
    with pytest.raises(Refusal, match="same D"):
        sparse_coding.fista(x_BD[:, :5], W_FD, L1)
    with pytest.raises(Refusal, match="l1_coefficient"):
        sparse_coding.ista(x_BD, W_FD, -1.0)
    with pytest.raises(Refusal, match="steps"):
        sparse_coding.ista(x_BD, W_FD, L1, steps=0)
    with pytest.raises(Refusal, match="images of at least"):
        sparse_coding.draw_patches([torch.zeros(4, 4)], 5, 1, generator=torch.Generator())


def test_mosaic_puts_each_patch_in_its_place():
    W_FD = torch.zeros(5, 4)
    W_FD[3] = torch.tensor([1.0, -2.0, 0.0, 4.0])
    image = patches.mosaic(W_FD, columns=2)
    assert image.shape == (3 * 3 + 1, 2 * 3 + 1)
    assert image[4:6, 4:6].tolist() == [[0.25, -0.5], [0.0, 1.0]]
    assert math.isnan(image[3, 3])  # the line between patches
    assert math.isnan(image[8, 5])  # no sixth patch
