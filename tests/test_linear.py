"""The linear autoencoder and PCA, against closed forms and other implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.decomposition import PCA as ReferencePCA

from saelearn.errors import Refusal
from saelearn.toy import linear


@pytest.fixture(scope="module")
def x_ND() -> torch.Tensor:
    """Rows with a mean, and with variances that tell six directions apart."""
    generator = torch.Generator().manual_seed(0)
    turn_DD = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    spread_D = torch.tensor([3.0, 2.0, 1.5, 0.8, 0.4, 0.2])
    return torch.randn(300, 6, generator=generator) * spread_D @ turn_DD + torch.arange(6.0)


def test_pca_is_that_of_another_library(x_ND):
    ours, theirs = linear.pca(x_ND), ReferencePCA().fit(x_ND.double().numpy())
    torch.testing.assert_close(ours.mean_D, x_ND.mean(0))
    agreement_D = (ours.components_DD.numpy() * theirs.components_).sum(1)
    np.testing.assert_allclose(np.abs(agreement_D), 1, atol=1e-4)
    variance_D = theirs.explained_variance_ * 299 / 300  # theirs divides by n - 1
    np.testing.assert_allclose(ours.variance_D, variance_D, rtol=1e-4)


def test_pca_loss_is_that_of_its_reconstruction(x_ND):
    pca = linear.pca(x_ND)
    for n in (0, 2, 6):
        kept_HD, centred_ND = pca.components_DD[:n], x_ND - pca.mean_D
        x_hat_ND = centred_ND @ kept_HD.T @ kept_HD + pca.mean_D
        loss = linear.reconstruction_loss(x_ND, x_hat_ND).item()
        assert pca.loss(n) == pytest.approx(loss, rel=1e-4, abs=1e-5)


def test_loss_by_hand():
    x, x_hat = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    assert linear.reconstruction_loss(x, x_hat).item() == (1 + 4 + 4) / 2


@pytest.mark.parametrize("seed", range(3))
def test_training_ends_at_pca(x_ND, seed):
    run, pca = linear.train_linear(x_ND, 3, steps=600, seed=seed), linear.pca(x_ND)
    with torch.no_grad():
        loss = linear.reconstruction_loss(x_ND, run.model(x_ND)).item()
    assert loss == pytest.approx(pca.loss(3), rel=1e-3)
    assert run.losses[0] > 2 * run.losses[-1]
    cosines = linear.principal_cosines(run.model.W_dec, pca.components_DD[:3])
    assert cosines.min() > 0.999


def test_training_depends_on_the_seed_alone(x_ND):
    first, again, other = (linear.train_linear(x_ND, 2, steps=5, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.model.W_enc, again.model.W_enc)
    assert not torch.equal(first.model.W_enc, other.model.W_enc)


def test_model_is_two_products(x_ND):
    model = linear.LinearAutoencoder(6, 2, seed=4)
    model.mean = x_ND.mean(0)
    h_NH = model.encode(x_ND)
    assert h_NH.shape == (300, 2)
    torch.testing.assert_close(h_NH, (x_ND - x_ND.mean(0)) @ model.W_enc)
    torch.testing.assert_close(model(x_ND), h_NH @ model.W_dec + x_ND.mean(0))


def test_principal_cosines_of_two_lines_and_two_planes():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 2.0]])
    assert linear.principal_cosines(a, b).item() == pytest.approx(math.cos(math.pi / 4))
    e = torch.eye(4)
    half = (e[1] + e[2]) / 2
    cosines = linear.principal_cosines(e[:2], torch.stack([3 * e[0] - e[3] * 0, half]))
    torch.testing.assert_close(cosines, torch.tensor([1.0, 0.5**0.5], dtype=torch.double))


def test_principal_cosines_against_scipy():
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 4, 9, generator=generator)
    angles = scipy.linalg.subspace_angles(a.T.numpy(), b.T.numpy())[::-1]
    ours = linear.principal_cosines(a, b)
    np.testing.assert_allclose(ours, np.cos(angles), atol=1e-5)
    mixed = torch.randn(4, 4, generator=generator) @ a
    assert linear.principal_cosines(a, mixed).min() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: linear.LinearAutoencoder(0, 3),
        lambda: linear.LinearAutoencoder(4, 2).encode(torch.zeros(2, 5)),
        lambda: linear.LinearAutoencoder(4, 2).decode(torch.zeros(2, 4)),
        lambda: linear.train_linear(torch.zeros(0, 4), 2),
        lambda: linear.train_linear(torch.randn(9, 4), 2, steps=0),
        lambda: linear.pca(torch.randn(3, 4)),
        lambda: linear.pca(torch.full((9, 2), float("nan"))),
        lambda: linear.pca(torch.randn(9, 4)).loss(5),
        lambda: linear.principal_cosines(torch.zeros(2, 3), torch.zeros(2, 4)),
    ],
)
def test_what_cannot_be_used_is_refused(call):
    with pytest.raises(Refusal):
        call()
