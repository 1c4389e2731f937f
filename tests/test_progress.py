"""What was solved is kept in a learner's folder, and in no other; nothing stands in the way."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from saelearn import course, exercises, progress
from saelearn.cli import commands as cli
from saelearn.course import handout
from saelearn.exercises import lesson00, lesson04
from saelearn.plots import start
from saelearn.progress import Solved

N = len(exercises.checks_in("saelearn.exercises.lesson04"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A learner's folder, in which the kernel works."""
    (tmp_path / course.MEMORY).write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tied(x_BD, M_FD, b_F):
    c_BF = (x_BD @ M_FD.T + b_F).relu()
    return c_BF, c_BF @ M_FD


def test_a_check_that_passes_is_kept_and_says_how_far_the_lesson_is(folder):
    assert lesson04.tied(lambda *_: 0).beside == ""
    assert not (folder / progress.FILE).exists()
    for _ in range(2):
        verdict = lesson04.tied(tied)
        assert verdict.beside == f"Lesson 04: 1 of {N} solved."
        assert verdict.beside in repr(verdict) and verdict.beside in verdict._repr_html_()
    assert len((folder / progress.FILE).read_text().splitlines()) == 1
    assert progress.of_folder() == {"04": Solved(frozenset({"tied"}), N)}


def test_elsewhere_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verdict = lesson04.tied(tied)
    assert verdict.passed and verdict.beside == ""
    assert list(tmp_path.iterdir()) == []


def test_the_signs_are_what_is_really_put_there():
    assert {course.MEMORY, handout.COVER} == set(progress.SIGNS)


@pytest.mark.skipif(os.name == "nt", reason="a folder that is in use stays there")
def test_a_folder_that_is_gone_costs_nothing(folder):
    (folder / course.MEMORY).unlink()
    folder.rmdir()
    assert lesson04.tied(tied).passed
    assert progress.of_folder() == {}


def test_a_file_in_the_way_costs_nothing(folder):
    (folder / progress.FILE).mkdir()
    assert lesson04.tied(tied).passed and progress.of_folder() == {}


def test_damaged_lines_are_passed_over(folder):
    (folder / progress.FILE).write_bytes(
        b"04 tied 7 2026-01-02\n\xff\n04 rot\n05 choose 2 2026-01-02"
    )
    assert progress.of_folder() == {
        "04": Solved(frozenset({"tied"}), 7), "05": Solved(frozenset({"choose"}), 2),
    }  # fmt: skip


def test_several_at_once_lose_nothing(folder):
    code = (
        "import sys; from saelearn import progress\n"
        "for i in range(40): progress.keep('04', f'check_{sys.argv[1]}_{i}', 99)"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(k)]) for k in range(4)]
    assert [process.wait() for process in started] == [0] * 4
    assert len(progress.of_folder(folder)["04"].checks) == 160


def test_the_command_lists_all_lessons_and_what_comes_next(folder, capsys):
    for name in exercises.checks_in(lesson00.__name__):
        progress.keep("00", name, 9)
    progress.keep("04", "tied", N)
    assert cli.main(["progress", "--folder", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"04_first_sae +1 of +{N}  #\.+\n", printed)
    assert re.search(r"00_start_here +(\d+) of +\1  #+\n", printed)
    assert "next: Exercise 1.1" in printed
    assert len(printed.splitlines()) == len(course.lessons()) + 2


def test_the_map_shows_it(folder):
    parts = {"Toys": {"01": "a?", "04": "b?", "05": "c?"}}
    progress.keep("04", "tied", 7)
    progress.keep("05", "choose", 1)
    texts = {text.get_text() for text in start.course_map(parts, short_path=[]).axes[0].texts}
    assert {"1 of 7 solved", "✓"} <= texts
    again = start.course_map(parts, short_path=[], solved={})
    assert not {"1 of 7 solved", "✓"} & {text.get_text() for text in again.axes[0].texts}
