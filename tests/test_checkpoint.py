"""Runs that were killed, interrupted or damaged go on to the same bits, or say why they cannot."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import killed_run
import pytest
import torch
from killed_run import bits, run

from saelearn import artifacts
from saelearn.errors import ArtifactError, Refusal
from saelearn.train import checkpoint, loop
from saelearn.train.stopping import Stop

SOURCES = ("tensor", "stream", "store")


@pytest.fixture(autouse=True)
def no_warning_unasked():
    """A resume that cannot be exact warns; where no test expects that, it is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(CSR|fork).*")
        yield


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def break_at(*steps: int, by: Callable[[], None] | None = None) -> Callable:
    """A callback that interrupts at the first of these steps that it meets, once each."""
    left = list(steps)

    def callback(record: dict, sae: object) -> None:
        if record["step"] in left:
            left.remove(record["step"])
            if by is None:
                raise KeyboardInterrupt
            by()

    return callback


# --- going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", killed_run.PLANS)
@pytest.mark.parametrize("kind", SOURCES)
def test_an_interrupted_run_goes_on_to_the_same_bits(kind, plan, tmp_path):
    """Over the ends of epochs and over both resamplings; three breaks, at no round numbers."""
    how = {"kind": kind, "plan": plan, "shape": "sparse", "steps": 30}
    whole = run(**how)
    assert len({r["step"] for r in whole.history}) == 30
    callback = break_at(7, 11, 23)
    for step in (7, 11, 23, 30):
        part = run(**how, checkpoint=tmp_path, callback=callback)
        assert part.steps == step
    assert equal(bits(part), bits(whole)) and part.scale == whole.scale


def test_the_runs_of_these_tests_resample(monkeypatch):
    """Else nothing would be said about the masks and the generator."""
    from saelearn import train

    counts, resample = [], train.resample

    def counting(*positional, **named) -> int:
        counts.append(resample(*positional, **named))
        return counts[-1]

    monkeypatch.setattr(loop, "resample", counting)
    run()
    run(shape="sparse", plan="mixed")
    assert len(counts) == 4 and min(counts) > 0


def test_a_checkpoint_changes_nothing(tmp_path):
    assert equal(bits(run(checkpoint=tmp_path, checkpoint_every=3)), bits(run()))


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_ctrl_c_ends_after_the_step_and_keeps_it(tmp_path):
    """However early in the step the signal comes; the handler of before is back afterwards."""
    before = signal.getsignal(signal.SIGINT)
    press = break_at(13, by=lambda: signal.raise_signal(signal.SIGINT))
    stopped = run(checkpoint=tmp_path, callback=press)
    assert stopped.steps == 13 and signal.getsignal(signal.SIGINT) is before
    assert checkpoint.load(tmp_path).record["step"] == 13
    assert equal(bits(run(checkpoint=tmp_path)), bits(run()))


def test_pressed_again_it_interrupts_at_once(monkeypatch):
    clock = iter([10.0, 10.5, 11.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # half a second later: torchrun's echo of the first
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_step_under_way_is_not_saved(tmp_path, monkeypatch):
    """An interruption inside a step: weights have moved, the step is not counted."""
    from saelearn import train

    calls, whole_step = [], train.step

    def torn_step(*positional, **named):
        calls.append(1)
        result = whole_step(*positional, **named)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(loop, "step", torn_step)
    torn_run = run(checkpoint=tmp_path, checkpoint_every=5)
    assert torn_run.steps == 9
    assert checkpoint.load(tmp_path).record["step"] == 5
    monkeypatch.undo()
    assert equal(bits(run(checkpoint=tmp_path, checkpoint_every=5)), bits(run()))


def test_a_finished_run_returns_at_once(tmp_path):
    first = run(checkpoint=tmp_path)
    seen = []
    again = run(checkpoint=tmp_path, callback=lambda *_: seen.append(1))
    assert not seen and again.steps == 60 and equal(bits(again), bits(first))


def test_checkpoints_come_by_steps_or_by_the_clock(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda folder, t, record: saved.append(record["step"]))
    run(checkpoint=tmp_path, checkpoint_every=25)
    assert saved == [0, 25, 50, 60]
    saved.clear()
    run(checkpoint=tmp_path, checkpoint_every=timedelta(hours=1))
    assert saved == [0, 60]
    saved.clear()
    run(checkpoint=tmp_path, checkpoint_every=timedelta(microseconds=1))
    assert saved == list(range(61))
    for bad in (0, timedelta(0), 1.5, "often"):
        with pytest.raises(Refusal, match="checkpoint_every"):
            run(checkpoint=tmp_path, checkpoint_every=bad)


def test_the_number_of_threads_is_set_back(tmp_path):
    """The first half with two threads; the second is asked for with one."""
    before, seen = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        run(checkpoint=tmp_path, callback=break_at(20))
        torch.set_num_threads(1)
        with pytest.warns(UserWarning, match="began with 2 threads"):
            run(checkpoint=tmp_path, callback=lambda *_: seen.append(torch.get_num_threads()))
        assert set(seen) == {2} and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_another_torch_is_told(tmp_path, monkeypatch):
    run(checkpoint=tmp_path, callback=break_at(20))
    here = checkpoint.environment() | {"torch": "9.9"}
    monkeypatch.setattr(checkpoint, "environment", lambda: here)
    with pytest.warns(UserWarning, match=r"torch .* here it is 9\.9"):
        run(checkpoint=tmp_path)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"l1_coefficient": 0.7}, r"l1_coefficient = 0\.5\n.*l1_coefficient = 0\.7"),
        ({"steps": 61}, "steps = 60"),
        ({"seed": 4}, "seed = 3"),
        ({"resample_at": ()}, "resample_at"),
        ({"batch_size": 32}, "batch_size = 64"),
        ({"shape": "sparse"}, "d_sae = 16.*data's shape.*data's sha256"),
        ({"kind": "stream"}, "data's sha256"),
        ({"decoder_norm": "free", "lr": 1e-3}, "lr = 0.003.*decoder_norm = 'weighted'"),
        ({"plan": "onednn"}, "plan"),
    ],
)
def test_another_run_is_refused_and_the_difference_named(other, words, tmp_path):
    run(checkpoint=tmp_path, callback=break_at(5))
    with pytest.raises(Refusal, match=f"(?s){words}"):
        run(**{"checkpoint": tmp_path} | other)


def test_one_changed_number_in_the_data_is_noticed(tmp_path, monkeypatch):
    run(checkpoint=tmp_path, callback=break_at(5))
    original = killed_run.data

    def changed(kind: str, shape: str) -> torch.Tensor:
        x_ND = original(kind, shape).clone()
        x_ND[100, 3] += 1e-6
        return x_ND

    monkeypatch.setattr(killed_run, "data", changed)
    with pytest.raises(Refusal, match="data's sha256"):
        run(checkpoint=tmp_path)


def test_a_stream_that_was_read_already_is_refused(tmp_path):
    """A generator cannot be rewound: what is left of it does not begin as the data did."""
    how = {"l1_coefficient": 0.5, "steps": 40, "progress": False, "checkpoint": tmp_path}
    stream = iter(killed_run.data("stream", "small"))
    killed_run.train(stream, 16, **how, log_every=1, callback=break_at(5))
    with pytest.raises(Refusal, match="data's sha256"):
        killed_run.train(stream, 16, **how, log_every=1)


@pytest.mark.skipif(os.name == "nt", reason="no lock there")
def test_two_runs_in_one_folder_are_refused(tmp_path):
    def second() -> None:
        with pytest.raises(Refusal, match="no other run"):
            run(checkpoint=tmp_path)
        tried.append(1)

    tried: list[int] = []
    run(checkpoint=tmp_path, callback=break_at(5, by=second))
    assert tried


@pytest.mark.parametrize("what", ["text", "link", "folder"])
def test_a_file_of_the_locks_name_is_left_alone(what, tmp_path):
    folder, precious = tmp_path / "mine", tmp_path / "precious.txt"
    folder.mkdir()
    precious.write_text("years of work")
    lock = folder / checkpoint.LOCK
    if what == "text":
        lock.write_text("years of work")
    elif what == "link":
        lock.symlink_to(precious)
    else:
        lock.mkdir()
    with pytest.raises(ArtifactError, match="not ours"):
        run(checkpoint=folder)
    assert precious.read_text() == "years of work"
    assert what == "folder" or lock.read_text() == "years of work"


@pytest.mark.parametrize("where", ["file/run", "file", "file/deep/er"])
def test_a_folder_that_cannot_be_made_is_refused_before_any_step(where, tmp_path):
    (tmp_path / "file").write_text("a file")
    steps = []
    with pytest.raises(ArtifactError, match="folder for checkpoints"):
        run(checkpoint=tmp_path / where, callback=lambda record, _: steps.append(record))
    assert not steps


# --- files ----------------------------------------------------------------------------------------


def two_generations(folder: Path) -> Path:
    run(checkpoint=folder, checkpoint_every=20, callback=break_at(45))
    steps = [checkpoint._read(folder / name).record["step"]
             for name in (checkpoint.PREVIOUS, checkpoint.LATEST)]  # fmt: skip
    assert steps == [40, 45]
    return folder / checkpoint.LATEST


def damages(whole: bytes, n: int, seed: int):
    """Cut short anywhere, or with a few bits turned, or with a page of zeros."""
    draw = random.Random(seed)
    yield b""
    for _ in range(n):
        yield whole[: draw.randrange(len(whole))]
        at = draw.randrange(len(whole))
        yield whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :]
        zeros = bytes(min(512, len(whole) - at))
        if zeros != whole[at : at + 512]:
            yield whole[:at] + zeros + whole[at + len(zeros) :]


def test_nothing_damaged_is_ever_loaded(tmp_path):
    latest = two_generations(tmp_path)
    whole = latest.read_bytes()
    for broken in damages(whole, 150, seed=0):
        latest.write_bytes(broken)
        with pytest.warns(UserWarning, match="going on from previous"):
            assert checkpoint.load(tmp_path).record["step"] == 40
    with pytest.warns(UserWarning, match="going on from previous"):
        resumed = run(checkpoint=tmp_path, checkpoint_every=20)
    assert equal(bits(resumed), bits(run()))


def test_a_file_mixed_from_two_is_not_loaded(tmp_path):
    """The header of one step over the tensors of another: both whole, together wrong."""
    latest = two_generations(tmp_path)
    new, old = latest.read_bytes(), (tmp_path / checkpoint.PREVIOUS).read_bytes()
    head = 8 + int.from_bytes(new[:8], "little")
    end = len(old) - (len(new) - head)
    latest.write_bytes(new[:head] + old[end:])
    with pytest.warns(UserWarning, match="sha256"):
        assert checkpoint.load(tmp_path).record["step"] == 40


def test_if_all_is_damaged_nothing_starts_from_scratch(tmp_path):
    two_generations(tmp_path)
    for name in (checkpoint.PREVIOUS, checkpoint.LATEST):
        (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(ArtifactError, match="whole checkpoint"):
        run(checkpoint=tmp_path)
    artifacts.write_tensors(tmp_path / checkpoint.LATEST, {"a": torch.ones(1)})
    with pytest.raises(ArtifactError, match="whole checkpoint"):
        run(checkpoint=tmp_path)


def test_a_disk_that_is_full_keeps_the_one_before(tmp_path, monkeypatch):
    def full(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    def fill() -> None:
        monkeypatch.setattr(checkpoint, "save_file", full)

    with pytest.raises(ArtifactError, match="No space left"):
        run(checkpoint=tmp_path, checkpoint_every=10, callback=break_at(15, by=fill))
    monkeypatch.undo()
    assert checkpoint.load(tmp_path).record["step"] == 10
    assert equal(bits(run(checkpoint=tmp_path, checkpoint_every=10)), bits(run()))


def full_from(nth: int, monkeypatch) -> list[int]:
    """From its `nth` request on the disk takes nothing more, whoever asks; counts the requests."""
    asked = [0]

    def limited(function: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            asked[0] += 1
            if asked[0] >= nth:
                raise OSError(28, "No space left on device")
            return function(*args, **kwargs)

        return wrapper

    for module, name in ((checkpoint, "save_file"), (os, "fsync"), (tempfile, "mkdtemp")):
        monkeypatch.setattr(module, name, limited(getattr(module, name)))
    return asked


def test_a_disk_that_fills_at_any_of_twenty_moments(tmp_path, monkeypatch):
    """The last good checkpoint stays, the message says what to do, and the run goes on from it."""
    whole, went_on = bits(run()), 0
    for moment in range(1, 21):
        folder = tmp_path / str(moment)
        with monkeypatch.context() as disk:
            full_from(moment, disk)
            with pytest.raises(ArtifactError, match="No space left") as caught:
                run(checkpoint=folder, checkpoint_every=4)
        assert "free some space" in str(caught.value)
        stored = checkpoint.load(folder)
        assert (stored.record["step"] if stored else None) == (
            None if moment <= 3 else 4 * ((moment - 4) // 3)
        )
        assert not list(folder.glob(".latest*")), "what was half written is gone"
        if moment % 5 == 0:
            assert equal(bits(run(checkpoint=folder, checkpoint_every=4)), whole)
            went_on += 1
    assert went_on == 4


def test_trees_are_taken_apart_and_put_together():
    tree = {"a": [1, torch.arange(3), {"b": torch.ones(2, 2)}], "c": None, "d": {"e": "x"}}
    bare, tensors = checkpoint.pack(tree, "data")
    again = checkpoint.unpack(json.loads(json.dumps(bare)), tensors)
    assert torch.equal(again["a"][1], torch.arange(3)) and again["a"][2]["b"].shape == (2, 2)
    assert again["a"][0] == 1 and again["c"] is None and again["d"] == {"e": "x"}
    assert len(tensors) == 2


# --- kill -9 --------------------------------------------------------------------------------------

MOMENTS = ("before the file", "half a file", "before the rotation", "between the renames", "after")


def kill_in_save(moment: str, number: int) -> None:
    """Let this process kill itself in its `number`-th checkpoint, at one of the moments."""
    count, save_file, replace = [0], checkpoint.save_file, os.replace

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def saving(tensors, path, metadata) -> None:
        count[0] += 1
        if count[0] == number and moment == "before the file":
            die()
        save_file(tensors, path, metadata=metadata)
        if count[0] == number and moment == "half a file":
            os.truncate(path, path.stat().st_size // 2)
            die()

    def renaming(source, target) -> None:
        rotation = str(target).endswith(checkpoint.PREVIOUS)
        mine = rotation or str(target).endswith(checkpoint.LATEST)
        if count[0] == number and moment == "before the rotation" and mine:
            die()
        replace(source, target)
        if count[0] == number and mine and moment == {True: MOMENTS[3], False: "after"}[rotation]:
            die()

    checkpoint.save_file, os.replace = saving, renaming


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process with torch in it")
@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_a_checkpoint_is_written(moment, number, tmp_path):
    child = os.fork()
    if child == 0:
        try:
            kill_in_save(moment, number)
            run(checkpoint=tmp_path, checkpoint_every=15)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):  # the first checkpoint has none before it to rotate
        assert (moment, number) == ("between the renames", 1)
        return
    assert os.WTERMSIG(status) == signal.SIGKILL
    stored, done = checkpoint.load(tmp_path), [-15, 0, 15, 30, 45]
    expected = done[number] if moment == "after" else done[number - 1]
    assert (stored.record["step"] if stored else -15) == expected
    begun = []
    resumed = run(checkpoint=tmp_path, checkpoint_every=15,
                  callback=lambda record, _: begun.append(record["step"]))  # fmt: skip
    assert begun[0] == max(0, expected) + 1
    assert equal(bits(resumed), bits(run()))
    assert {p.name for p in tmp_path.iterdir()} == {
        checkpoint.LATEST, checkpoint.PREVIOUS, checkpoint.LOCK
    }  # fmt: skip


class Forked:
    """A life in a fork of this process: at once, where a new interpreter takes seconds."""

    def __init__(self, folder: Path, arguments: dict):
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                live(folder, arguments, lambda step: os.write(writing, f"at {step}\n".encode()))
                os._exit(0)
            finally:
                os._exit(1)
        os.close(writing)
        self.stdout = os.fdopen(reading)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def live(folder: Path, arguments: dict, say: Callable[[int], object]) -> None:
    trained = run(checkpoint=folder / "checkpoint",
                  callback=lambda record, _: say(record["step"]), **arguments)  # fmt: skip
    artifacts.write_tensors(folder / "out.safetensors", bits(trained))


def interpreter(folder: Path, arguments: dict) -> subprocess.Popen:
    """A life in an interpreter of its own, as it is when a machine went down."""
    script = [sys.executable, killed_run.__file__, str(folder), json.dumps(arguments)]
    return subprocess.Popen(script, stdout=subprocess.PIPE, text=True)


def killed_at_random(
    start: Callable, folder: Path, kills: int, seed: int, arguments: dict
) -> list[tuple[int, int]]:
    """Kill a run `kills` times, then let it end: for each life, where it began and ended."""
    draw, lives = random.Random(seed), []
    for life in range(kills + 1):
        process = start(folder, arguments)
        begun, at, length = None, 0, draw.randrange(1, 40)
        for line in process.stdout:
            at = int(line.split()[1])
            begun = begun or at
            if life < kills and at - begun >= length:
                time.sleep(draw.random() * 0.01)  # anywhere in a step, or in a checkpoint
                process.kill()
                break
        process.stdout.close()
        assert process.wait() == (-signal.SIGKILL if life < kills else 0)
        lives.append((begun, at))
    return lives


def check_kills(start: Callable, folder: Path, kills: int, **arguments) -> None:
    arguments |= {"resample_at": (0.1, 0.3), "checkpoint_every": 3}
    arguments |= {} if "of" in arguments else {"l1_coefficient": 3.0}
    whole = run(**arguments)
    lives = killed_at_random(start, folder, kills, 0, arguments)
    assert equal(artifacts.read_tensors(folder / "out.safetensors"), bits(whole))
    for (_, ended), (begun, _) in pairwise(lives):  # nobody began from scratch
        assert ended - arguments["checkpoint_every"] < begun
    assert len(lives) == kills + 1


RUNS = [("tensor", "small", "dense"), ("store", "sparse", "screen"), ("stream", "sparse", "mixed")]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process with torch in it")
@pytest.mark.parametrize(("kind", "shape", "plan"), RUNS)
def test_kills_at_random_moments(kind, shape, plan, tmp_path):
    check_kills(Forked, tmp_path, 8, kind=kind, shape=shape, plan=plan, steps=350)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process with torch in it")
@pytest.mark.parametrize("of", killed_run.KINDS)
def test_twenty_kills_of_every_architecture(of, tmp_path):
    check_kills(Forked, tmp_path, 20, of=of, steps=900)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
@pytest.mark.parametrize(("kind", "shape", "plan"), RUNS)
def test_twenty_kills_of_twenty_interpreters(kind, shape, plan, tmp_path):
    check_kills(interpreter, tmp_path, 20, kind=kind, shape=shape, plan=plan, steps=900)
