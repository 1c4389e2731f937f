"""What the learner writes in lesson 04 equals what the library does."""

from __future__ import annotations

import copy
from itertools import islice
from typing import Any

import pytest
import torch
from taught import taught
from torch import nn

from saelearn import metrics, sae, toy, train
from saelearn.exercises import lesson04 as check

PLANTED = toy.PlantedFeatures.make()


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    return taught(
        "04", nn=nn, sae=sae, metrics=metrics, P=PLANTED, train=train, check=check, islice=islice
    )


@pytest.fixture
def rows() -> torch.Tensor:
    return PLANTED.sample(300, generator=torch.Generator().manual_seed(7))[0]


@pytest.fixture
def model() -> sae.SAE:
    """An SAE with nothing in it zero, nor of a special length."""
    model = sae.SAE(32, 48, decoder_init_norm=1.0, seed=3)
    generator = torch.Generator().manual_seed(4)
    for weights in model.parameters():
        weights.data += 0.1 * torch.randn(weights.shape, generator=generator)
    return model


@pytest.fixture
def tied(model) -> sae.SAE:
    """The library's SAE with its weights tied and no b_dec."""
    model.W_enc.data, model.b_dec.data = model.W_dec.data.T.clone(), torch.zeros(32)
    return model


def test_the_tied_form_is_an_sae_whose_encoder_is_its_decoder(lesson, tied, rows):
    c_BF, x_hat_BD = lesson["tied"](rows, tied.W_dec, tied.b_enc)
    torch.testing.assert_close(c_BF, tied(rows).f)
    torch.testing.assert_close(x_hat_BD, tied(rows).x_hat)
    as_class = lesson["Tied"](tied.W_dec.data)
    as_class.b.data = tied.b_enc.data
    torch.testing.assert_close(as_class(rows), tied(rows))


def test_both_losses_are_the_librarys(lesson, tied, rows):
    output = tied(rows)
    ours = sae.l1_loss(rows, output, tied.W_dec, l1_coefficient=0.3, decoder_norm="unit_norm")
    for value in (
        lesson["loss"](rows, output.x_hat, output.f, 0.3),
        lesson["our_loss"](rows, output.x_hat, output.f, 0.3),
        lesson["l1"](tied, rows),
    ):
        torch.testing.assert_close(value, ours.total)


def test_two_linear_layers_translate_into_the_librarys_sae(lesson, model, rows):
    linear = lesson["TwoLinear"](32, 48)
    weights = lesson["translate"](linear.encoder, linear.decoder)
    for name, value in zip(("W_enc", "b_enc", "W_dec", "b_dec"), weights, strict=True):
        getattr(model, name).data = value.detach().clone()
    torch.testing.assert_close(model(rows), linear(rows), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(linear.W_dec, model.W_dec)


def test_the_loop_by_hand_is_the_librarys_step(lesson):
    """Rows left free of the projection and the clipping: compared while they are small."""
    start = sae.SAE(32, 48, decoder_init_norm=1.0, seed=1)
    mine = lesson["fit"](copy.deepcopy(start), lesson["l1"], steps=20, seed=5)
    optimizer = torch.optim.Adam(start.parameters(), lr=3e-3)
    batches = PLANTED.batches(256, seed=5)
    for _ in range(20):
        free = sae.L1(0.3, decoder_norm="free")
        train.step(start, next(batches), optimizer, free, clip_norm=float("inf"))
        start.W_dec.data /= start.W_dec.data.norm(dim=1, keepdim=True)
    for name, weights in start.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], weights, atol=1e-4, rtol=1e-3)


def test_one_step_is_the_loops(lesson):
    start = sae.SAE(32, 48, decoder_init_norm=1.0, seed=1)
    mine, loops = lesson["Tied"](start.W_dec.data), lesson["Tied"](start.W_dec.data)
    lesson["fit"](loops, lesson["l1"], steps=3, seed=5)
    optimizer, batches = torch.optim.Adam(mine.parameters(), lr=3e-3), PLANTED.batches(256, seed=5)
    for _ in range(3):
        lesson["train_step"](mine.W_dec, mine.b, optimizer, next(batches), 0.3)
    for name, weights in loops.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], weights)


def test_training_by_hand_ends_near_the_librarys(lesson, rows):
    by_hand = lesson["fit"](sae.SAE(32, 128, decoder_init_norm=1.0, seed=1), lesson["l1"], seed=2)
    library = train.train(
        PLANTED.batches(256, seed=2), 128, l1_coefficient=0.3, steps=1_500, lr=3e-3, seed=1,
        decoder_norm="unit_norm", normalize=False, center="zero", progress=False,
    ).sae  # fmt: skip
    for model in (by_hand, library):
        assert metrics.recovery(model.W_dec, PLANTED.directions_GD).n_recovered >= 62
    losses = [float(lesson["l1"](model, rows).detach()) for model in (by_hand, library)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_ingredients_add_up_to_the_reconstruction(lesson, model, rows):
    output = model(rows[:1])
    which_K, parts_KD = lesson["ingredients"](output.f[0], model.W_dec, 48)
    assert sorted(which_K.tolist()) == list(range(48))
    torch.testing.assert_close(parts_KD.sum(0) + model.b_dec, output.x_hat[0])


def test_interference_of_orthogonal_features_is_zero(lesson):
    """Right angles: nothing is overheard; two features at 60 degrees: half of the other's."""
    strengths_NG = torch.rand(5_000, 2, generator=torch.Generator().manual_seed(1))
    measure = lesson["interference"]
    for second, expected in (
        (torch.tensor([0.0, 1.0]), 0.0),
        (torch.tensor([0.5, 0.75**0.5]), 0.5),
    ):
        directions_GD = torch.stack([torch.tensor([1.0, 0.0]), second])
        lesson["x_ND"] = strengths_NG @ directions_GD
        noise_G = measure(directions_GD, directions_GD, strengths_NG)
        torch.testing.assert_close(
            noise_G, expected * strengths_NG.std(0).flip(0), atol=1e-5, rtol=1e-4
        )


def test_the_lessons_choice_of_rows_is_the_stand_ins(lesson):
    draw = torch.Generator().manual_seed(11)
    rows_FD, other_KD = torch.randn(50, 6, generator=draw), torch.randn(40, 6, generator=draw)
    chosen_F = lesson["real_rows"](rows_FD, other_KD)
    assert 3 < chosen_F.sum() < 50
    assert torch.equal(chosen_F, check.shared_once(rows_FD, other_KD))


def test_the_score_of_rows_is_f1():
    true_GD = torch.eye(4)
    rows_FD = torch.eye(4)[[0, 0, 1, 2]] * 3
    rows_FD[3] = 1.0  # between all
    for taken, expected in (
        ([1, 0, 1, 0], 2 * 2 / (2 + 4)),  # precision 1, recall 1/2
        ([1, 1, 1, 1], 2 * 2 / (4 + 4)),  # the copy and the spare row cost
        ([0, 0, 0, 1], 0),
    ):
        assert check.score(torch.tensor(taken) > 0, rows_FD, true_GD) == pytest.approx(expected)


def test_what_stands_in_for_an_open_exercise_is_what_the_lesson_writes(lesson, rows):
    draw = torch.Generator().manual_seed(12)
    M_FD, b_F = torch.randn(48, 32, generator=draw) / 6, 0.1 * torch.randn(48, generator=draw)
    torch.testing.assert_close(check.coded(rows, M_FD, b_F), lesson["tied"](rows, M_FD, b_F))
    linear = lesson["TwoLinear"](32, 48)
    layers = linear.encoder, linear.decoder
    torch.testing.assert_close(check.translated(*layers), lesson["translate"](*layers))
    f_F = torch.rand(48, generator=draw)
    for ours, theirs in zip(
        check.strongest(f_F, M_FD, 5), lesson["ingredients"](f_F, M_FD, 5), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    stepped = []
    for step in (check.stepped, lesson["train_step"]):
        weights = [given.clone().requires_grad_() for given in (M_FD, b_F)]
        optimizer = torch.optim.Adam(weights, lr=3e-3)
        values = [step(*weights, optimizer, rows, 0.3) for _ in range(3)]
        stepped.append([*weights, torch.stack(values)])
    torch.testing.assert_close(*stepped)
