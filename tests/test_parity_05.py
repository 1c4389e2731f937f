"""What the learner writes in lesson 05 equals what the library does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from taught import taught

from saelearn import metrics, sae, train
from saelearn.exercises import lesson05 as check
from saelearn.tiny import dial


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    return taught("05", sae=sae, metrics=metrics, P=dial.planted())


@pytest.fixture
def model() -> sae.SAE:
    model = sae.SAE(32, 128, seed=3)
    generator = torch.Generator().manual_seed(4)
    for weights in model.parameters():
        weights.data += 0.1 * torch.randn(weights.shape, generator=generator)
    return model


def test_encode_and_decode(lesson, model):
    x_ND = dial.rows()[0][:200]
    f_NF = lesson["encode"](x_ND, model.W_enc, model.b_enc, model.b_dec)
    torch.testing.assert_close(f_NF, model.encode(x_ND))
    torch.testing.assert_close(lesson["decode"](f_NF, model.W_dec, model.b_dec), model(x_ND).x_hat)


def test_loss(lesson, model):
    x_ND = dial.rows()[0][:200]
    output = model(x_ND)
    ours = sae.l1_loss(x_ND, output, model.W_dec, l1_coefficient=0.3, decoder_norm="free")
    torch.testing.assert_close(lesson["l1_loss"](x_ND, output.x_hat, output.f, 0.3), ours.total)


def test_fair_penalty_is_the_weighted_one(lesson, model):
    x_ND = dial.rows()[0][:200]
    output = model(x_ND)
    ours = sae.l1_loss(x_ND, output, model.W_dec, l1_coefficient=1.0, decoder_norm="weighted")
    torch.testing.assert_close(lesson["fair_penalty"](output.f, model.W_dec), ours.sparsity)


def test_best_activation_minimises_the_loss_of_one_feature(lesson):
    """Gradient descent on the library's loss ends at the lesson's formula."""
    for a in (0.05, 0.3, 0.9):
        z = torch.tensor([[0.5]], requires_grad=True)
        for _ in range(200):
            output = sae.SAEOutput(z, z)
            loss = sae.l1_loss(torch.tensor([[a]]), output, torch.ones(1, 1), l1_coefficient=0.3)
            (gradient,) = torch.autograd.grad(loss.total, z)
            z = (z - 0.1 * gradient).clamp(min=0).detach().requires_grad_()
        assert z.item() == pytest.approx(
            float(lesson["best_activation"](torch.tensor(a), 0.3)), abs=1e-5
        )


def test_what_stands_in_for_an_open_exercise_is_the_lessons_solution(lesson):
    """With stubs the lesson goes on with these, and its outputs stay the same."""
    a_A = torch.linspace(-1, 1, 9)
    torch.testing.assert_close(check.shortened(a_A, 0.3), lesson["best_activation"](a_A, 0.3))
    f_BF, W_dec_FD = torch.rand(5, 3), torch.randn(3, 4)
    fair = lesson["fair_penalty"](f_BF, W_dec_FD)
    torch.testing.assert_close(check.weighted(f_BF, W_dec_FD), fair)
    choose = lesson["choose"], check.elbow
    assert check.scores(choose[0], dial.load_sweep()) == check.scores(choose[1], dial.load_sweep())


def test_the_loop_by_hand_is_the_librarys_step(lesson):
    """Rows free and gradients not clipped: the same weights, step for step."""
    mine, _ = lesson["fit"](lesson["l1_loss"], 0.3, steps=20, free=True)
    library = sae.SAE(32, 128, decoder_init_norm=1.0, seed=1)
    optimizer = torch.optim.Adam(library.parameters(), lr=5e-3, fused=True)
    batches = dial.planted().batches(256)
    for _ in range(20):
        train.step(
            library,
            next(batches),
            optimizer,
            sae.L1(0.3, decoder_norm="free"),
            clip_norm=float("inf"),
        )
    for name, weights in library.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], weights, atol=1e-4, rtol=1e-3)


def test_training_by_hand_ends_near_the_librarys(lesson):
    """With rows at length 1 the library also projects the gradient and clips it."""
    mine, _ = lesson["fit"](lesson["l1_loss"], 0.3, steps=600)
    library = train.train(
        dial.planted().batches(256), 128, l1_coefficient=0.3, steps=600, lr=5e-3, lr_warmup=0,
        lr_decay=0, l1_warmup=0, seed=1, center="zero", decoder_norm="unit_norm", normalize=False,
        progress=False,
    ).sae  # fmt: skip
    by_hand, ours = dial.measure(mine, 0.3).numbers, dial.measure(library, 0.3).numbers
    assert by_hand.n_recovered == pytest.approx(ours.n_recovered, abs=8)
    assert by_hand.gamma == pytest.approx(ours.gamma, abs=0.05)
    assert by_hand.unexplained == pytest.approx(ours.unexplained, abs=0.05)
