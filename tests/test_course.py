"""The student version, and the promise that a learner's work is never lost."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelearn import artifacts, course
from saelearn.errors import ArtifactError, Refusal

SOLVED = """\
def loss(x):
    ### BEGIN SOLUTION
    y = x - 1
    return y * y
    ### END SOLUTION

answer = ...  # replace the dots
### BEGIN SOLUTION
answer = loss(3)
### END SOLUTION
print(answer)"""

STUBBED = """\
def loss(x):
    ...  # your code here

answer = ...  # replace the dots
print(answer)"""


def notebook(*sources: str, **metadata: str) -> dict:
    cells = [{"cell_type": "markdown", "id": "t", "metadata": {}, "source": ["# A title\n", "why"]}]
    for i, source in enumerate(sources):
        output = {"output_type": "stream", "name": "stdout", "text": ["4\n"]}
        lines = source.splitlines(keepends=True)
        cell = {"cell_type": "code", "id": f"c{i}", "metadata": metadata, "source": lines}
        cells.append(cell | {"execution_count": i + 1, "outputs": [output]})
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def publish(source: Path, *sources: str, name: str = "02_topic.ipynb") -> None:
    """Put a lesson upstream."""
    source.mkdir(exist_ok=True)
    (source / name).write_text(json.dumps(notebook(*sources)), "utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edit(path: Path, text: str = "mine") -> bytes:
    """What a learner does: solve, run, save."""
    lesson = json.loads(path.read_text("utf-8"))
    lesson["cells"].append({"cell_type": "markdown", "id": "m", "metadata": {}, "source": text})
    path.write_text(json.dumps(lesson), "utf-8")
    return path.read_bytes()


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    publish(tmp_path / "notebooks", SOLVED)
    return tmp_path / "notebooks"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "my_course"


# --- the student version


def test_solutions_become_stubs_and_all_else_stays():
    complete = notebook(SOLVED, "1 + 1", alt="a curve that falls")
    student = course.student_version(complete)
    assert "".join(student["cells"][1]["source"]) == STUBBED
    assert student["cells"][0] == complete["cells"][0]
    assert {k: v for k, v in student.items() if k != "cells"} == {
        k: v for k, v in complete.items() if k != "cells"
    }
    for cell, original in zip(student["cells"][1:], complete["cells"][1:], strict=True):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert (cell["id"], cell["metadata"]) == (original["id"], original["metadata"])
    assert complete == notebook(SOLVED, "1 + 1", alt="a curve that falls")  # not changed


@pytest.mark.parametrize("source", [SOLVED, SOLVED.rpartition("\nprint")[0]])
def test_a_stub_runs_and_a_source_may_be_one_string(source):
    complete = notebook()
    code = {"cell_type": "code", "id": "s", "metadata": {}, "source": source}
    complete["cells"].append(code | {"outputs": [], "execution_count": 1})
    stubbed = course.student_version(complete)["cells"][-1]["source"]
    assert not stubbed.endswith("\n")
    space: dict = {}
    exec(stubbed, space)
    assert space["loss"](1) is None
    assert space["answer"] is ...


@pytest.mark.parametrize(
    "source",
    [
        "### BEGIN SOLUTION\nx = 1",
        "x = 1\n### END SOLUTION",
        "### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION",
    ],
)
def test_markers_out_of_pairs_are_refused(source):
    with pytest.raises(Refusal, match="SOLUTION"):
        course.student_version(notebook(source))


LINE = st.sampled_from(["x = 1", "    y = 2", "if a:", "", course.BEGIN, f"  {course.END}"])


@settings(max_examples=200, deadline=None)
@given(st.lists(LINE, min_size=1, max_size=12))
def test_no_solution_line_survives(lines):
    """Against an independent reading: count markers, keep what stands outside."""
    depth, outside, legal = 0, [], True
    for line in lines:
        depth += {course.BEGIN: 1, course.END: -1}.get(line.strip(), 0)
        legal &= depth in (0, 1)
        if not depth and line.strip() != course.END:
            outside.append(line)
    try:
        cell = course.student_version(notebook("\n".join(lines)))["cells"][1]
    except Refusal:
        assert not legal or depth
        return
    assert legal
    assert not depth
    kept = "".join(cell["source"]).splitlines()
    assert [k for k in kept if course.STUB not in k and k] == [k for k in outside if k]
    assert sum(course.STUB in k for k in kept) == lines.count(course.BEGIN)


def test_write_student_refuses_to_overwrite_another_version(upstream, tmp_path):
    out = tmp_path / "out"
    assert [path.name for path in course.write_student(out, upstream)] == ["02_topic.ipynb"]
    course.write_student(out, upstream)  # the same again is no harm
    before = edit(out / "02_topic.ipynb")
    publish(upstream, "new = 1", name="01_other.ipynb")
    with pytest.raises(ArtifactError, match="another one is there"):
        course.write_student(out, upstream)
    assert contents(out) == {"02_topic.ipynb": before}


def test_no_lessons_is_said(tmp_path):
    with pytest.raises(ArtifactError, match="install the package anew, or work in a clone"):
        course.prepare(tmp_path / "my_course", tmp_path)


# --- the learner's folder


def states(mine: Path, upstream: Path) -> list[str]:
    return [outcome.state for outcome in course.prepare(mine, upstream)]


def test_lessons_are_created_where_absent(upstream, mine):
    assert states(mine, upstream) == ["created"]
    assert (mine / "02_topic.ipynb").read_bytes() == course.student_bytes(
        upstream / "02_topic.ipynb"
    )
    assert states(mine, upstream) == ["current"]
    publish(upstream, "x = 1", name="05_more.ipynb")
    assert states(mine, upstream) == ["current", "created"]
    assert set(contents(mine)) == {"02_topic.ipynb", "05_more.ipynb", course.MEMORY}


def test_memory_holds_the_sha256_of_what_was_handed_out(upstream, mine):
    course.prepare(mine, upstream)
    digest = hashlib.sha256((mine / "02_topic.ipynb").read_bytes()).hexdigest()
    remembered = artifacts.read_json(mine / course.MEMORY)["02_topic.ipynb"]
    assert digest in remembered
    assert len(remembered) == 2, "the bytes, and the cells"


def test_an_untouched_lesson_is_renewed(upstream, mine):
    course.prepare(mine, upstream)
    publish(upstream, "better = 1")
    (outcome,) = course.prepare(mine, upstream)
    assert outcome.state == "renewed"
    assert "replaced" in outcome.message
    assert b"better" in (mine / "02_topic.ipynb").read_bytes()
    assert set(contents(mine)) == {"02_topic.ipynb", course.MEMORY}


def test_an_edited_lesson_survives_an_update_and_the_learner_is_told(upstream, mine):
    course.prepare(mine, upstream)
    work = edit(mine / "02_topic.ipynb")
    (outcome,) = course.prepare(mine, upstream)
    assert (outcome.state, outcome.message) == ("kept", "")  # nothing has changed upstream
    publish(upstream, "better = 1")
    (outcome,) = course.prepare(mine, upstream)
    assert outcome.state == "offered"
    assert "has changed upstream" in outcome.message
    assert "02_topic.new.ipynb" in outcome.message
    assert (mine / "02_topic.ipynb").read_bytes() == work
    assert b"better" in (mine / "02_topic.new.ipynb").read_bytes()


def test_an_offer_is_remembered_until_it_is_removed(upstream, mine):
    course.prepare(mine, upstream)
    edit(mine / "02_topic.ipynb")
    publish(upstream, "better = 1")
    course.prepare(mine, upstream)
    (outcome,) = course.prepare(mine, upstream)
    assert outcome.state == "kept"
    assert "02_topic.new.ipynb" in outcome.message
    (mine / "02_topic.new.ipynb").unlink()
    (outcome,) = course.prepare(mine, upstream)
    assert (outcome.state, outcome.message) == ("kept", "")
    assert not (mine / "02_topic.new.ipynb").exists()


def test_work_on_the_new_version_survives_the_next_update(upstream, mine):
    course.prepare(mine, upstream)
    works = {"02_topic.ipynb": edit(mine / "02_topic.ipynb")}
    publish(upstream, "better = 1")
    course.prepare(mine, upstream)
    works["02_topic.new.ipynb"] = edit(mine / "02_topic.new.ipynb", "mine too")
    publish(upstream, "best = 1")
    (outcome,) = course.prepare(mine, upstream)
    assert outcome.beside == mine / "02_topic.new2.ipynb"
    assert works.items() <= contents(mine).items()
    publish(upstream, "the very best = 1")  # new2 is untouched: it is renewed, not added to
    (outcome,) = course.prepare(mine, upstream)
    assert outcome.beside == mine / "02_topic.new2.ipynb"
    assert b"very best" in outcome.beside.read_bytes()
    assert works.items() <= contents(mine).items()


def test_outputs_alone_count_as_the_learners(upstream, mine):
    course.prepare(mine, upstream)
    lesson = json.loads((mine / "02_topic.ipynb").read_text("utf-8"))
    lesson["cells"][1]["execution_count"] = 1
    (mine / "02_topic.ipynb").write_text(json.dumps(lesson), "utf-8")
    publish(upstream, "better = 1")
    assert states(mine, upstream) == ["offered"]


def opened(path: Path) -> bytes:
    """What JupyterLab does to a lesson that is opened and left: it saves it in its own way."""
    lesson = json.loads(path.read_text("utf-8"))
    lesson["metadata"] |= {
        "kernelspec": {"name": "python3"},
        "language_info": {"version": "3.13.1"},
    }
    for cell in lesson["cells"]:
        cell["source"] = "".join(cell["source"]).splitlines(keepends=True)
        cell["metadata"] |= {"trusted": True, "collapsed": False}
    path.write_text(json.dumps(lesson, indent=1) + "\n", "utf-8")
    return path.read_bytes()


def test_a_lesson_that_was_only_opened_is_renewed(upstream, mine):
    course.prepare(mine, upstream)
    before = opened(mine / "02_topic.ipynb")
    assert states(mine, upstream) == ["current"]
    assert (mine / "02_topic.ipynb").read_bytes() == before
    publish(upstream, "better = 1")
    assert states(mine, upstream) == ["renewed"]
    assert b"better" in (mine / "02_topic.ipynb").read_bytes()


@pytest.mark.parametrize(
    "work",
    [
        lambda cell: cell.update(source="mine = 1"),
        lambda cell: cell.update(
            outputs=[{"output_type": "stream", "name": "stdout", "text": "4"}]
        ),
        lambda cell: cell.update(execution_count=3),
        lambda cell: cell.update(cell_type="raw"),
        lambda cell: cell.update(attachments={"a.png": {"image/png": "AAAA"}}),
    ],
)
def test_a_lesson_that_was_opened_and_worked_on_stays(upstream, mine, work):
    course.prepare(mine, upstream)
    opened(mine / "02_topic.ipynb")
    lesson = json.loads((mine / "02_topic.ipynb").read_text("utf-8"))
    work(lesson["cells"][1])
    (mine / "02_topic.ipynb").write_text(json.dumps(lesson), "utf-8")
    before = (mine / "02_topic.ipynb").read_bytes()
    publish(upstream, "better = 1")
    assert states(mine, upstream) == ["offered"]
    assert (mine / "02_topic.ipynb").read_bytes() == before


def test_what_is_around_the_cells_is_renewed_too(upstream, mine):
    """Upstream, a tag or a description of a picture is put right: no cell's text changes."""
    course.prepare(mine, upstream)
    lesson = notebook(SOLVED, alt="a curve that falls")
    (upstream / "02_topic.ipynb").write_text(json.dumps(lesson), "utf-8")
    assert states(mine, upstream) == ["renewed"]
    assert b"a curve that falls" in (mine / "02_topic.ipynb").read_bytes()
    assert states(mine, upstream) == ["current"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"cells": 3}', b'{"cells": [1]}', b"[" * 90_000])
def test_what_is_no_notebook_any_more_is_the_learners(upstream, mine, content):
    course.prepare(mine, upstream)
    (mine / "02_topic.ipynb").write_bytes(content)
    publish(upstream, "better = 1")
    assert states(mine, upstream) == ["offered"]
    assert (mine / "02_topic.ipynb").read_bytes() == content


@pytest.mark.parametrize("damage", ["", "{", "[1, 2]", '{"02_topic.ipynb": 3}', None])
def test_without_a_memory_everything_counts_as_the_learners(upstream, mine, damage):
    course.prepare(mine, upstream)
    untouched = (mine / "02_topic.ipynb").read_bytes()
    if damage is None:
        (mine / course.MEMORY).unlink()
    else:
        (mine / course.MEMORY).write_text(damage)
    publish(upstream, "better = 1")
    assert states(mine, upstream) == ["offered"]
    assert (mine / "02_topic.ipynb").read_bytes() == untouched
    assert states(mine, upstream) == ["kept"]  # and the memory is mended


def test_links_and_folders_in_the_way_are_left_alone(upstream, mine, tmp_path):
    elsewhere = tmp_path / "elsewhere.ipynb"
    elsewhere.write_bytes(course.student_bytes(upstream / "02_topic.ipynb"))
    before = elsewhere.read_bytes()
    mine.mkdir()
    (mine / "02_topic.ipynb").symlink_to(elsewhere)
    publish(upstream, "x = 1", name="05_more.ipynb")
    (mine / "05_more.ipynb").mkdir()
    assert states(mine, upstream) == ["current", "offered"]
    publish(upstream, "better = 1")
    assert states(mine, upstream) == ["offered", "kept"]
    assert elsewhere.read_bytes() == before


@pytest.mark.parametrize("at_once", [True, False])
def test_a_save_between_the_look_and_the_exchange_is_not_lost(at_once, upstream, mine, monkeypatch):
    course.prepare(mine, upstream)
    publish(upstream, "better = 1")
    rename = os.rename

    def save_then_rename(source, target):
        edit(Path(source), "saved in the last moment")
        rename(source, target)

    exchange = artifacts.exchange

    def save_then_exchange(new, path):
        edit(path, "saved in the last moment")
        return exchange(new, path)

    monkeypatch.setattr(os, "rename", save_then_rename)
    if at_once:
        monkeypatch.setattr(artifacts, "exchange", save_then_exchange)
    else:
        monkeypatch.setattr(artifacts, "exchange", lambda *_: False)
    assert states(mine, upstream) == ["offered"]
    assert b"last moment" in (mine / "02_topic.ipynb").read_bytes()


def test_without_hard_links(upstream, mine, monkeypatch):
    def refuse(*_):
        raise PermissionError("not on this file system")

    monkeypatch.setattr(os, "link", refuse)
    assert states(mine, upstream) == ["created"]
    publish(upstream, "better = 1")
    assert states(mine, upstream) == ["renewed"]
    edit(mine / "02_topic.ipynb")
    publish(upstream, "best = 1")
    assert states(mine, upstream) == ["offered"]


def test_two_starts_at_once(upstream, mine):
    for i in range(5):
        publish(upstream, "x = 1", name=f"1{i}_more.ipynb")
    failures = []

    def start():
        try:
            course.prepare(mine, upstream)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    names = [path.name for path in course.lessons(upstream)]
    assert set(contents(mine)) == {*names, course.MEMORY}
    assert states(mine, upstream) == ["current"] * 6


def test_a_folder_that_cannot_be_made_is_refused(upstream, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="--folder"):
        course.prepare(tmp_path / "file" / "my_course", upstream)


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from saelearn import course

    step, count = int(sys.argv[3]), 0

    def watch(event, arguments):
        global count
        if event in ("open", "os.link", "os.rename", "os.remove", "os.rmdir", "os.mkdir",
                     "tempfile.mkstemp", "tempfile.mkdtemp") and sys.argv[1] in str(arguments):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    course.prepare(Path(sys.argv[1]), Path(sys.argv[2]))
    """
)


def kill_at(step: int, upstream: Path, tmp_path: Path) -> bool:
    """Kill an update before its `step`-th touch of the folder, then update again.

    Returns whether the update was killed, or had come to its end before.
    """
    mine = tmp_path / f"killed-{step}"
    publish(upstream, SOLVED)
    publish(upstream, SOLVED, name="05_edited.ipynb")
    course.prepare(mine, upstream)
    work = edit(mine / "05_edited.ipynb")
    publish(upstream, "better = 1")
    publish(upstream, "better = 1", name="05_edited.ipynb")
    publish(upstream, "x = 1", name="07_added.ipynb")
    code = [sys.executable, "-c", KILLED, str(mine), str(upstream), str(step)]
    killed = subprocess.run(code).returncode == -signal.SIGKILL
    assert (mine / "05_edited.ipynb").read_bytes() == work
    for path in mine.glob("*.ipynb"):
        json.loads(path.read_text("utf-8"))  # whole, whenever it was
    course.prepare(mine, upstream)
    assert (mine / "05_edited.ipynb").read_bytes() == work
    for name in ("02_topic.ipynb", "05_edited.new.ipynb", "07_added.ipynb"):
        lesson = upstream / name.replace(".new", "")
        assert (mine / name).read_bytes() == course.student_bytes(lesson)
    for name in ("05_edited.new.ipynb", "07_added.ipynb"):  # begin anew with the next step
        (mine / name).unlink()
    shutil.rmtree(mine)
    (upstream / "07_added.ipynb").unlink()
    return killed


@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")
@pytest.mark.parametrize("step", [4, 9])
def test_killed_in_the_middle(step, upstream, tmp_path):
    assert kill_at(step, upstream, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")
def test_killed_at_every_step(upstream, tmp_path):
    step = 1
    while kill_at(step, upstream, tmp_path):
        step += 1
    assert step > 15  # the update has that many steps at least, or this kills nothing
