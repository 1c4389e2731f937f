"""What the learner writes in lesson 10 equals what the library does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from taught import taught

from saelearn import features, metrics


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    return taught("10", metrics=metrics)


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_nearest_is_the_least_distance(lesson):
    x_ND, rows_FD = 1 + randn(0, 300, 7), 1 + 2 * randn(1, 40, 7)
    assert torch.equal(lesson["nearest"](x_ND, rows_FD), torch.cdist(x_ND, rows_FD).argmin(1))
    assert torch.equal(lesson["look_up"](x_ND, rows_FD), lesson["nearest"](x_ND, rows_FD))


def test_explained_variance_is_the_librarys_and_what_was_published_is_not(lesson):
    x_ND = 2 + randn(2, 500, 6)
    x_hat_ND = x_ND + 0.3 * randn(3, 500, 6)
    expected = metrics.explained_variance(x_ND, x_hat_ND)
    assert lesson["explained_variance"](x_ND, x_hat_ND) == pytest.approx(expected, rel=1e-5)
    assert lesson["published"](10 * x_ND, 10 * x_hat_ND) > 1
    centred_ND, small = x_ND - x_ND.mean(0), 1e-3
    right = metrics.explained_variance(centred_ND, x_hat_ND - x_ND.mean(0))
    got = lesson["published"](small * centred_ND, small * (x_hat_ND - x_ND.mean(0)))
    assert got == pytest.approx(right, rel=1e-3)  # where it was plausible


def test_most_telling_is_what_the_sparse_probe_reads(lesson):
    f_NF, holds_N = randn(4, 400, 30).relu(), randn(5, 400) > 0.8
    f_NF[holds_N] *= torch.linspace(0.2, 3, 30)
    ours = lesson["most_telling"](f_NF[:200], holds_N[:200], 5)
    (librarys,) = features.most_telling(f_NF, holds_N[:, None], 5)
    assert ours.tolist() == librarys.tolist()


def test_absorbed_is_the_lessons_own_stand_in(lesson):
    f_NF, holds_N = randn(6, 500, 8).relu(), randn(7, 500) > 0
    given = (f_NF, 3, holds_N, randn(8, 8), 0.2 + randn(9, 500).abs())
    ours_N = lesson["absorbed"](*given)
    assert torch.equal(ours_N, lesson["librarys_absorbed"](*given))
    assert 0 < ours_N.sum() < holds_N.sum()


def test_the_f1_of_stored_rows_is_best_f1_of_their_columns(lesson):
    ids_N, labels_NC = (randn(10, 2_000).abs() * 4).long(), randn(11, 2_000, 3) > 0.5
    labels_NC[:, 0] = (ids_N == 2) | (randn(12, 2_000) > 2)
    n_rows = int(ids_N.max()) + 1
    one_hot_NF = torch.nn.functional.one_hot(ids_N, n_rows).float()
    expected = metrics.best_f1(one_hot_NF, labels_NC, n_thresholds=60).f1_C.mean()
    lesson["labels_NC"] = labels_NC
    assert float(lesson["f1_of"](ids_N, n_rows)) == pytest.approx(float(expected), abs=0.02)
