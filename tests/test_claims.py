"""What each lesson claims, its decisive control, and which cell holds it: tests/claims/NN.json.

    {"claims": [{"claim": "...", "control": "...", "shown": "05-021", "held": "05-022"}],
     "knobs": [{"cell": "05-021", "from": "p = 0.05", "to": "p = 0.3"}]}

`shown` is the cell in which a reader sees claim and control side by side; `held` the cell with the
tag `claim` that asserts it, or nothing where the comparison of the printed numbers is enough. The
`knobs` are what the text invites to change: the lesson must run to its end with each.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from notebook_rules import code_cells, is_exempt, open_asserts, source
from test_notebooks import LESSONS, read, run

from saelearn.course.versions import is_claim

HERE = Path(__file__).resolve().parent / "claims"
UNLISTED: set[str] = set()  # lessons without a table: only ever fewer

LISTED = [lesson for lesson in LESSONS if (HERE / f"{lesson.stem[:2]}.json").exists()]
each_listed = pytest.mark.parametrize("lesson", LISTED, ids=lambda path: path.stem)


def table(lesson: Path) -> dict:
    return json.loads((HERE / f"{lesson.stem[:2]}.json").read_text("utf-8"))


def said(output: dict) -> str:
    """What an output says in words and numbers; the letters of a stored picture say nothing."""
    return "".join(output.get("text", "")) + "".join(output.get("data", {}).get("text/html", ""))


def faults_of(claims: dict, notebook: dict) -> list[str]:
    """Where a table and its lesson disagree."""
    cells = {cell["id"]: cell for cell in code_cells(notebook)}
    found, listed = [], set()
    for claim in claims["claims"]:
        if any(len(claim[name].split()) < 3 for name in ("claim", "control")):
            found.append(f"claim and control are sentences, not {claim}")
        shown = cells.get(claim["shown"])
        if not shown or is_exempt(shown) or not shown["outputs"]:
            found.append(f"{claim['shown']} shows nothing that is compared")
        if claim["held"]:
            listed.add(claim["held"])
        elif shown and not any(ch.isdigit() for o in shown["outputs"] for ch in said(o)):
            found.append(f"{claim['shown']} holds nothing: no number in it, no cell after it")
    tagged = {name for name, cell in cells.items() if is_claim(cell)}
    found += [f"{name} has not the tag claim" for name in sorted(listed - tagged)]
    found += [f"{name} holds a claim that is not listed" for name in sorted(tagged - listed)]
    for knob in claims["knobs"]:
        if source(cells.get(knob["cell"], {"source": ""})).count(knob["from"]) != 1:
            found.append(f"{knob['from']!r} stands not once in {knob['cell']}")
    return found


@each_listed
def test_every_claim_is_shown_beside_its_control_and_held(lesson):
    assert faults_of(table(lesson), read(lesson)) == []
    assert table(lesson)["claims"]


def test_every_lesson_has_a_table_and_no_assert_that_a_reader_could_meet():
    assert {p.stem[:2] for p in LESSONS} - {p.stem[:2] for p in LISTED} == UNLISTED
    assert {
        lesson.stem: open_asserts(read(lesson)) for lesson in LESSONS if open_asserts(read(lesson))
    } == {}


def test_a_table_that_is_wrong_is_found():
    notebook = {"cells": [
        {"cell_type": "code", "id": "a", "metadata": {}, "source": "n = 3\nprint(n)",
         "outputs": [{"output_type": "stream", "name": "stdout", "text": "3\n"}]},
        {"cell_type": "code", "id": "b", "metadata": {"tags": ["claim"]}, "outputs": [],
         "source": "assert n == 3"},
    ]}  # fmt: skip
    claim = {"claim": "three are left", "control": "none before it", "shown": "a", "held": "b"}
    right = {"claims": [claim], "knobs": [{"cell": "a", "from": "n = 3", "to": "n = 4"}]}
    assert faults_of(right, notebook) == []
    for wrong, words in (
        ({"claims": [claim | {"shown": "b"}], "knobs": []}, "shows nothing"),
        ({"claims": [claim | {"held": "a"}], "knobs": []}, "has not the tag"),
        ({"claims": [claim | {"held": ""}], "knobs": []}, "not listed"),
        ({"claims": [claim | {"control": ""}], "knobs": []}, "sentences"),
        ({"claims": [claim], "knobs": [{"cell": "a", "from": "m = 3", "to": ""}]}, "not once"),
    ):
        assert words in " ".join(faults_of(wrong, notebook))
    notebook["cells"][0]["outputs"][0]["text"] = "three\n"
    picture = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo123"}}
    notebook["cells"][0]["outputs"].append(picture)
    notebook["cells"].pop()
    assert "holds nothing" in " ".join(
        faults_of({"claims": [claim | {"held": ""}], "knobs": []}, notebook)
    )


KNOBS = [(lesson, i) for lesson in LISTED for i in range(len(table(lesson)["knobs"]))]


@pytest.mark.slow
@pytest.mark.parametrize(("lesson", "i"), KNOBS, ids=lambda v: getattr(v, "stem", v))
def test_a_knob_that_is_turned_breaks_nothing(lesson, i, tmp_path):
    knob, notebook = table(lesson)["knobs"][i], copy.deepcopy(read(lesson))
    notebook["cells"] = [cell for cell in notebook["cells"] if not is_claim(cell)]
    for cell in notebook["cells"]:
        if cell["id"] == knob["cell"]:
            cell["source"] = source(cell).replace(knob["from"], knob["to"])
    run(notebook, tmp_path)
