"""The doctor finds what is wrong, and says what to do."""

from __future__ import annotations

import math

import pytest
import torch

from saelearn import artifacts
from saelearn.cli import doctor


@pytest.fixture
def data(tmp_path, monkeypatch):
    (tmp_path / "thing").mkdir()
    (tmp_path / "thing" / "weights.bin").write_bytes(b"12345")
    artifacts.write_manifest(tmp_path)
    monkeypatch.setenv("SAELEARN_DATA", str(tmp_path))
    return tmp_path


def test_a_healthy_machine(data):
    report = doctor.examine()
    assert report.healthy
    text = str(report)
    for said in (
        torch.__version__.split("+")[0],
        "cores",
        "torch threads",
        "cuda",
        "apple gpu",
        "memory",
        "GiB",
    ):
        assert said in text
    assert "1 files, 0.0 MiB, verified" in text
    assert "Everything is fine." in text


@pytest.mark.parametrize(("device", "dtype"), doctor.backends())
def test_backends_agree(device, dtype):
    agreement = doctor.compare(device, dtype)
    assert agreement.agrees
    assert dtype == torch.float64 or agreement.error > 0  # two precisions are never equal


def test_gradients_are_those_of_a_closed_form():
    """Where every feature is active, d loss / d b_enc can be written down."""
    loss, d_enc, d_dec, d_bias = doctor.small_sae("cpu", torch.float64)
    shapes = [tuple(t.shape) for t in (loss, d_enc, d_dec, d_bias)]
    assert shapes == [(), (32, 128), (128, 32), (128,)]
    assert all(t.abs().max() > 0 for t in (loss, d_enc, d_dec, d_bias))


@pytest.mark.parametrize("wrong", [lambda t: t * 1.001, lambda t: t * float("nan")])
def test_a_backend_that_computes_wrongly_is_found(wrong):
    def broken(device, dtype):
        return [wrong(t) for t in doctor.small_sae(device, dtype)]

    agreement = doctor.compare("cpu", torch.float32, broken)
    assert not agreement.agrees
    assert 'device="cpu"' in doctor._remedy(agreement)


def test_a_backend_that_fails_is_found():
    def failing(device, dtype):
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    agreement = doctor.compare("cpu", torch.float32, failing)
    assert math.isinf(agreement.error)
    assert agreement.note == "RuntimeError: no kernel image is available"


def test_a_disagreement_is_a_problem_with_a_remedy(data, monkeypatch):
    bad = doctor.Agreement("cuda float32", 0.5, 1e-4)
    monkeypatch.setattr(doctor, "compare", lambda device, dtype: bad)
    report = doctor.examine()
    assert not report.healthy
    assert "DISAGREES" in str(report)
    assert "driver" in str(report)


def test_damaged_data_is_a_problem(data):
    (data / "thing" / "weights.bin").write_bytes(b"123")
    report = doctor.examine()
    assert not report.healthy
    assert "1 damaged" in str(report)
    assert "git checkout" in str(report)


def test_missing_data_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("SAELEARN_DATA", str(tmp_path / "nowhere"))
    report = doctor.examine()
    assert not report.healthy
    assert "manifest.json" in str(report)


def test_more_threads_than_cores_are_advised_against(data, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(doctor, "cores", lambda: 2)
    report = doctor.examine()
    assert report.healthy
    assert "OMP_NUM_THREADS=2" in str(report)
