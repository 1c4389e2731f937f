"""Slopes against finite differences, readings against the model's own edits."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from saelearn.activations import readings, slopes
from saelearn.errors import Refusal


@pytest.fixture(params=tiny_models.FAMILIES)
def lm(request):
    return tiny_models.make(request.param)


def sites(lm):
    first, *_, last = lm.residual_sites()
    return first, last


def test_readings_are_what_the_changed_model_shows(lm):
    tokens_T, (source, reader) = tiny_models.some_tokens(1)[0], sites(lm)
    changes_SD, at_S = torch.randn(3, 16), torch.tensor([2, 2, 5])
    changes_SD[1] = 0
    found_SO = readings(lm, tokens_T, source, reader, changes_SD, at_S, 6)
    usual_O = lm.capture(tokens_T[None], [reader])[reader][0, 6]
    torch.testing.assert_close(found_SO[1], usual_O)
    for change_D, at, found_O in zip(changes_SD, at_S, found_SO, strict=True):

        def edit(x_BTD, positions_T, change_D=change_D, at=at):
            y_BTD = x_BTD.clone()
            y_BTD[:, at] += change_D
            return y_BTD

        with lm.editing({source: edit}):
            expected_O = lm.capture(tokens_T[None], [reader])[reader][0, 6]
        torch.testing.assert_close(found_O, expected_O)
    later_SO = readings(lm, tokens_T, source, reader, changes_SD, torch.full((3,), 8), 6)
    torch.testing.assert_close(later_SO, usual_O.expand(3, -1))  # nothing reaches back


def test_slopes_are_the_limit_of_small_changes(lm):
    lm.model.double()
    tokens_T, (source, reader) = tiny_models.some_tokens(1)[0], sites(lm)
    directions_JO = torch.randn(2, 16, dtype=torch.double)
    slope_JTD = slopes(lm, tokens_T, source, reader, directions_JO, 6)
    assert slope_JTD.shape == (2, 10, 16) and not slope_JTD[:, 7:].any()
    step_D, small = torch.randn(16, dtype=torch.double), 1e-3  # some norms compute in fp32
    for t in (1, 6):
        given = torch.stack([small * step_D, -small * step_D])
        up_O, down_O = readings(lm, tokens_T, source, reader, given, torch.tensor([t, t]), 6)
        measured_J = directions_JO @ (up_O - down_O) / (2 * small)
        torch.testing.assert_close(slope_JTD[:, t] @ step_D, measured_J, rtol=0.02, atol=2e-3)


def test_a_reader_before_the_source_is_refused(lm):
    source, reader = sites(lm)
    with pytest.raises(Refusal, match="behind the source"):
        slopes(lm, tiny_models.some_tokens(1)[0], reader, source, torch.randn(1, 16), 3)
