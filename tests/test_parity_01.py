"""What the learner writes in lesson 01 equals what the library does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from taught import taught

from saelearn import metrics, sae, toy, train
from saelearn.exercises import lesson01 as check
from saelearn.toy import linear

HOUSE = toy.PlantedFeatures.make(n_features=200, d_in=100, p=20 / 200)


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    return taught(
        "01", sae=sae, metrics=metrics, house=HOUSE, train=train, fresh_NG=torch.ones(1, 1)
    )


@pytest.fixture(scope="module")
def x_ND() -> torch.Tensor:
    return HOUSE.sample(500, generator=torch.Generator().manual_seed(7))[0]


@pytest.fixture(scope="module")
def model(x_ND) -> linear.LinearAutoencoder:
    model = linear.LinearAutoencoder(100, 50, seed=1)
    model.mean = x_ND.mean(0)
    return model.requires_grad_(False)


def test_encode_decode_and_loss(lesson, x_ND, model):
    h_NH = lesson["encode"](x_ND, model.W_enc, model.mean)
    torch.testing.assert_close(h_NH, model.encode(x_ND))
    x_hat_ND = lesson["decode"](h_NH, model.W_dec, model.mean)
    torch.testing.assert_close(x_hat_ND, model(x_ND))
    loss = linear.reconstruction_loss(x_ND, x_hat_ND)
    torch.testing.assert_close(lesson["reconstruction_loss"](x_ND, x_hat_ND), loss)


def test_the_loop_by_hand_is_the_librarys(lesson, x_ND):
    W_enc_DH, W_dec_HD, losses = lesson["fit"](x_ND, 10, steps=40, seed=3)
    run = linear.train_linear(x_ND, 10, steps=40, seed=3)
    torch.testing.assert_close(losses, run.losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(W_enc_DH, run.model.W_enc.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(W_dec_HD, run.model.W_dec.detach(), rtol=1e-3, atol=1e-4)


def test_one_step_is_gradient_descent_on_the_librarys_loss(lesson, x_ND, model):
    weights = [w.clone().requires_grad_() for w in (model.W_enc, model.W_dec)]
    library = linear.LinearAutoencoder(100, 50, seed=1)
    optimizer = torch.optim.SGD(library.parameters(), lr=1e-3)
    centred_ND = x_ND - x_ND.mean(0)
    for _ in range(3):
        value = lesson["one_step"](centred_ND, *weights, 1e-3)
        loss = linear.reconstruction_loss(centred_ND, library(centred_ND))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(value, loss)
    torch.testing.assert_close(weights[0], library.W_enc)
    torch.testing.assert_close(weights[1], library.W_dec)


def test_mixing_changes_the_code_and_not_the_output(lesson, x_ND, model):
    M_HH = torch.randn(50, 50, generator=torch.Generator().manual_seed(2))
    W_enc_DH, W_dec_HD = lesson["mixed"](model.W_enc, model.W_dec, M_HH)
    other = linear.LinearAutoencoder(100, 50).requires_grad_(False)
    other.mean, other.W_enc.data, other.W_dec.data = model.mean, W_enc_DH, W_dec_HD
    torch.testing.assert_close(other(x_ND), model(x_ND), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(other.encode(x_ND), model.encode(x_ND) @ M_HH)
    cosines = linear.principal_cosines(W_dec_HD, model.W_dec)
    assert cosines.min() > 0.999


def test_the_copying_machine_in_the_librarys_sae(lesson, x_ND):
    copier = sae.SAE(100, 200).requires_grad_(False)
    copier.W_enc.data, copier.W_dec.data = lesson["machine"](100)
    torch.testing.assert_close(copier(x_ND).x_hat, x_ND)


def test_the_sparse_loop_is_the_librarys_step(lesson):
    """Without decay and clipping, and with rows scaled afterwards: the same weights."""
    mine = lesson["fit_sparse"](0.4, steps=1, seed=5)
    library = sae.SAE(100, 200, decoder_init_norm=1.0, seed=5)
    optimizer = torch.optim.Adam(library.parameters(), lr=1e-2, fused=True)
    x_BD = next(HOUSE.batches(256, seed=5))
    train.step(library, x_BD, optimizer, sae.L1(0.4, decoder_norm="free"), clip_norm=float("inf"))
    library.W_dec.data /= library.W_dec.data.norm(dim=1, keepdim=True)
    for name, weights in library.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], weights, atol=1e-4, rtol=1e-3)


def test_the_sparse_loop_ends_near_the_librarys(lesson):
    x_ND, _ = HOUSE.sample(2_000, generator=torch.Generator().manual_seed(8))
    library = train.train(
        HOUSE.batches(256), 200, l1_coefficient=0.4, steps=1_000, lr=5e-3, l1_warmup=0.3,
        decoder_norm="unit_norm", normalize=False, progress=False,
    ).sae  # fmt: skip
    for model in (lesson["fit_sparse"](0.4, steps=1_000), library):
        found = metrics.recovery(model.W_dec.detach(), HOUSE.directions_GD).n_recovered
        assert found > 170
        assert metrics.l0(model.encode(x_ND)) == pytest.approx(20.5, abs=2.5)


def test_what_stands_in_for_an_open_exercise_does_the_same(lesson, x_ND, model):
    h_NH = check.encoded(x_ND, model.W_enc, model.mean)
    torch.testing.assert_close(h_NH, lesson["encode"](x_ND, model.W_enc, model.mean))
    x_hat_ND = lesson["decode"](h_NH, model.W_dec, model.mean)
    torch.testing.assert_close(check.decoded(h_NH, model.W_dec, model.mean), x_hat_ND)
    mine, theirs = ([w.clone().requires_grad_() for w in (model.W_enc, model.W_dec)] for _ in "ab")
    value = lesson["one_step"](x_ND, *mine, 0.01)
    assert check.stepped(x_ND, *theirs, 0.01) == pytest.approx(float(value.detach()), rel=1e-5)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    M_HH = torch.eye(50) + torch.ones(50, 50)
    weights = model.W_enc, model.W_dec, M_HH
    torch.testing.assert_close(check.remixed(*weights), lesson["mixed"](*weights))
    torch.testing.assert_close(check.copying_machine(5), lesson["machine"](5))
    readings_ND, truth_GD = check.house(10, 6, 1, 2.0, seed=3)
    torch.testing.assert_close(
        check.find_happenings(readings_ND, 10), lesson["find"](readings_ND, 10)
    )
    assert check.found(lesson["find"](readings_ND, 10), truth_GD) > 7
