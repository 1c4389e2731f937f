"""Numbers within what their cell allows pass, everything else fails: through nbval itself."""

from __future__ import annotations

import copy

import pytest
from nbval_tolerance import differences, faults_of
from notebook_rules import code_cells, faults
from test_notebooks import nbval, run

ROOM = {"rtol": 0.1, "atol": 0.01}
CODE = "print('rate 0.50, 12 of 40 texts; l1_0.5 at h.1', '1.0e-03')"
CELLS = [(CODE, ROOM), ("0.5", ROOM), (CODE, ROOM | {"whole": True})]


@pytest.fixture(scope="module")
def lesson(tmp_path_factory) -> dict:
    cells = [
        {"cell_type": "markdown", "id": "tol-000", "metadata": {}, "source": "# A lesson?"},
        *({"cell_type": "code", "id": f"tol-{i:03}", "metadata": {"tolerance": room},
           "source": code, "execution_count": None, "outputs": []}
          for i, (code, room) in enumerate(CELLS, 1)),
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}}
    notebook |= {"nbformat": 4, "nbformat_minor": 5}
    return run(notebook, tmp_path_factory.mktemp("tolerance"))


def test_what_lies_within_passes_and_what_lies_outside_fails(lesson, tmp_path):
    changed = copy.deepcopy(lesson)
    stream, result, whole = code_cells(changed)
    near = [("0.50", "0.55"), ("1.0e-03", "9.9e-03")]
    for cell in (stream, whole):
        text = "".join(cell["outputs"][0]["text"])
        for old, new in near:
            text = text.replace(old, new)
        cell["outputs"][0]["text"] = text
    whole["outputs"][0]["text"] = whole["outputs"][0]["text"].replace("40", "41")
    result["outputs"][0]["data"]["text/plain"] = "0.45"
    assert nbval(changed, tmp_path) == []
    stream["outputs"][0]["text"] = stream["outputs"][0]["text"].replace("40", "41")  # a count
    result["outputs"][0]["data"]["text/plain"] = "0.44"
    whole["outputs"][0]["text"] = whole["outputs"][0]["text"].replace("texts", "tests")
    assert nbval(changed, tmp_path) == [0, 1, 2]


def test_differences_are_said():
    assert differences("a 1.05  b", "a 1.00 b", ROOM) == []
    assert differences("a 1.2", "a 1.0", ROOM) == ["expected 1.0 within 0.11, came 1.2"]
    assert differences("3 of 4", "3 of 5", ROOM) == ["expected 5 within 0, came 4"]
    assert differences("1,050.5", "1,000.5", ROOM) == []
    assert differences("-0.02", "0.02", ROOM)  # a sign is more than this room
    for came in ("0.5 0.5", "", "nan", "0.5 kg", "inf"):
        assert differences(came, "0.5", ROOM)
    assert differences("l1_0.6", "l1_0.5", ROOM) and differences("h.2", "h.1", ROOM)


def test_a_tolerance_that_says_nothing_is_refused(lesson):
    assert faults(lesson) == []
    for room in ({}, {"rtol": 0.6}, {"atol": 0}, {"atol": -1}, {"rtol": "0.1"}, 0.1, {"tol": 1}):
        assert list(faults_of(room))
        changed = copy.deepcopy(lesson)
        code_cells(changed)[0]["metadata"]["tolerance"] = room
        assert len(faults(changed)) == 1


def test_a_claim_cell_only_asserts(lesson):
    for code, right in (("assert 1", True), ("for x in [1]:\n    assert x", True),
                        ("x = 1", False), ("assert 1\nprint(1)", False), ("", False)):  # fmt: skip
        changed = copy.deepcopy(lesson)
        cell = code_cells(changed)[0]
        cell.update(source=code, outputs=[], metadata={"tags": ["claim"]})
        assert bool([f for f in faults(changed) if "tag claim" in f]) != right
