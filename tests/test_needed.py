"""Grading leaves out what no check can depend on, and gives the marks that a whole run gives."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import small_class
from small_class import answered

from saelearn import artifacts, course
from saelearn.course import judge, points, restore
from saelearn.course.answers import Mother, Sandbox
from saelearn.course.confine import Limits
from saelearn.course.needed import needed, split

posix = pytest.mark.skipif(os.name == "nt", reason="students' code runs on POSIX alone")


def left(*sources: str) -> list[str]:
    """What is left of cells as they were handed out, if the last one is run."""
    found = needed(sources, [False] * (len(sources) - 1) + [True])
    assert found[-1] == sources[-1]
    return found[:-1]


SLICES = {
    "what is not asked for": (["x = 1", "y = 2", "x"], ["x = 1", ""]),
    "a statement of a cell": (["x = 1\nprint(5)\ny = x", "y"], ["x = 1\ny = x"]),
    "what a function needs when it is called": (
        ["k = 3", "def f(a):\n    return a + k", "f"],
        ["k = 3", "def f(a):\n    return a + k"],
    ),
    "a parameter is no name of the notebook": (["a = 1", "def f(a):\n    return a"], [""]),
    "what is bound anew": (["x = slow()", "x = 1", "x"], ["", "x = 1"]),
    "what is bound anew in some cases": (
        ["x = 1", "if a:\n    x = 2", "x"], ["x = 1", "if a:\n    x = 2"],
    ),
    "added to": (["x = 1", "x += 1", "x"], ["x = 1", "x += 1"]),
    "stored into": (["d = {}", "d['a'] = 1", "d"], ["d = {}", "d['a'] = 1"]),
    "a method that alters": (
        ["d = []", "d.append(1)", "d.copy()", "d"], ["d = []", "d.append(1)", ""],
    ),
    "a method that ends so": (["w_F = f()", "w_F.zero_()", "w_F"], ["w_F = f()", "w_F.zero_()"]),
    "a function of the lesson may alter": (
        ["def fit(m):\n    m.step()", "m = M()", "loss = fit(m)", "m"],
        ["def fit(m):\n    m.step()", "m = M()", "loss = fit(m)"],
    ),
    "one of the library does not": (
        ["from saelearn.toy import show", "m = M()", "show(m)", "m"], ["", "m = M()", ""],
    ),
    "a tensor is not altered": (["x_ND = f()", "y = g(x_ND)", "x_ND"], ["x_ND = f()", ""]),
    "what the course ships is not": (
        ["lm = tiny.load_lm()", "text = mine(lm)", "lm"], ["lm = tiny.load_lm()", ""],
    ),
    "a method of the lesson's own class": (
        ["class C:\n    def grow(self): ...", "c = C()", "c.grow()", "c"],
        ["class C:\n\n    def grow(self):\n        ...", "c = C()", "c.grow()"],
    ),
    "a function with an effect, where it is used": (
        ["kept = []", "def hook(x):\n    kept.append(x)", "run(hook)", "kept"],
        ["kept = []", "def hook(x):\n    kept.append(x)", "run(hook)"],
    ),
    "a loop's own variable": (["i = slow()", "for i in range(3):\n    t = i", "t"],
                              ["", "for i in range(3):\n    t = i"]),
    "what does not parse": (["x = 1", "def f(x) return"], [""]),
    "all, for who reaches all": (["x = 1", "print(2)", "globals()['x']"], ["x = 1", "print(2)"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SLICES)
def test_what_is_needed(name):
    sources, expected = SLICES[name]
    assert left(*sources) == expected


def test_what_was_written_by_a_student_is_run_whole():
    assert needed(["print( 1 )", "y = 2"], [True, False]) == ["print( 1 )", ""]


EARLY = {
    "all that an answer needs and does not decide": (
        ["x = 1", "y = x + 1", "mine = y"], ["x = 1", "y = x + 1"],
    ),
    "nothing that nobody needs": (["x = 1", "y = 2", "mine = x"], ["x = 1"]),
    "nothing that an answer decides": (
        ["x = 1", "mine = 2", "y = mine + x", "mine = y"], ["x = 1"],
    ),
    "nothing that an answer changes": (["x = [1]", "x.append(2)\nmine = x"], []),
    "nothing before an answer that reads what was there": (
        ["x = 1", "mine = x", "x = 2", "mine = x"], [],
    ),
    "the library's version, where no check has taken an answer": (
        ["mine = f", "y = own(mine, g)", "x = y(1)", "mine = x"], ["y = g", "x = y(1)"],
    ),
    "nothing, for who reaches all": (["x = 1", "mine = globals()['x']"], []),
}  # fmt: skip


def with_answers(sources: list[str]) -> tuple[list[str], list[bool]]:
    return sources, ["mine" in source.split("=")[0] for source in sources]


@pytest.mark.parametrize("name", EARLY)
def test_what_may_be_run_once_for_a_class(name):
    sources, early = EARLY[name]
    left, found = split(*with_answers(sources))
    assert found == early
    assert split(*with_answers(sources), found) == (left, found)


def test_what_was_run_early_does_not_count_where_an_answer_changes_it():
    common = ["x = [1]", "y = x + [2]"]
    lesson = [*common, "mine = y"]
    assert split(*with_answers(lesson), common) == (["", "", "mine = y"], common)
    for own in ("mine = x = 2", "mine = y\nx.append(3)", "mine = globals()"):
        sources = [*lesson[:2], own]
        left, early = split(*with_answers(sources), common)
        assert early == [] and left == needed(*with_answers(sources))
    assert split(*with_answers([*common[::-1], "mine = y"]), common)[1] == []


def test_loops_are_known_before_children_that_cannot_keep_them_are_forked():
    """Each would compile them anew, seconds for every hand-in."""
    known = {}
    for lesson in course.lessons():
        released = points.released(artifacts.read_json(lesson), lesson.stem)
        known[lesson.stem[:2]] = judge.imported(released)
    assert "saelearn.toy.toy_loops" in known["02"] - known["05"]


@posix
def test_marks_are_the_same_where_a_lesson_is_computed_once():
    """Also of a student whose own cell binds a name of the lesson anew."""
    cell = "slow = [torch.ones(1)]"
    lesson = shown_cell(small_class.released(), cell)
    answer = {"predicted_found": "my_guess = len(slow)", "tied": True}
    plain = shown_cell(answered(**answer), cell)
    own = {"cell_type": "code", "id": "own", "metadata": {}, "source": "slow = [1, 2]"}
    other = {**plain, "cells": [*plain["cells"][:3], own, *plain["cells"][3:]]}
    found = []
    for common in ([], ["import torch", cell]):
        with Mother(judge.imported(lesson), common) as mother:
            assert mother.common == common
            judged = [judge.judge(each, lesson, mother, salt=b"s") for each in (plain, other)]
        found.append([[replace(m, seconds=0) for m in j.marks] for j in judged])
    assert found[0] == found[1]


@posix
@pytest.mark.parametrize(
    "bad",
    [
        "1 / 0",
        "import threading as t\nt.Thread(None, t.Event().wait, daemon=True).start()",
    ],
    ids=["raises", "starts a thread"],
)
def test_a_mother_computes_for_all_what_comes_before_a_statement_that_cannot_be(bad):
    with Mother((), ["x = 1", bad, "y = 2"]) as mother:
        assert mother.common == ["x = 1"]
        with Sandbox(mother, Limits()) as sandbox:
            assert sandbox.run("x") == "" and "NameError" in sandbox.run("y")


@pytest.fixture(scope="module")
def mother():
    with Mother(judge.imported(small_class.released())) as started:
        yield started


def shown_cell(notebook: dict, source: str) -> dict:
    """The lesson with a cell that nobody answers."""
    cell = {"cell_type": "code", "id": "shown", "metadata": {}, "source": source}
    return {**notebook, "cells": [*notebook["cells"][:2], cell, *notebook["cells"][2:]]}


@posix
@pytest.mark.parametrize(("answer", "raises"), [("...", False), ("sum(slow)", True)])
def test_a_cell_that_shows_is_run_when_an_answer_asks_for_it(mother, answer, raises):
    cell = "slow = [1 / 0]"
    student = shown_cell(answered(predicted_found=f"my_guess = {answer}", tied=True), cell)
    judged = judge.judge(student, shown_cell(small_class.released(), cell), mother, salt=b"s")
    assert any("ZeroDivisionError" in note for note in judged.notes) == raises


@posix
@pytest.mark.slow
@pytest.mark.parametrize("lesson", course.lessons(), ids=lambda path: path.stem)
def test_marks_are_those_of_a_whole_run(lesson, monkeypatch):
    """Of the reference, and of a student who left every second answer open."""
    complete = artifacts.read_json(lesson)
    released = points.released(complete, lesson.stem)
    reference = restore.solved(complete, released)
    open_again = [cell for cell in released["cells"] if points.is_answer(cell)][::2]
    by_id = {cell["id"]: cell for cell in open_again}
    half = {**reference, "cells": [by_id.get(c["id"], c) for c in reference["cells"]]}
    found = []
    for whole in (False, True):
        once = [] if whole else judge.common(complete, released)
        if whole:
            monkeypatch.setattr(Sandbox, "needed", lambda self, sources, _: (sources, True))
        with Mother(judge.imported(released), once) as mother:
            judged = [judge.judge(n, released, mother, salt=b"s") for n in (reference, half)]
        found.append([[(m.grade_id, m.earned, m.state) for m in j.marks] for j in judged])
    assert found[0] == found[1]
