"""Several processes train as one does; one of them lost is a clear end, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import shared_run
import torch
from killed_run import bits, run

from saelearn import artifacts
from saelearn.errors import Refusal
from saelearn.sae import SAE
from saelearn.train import parallel

pytestmark = pytest.mark.skipif(os.name == "nt", reason="torchrun and signals as POSIX has them")

JOBS = [
    {"steps": 50, "plan": "dense"},
    {"steps": 50, "plan": "plain", "decoder_norm": "unit_norm"},
    {"steps": 50, "plan": "mixed", "batch_size": 101},  # shares of 50 and 51
    {"steps": 50, "kind": "stream", "normalize": False, "clip_norm": 0.1},
    {"steps": 50, "kind": "store", "decoder_norm": "free"},
    {"steps": 500, "stop_at": 13, "checkpoint": "stopped"},
    {"differ": True},
    {"batch_size": 1},
]
"""Small shapes: an entry that is zero up to rounding is active in one sum and not in another, and
then the gradient jumps. Among 128 x 512 entries a step that happens in every fourth training, with
two kernels on one process as with one kernel on two; among 64 x 16 in every two-hundredth."""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """All trainings of JOBS by two processes that torchrun started."""
    folder = tmp_path_factory.mktemp("together")
    command = [*TORCHRUN, shared_run.__file__, str(folder), json.dumps(JOBS)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-12))


@pytest.mark.parametrize("number", range(5))
def test_two_processes_give_the_weights_of_one(number, together, record_property):
    alone = bits(run(**JOBS[number]))
    shared = artifacts.read_tensors(together / f"{number}.0.safetensors")
    off = {name: relative(shared[name], alone[name]) for name in alone}
    record_property("relative differences", str(off))
    assert max(off.values()) < 1e-5
    l0, dead = 4, 5  # columns of the history: counts are sums, and equal up to a borderline entry
    assert torch.allclose(shared["history"][:, l0], alone["history"][:, l0], rtol=1e-3)
    assert torch.allclose(shared["history"][:, dead], alone["history"][:, dead], atol=0.01)


@pytest.mark.parametrize("number", range(5))
def test_both_processes_have_the_same_bits(number, together):
    first, second = (
        artifacts.read_tensors(together / f"{number}.{rank}.safetensors") for rank in (0, 1)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_ctrl_c_in_one_ends_both_after_the_same_step(together):
    steps = [artifacts.read_json(together / f"5.{rank}.json")["steps"] for rank in (0, 1)]
    assert steps[0] == steps[1] == 14  # pressed after step 13, all hear of it in the next


@pytest.mark.parametrize(
    ("number", "words"), [(6, "same arguments and data in all 2"), (7, "at least 2 rows")]
)
def test_what_cannot_be_shared_is_refused_by_both(number, words, together):
    for rank in (0, 1):
        assert words in artifacts.read_json(together / f"{number}.{rank}.json")["refusal"]


def test_shares_are_all_rows_once(monkeypatch):
    x_BD = torch.arange(23.0)[:, None]
    for size in (1, 2, 3, 7, 23):
        monkeypatch.setattr(parallel, "size", lambda size=size: size)
        parts = []
        for rank in range(size):
            monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
            parts.append(parallel.share(x_BD))
        assert torch.equal(torch.cat(parts), x_BD)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    monkeypatch.setattr(parallel, "size", lambda: 24)
    with pytest.raises(Refusal, match="24 rows"):
        parallel.share(x_BD)


# --- a process that is lost -----------------------------------------------------------------------


def start(folder: Path, *more: str) -> subprocess.Popen:
    command = [*TORCHRUN, "-m", "saelearn.cli", "train", "--out", str(folder / "out")]
    command += ["--activations", str(folder / "x.npy"), "--d-sae", "64", "--batch-size", "64"]
    command += ["--checkpoint", str(folder / "checkpoint"), "--checkpoint-every", "50"]
    command += ["--quiet", *more]
    log = (folder / "log").open("w")
    return subprocess.Popen(
        command, env=environment(), stdout=log, stderr=log, start_new_session=True
    )


def wait_until(condition, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def worker(launcher: subprocess.Popen, rank: int) -> psutil.Process:
    for child in psutil.Process(launcher.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError(f"no process {rank}")


def checkpoint_grows(folder: Path) -> bool:
    """Two generations: training is well under way."""
    return (folder / "checkpoint" / "previous.safetensors").exists()


def write_rows(folder: Path) -> None:
    x_ND = torch.randn(3_000, 16, generator=torch.Generator().manual_seed(0))
    np.save(folder / "x.npy", x_ND.numpy())


def test_one_killed_is_a_clear_end_and_the_run_goes_on(tmp_path, record_property):
    write_rows(tmp_path)
    steps = ["--steps", "1000"]
    launcher = start(tmp_path, *steps)
    try:
        wait_until(lambda: checkpoint_grows(tmp_path) or launcher.poll() is not None)
        worker(launcher, 1).send_signal(signal.SIGKILL)
        killed = time.monotonic()
        assert launcher.wait(60) != 0
        record_property("seconds to the end", time.monotonic() - killed)
        assert time.monotonic() - killed < 45  # torchrun itself looks every few seconds
    finally:
        launcher.kill()
    log = (tmp_path / "log").read_text()
    assert "expected all 2 processes to go on" in log
    assert "the same command again: it goes on from the last checkpoint" in log
    assert "saelearn/" not in log  # a traceback would name our files
    assert not (tmp_path / "out").exists()
    again = start(tmp_path, *steps)
    assert again.wait(120) == 0, (tmp_path / "log").read_text()
    assert "goes on  from its checkpoint" in (tmp_path / "log").read_text()
    found = SAE.load(tmp_path / "out")
    assert found.metadata["saelearn"]["report"]["steps"] == 1000


def test_told_to_end_it_waits_no_longer_for_one_that_hangs(tmp_path):
    """As torchrun tells the others when one is dead and gloo has not noticed."""
    write_rows(tmp_path)
    launcher = start(tmp_path, "--steps", "100000")
    try:
        wait_until(lambda: checkpoint_grows(tmp_path) or launcher.poll() is not None)
        frozen, waiting = worker(launcher, 1), worker(launcher, 0)
        frozen.suspend()
        waiting.terminate()
        # the latter if the other had sent its part of a step before it froze
        said = ("of being told to end", "stopped after step")
        wait_until(lambda: any(words in (tmp_path / "log").read_text() for words in said), 25)
        frozen.kill()
        assert launcher.wait(60) != 0
    finally:
        launcher.kill()


@pytest.mark.slow
def test_one_that_hangs_is_given_up_after_the_timeout(tmp_path):
    write_rows(tmp_path)
    launcher = start(tmp_path, "--steps", "100000", "--timeout", "5")
    try:
        wait_until(lambda: checkpoint_grows(tmp_path))
        frozen = worker(launcher, 1)
        frozen.suspend()
        stopped = time.monotonic()
        wait_until(lambda: "lost another" in (tmp_path / "log").read_text())
        assert 4 < time.monotonic() - stopped < 30
        frozen.kill()
        assert launcher.wait(90) != 0
    finally:
        launcher.kill()
