"""What the learner writes in lesson 09 equals what the library does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from taught import taught
from torch import nn

from saelearn import steer
from saelearn.sae import SAE


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    return taught("09", nn=nn, STRENGTH=1.0, tiny=type("tiny", (), {"SITE": ""}), FIRST=range(1, 9))


@pytest.fixture
def sae():
    sae = SAE(12, 30, decoder_init_norm=1.7, seed=1).requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    sae.W_enc.data += 0.1 * torch.randn(12, 30, generator=generator)
    sae.b_dec.data = torch.randn(12, generator=generator)
    return sae


@pytest.fixture
def x_BTD():
    return 3 * torch.randn(4, 7, 12, generator=torch.Generator().manual_seed(3)) + 1


def test_push_is_add_at_every_position(lesson, x_BTD):
    direction_D = torch.randn(12, generator=torch.Generator().manual_seed(4))
    everywhere = steer.add(direction_D, 2.5, positions=range(7))
    expected = everywhere(x_BTD, torch.arange(7))
    torch.testing.assert_close(lesson["push"](x_BTD, direction_D, 2.5), expected)


def test_the_unit(lesson, x_BTD):
    x_ND = x_BTD.flatten(0, 1)
    assert float(lesson["typical_norm"](x_ND)) == pytest.approx(steer.typical_norm(x_ND))


def test_decoder_direction_is_the_decoder_row(lesson, sae):
    decoder = nn.Linear(30, 12)
    decoder.weight.data = sae.W_dec.T.clone()
    torch.testing.assert_close(lesson["decoder_direction"](decoder, 17).detach(), sae.W_dec[17])


@pytest.mark.parametrize("value", [0.0, 4.0])
def test_clamp(lesson, sae, x_BTD, value):
    x_BD = x_BTD.flatten(0, 1)
    edit = steer.clamp(sae, 5, value, positions=range(7))
    expected = edit(x_BTD, torch.arange(7)).flatten(0, 1)
    torch.testing.assert_close(lesson["clamp"](x_BD, sae, 5, value), expected)


def test_choose_is_what_the_lesson_then_does(lesson):
    generator = torch.Generator().manual_seed(5)
    rate_FS, validity_FS = torch.rand(2, 6, 3, generator=generator)
    scores = [sum(r * v for r, v in zip(*row, strict=True)) for row in zip(
        rate_FS.tolist(), validity_FS.tolist(), strict=True)]  # fmt: skip
    assert lesson["choose"](rate_FS, validity_FS) == scores.index(max(scores))
