"""From the lessons to a gradebook: points, hand-out, collecting, grading, reports."""

from __future__ import annotations

import ast
import contextlib
import copy
import csv
import html.parser
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest
import small_class
from small_class import NAME, POINTS, TOTAL, answered, hand_in

from saelearn import artifacts, course
from saelearn.cli import commands as cli
from saelearn.course import collect, grade, handout, judge, points, reports, restore
from saelearn.course.answers import Mother
from saelearn.course.confine import Limits
from saelearn.course.marks import Graded, Mark
from saelearn.errors import ArtifactError, Refusal

LESSONS = course.lessons()
LIMITS = Limits(cell=60, check=60, total=120, memory=2**30)  # for a busy machine, too
ALL = dict.fromkeys(POINTS, True)
posix = pytest.mark.skipif(os.name == "nt", reason="students' code runs on POSIX alone")
each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)


# --- points ---------------------------------------------------------------------------------------


@each_lesson
def test_every_check_call_of_a_lesson_becomes_a_locked_cell_with_points(lesson):
    complete = artifacts.read_json(lesson)
    released = points.released(complete, lesson.stem)
    module, alias = points.checks_of(released)
    checks = [c for c in released["cells"] if points.is_check(c)]
    marks = [c["metadata"]["nbgrader"] for c in checks]
    assert all(m["locked"] and m["points"] > 0 and not m["solution"] for m in marks)
    code = "\n".join(points.text(c) for c in complete["cells"] if c["cell_type"] == "code")
    called = re.findall(rf"(?m)^{alias}\.(\w+)\(", code)
    assert [points.check_in(c, module).function for c in checks] == called
    ids = [m["grade_id"] for c in released["cells"] if (m := c["metadata"].get("nbgrader"))]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[A-Za-z0-9_-]+", i) for i in ids)
    cell_ids = [c["id"] for c in released["cells"]]
    assert len(set(cell_ids)) == len(cell_ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", i) for i in cell_ids)
    assert [i for i in cell_ids if i in {c["id"] for c in complete["cells"]}] == [
        c["id"] for c in complete["cells"] if c["id"] in cell_ids
    ]


@each_lesson
def test_stars_are_points_and_an_exercise_shares_them_among_its_checks(lesson):
    """Against an independent reading of the headings."""
    complete = artifacts.read_json(lesson)
    released = points.released(complete, lesson.stem)
    module, _ = points.checks_of(released)
    prose = "\n".join(points.text(c) for c in complete["cells"] if c["cell_type"] == "markdown")
    stars = re.findall(r"(?m)^### Exercise \d+\.\d+ (★+)", prose)
    checks = [points.check_in(c, module) for c in released["cells"] if points.is_check(c)]
    graded = sum(check.points for check in checks if not check.prediction)
    assert graded == pytest.approx(points.PER_STAR * sum(map(len, stars)))
    assert {c.points for c in checks if c.prediction} <= {points.FOR_A_PREDICTION}


def test_names_stay_when_an_exercise_is_put_before():
    before = {points.grade_id(c): c["id"] for c in small_class.released()["cells"]}
    more = small_class.complete()
    first = copy.deepcopy(more["cells"][9])
    first |= {"id": "new", "source": ["y = ...\n", "### BEGIN SOLUTION\n", "### END SOLUTION\n"]}
    more["cells"].insert(2, first)
    after = {points.grade_id(c): c["id"] for c in points.released(more, NAME)["cells"]}
    assert before.items() <= after.items()


def test_a_check_in_the_middle_of_a_cell_is_refused():
    lesson = small_class.complete()
    lesson["cells"][3]["source"] = ["check.predicted_found(3)\n", "x = 1"]
    with pytest.raises(Refusal, match="end of a cell"):
        points.released(lesson, NAME)


def test_a_lesson_without_checks_is_refused():
    lesson = small_class.complete()
    lesson["cells"][1]["source"] = ["import torch"]
    with pytest.raises(Refusal, match="lessonNN"):
        points.released(lesson, NAME)


# --- hand-out -------------------------------------------------------------------------------------


def test_a_release_is_the_same_bytes_each_time_and_holds_no_line_of_a_solution(tmp_path):
    for out in ("a", "b"):
        handout.release([p.stem[:2] for p in LESSONS], tmp_path / out / "x", due="1 May")
    zips = [(tmp_path / out / "x.zip").read_bytes() for out in ("a", "b")]
    assert zips[0] == zips[1]
    with zipfile.ZipFile(io.BytesIO(zips[0])) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    on_disk = {
        str(p.relative_to(tmp_path / "a/x")): p.read_bytes()
        for p in (tmp_path / "a/x").rglob("*")
        if p.is_file()
    }
    assert files == on_disk
    assert {f"{p.stem}.ipynb" for p in LESSONS} | {"START_HERE.md", "glossary.md"} <= set(files)
    for lesson in LESSONS:
        handed_out = {line.strip() for line in _code(json.loads(files[lesson.name]))}
        for line in _solution_lines(artifacts.read_json(lesson)):
            assert line not in handed_out, f"{lesson.stem}: {line}"


def _code(notebook: dict) -> list[str]:
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert not any(c["outputs"] for c in cells)
    return [line for c in cells for line in points.text(c).splitlines()]


def _solution_lines(notebook: dict) -> set[str]:
    """Lines that stand between markers and nowhere else in the lesson, long enough to tell."""
    inside, outside, within = set(), set(), False
    for cell in notebook["cells"]:
        for line in points.text(cell).splitlines() if cell["cell_type"] == "code" else []:
            mark = line.strip()
            if mark in (course.BEGIN, course.END):
                within = mark == course.BEGIN
            elif len(mark) > 8:
                (inside if within else outside).add(mark)
    return inside - outside


def test_the_cover_says_what_when_and_how(tmp_path):
    wheel = tmp_path / "saelearn-1-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    handout.release(["4", "05"], tmp_path / "out", due="Friday", hand_in="By pigeon.", wheel=wheel)
    cover = (tmp_path / "out" / "START_HERE.md").read_text()
    for words in (
        "Friday",
        "By pigeon.",
        "pip install './saelearn-1",
        "04_first_sae",
        "| 25 | 8 |",
        "in words",
    ):
        assert words in cover
    assert (tmp_path / "out" / wheel.name).read_bytes() == b"wheel"
    assert len(cover.splitlines()) < 60  # a page


def test_what_is_linked_goes_along(tmp_path):
    source = small_class.publish(tmp_path / "notebooks")
    (source / "pictures").mkdir()
    (source / "pictures" / "a.png").write_bytes(b"png")
    (source / "secret.txt").write_text("no")
    lesson = small_class.complete()
    lesson["cells"][0]["source"] = "# A\n![x](pictures/a.png) [y](05_more.ipynb) [z](../up.md)"
    (source / f"{NAME}.ipynb").write_text(json.dumps(lesson))
    handout.release(["04"], tmp_path / "out", source=source)
    with zipfile.ZipFile(tmp_path / "out.zip") as opened:
        assert set(opened.namelist()) == {f"{NAME}.ipynb", "pictures/a.png", "START_HERE.md"}


def test_wrong_numbers_and_wrong_zips_are_refused(tmp_path):
    with pytest.raises(Refusal, match="a lesson's number: one of 00, 01"):
        handout.release(["99"], tmp_path / "out")
    (tmp_path / "no.zip").write_bytes(b"no zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as opened:
        opened.writestr("x", "y")
    for name in ("no.zip", "empty.zip", "none.zip"):
        with pytest.raises(ArtifactError, match="release"):
            handout.read_release(tmp_path / name)


# --- collecting and putting right -----------------------------------------------------------------


@pytest.fixture
def release(tmp_path) -> handout.Release:
    handout.release(["04"], tmp_path / "out", source=small_class.publish(tmp_path / "notebooks"))
    return handout.read_release(tmp_path / "out.zip")


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "submissions").mkdir()
    return tmp_path / "submissions"


def collected(folder: Path, release: handout.Release) -> dict[str, collect.Submission]:
    found = {}
    for student, entries in collect.students(folder, release).items():
        (found[student],) = collect.submissions(student, entries, release)
    return found


def windows(notebook: dict, encoding: str) -> bytes:
    return json.dumps(notebook, indent=1, ensure_ascii=False).replace("\n", "\r\n").encode(encoding)


def test_odd_names_and_odd_files(folder, release, tmp_path):
    good, raw = answered(**ALL), json.dumps(answered(**ALL)).encode()
    hand_in(folder / "Zoë O'Brien [2] (x)", good, "homework final (3).ipynb")
    hand_in(folder / "deep" / "down" / "there", good)
    hand_in(folder, good, f"{NAME} - alone.ipynb")
    hand_in(folder, windows(good, "utf-8-sig"), f"bom_{NAME}.ipynb")
    hand_in(folder, windows(good, "utf-16"), f"{NAME}_utf16.ipynb")
    hand_in(folder / "half", raw[: len(raw) // 2])
    hand_in(folder / "empty", b"")
    hand_in(folder / "list", b"[1, 2]")
    hand_in(folder / "deep json", b"[" * 100_000)
    hand_in(folder / "old", b'{"worksheets": [], "nbformat": 3}')
    hand_in(folder / "odd cells", b'{"cells": [{"cell_type": "code", "source": 3, "id": []}, {}]}')
    (folder / "nothing").mkdir()
    hand_in(folder / "twice", answered(), "a.ipynb")
    hand_in(folder / "twice", good, "b.ipynb")
    hand_in(folder / "checkpoints" / ".ipynb_checkpoints", good)
    (folder / "linked").mkdir()
    (folder / "linked" / f"{NAME}.ipynb").symlink_to(folder / "half" / f"{NAME}.ipynb")
    (folder / "folder link").symlink_to(tmp_path)
    (folder / "notes.txt").write_text("mine")
    with zipfile.ZipFile(folder / "zipped.zip", "w") as opened:
        opened.writestr("../../" + NAME + ".ipynb", raw)
        opened.writestr("__MACOSX/._x.ipynb", b"x")
    (folder / "broken zip.zip").write_bytes(b"PK\3\4 and no more")
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr(f"{NAME}.ipynb", bytes(collect.LARGEST + 2))
    found = collected(folder, release)
    read = {student for student, each in found.items() if each.notebook == good}
    assert read == {"Zoë O'Brien [2] (x)", "deep", "alone", "bom", "utf16", "twice", "zipped"}
    said = {student: " ".join(each.notes) for student, each in found.items()}
    assert "b.ipynb was graded" in said["twice"]
    for student, words in {
        "half": "half written", "empty": "half written", "list": "today's format",
        "deep json": "half written", "old": "today's format", "nothing": "nothing was handed in",
        "checkpoints": "nothing was handed in", "linked": "a link", "folder link": "a link",
        "broken zip": "no readable zip", "bomb": "larger than", "odd cells": "none of the lessons",
    }.items():  # fmt: skip
        assert found[student].notebook is None or student == "odd cells"
        assert words in said[student] or student == "odd cells", student
    assert len(found) == 19
    assert not (tmp_path.parent / f"{NAME}.ipynb").exists()


def test_no_submissions_are_said(folder, release):
    for empty in (folder, folder / "none"):
        with pytest.raises(ArtifactError, match=r"submissions|each student"):
            collect.students(empty, release)


def sources(steps: list[restore.Step]) -> list[str]:
    return [step.check.grade_id if step.check else step.source for step in steps]


def test_an_untouched_notebook_needs_nothing():
    released = small_class.released()
    steps, notes = restore.restored(answered(**ALL), released)
    assert notes == []
    assert len(steps) == len([c for c in released["cells"] if c["cell_type"] == "code"])


def damaged(change) -> tuple[list[str], list[str]]:
    notebook = answered(**ALL)
    change(notebook["cells"])
    steps, notes = restore.restored(notebook, small_class.released())
    return sources(steps), notes


def where(cells: list[dict], name: str) -> int:
    return next(i for i, cell in enumerate(cells) if cell["id"].endswith(name))


def edit(cells: list[dict], name: str, **changes) -> None:
    cells[where(cells, name)] |= changes


CHANGES = {
    "edited": (lambda c: edit(c, "tied", source="check.tied = print"), "had been edited"),
    "deleted": (lambda c: c.pop(where(c, "-tied")), "was missing"),
    "doubled": (lambda c: c.append(copy.deepcopy(c[where(c, "-tied")])), ""),
    "split": (
        lambda c: (
            c.insert(where(c, "-tied"), {**copy.deepcopy(c[where(c, "-tied")]), "id": "half"}),
            c[where(c, "-tied")].update(source="check.tied"),
        ),
        "had been edited",
    ),
    "moved to the top": (lambda c: c.insert(0, c.pop(where(c, "-tied"))), ""),
    "worth more": (lambda c: c[where(c, "-tied")]["metadata"]["nbgrader"].update(points=99), ""),
    "without ids": (lambda c: [cell.pop("id") for cell in c], ""),
    "without metadata": (lambda c: [cell.update(metadata={}) for cell in c], ""),
    "backwards": (lambda c: c.reverse(), ""),
    "other types": (lambda c: [cell.update(metadata=[], outputs=3) for cell in c], ""),
}


@pytest.mark.parametrize("name", CHANGES)
def test_checks_are_those_of_the_release_whatever_was_done_to_them(name):
    change, words = CHANGES[name]
    right, _ = damaged(lambda cells: None)
    got, notes = damaged(change)
    assert got == right
    assert (words in " ".join(notes)) if words else notes == []


def test_answers_and_own_cells_keep_their_places():
    def split(cells):
        answer = where(cells, "small-005")
        cells.insert(answer, {"cell_type": "code", "id": "mine", "source": "import numpy as np"})
        cells.insert(answer + 2, {"cell_type": "code", "id": "x", "source": "more = 1"})
        cells.append({"cell_type": "code", "source": ["last = 1"]})
        cells.append({"cell_type": "raw", "source": "raw"})
        cells[where(cells, "small-001")]["source"] += "\nimport math"

    got, notes = damaged(split)
    assert notes == []
    assert "import math" in got[0]
    names = [source.split("\n")[0].split("(")[0] for source in got]
    assert names == [
        "import torch", "my_guess = ...", "check-04-predicted_found", "import numpy as np",
        "def tied", "more = 1", "check-04-tied", "def train_step", "check-04-train_step",
        "def ingredients", "check-04-ingredients", "last = 1",
    ]  # fmt: skip


def test_an_answer_that_is_there_twice_or_not_at_all_is_told():
    def twice(cells):
        again = copy.deepcopy(cells[where(cells, "small-005")])
        cells.insert(3, again | {"id": "copy", "source": "tied = 3"})

    got, notes = damaged(twice)
    assert any(source.startswith("def tied") for source in got)
    assert "was there 2 times" in notes[0]
    got, notes = damaged(lambda cells: cells.pop(where(cells, "small-005")))
    assert "answer-small-005 was missing" in notes[0]
    assert any(source.startswith("def tied") and "your code" in source for source in got)


# --- grading --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mother():
    with Mother(judge.imported(small_class.released())) as started:
        yield started


def earned(notebook: dict | None, mother: Mother) -> dict[str, float]:
    judged = judge.judge(notebook, small_class.released(), mother, limits=LIMITS, salt=b"s")
    return {mark.grade_id.split("-")[2]: mark.earned for mark in judged.marks}


@posix
def test_the_reference_gets_everything_and_the_empty_hand_out_nothing(mother):
    released = small_class.released()
    reference = restore.solved(small_class.complete(), released)
    assert earned(reference, mother) == POINTS
    assert set(earned(released, mother).values()) == {0}
    assert set(earned(None, mother).values()) == {0}


@posix
@pytest.mark.slow
@each_lesson
def test_every_lessons_reference_gets_everything_and_its_hand_out_nothing(lesson):
    complete = artifacts.read_json(lesson)
    released = points.released(complete, lesson.stem)
    reference = restore.solved(complete, released)
    own = {"cell_type": "code", "source": "x = 1"}  # else nothing would be run
    with Mother(judge.imported(released)) as mother:
        full = judge.judge(reference, released, mother, salt=b"s")
        unsolved = {**released, "cells": [own, *released["cells"]]}
        empty = judge.judge(unsolved, released, mother, salt=b"s")
    short = [mark for mark in full.marks if mark.earned < mark.points]
    assert short == []
    assert full.notes == []
    assert [mark for mark in empty.marks if mark.earned] == []


@posix
def test_a_prediction_is_paid_for_being_made(mother):
    for guess, paid in (
        ("7", 1),
        ("64.0", 1),
        ("...", 0),
        ("'many'", 0),
        ("10**400", 0),
        ("[]", 0),
    ):
        notebook = answered(predicted_found=f"my_guess = {guess}")
        assert earned(notebook, mother)["predicted_found"] == paid, guess


@posix
def test_what_ends_python_costs_that_exercise_alone(mother):
    notebook = answered(
        **ALL | {"train_step": "def train_step(*_):\n    import os\n    os._exit(1)"}
    )
    assert earned(notebook, mother) == POINTS | {"train_step": 0}


def fill(folder: Path) -> None:
    """Five students."""
    wrong = "def tied(x, M, b):\n    return x @ M.T + b, x"
    hand_in(folder / "ann", answered(**ALL))
    hand_in(folder / "=cmd|calc'!A0", answered(tied=True, ingredients=wrong))
    hand_in(folder / "cleo", answered(tied=wrong))
    hand_in(folder / "<b>dan", answered(tied=wrong, predicted_found=True))
    hand_in(folder / "eve", b"{")


@pytest.fixture(scope="module")
def once(tmp_path_factory, mother) -> Path:
    """A class that was released, handed in and graded: `out.zip`, `submissions` and `grades`."""
    place = tmp_path_factory.mktemp("class")
    handout.release(["04"], place / "out", source=small_class.publish(place / "notebooks"))
    fill(place / "submissions")
    run(place / "submissions", place / "grades", mother=mother)
    return place


@pytest.fixture
def place(once, tmp_path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(once, tmp_path / "class")


def run(folder: Path, out: Path, **options) -> list[Graded]:
    return grade.grade(folder, out.parent / "out.zip", out, limits=LIMITS, **options)


def books(out: Path) -> dict[str, bytes]:
    names = ("gradebook.csv", "gradebook.json", "totals.csv")
    pages = sorted((out / "feedback").glob("*.html"))
    return {p.name: p.read_bytes() for p in [*(out / name for name in names), *pages]}


@posix
def test_the_gradebook_adds_up_and_is_safe_to_open(once):
    graded = grade.results(once / "grades")
    assert {g.student: g.earned for g in graded} == {
        "ann": TOTAL, "=cmd|calc'!A0": 2, "cleo": 0, "<b>dan": 1, "eve": 0,
    }  # fmt: skip
    rows = list(csv.DictReader(io.StringIO((once / "grades" / "gradebook.csv").read_text())))
    assert len(rows) == 5 * len(POINTS)
    assert sum(float(r["earned"]) for r in rows) == TOTAL + 3
    totals = list(csv.reader(io.StringIO((once / "grades" / "totals.csv").read_text())))
    assert totals[0] == ["student", NAME, "earned", "possible", "unread"]
    assert not any(cell[:1] in "=+-@" for row in totals for cell in row if cell)
    said = {r["message"] for r in rows if r["student"] == "cleo" and r["state"] == "wrong"}
    assert any("ReLU is missing" in words for words in said)
    notes = json.loads((once / "grades" / "gradebook.json").read_text())["notes"]
    assert [note["student"] for note in notes] == ["eve"]
    for page in (once / "grades" / "feedback").iterdir():
        text = page.read_text()
        assert "<b>dan" not in text and "<script" not in text
        html.parser.HTMLParser().feed(text)


@posix
def test_what_is_graded_is_graded_again_only_if_it_changed(place, mother):
    before, said = books(place / "grades"), []
    run(place / "submissions", place / "grades", mother=mother, say=said.append)
    assert said == [] and books(place / "grades") == before
    hand_in(place / "submissions" / "cleo", answered(**ALL))
    run(place / "submissions", place / "grades", mother=mother, say=said.append)
    assert len(said) == 1 and "cleo" in said[0]


@posix
@pytest.mark.slow
def test_two_workers_make_the_same_gradebook(place):
    two = with_key_of(place / "grades", place / "two")
    run(place / "submissions", two, workers=2)
    assert books(two) == books(place / "grades")


@posix
def test_an_anonymous_grading_names_nobody_but_in_its_list(place, mother):
    hand_in(place / "submissions" / "eve", b"{", f"{NAME}_by_eve.ipynb")
    hand_in(place / "submissions" / "dora", answered(tied=True), "dora.ipynb")
    hand_in(place / "submissions" / "dora", answered(), "dora's first.ipynb")
    out, said = place / "nameless", []
    graded = run(place / "submissions", out, mother=mother, anonymous=True, say=said.append)
    ids = {r["student"]: r["id"] for r in csv.DictReader((out / "names.csv").open("r"))}
    names = {"ann", "'=cmd|calc'!A0", "cleo", "<b>dan", "eve", "dora"}
    assert set(ids) == names and len(set(ids.values())) == len(names)
    assert {g.student: g.earned for g in graded}[ids["ann"]] == TOTAL
    assert [g.student for g in graded] == sorted(ids.values())
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "names.csv"]
    texts = [path.read_text() + path.name for path in files]
    for text in [*texts, *said, reports.report([], graded), reports.in_words([], graded)]:
        assert not re.search(r"\b(ann|calc|cleo|dan|eve|dora)\b", text)
    notes = " ".join(note for g in graded for note in g.notes)
    assert f"{NAME} file 1.ipynb: is damaged" in notes and "file 2.ipynb was graded" in notes
    with pytest.raises(Refusal, match="anonymous one"):
        run(place / "submissions", out)
    with pytest.raises(Refusal, match="one with names"):
        run(place / "submissions", place / "grades", anonymous=True)


@posix
def test_grades_of_another_release_are_not_mixed(place):
    handout.release(["04"], place / "out", due="now", source=place / "notebooks")
    with pytest.raises(Refusal, match="another release"):
        run(place / "submissions", place / "grades")


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from test_grading import LIMITS
    from saelearn.course import grade

    count = 0
    def watch(event, arguments):
        global count
        watched = event in ("open", "os.rename", "os.remove", "os.mkdir", "tempfile.mkdtemp")
        if watched and {out!r} in str(arguments):
            count += 1
            if count == {step}:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    grade.grade(Path({folder!r}), Path({release!r}), Path({out!r}), limits=LIMITS)
    """
)


def killed_at(step: int, folder: Path, out: Path) -> bool:
    code = KILLED.format(
        tests=str(Path(__file__).parent), step=step, folder=str(folder), out=str(out),
        release=str(out.parent / "out.zip"),
    )  # fmt: skip
    return subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL


def with_key_of(out: Path, other: Path) -> Path:
    """A new grading with the hidden numbers of another, so that their books can be compared."""
    other.mkdir()
    shutil.copy(out / "key", other / "key")
    return other


@posix
def test_killed_in_the_middle_it_ends_with_the_same_gradebook(place, mother):
    other = with_key_of(place / "grades", place / "killed")
    assert killed_at(25, place / "submissions", other)
    assert not (other / "gradebook.csv").exists()
    run(place / "submissions", other, mother=mother)
    assert books(other) == books(place / "grades")


@posix
@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_gradebook(place, mother):
    for first in range(1, 200, 7):
        other = with_key_of(place / "grades", place / f"killed-{first}")
        if not killed_at(first, place / "submissions", other):
            break
        killed_at(first // 2 + 1, place / "submissions", other)
        run(place / "submissions", other, mother=mother)
        assert books(other) == books(place / "grades"), first
    assert first > 60


@posix
def test_killed_while_a_student_loops_nothing_stays_behind(place):
    psutil = pytest.importorskip("psutil")
    hand_in(place / "submissions" / "aaa", answered(tied="while True: pass"))
    paths = [str(place / name) for name in ("submissions", "out.zip", "grades")]
    code = (
        "import sys; from pathlib import Path; from saelearn.course import grade\n"
        "grade.grade(*map(Path, sys.argv[1:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *paths])
    grader, deadline = psutil.Process(process.pid), time.monotonic() + 240
    while len(found := grader.children(recursive=True)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(found) == 2  # the mother, and the student's sandbox
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(found, timeout=60)
    assert not alive


@posix
def test_a_submission_that_ends_the_grader_twice_is_left_to_the_teacher(place, mother, monkeypatch):
    def crash(notebook, *arguments, **options):
        if notebook is not None and "my_guess = 32" in points.text(notebook["cells"][3]):
            raise KeyboardInterrupt
        return real(notebook, *arguments, **options)

    real = judge.judge
    monkeypatch.setattr(grade, "judge", crash)
    ended = subprocess.CompletedProcess([], -signal.SIGSEGV)
    ended.wait = lambda: ended.returncode
    monkeypatch.setattr(grade, "_apart", lambda *_, **__: ended)
    shutil.rmtree(place / "grades")
    for _ in range(2 * grade.TRIES):  # two of the class made the prediction: ann and dan
        with pytest.raises(KeyboardInterrupt):
            run(place / "submissions", place / "grades", mother=mother)
    graded = {g.student: g for g in run(place / "submissions", place / "grades", mother=mother)}
    assert graded["ann"].earned == 0 and "please look at it" in graded["ann"].notes[0]
    assert graded["=cmd|calc'!A0"].earned == 2


@posix
def test_one_that_was_killed_often_is_judged_all_the_same(place):
    """In a process apart, which does not end: so the kills were not the submission's doing."""
    other = with_key_of(place / "grades", place / "often")
    (other / "results").mkdir()
    for result in (place / "grades" / "results").glob("*.json"):
        (other / "results" / result.with_suffix(".started").name).write_bytes(b"." * 5)
    run(place / "submissions", other)
    assert books(other) == books(place / "grades")
    assert not list((other / "results").glob("*.started"))


@posix
@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_with_the_same_gradebook(place, mother):
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    code = (
        "import sys; from pathlib import Path; from saelearn.course import grade\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_grading import LIMITS\n"
        "grade.grade(*map(Path, sys.argv[1:]), limits=LIMITS, workers=2)"
    )

    def start(out: Path) -> subprocess.Popen:
        paths = [str(place / "submissions"), str(place / "out.zip"), str(out)]
        return subprocess.Popen([sys.executable, "-c", code, *paths], start_new_session=True)

    started = time.monotonic()
    assert start(with_key_of(place / "grades", place / "whole")).wait() == 0
    whole = time.monotonic() - started
    other = with_key_of(place / "grades", place / "killed")
    n_killed = 0
    for _ in range(10):
        process = start(other)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.3, 1) * whole)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        n_killed += process.wait() == -signal.SIGKILL
        if (other / "gradebook.csv").exists():  # it was through: once more from the start
            assert books(other) == books(place / "grades"), seed
            shutil.rmtree(other)
            with_key_of(place / "grades", place / "killed")
    assert n_killed >= 5
    run(place / "submissions", other, mother=mother)
    assert books(other) == books(place / "grades") == books(place / "whole"), seed


@posix
def test_a_package_that_changes_while_it_grades_ends_the_grading(place, mother, monkeypatch):
    states = iter("abbbbb")
    monkeypatch.setattr(grade, "_package", lambda: next(states))
    with pytest.raises(Refusal, match="package to stay as it is"):
        run(place / "submissions", place / "grades", mother=mother)


def test_the_grader_never_evaluates_what_comes_from_a_student():
    """The files that run beside a gradebook call nothing that could; the sandbox alone may."""
    root = Path(handout.__file__).parent
    forbidden = {"eval", "exec", "compile", "__import__"}
    for name in ("answers", "collect", "grade", "judge", "reports", "restore", "marks", "points"):
        tree = ast.parse((root / f"{name}.py").read_text())
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert not names & forbidden, name
        imports = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert not imports & {"pickle", "dill", "marshal", "shelve", "joblib"}, name
        assert "from_judge" not in ast.unparse(tree)


# --- reports --------------------------------------------------------------------------------------


def mark(earned: float, state: str, message: str) -> Mark:
    return Mark("check-04-tied", "Exercise 4.1", 2, earned, state, message, 0.5)


def test_the_report_counts_who_solved_and_what_went_wrong():
    marks = [(2, "passed", ""), (1, "wrong", "shape (3, 4)"), (0, "wrong", "shape (5, 6)")]
    marks += [(0, "wrong", "ReLU"), (0, "open", "nothing")]
    graded = [Graded(str(i), NAME, "", [mark(*m)], ["odd"] * (i == 1), [], 1.0)
              for i, m in enumerate(marks)]  # fmt: skip
    (row,) = reports.where_stuck(graded)
    assert (row.n, row.solved, row.half, row.tried) == (5, 0.2, 0.2, 0.8)
    assert row.mistakes == [("shape (3, 4)", 2), ("ReLU", 1)]
    words = reports.in_words([row], graded)
    assert "20%" in words and "2 x shape" in words and "1, 04_small: odd" in words
    page = reports.report([row], graded)
    assert "2 × shape (3, 4)" in page and "default-src &#x27;none&#x27;" not in page


@posix
def test_the_commands(tmp_path, capsys, folder):
    assert cli.main(["release", "00", "--out", str(tmp_path / "out"), "--due", "now"]) == 0
    release = handout.read_release(tmp_path / "out.zip")
    hand_in(folder / "ann", release.lessons["00_start_here"], "00_start_here.ipynb")
    command = ["grade", str(folder), "--release", str(tmp_path / "out.zip")]
    assert cli.main([*command, "--out", str(tmp_path / "grades")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"1/1  ann, 00_start_here: 0 of \d\d points", printed), printed
    assert "solved  in part" in printed
    assert cli.main(["report", str(tmp_path / "grades")]) == 0
    assert (tmp_path / "grades" / "report.html").exists()
    assert cli.main(["report", str(tmp_path / "none")]) == 1
    assert "saelearn report: expected results" in capsys.readouterr().err
