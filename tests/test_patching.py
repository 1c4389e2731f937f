"""Patches against what they must equal: another text, another text's end, nothing at all."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from saelearn.activations import patch_map, swap


def last(logits_BTV: torch.Tensor) -> torch.Tensor:
    return (logits_BTV[:, -1, 3] - logits_BTV[:, -1, 5]).mean()


@pytest.fixture(params=tiny_models.FAMILIES)
def lm(request):
    return tiny_models.make(request.param)


def test_a_patch_of_the_embedding_is_another_word(lm):
    donor_BT, into_BT = tiny_models.some_tokens(4)[:2], tiny_models.some_tokens(4)[2:]
    first = lm.residual_sites()[0].replace(":out", ":in")
    for t, measured in enumerate(patch_map(lm, donor_BT, into_BT, [first], last)[0]):
        mixed_BT = into_BT.clone()
        mixed_BT[:, t] = donor_BT[:, t]
        torch.testing.assert_close(measured, last(lm.logits(mixed_BT)))


def test_the_last_vector_decides_alone(lm):
    donor_BT, into_BT = tiny_models.some_tokens(4)[:2], tiny_models.some_tokens(4)[2:]
    measured_T = patch_map(lm, donor_BT, into_BT, lm.residual_sites()[-1:], last)[0]
    torch.testing.assert_close(measured_T[-1], last(lm.logits(donor_BT)))
    torch.testing.assert_close(measured_T[:-1], last(lm.logits(into_BT)).expand(9))


def test_a_text_patched_with_itself_is_itself(lm):
    tokens_BT = tiny_models.some_tokens(2)
    measured_LT = patch_map(lm, tokens_BT, tokens_BT, lm.residual_sites(), last)
    assert torch.equal(measured_LT, last(lm.logits(tokens_BT)).expand(3, 10))


def test_swap_is_a_layer_more():
    first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
    model, x_BD = torch.nn.Sequential(first, second), torch.randn(3, 4)
    swapped = swap(model, first, x_BD, torch.tanh)
    torch.testing.assert_close(swapped, torch.nn.Sequential(first, torch.nn.Tanh(), second)(x_BD))
    with pytest.raises(ZeroDivisionError):
        swap(model, first, x_BD, lambda y: 1 / 0)
    assert not first._forward_hooks
