"""The L1 dial's numbers: right by closed forms, and equal to a direct training's."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise

import pytest
import torch

from saelearn import artifacts, metrics, sae
from saelearn.tiny import dial


@pytest.fixture(scope="module")
def sweep() -> dict[float, dial.DialPoint]:
    return {p.numbers.l1_coefficient: p for p in dial.load_sweep()}


def oracle(amplitude: float = 1.0, spare: int = 64) -> sae.SAE:
    """An SAE whose decoder is the planted dictionary, and whose spare features never fire."""
    model = sae.SAE(32, 64 + spare)
    with torch.no_grad():
        rows_GD = dial.planted().directions_GD * amplitude
        model.W_dec.zero_()
        model.W_dec[:64] = rows_GD
        model.W_dec[64:] = rows_GD[:1]  # as good as the first, but dead
        model.W_enc.copy_(model.W_dec.T)
        model.b_enc[:64] = -0.4
        model.b_enc[64:] = -1e6
    return model


def test_measure_knows_the_truth():
    point = dial.measure(oracle(), 0.7)
    assert point.numbers.l1_coefficient == 0.7
    assert point.numbers.n_recovered == 64
    assert point.numbers.mean_max_cosine == pytest.approx(1, abs=1e-5)
    assert point.numbers.dead == 0.5
    torch.testing.assert_close(point.cosine_GF[:, :64].diagonal(), torch.ones(64))
    assert (point.cosine_GF[:, 64:] == 0).all(), "dead features are blank"


def test_measure_agrees_with_the_metrics():
    x_ND, planted_NG = dial.rows()
    model = oracle(0.5)
    with torch.no_grad():
        output = model(x_ND)
    numbers = dial.measure(model, 0.1).numbers
    assert numbers.l0 == pytest.approx(float((output.f > 0).sum() / len(x_ND)), rel=1e-6)
    error = (x_ND - output.x_hat).square().sum() / (x_ND - x_ND.mean(0)).square().sum()
    assert numbers.unexplained == pytest.approx(float(error), rel=1e-4)
    assert numbers.gamma == metrics.shrinkage(x_ND, output.x_hat)
    assert metrics.l0(planted_NG) == pytest.approx(3, abs=0.05)


def test_a_dead_features_direction_counts_for_nothing():
    model = oracle()
    with torch.no_grad():
        model.b_enc[:] = -1e6
    numbers = dial.measure(model, 3.0).numbers
    assert (numbers.dead, numbers.l0, numbers.n_recovered) == (1.0, 0.0, 0)
    assert numbers.mean_max_cosine == 0


def test_what_features_say_is_compared_with_what_was_planted():
    point = dial.measure(oracle(), 0.1)
    assert point.planted_A.shape == point.active_A.shape
    assert (point.planted_A > 0).all()
    assert torch.corrcoef(torch.stack([point.planted_A, point.active_A]))[0, 1] > 0.7


def test_copies_of_a_feature_are_added_up():
    """Two features with one direction that share its work say together what one would say."""
    one, two = oracle(), oracle()
    with torch.no_grad():
        rows_GD = dial.planted().directions_GD
        two.W_dec[64:] = rows_GD
        two.W_enc.copy_(torch.cat([rows_GD, rows_GD]).T / 2)
        two.b_enc[:] = -0.2
    torch.testing.assert_close(dial.measure(two, 0.1).active_A, dial.measure(one, 0.1).active_A)


def test_the_order_of_the_matrix_does_not_depend_on_the_order_of_rows():
    W_dec_FD = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
    shuffled = W_dec_FD[torch.randperm(100, generator=torch.Generator().manual_seed(1))]
    directions_GD = dial.planted().directions_GD
    first = dial.matched_first(W_dec_FD, directions_GD)
    torch.testing.assert_close(first, dial.matched_first(shuffled, directions_GD))
    assert first[:, :64].diagonal().mean() > first[:, 64:].max(0).values.mean() - 0.05


def test_the_stored_sweep_is_whole(sweep):
    assert tuple(sweep) == dial.L1_COEFFICIENTS
    for point in sweep.values():
        assert point.cosine_GF.shape == (64, dial.D_SAE)
        assert point.planted_A.shape == point.active_A.shape
    size = sum(f.stat().st_size for f in artifacts.find("dial").iterdir())
    assert size < 1_000_000


def test_what_the_lesson_claims_of_the_sweep(sweep):
    """The claims of lesson 05 that need no training."""
    points = [p.numbers for p in sweep.values()]
    assert all(n.n_recovered == 64 for n in points if 0.1 <= n.l1_coefficient <= 1)
    assert sweep[0.01].numbers.n_recovered < 5
    assert sweep[0.01].numbers.mean_max_cosine < 0.85
    for a, b in pairwise(points):
        assert b.l0 < a.l0
        assert b.unexplained > a.unexplained
    for l1, gamma in ((0.1, 0.93), (0.3, 0.80), (1.0, 0.46)):
        assert sweep[l1].numbers.gamma == pytest.approx(gamma, abs=0.05)


@pytest.mark.parametrize("l1_coefficient", [0.1, 0.3, 1.0])
def test_the_dials_numbers_equal_a_direct_trainings(sweep, l1_coefficient):
    """On the machine that built them to the digit; elsewhere rounding is amplified by training."""
    stored, here = sweep[l1_coefficient].numbers, dial.train_point(l1_coefficient).numbers
    assert here.n_recovered == stored.n_recovered == 64
    assert here.l0 == pytest.approx(stored.l0, rel=0.05)
    assert here.unexplained == pytest.approx(stored.unexplained, abs=0.01)
    assert here.gamma == pytest.approx(stored.gamma, abs=0.01)
    assert here.mean_max_cosine == pytest.approx(stored.mean_max_cosine, abs=0.005)
    assert here.dead == pytest.approx(stored.dead, abs=0.06)


def test_sweep_is_written_and_read(tmp_path, monkeypatch):
    monkeypatch.setattr(dial, "L1_COEFFICIENTS", (0.1, 1.0))
    monkeypatch.setitem(dial.TRAINING, "steps", 20)
    monkeypatch.setattr(
        dial.train_sae, "__kwdefaults__", {**dial.train_sae.__kwdefaults__, "steps": 20}
    )
    dial.build_sweep(tmp_path / "dial", progress=False)
    points = dial.load_sweep(tmp_path / "dial")
    again = dial.train_point(0.1)
    for name, value in asdict(again.numbers).items():
        assert asdict(points[0].numbers)[name] == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(points[0].cosine_GF, again.cosine_GF, atol=1e-3, rtol=0)


def test_a_tampered_sweep_is_refused(tmp_path, monkeypatch):
    root = tmp_path / "data"
    dial.save([dial.measure(oracle(), 0.1)], root / "dial")
    artifacts.write_manifest(root)
    monkeypatch.setattr(artifacts, "data_dir", lambda: root)
    assert dial.load_sweep()[0].numbers.n_recovered == 64
    with (root / "dial" / dial.NUMBERS_FILE).open("a") as file:
        file.write(" ")
    artifacts._verify.cache_clear()
    with pytest.raises(artifacts.ArtifactError, match="changed or cut short"):
        dial.load_sweep()
