"""A refusal says what was expected, what came, what to do; checks refuse what they must."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelearn.errors import (
    ArtifactError,
    Refusal,
    check_activations,
    check_finite,
    check_range,
    check_width,
)


@pytest.mark.parametrize("kind", [Refusal, ArtifactError])
def test_the_message_has_three_parts(kind: type[Refusal]) -> None:
    lines = str(kind("a cat", "a dog", "ask again")).splitlines()
    assert [line.split() for line in lines] == [
        ["expected", "a", "cat"],
        ["received", "a", "dog"],
        ["try", "ask", "again"],
    ]
    assert len(str(kind("a cat", "a dog")).splitlines()) == 2


def test_refusals_are_caught_as_the_errors_they_stand_for() -> None:
    with pytest.raises(ValueError, match="a cat"):
        raise Refusal("a cat", "a dog")
    with pytest.raises(OSError, match="a cat"):
        raise ArtifactError("a cat", "a dog", "ask again")


@pytest.mark.parametrize("kind", [Refusal, ArtifactError])
def test_a_refusal_survives_the_way_from_a_worker_process(kind: type[Refusal]) -> None:
    error = kind("a cat", "a dog", "ask again")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind and str(copy) == str(error) and copy.remedy == "ask again"


GOOD = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.ones((3, 4)), ["torch.Tensor", "ndarray", "as_tensor"]),
        (GOOD[0], ["[N, D]", "(4,)", "flatten"]),
        (torch.ones(2, 3, 4), ["[N, D]", "(2, 3, 4)", "flatten"]),
        (torch.ones(3, 5), ["width 4", "(3, 5)", "site"]),
        (torch.tensor(1.0), ["width 4", "()"]),
        (torch.ones(0, 4), ["at least one row", "empty"]),
        (torch.ones(3, 4, dtype=torch.int64), ["floating", "int64", ".float()"]),
        (torch.full((3, 4), torch.nan), ["finite", "12 NaN and 0 infinite of 12"]),
        (torch.tensor([[1.0, torch.inf, -torch.inf, torch.nan]]), ["1 NaN and 2 infinite of 4"]),
    ],
)
def test_unusable_activations_are_refused(x: object, words: list[str]) -> None:
    with pytest.raises(Refusal) as caught:
        check_activations(x, 4)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_usable_activations_come_back_as_they_are(dtype: torch.dtype) -> None:
    x = GOOD.to(dtype)
    assert check_activations(x) is x
    assert check_activations(x, 4) is x


def test_width_and_finiteness_are_checked_in_any_number_of_dimensions() -> None:
    check_width(torch.ones(2, 3, 4), 4)
    check_finite(torch.ones(2, 3, 4))
    with pytest.raises(Refusal, match="features of width 5"):
        check_width(torch.ones(2, 3, 4), 5, name="features")
    with pytest.raises(Refusal, match="finite batch"):
        check_finite(torch.tensor([[[torch.nan]]]), name="batch")


@given(st.floats(), st.floats(-10, 0), st.floats(0, 10))
def test_a_range_holds_its_ends_and_nothing_outside(value: float, low: float, high: float) -> None:
    inside = not np.isnan(value) and min(max(value, low), high) == value
    if inside:
        assert check_range(value, "p", low, high) == value
    else:
        with pytest.raises(Refusal, match="p between"):
            check_range(value, "p", low, high)


@pytest.mark.parametrize("value", ["3", None, float("nan"), float("inf"), -1, torch.ones(2)])
def test_what_is_no_number_in_range_is_refused(value: object) -> None:
    with pytest.raises(Refusal, match="steps >= 1"):
        check_range(value, "steps", 1)


@pytest.mark.parametrize("value", [np.int64(3), np.float32(3), 3, 3.0])
def test_numpy_numbers_are_numbers(value: object) -> None:
    assert check_range(value, "steps", 1) == 3
