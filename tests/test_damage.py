"""Files of every kind, damaged: refused, or what they were; never a raw error, a crash, a hang.

SAEs' files, others' formats included, are damaged in test_hostile_saes, answers in what follows.
`FAILED` keeps the seeds that once found something; they are tried each time.
"""

from __future__ import annotations

import functools
import importlib
import io
import json
import shutil
import signal
import sys
import tempfile
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import small_class
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_models import make, some_tokens
from torch import Tensor

from saelearn import activations, artifacts, course, progress
from saelearn.course import collect, handout, restore, wire
from saelearn.errors import Refusal
from saelearn.lm import LM
from saelearn.style import as_html, as_text
from saelearn.train import checkpoint, train
from saelearn.train.fast import tuning
from saelearn.train.fast.kernels import Plan

LONGEST = 10  # seconds for one case
X_ND = torch.randn(80, 8, generator=torch.Generator().manual_seed(0))


class Kind(NamedTuple):
    """A kind of file.

    make: writes good ones into an empty folder; names: those that are damaged; read: what is in
    the folder, to be compared; same: whether damage that is not refused must leave the value.
    """

    make: Callable[[Path], object]
    names: tuple[str, ...]
    read: Callable[[Path], Any]
    same: bool


@functools.cache
def model() -> LM:
    return make("gpt2")


def store(folder: Path) -> None:
    activations.write(
        model(), some_tokens(9, 10), "transformer.h.1:out", folder / "rows", shard_rows=30
    )


def rows(folder: Path) -> Tensor:
    return torch.cat(list(activations.ActivationStore(folder / "rows", epochs=1)))


def run(folder: Path) -> None:
    how = {"l1_coefficient": 0.1, "steps": 4, "batch_size": 16, "progress": False}
    train(X_ND, 12, checkpoint=folder / "run", checkpoint_every=2, **how)


def stored(folder: Path) -> int:
    """The step of the checkpoint, which must be whole: one of the two that were written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "going on from the one before": which it says
        found = checkpoint.load(folder / "run")
    step = found.record["step"]
    whole = _good(step)
    assert found.record == whole.record and found.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(found.tensors[name], whole.tensors[name]) for name in whole.tensors)
    return step


@functools.cache
def _good(step: int) -> checkpoint.Stored:
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))
        if step == 2:
            (Path(folder) / "run" / checkpoint.LATEST).unlink()
        return checkpoint.load(Path(folder) / "run")


def shipped(folder: Path) -> None:
    artifacts.write_tensors(folder / "numbers.safetensors", {"a": torch.arange(9.0)})
    artifacts.write_json(folder / "record.json", {"steps": [1, 2, 3], "loss": 0.5})
    artifacts.write_manifest(folder)


def verified(folder: Path) -> list[Any]:
    artifacts._manifest.cache_clear()
    artifacts._verify.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAELEARN_DATA", str(folder))
        tensors = artifacts.read_tensors(artifacts.find("numbers.safetensors"))
        return [tensors["a"].tolist(), artifacts.read_json(artifacts.find("record.json"))]


def learners(folder: Path) -> None:
    (folder / "upstream").mkdir()
    cell = {"cell_type": "code", "id": "a", "source": "x = 1", "metadata": {}, "outputs": [],
            "execution_count": None}  # fmt: skip
    text = json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    (folder / "upstream" / "01_topic.ipynb").write_text(text)
    course.prepare(folder / "mine", folder / "upstream")
    progress.keep("01", "copies", 3, folder / "mine")


def kept(folder: Path) -> bool:
    """Whatever is damaged, what is there stays as it is, and the lesson can be had."""
    mine, name = folder / "mine", "01_topic.ipynb"
    before = (mine / name).read_bytes()
    assert len(course.prepare(mine, folder / "upstream")) == 1
    assert all(len(s.checks) >= 0 for s in progress.of_folder(mine).values())
    progress.keep("01", "sparse", 3, mine)
    assert "sparse" in progress.of_folder(mine)["01"].checks
    return (mine / name).read_bytes() == before


def language_model(folder: Path) -> None:
    model().model.save_pretrained(folder / "lm")
    model().tokenizer.save_pretrained(folder / "lm")


def logits(folder: Path) -> tuple[int, ...]:
    lm = LM.load(folder / "lm")
    return tuple(lm.logits(lm.tokenize("w2 w3")).shape)


def handed_in(folder: Path) -> None:
    source = small_class.publish(folder / "notebooks")
    handout.release(["04"], folder / "out", source=source)
    there = folder / "submissions" / "Ada"
    there.mkdir(parents=True)
    (there / "04_first_sae.ipynb").write_text(json.dumps(small_class.answered()))


def read_in(folder: Path) -> str:
    release = handout.read_release(folder / "out.zip")
    found = [
        each
        for student, entries in collect.students(folder / "submissions", release).items()
        for each in collect.submissions(student, entries, release)
    ]
    for each in found:
        if each.notebook is not None:
            restore.restored(each.notebook, release.lessons[each.lesson])
    return f"{len(found)}"


def message(folder: Path) -> None:
    packer = wire.Packer(lambda f: 0, lambda g: 0)
    header = {"do": "reply", "value": packer.pack([1.5, "text", {"a": torch.arange(6.0)}, None])}
    (folder / "frame").write_bytes(wire.frame(header, packer.body()))


def received(folder: Path) -> str:
    file = io.BytesIO((folder / "frame").read_bytes())

    def exactly(n: int) -> bytes:
        if len(found := file.read(n)) < n:
            raise wire.Broken("the sender has gone")
        return found

    try:
        header, body = wire.read_frame(exactly)
        stand_ins = (lambda n: n, lambda t, n: t, lambda n, name, kind, parts: n)
        value = wire.Unpacker(body, *stand_ins).unpack(header.get("value"))
    except wire.Broken as error:
        raise Refusal("a whole message", str(error)) from error
    assert isinstance(value, type(None) | bool | int | float | str | list | tuple | dict | complex
                      | wire.Strange | Tensor | np.ndarray | type(...))  # fmt: skip
    return repr(value)


def texts(folder: Path) -> None:
    lines = [json.dumps({"text": f"w{i} w2 w3 w4"}) for i in range(2, 20)]
    (folder / "texts.jsonl").write_text("\n".join(lines))


def plans(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAELEARN_CACHE", str(folder))
        patch.setattr(tuning, "measure", lambda *_: Plan("plain", 1.1))
        tuning._remembered.__wrapped__(64, 8, 16, 1)
    (path,) = folder.rglob("*.json")
    path.rename(folder / "plans" / "plan.json")
    (folder / "name").write_text(path.name)


def plan(folder: Path) -> str:
    shutil.copy(folder / "plans" / "plan.json", folder / "plans" / (folder / "name").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAELEARN_CACHE", str(folder))
        patch.setattr(tuning, "measure", lambda *_: Plan("plain", 1.1))
        found = tuning._remembered.__wrapped__(64, 8, 16, 1)
    assert isinstance(found, Plan) and found.sparse_below >= 0
    return found.encoder


KINDS = {
    "store": Kind(store, ("rows/shard_00000.safetensors", "rows/shard_00002.safetensors"), rows,
                  True),
    "store's index": Kind(store, ("rows/index.json",), rows, True),
    "checkpoint": Kind(run, ("run/latest.safetensors", "run/previous.safetensors"), stored, False),
    "manifest": Kind(shipped, ("manifest.json", "numbers.safetensors", "record.json"), verified,
                     True),
    "progress": Kind(learners, ("mine/.solved",), kept, True),
    "memory": Kind(learners, ("mine/.lessons.json",), kept, True),
    "learner's notebook": Kind(learners, ("mine/01_topic.ipynb",), kept, True),
    "model": Kind(language_model, ("lm/config.json", "lm/model.safetensors", "lm/tokenizer.json",
                                   "lm/tokenizer_config.json", "lm/generation_config.json"),
                  logits, False),
    "submitted notebook": Kind(handed_in, ("submissions/Ada/04_first_sae.ipynb",), read_in, True),
    "release": Kind(handed_in, ("out.zip",), read_in, False),
    "message": Kind(message, ("frame",), received, False),
    "texts": Kind(texts, ("texts.jsonl",),
                  lambda folder: activations.chunk(model(), folder / "texts.jsonl", length=4).shape,
                  False),
    "plan of a step": Kind(plans, ("plans/plan.json",), plan, False),
}  # fmt: skip

FAILED: dict[str, list[int]] = {"progress": [0], "release": [3]}


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Whatever hangs is stopped, and seen."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """One to four bytes or stretches changed, cut out or put in, often at either end."""
    found = bytearray(whole)
    for _ in range(rng.integers(1, 5)):
        size = len(found)
        near = int(rng.integers(min(size, 300) + 1))
        where = [rng.integers(size + 1), near, max(0, size - near // 6)]
        at = int(where[rng.integers(3)])
        match rng.integers(6):
            case 0 | 1 | 2 if at < size:
                found[at] ^= 1 << int(rng.integers(8))
            case 3:
                del found[at : at + int(rng.integers(1, 65))]
            case 4:
                found[at:at] = rng.bytes(int(rng.integers(1, 17)))
            case 5:
                del found[at:]
    return bytes(found)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    return type(a) is type(b) and a == b


def outcomes(name: str, seeds: list[int], tmp_path: Path) -> dict[str, int]:
    """What became of the damage of each seed: refused, or read as it was, or as something else."""
    kind, counts = KINDS[name], {"refused": 0, "as it was": 0, "something else": 0}
    good, work = tmp_path / "good", tmp_path / "work"
    good.mkdir()
    kind.make(good)
    shutil.copytree(good, work)
    right = kind.read(work)
    for seed in seeds:
        shutil.rmtree(work)
        shutil.copytree(good, work)
        rng = np.random.default_rng(seed)
        path = work / kind.names[seed % len(kind.names)]
        path.write_bytes(changed := damaged(path.read_bytes(), rng))
        try:
            with at_most(LONGEST):
                same = equal(kind.read(work), right)
        except Refusal:
            counts["refused"] += 1
            continue
        except BaseException as error:
            raise AssertionError(f"{name}, seed {seed}: {changed[:200]!r}") from error
        counts["as it was" if same else "something else"] += 1
        assert same or not kind.same, f"{name}, seed {seed}: {changed[:200]!r}"
    return counts


posix = pytest.mark.skipif(sys.platform == "win32", reason="an alarm stops what hangs")


@posix
@pytest.mark.parametrize("name", KINDS)
def test_some_damage(name: str, tmp_path: Path) -> None:
    outcomes(name, [*FAILED.get(name, []), *range(12)], tmp_path)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_much_damage(name: str, tmp_path: Path) -> None:
    started = time.monotonic()
    counts = outcomes(name, list(range(1_000, 1_160)), tmp_path)
    print(f"{name}: {sum(counts.values())} in {time.monotonic() - started:.0f} s, {counts}")
    assert sum(counts.values()) == 160


# --- texts ----------------------------------------------------------------------------------------


def a_text_is_text(text: str) -> None:
    """Read and written: by a tokenizer, in HTML, in a terminal."""
    with at_most(LONGEST):
        assert isinstance(as_html(text), str)  # test_literal reads it
        codes = (c for c in as_text(text) if unicodedata.category(c) == "Cc")
        assert set(codes) <= {"\n", "\t"}
        try:
            tokens_1T = model().tokenize(text)
        except Refusal:
            return
        assert tokens_1T.min() >= 0 and tokens_1T.max() < 40
        model().words(tokens_1T[0])
        activations.chunk(model(), [text] * 4, length=2)


ODD = st.text(st.characters(codec=None), max_size=80)
test_texts = posix(
    pytest.mark.slow(
        settings(max_examples=500, deadline=None)(
            example("a \ud800 half")(given(ODD)(a_text_is_text))
        )
    )
)


# --- answers --------------------------------------------------------------------------------------


@functools.cache
def checks() -> list[tuple[Callable, tuple]]:
    """Each check of each lesson with answers that are right, from the cases of `exercises/`."""
    sys.path.insert(0, str(Path(__file__).parent / "exercises"))
    every, known = (importlib.import_module(name) for name in
                    ("every_lesson", "test_no_lesson_is_left_out"))  # fmt: skip
    found = []
    for number in known.NUMBERS:
        module = importlib.import_module(f"test_lesson{number}")
        for check in every.checks_of(module):
            found.append((check, every.made(every.first(module.RIGHT, check))))
    return found


NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.complex_numbers(), st.none())
SHAPES = st.lists(st.integers(0, 4), max_size=3)
DTYPES = st.sampled_from([torch.float32, torch.int64, torch.bool, torch.complex64, torch.float16])
PLAIN = st.one_of(NUMBERS, st.text(max_size=9), st.binary(max_size=3), st.just(...),
                  st.builds(lambda s, d: torch.ones(s).to(d), SHAPES, DTYPES),
                  st.builds(lambda s: torch.full(s, torch.nan), SHAPES),
                  st.builds(np.ones, SHAPES.map(tuple)))  # fmt: skip
ANSWERS = st.recursive(PLAIN, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.tuples(inner, inner),
    st.dictionaries(st.text(max_size=3), inner, max_size=3)), max_leaves=5)  # fmt: skip
ERRORS = st.sampled_from([ValueError, SystemExit, GeneratorExit, RecursionError, MemoryError])


def an_answer_gets_a_verdict(data: st.DataObject) -> None:
    """Values in place of values, functions that give any value or raise in place of functions."""
    check, answers = checks()[data.draw(st.integers(0, len(checks()) - 1))]
    value, error = data.draw(ANSWERS), data.draw(st.none() | ERRORS)

    def function(*_: Any, **__: Any) -> Any:
        if error:
            raise error("an answer's own")
        return value

    at = data.draw(st.integers(0, len(answers) - 1))
    given_ = function if callable(answers[at]) and not isinstance(answers[at], type) else value
    with at_most(LONGEST):
        verdict = check(*answers[:at], given_, *answers[at + 1 :])
    assert verdict.state in ("passed", "wrong", "open", "noted") and len(verdict.message) <= 2_000


quiet = settings(max_examples=1_000, deadline=None, suppress_health_check=list(HealthCheck))
test_answers = posix(pytest.mark.slow(quiet(given(st.data())(an_answer_gets_a_verdict))))
