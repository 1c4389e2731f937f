"""Harvest, `saelearn data`, `saelearn lab`'s preparation: killed, or with a disk that is full."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import moments
import pytest
import torch
from tiny_models import make, some_tokens

from saelearn import activations, artifacts, course
from saelearn.errors import ArtifactError
from saelearn.tiny import build, shipped

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and mounts a disk")
MOMENTS = 20
Tree = dict[str, bytes]


def tree(folder: Path) -> Tree:
    """All files, hidden ones too."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(paths)}


@functools.cache
def model():
    return make("gpt2")


def harvest(work: Path) -> None:
    """Thirty shards."""
    tokens_NT = some_tokens(60, 11)
    activations.write(
        model(), tokens_NT, "transformer.h.1:out", work / "rows", shard_rows=20, pass_size=2
    )


def data(work: Path) -> None:
    """Three steps, each with less to do: the runs of words, one SAE, the probes."""
    build.build(["fourgrams", "saes", "probes"], work)


def lab(work: Path) -> None:
    """Twelve lessons of which some are new, some newer, and one is the learner's own by now."""
    course.prepare(work / "mine", work / "upstream")


def lesson(text: str) -> str:
    cell = {"cell_type": "code", "id": "a", "source": text, "metadata": {}, "outputs": [],
            "execution_count": None}  # fmt: skip
    return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def begin_lab(work: Path) -> None:
    (work / "upstream").mkdir()
    for number in range(12):
        path = work / "upstream" / f"{number:02}_topic.ipynb"
        if number < 9:
            path.write_text(lesson("x = 1"))
    lab(work)
    (work / "mine" / "03_topic.ipynb").write_text(lesson("x = 'my own work'"))
    for number in range(3, 12):
        (work / "upstream" / f"{number:02}_topic.ipynb").write_text(lesson("x = 2"))


def begin_data(work: Path) -> None:
    shutil.copytree(artifacts.data_dir() / "lm", work / "lm")
    build.FOURGRAM_DOCUMENTS = 20
    data(work)
    build.FOURGRAM_DOCUMENTS = 40


JOBS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None], int]] = {
    "harvest": (lambda work: None, harvest, 2**23),
    "data": (begin_data, data, 2**25),
    "lab": (begin_lab, lab, 2**22),
}


@pytest.fixture
def small(monkeypatch) -> None:
    """`saelearn data` with little to do."""
    name, recipe = next(iter(shipped.recipes().items()))
    recipes = {name: recipe._replace(d_sae=32)}
    monkeypatch.setattr(shipped, "recipes", lambda: recipes)
    monkeypatch.setattr(build, "SAE_DOCUMENTS", 60)
    monkeypatch.setattr(build, "PROBE_DOCUMENTS", 60)
    monkeypatch.setattr(build, "FOURGRAM_DOCUMENTS", 40)
    monkeypatch.setattr(build, "SAE_TRAINING", build.SAE_TRAINING | {"steps": 20, "log_every": 10})


@pytest.fixture(params=JOBS)
def job(request, tmp_path: Path, small) -> tuple:
    """The job, the folder it begins with, what it makes of it, twenty of its moments, its room."""
    torch.set_num_threads(1)
    begin, run, room = JOBS[request.param]
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    begin(before)
    shutil.copytree(before, after)

    def counted() -> int:
        count = moments.Count(after)
        run(after)
        return count.seen

    n = moments.in_a_fork(counted)
    assert n >= MOMENTS
    chosen = [1 + i * (n - 1) // (MOMENTS - 1) for i in range(MOMENTS)]
    return run, before, tree(after), chosen, room


def whole(found: Tree, before: Tree, after: Tree) -> None:
    """Each file that one looks for is the one of before or of afterwards; nothing is gone.

    An index or manifest may be between both.
    """
    seen = {name: held for name, held in found.items() if not re.search(r"(^|/)\.", name)}
    for name, held in seen.items():
        if Path(name).name not in ("index.json", "manifest.json"):
            assert held in (before.get(name), after.get(name)), name
        else:
            json.loads(held)
    assert {name for name in before if not re.search(r"(^|/)\.", name)} <= seen.keys()


def age(work: Path) -> None:
    """An hour and more goes by."""
    for path in work.rglob(".*"):
        os.utime(path, (time.time() - 2 * artifacts.SCRAP_AGE,) * 2)


@linux
@pytest.mark.slow
def test_twenty_kills_leave_the_same_files(job, tmp_path: Path) -> None:
    run, before, after, chosen, _ = job
    killed = 0
    for moment in chosen:
        work = tmp_path / "work"
        shutil.copytree(before, work)

        def life(work: Path = work, moment: int = moment) -> str:
            moments.Count(work, moment, moments.die)
            run(work)
            return "ended"

        killed += moments.in_a_fork(life) is None
        whole(tree(work), tree(before), after)
        age(work)
        moments.in_a_fork(lambda work=work: run(work))
        assert tree(work) == after
        shutil.rmtree(work)
    print(f"{killed} kills")
    assert killed == MOMENTS


@linux
@pytest.mark.slow
def test_a_disk_that_fills_at_any_of_twenty_moments(job, tmp_path: Path) -> None:
    """The last good state stays, the message says what to free, and it goes on from there."""
    run, before, after, chosen, room = job
    disk, refused = tmp_path / "disk", 0
    disk.mkdir()

    def life(moment: int) -> str:
        work, ballast = disk / "work", disk / "ballast"
        if not moments.own_disk(disk, room):
            return "denied"
        shutil.copytree(before, work)
        moments.Count(work, moment, lambda: moments.fill(ballast))
        said = ""
        try:
            run(work)
        except ArtifactError as error:
            said = str(error)
            assert re.search(r"free some space on the disk of .+ \(0 MiB are left\)", said)
        whole(tree(work), tree(before), after)
        assert said or tree(work) == after
        ballast.unlink()
        run(work)
        assert tree(work) == after
        return said

    for moment in chosen:
        said = moments.in_a_fork(functools.partial(life, moment))
        if said == "denied":
            pytest.skip("no disk of one's own is allowed here")
        refused += bool(said)
    print(f"{refused} of {MOMENTS} moments refused")
    assert refused > MOMENTS / 2  # others only remove what is no longer needed
