"""The choice of the step's way: by measurement, once, and remembered."""

import json

import pytest
import torch

from saelearn.train.fast import Plan, tuning


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "SMALL", 0)
    monkeypatch.setenv("SAELEARN_CACHE", str(tmp_path))
    tuning._remembered.cache_clear()
    yield tmp_path
    tuning._remembered.cache_clear()


def test_a_plan_is_measured_once_and_kept(fresh, monkeypatch):
    plan = tuning.measured_plan(16, 64, 100)
    assert plan.encoder in tuning.ENCODERS and 0 <= plan.sparse_below <= 0.5
    monkeypatch.setattr(tuning, "measure", lambda *_: pytest.fail("measured again"))
    assert tuning.measured_plan(16, 64, 128) == plan  # the same power of two
    tuning._remembered.cache_clear()  # as in a new process
    assert tuning.measured_plan(16, 64, 100) == plan


@pytest.mark.parametrize("damage", ["", "[]", '{"for": 1}', '{"plan": {"encoder": "new"}}'])
def test_a_damaged_memory_is_measured_anew(fresh, damage):
    tuning.measured_plan(16, 64, 100)
    (path,) = (fresh / "plans").iterdir()
    path.write_text(damage, "utf-8")
    tuning._remembered.cache_clear()
    assert tuning.measured_plan(16, 64, 100).encoder in tuning.ENCODERS
    assert json.loads(path.read_text("utf-8"))["plan"]["encoder"] in tuning.ENCODERS


def test_another_machine_measures_for_itself(fresh, monkeypatch):
    tuning.measured_plan(16, 64, 100)
    tuning._remembered.cache_clear()
    monkeypatch.setattr(tuning, "processor", lambda: "another")
    monkeypatch.setattr(tuning, "measure", lambda *_: Plan("plain", 0.123))
    assert tuning.measured_plan(16, 64, 100) == Plan("plain", 0.123)


def test_a_folder_that_cannot_be_written_to_does_not_matter(fresh, monkeypatch):
    (fresh / "file").touch()
    monkeypatch.setenv("SAELEARN_CACHE", str(fresh / "file"))
    assert tuning.measured_plan(16, 64, 100).encoder in tuning.ENCODERS


def failing(*_):
    raise RuntimeError("not in this build")


@pytest.mark.parametrize("able", sorted(tuning.ENCODERS.keys() - {"plain"}))
def test_an_encoder_that_fails_or_errs_is_out_of_the_running(able, monkeypatch):
    def empty(x_KBD, W_KFD, b_KF, memory):
        return sound["plain"](x_KBD, W_KFD, b_KF + -100.0, memory)

    sound = dict(tuning.ENCODERS)
    for bad in (failing, empty):
        for name in sound.keys() - {"plain", able}:
            monkeypatch.setitem(tuning.ENCODERS, name, bad)
        assert tuning.measure(64, 16, 64).encoder in ("plain", able)  # whichever is faster here
        with monkeypatch.context() as others:
            others.setitem(tuning.ENCODERS, able, bad)
            assert tuning.measure(64, 16, 64).encoder == "plain"


def test_without_the_plain_encoder_all_is_dense(monkeypatch):
    monkeypatch.setitem(tuning.ENCODERS, "plain", failing)
    assert tuning.measure(64, 16, 64) == Plan("plain", 0.0)


def test_elsewhere_than_on_a_cpu_the_plan_is_dense():
    assert tuning.measured_plan(16, 64, 100, device="cuda").sparse_below == 0


def test_what_is_small_is_dense_and_not_measured(monkeypatch):
    monkeypatch.setattr(tuning, "_remembered", lambda *_: Plan("bytes"))
    assert tuning.measured_plan(32, 128, 256).sparse_below == 0
    assert tuning.measured_plan(32, 128, 1_024) == Plan("bytes")


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (300, 16, 64)])
def test_any_shape_can_be_measured(shape):
    torch.manual_seed(0)
    assert isinstance(tuning.measure(*shape), Plan)
