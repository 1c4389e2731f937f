"""Questions in words: from the lesson to the sheet, from the sheet to the gradebook."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import pytest
import small_class
from small_class import NAME, TOTAL, answered, hand_in

from saelearn import artifacts, course
from saelearn.course import grade, handout, judge, points, reports, written
from saelearn.course.answers import Mother
from saelearn.course.confine import Limits
from saelearn.course.marks import Graded, Mark
from saelearn.errors import Refusal

posix = pytest.mark.skipif(os.name == "nt", reason="students' code runs on POSIX alone")
GUIDE = Path(__file__).resolve().parents[1] / "TEACHING.md"
LIMITS = Limits(cell=60, check=60, total=120, memory=2**30)


def template(kind: str) -> str:
    """What the guide prints as an example."""
    return re.search(rf"```markdown {kind}\n(.*?)\n```", GUIDE.read_text("utf-8"), re.S)[1]


def text_cell(name: str, source: str) -> dict:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": source}


def complete() -> dict:
    """The small lesson with the guide's question at its end."""
    lesson = small_class.complete()
    more = [text_cell("q", template("question")), text_cell("r", template("rubric"))]
    return {**lesson, "cells": lesson["cells"] + more}


def with_answer(answer: str | None, **others) -> dict:
    """A submission."""
    released = points.released(complete(), NAME)
    cells = answered(**others)["cells"] + released["cells"][-2:]
    if answer is not None:
        cells[-1] = {**cells[-1], "source": answer}
    return {**released, "cells": cells}


def test_students_get_the_question_and_not_the_rubric():
    released = points.released(complete(), NAME)
    question, asked = released["cells"][-2:]
    assert question["source"] == template("question")
    assert asked["source"] == course.versions.STUB_IN_WORDS
    marks = asked["metadata"]["nbgrader"]
    assert marks["grade"] and marks["solution"] and not marks["locked"] and marks["points"] == 4
    assert "1 point" not in json.dumps(released)
    assert not points.is_check(asked) and not points.is_answer(asked)


def questions_of(notebook: dict) -> list[tuple[str, str]]:
    """Each question's heading and its rubric."""
    found, heading = [], ""
    for cell in notebook["cells"]:
        text = points.text(cell)
        if cell["cell_type"] == "markdown":
            heading = points.QUESTION.search(text) or heading
            found += [(heading[0], text)] if course.BEGIN in text else []
    return found


def adds_up(heading: str, rubric: str) -> bool:
    """Its points are what the stars say, each for something that is in an answer or is not."""
    given = re.findall(r"(?m)^- (\d+) points?: (.+)$", rubric)
    stars = len(re.search("★+", heading)[0])
    enough = all(len(words.split()) >= 5 for _, words in given)
    return enough and sum(int(n) for n, _ in given) == points.PER_STAR * stars


def test_rubrics_give_what_the_stars_say():
    assert adds_up(template("question"), template("rubric"))
    assert not adds_up(template("question"), template("rubric").replace("- 1 point: ", "- ", 1))


ASKING = [path for path in course.lessons() if questions_of(artifacts.read_json(path))]


def test_every_lesson_asks():
    assert list(course.lessons()) == ASKING


@pytest.mark.parametrize("lesson", ASKING, ids=lambda path: path.stem)
def test_questions_ask_for_understanding(lesson):
    found = questions_of(artifacts.read_json(lesson))
    numbers = [points.QUESTION.search(heading)[1] for heading, _ in found]
    assert numbers == [f"{int(lesson.stem[:2])}.{i}" for i in range(1, len(found) + 1)]
    assert 2 <= len(found) <= 3
    for heading, rubric in found:
        assert adds_up(heading, rubric), heading
    released = points.released(artifacts.read_json(lesson), lesson.stem)
    asked = [cell for cell in released["cells"] if points.is_written(cell)]
    assert len(asked) == len(found)
    assert all(points.text(cell) == course.versions.STUB_IN_WORDS for cell in asked)


def test_a_rubric_without_its_question_is_refused():
    lesson = complete()
    del lesson["cells"][-2]
    with pytest.raises(Refusal, match=r"Question 4\.9"):
        points.released(lesson, NAME)


@pytest.mark.skipif(os.name == "nt", reason="nbgrader's own format is checked on POSIX")
def test_nbgrader_takes_it_for_a_cell_graded_by_hand():
    utils = pytest.importorskip("nbgrader.utils")
    import nbformat

    cell = nbformat.from_dict(points.released(complete(), NAME)["cells"][-1])
    assert utils.is_grade(cell) and utils.is_solution(cell) and not utils.is_locked(cell)


@pytest.fixture(scope="module")
def mother():
    with Mother(judge.imported(small_class.released())) as started:
        yield started


def fill_in(sheet: Path, delimiter: str = ",", **given: tuple[str, str]) -> None:
    """A teacher's spreadsheet: points and comment by student."""
    with sheet.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["points"], row["comment"] = given.get(row["student"], (row["points"], row["comment"]))
    with sheet.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, written.FIELDS, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


@posix
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_from_the_answer_to_the_gradebook(tmp_path, mother, delimiter):
    source = tmp_path / "notebooks"
    source.mkdir()
    artifacts.write_json(source / f"{NAME}.ipynb", complete())
    handout.release(["04"], tmp_path / "out", source=source)
    everything = dict.fromkeys(small_class.POINTS, True)
    hand_in(tmp_path / "in" / "ann", with_answer('Because.\nI\'d measure, "F1"; 5', **everything))
    hand_in(tmp_path / "in" / "ben", with_answer("=2+2", tied=True))
    hand_in(tmp_path / "in" / "cleo", with_answer(None, tied=True))
    hand_in(tmp_path / "in" / "dan", b"{")
    out = tmp_path / "grades"

    def run() -> dict[str, float]:
        graded = grade.grade(
            tmp_path / "in", tmp_path / "out.zip", out, mother=mother, limits=LIMITS
        )
        assert [(g.student, g.earned) for g in graded] == [
            (g.student, g.earned) for g in grade.results(out)
        ]
        return {g.student: g.earned for g in graded}

    assert run() == {"ann": TOTAL, "ben": 2, "cleo": 2, "dan": 0}
    sheet = out / written.SHEET
    assert [row["student"] for row in written.read(sheet).values()] == ["ann", "ben"]
    assert written.unread(written.read(sheet)) == 2
    totals = (out / "totals.csv").read_text()
    assert f"ann,{TOTAL},{TOTAL},{TOTAL + 4}" in totals.replace(".0", "")

    page = next((out / "feedback").glob("ann-*.html")).read_text()
    assert f"{TOTAL:g} of {TOTAL:g} points, 4 more wait to be read" in page
    assert "not read yet of 4" in page

    fill_in(sheet, delimiter, ann=("3,5" if delimiter == ";" else "3.5", "no <b>control</b>"))
    assert run() == {"ann": TOTAL + 3.5, "ben": 2, "cleo": 2, "dan": 0}
    assert written.unread(written.read(sheet)) == 1
    page = next((out / "feedback").glob("ann-*.html")).read_text()
    assert "no &lt;b&gt;control" in page and "3.5 of 4" in page and "Question 4.9" in page
    assert "wait to be read" not in page
    assert run()["ann"] == TOTAL + 3.5  # nothing that was filled in is lost

    hand_in(tmp_path / "in" / "ann", with_answer("Another.", **everything))
    assert run()["ann"] == TOTAL  # it has not been read yet
    hand_in(tmp_path / "in" / "ann", with_answer('Because.\nI\'d measure, "F1"; 5', **everything))
    assert run()["ann"] == TOTAL + 3.5

    fill_in(sheet, ben=("5", ""))
    with pytest.raises(Refusal, match="from 0 to 4 for ben"):
        run()


def test_the_report_counts_who_was_given_all_points():
    given = ((4, "noted"), (1, "noted"), (0, "noted"), (0, "open"))
    marks = [Mark("written-r", "Question 4.9: x", 4, *each, "text") for each in given]
    graded = [Graded(str(i), NAME, "", [mark], [], [], 0.0) for i, mark in enumerate(marks)]
    (row,) = reports.where_stuck(graded)
    assert (row.solved, row.half, row.tried, row.mistakes) == (0.25, 0.25, 0.75, [])


def test_what_nobody_has_read_is_no_mistake_in_the_report():
    mark = Mark("written-r", "Question 4.9: x", 4, 0, "unread", "text")
    (row,) = reports.where_stuck([Graded(n, NAME, "", [mark], [], [], 0.0) for n in "ab"])
    assert row.mistakes == [("waits to be read: no mistake", 2)]
