"""The lessons: nbval runs and compares them; here stands what nbval cannot see.

That the comparison is not vacuous is tested too: what is damaged on purpose must be caught.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from notebook_rules import (
    broken_links,
    broken_links_in,
    code_cells,
    faults,
    faults_in,
    is_exempt,
    remarks,
    source,
)

from saelearn import course

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELL_TIMEOUT = 120  # seconds

each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def test_there_are_lessons():
    assert LESSONS


@each_lesson
def test_lesson_is_fit_to_commit(lesson):
    assert faults(read(lesson)) == []
    nbformat.validate(nbformat.read(lesson, as_version=4))


@each_lesson
def test_lesson_keeps_its_budget(lesson):
    if found := remarks(read(lesson)):
        warnings.warn(f"{lesson.stem}: {'; '.join(found)}", stacklevel=1)


@each_lesson
def test_links_lead_somewhere(lesson):
    assert broken_links(read(lesson), lesson.parent) == []


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "data/README.md",
    "benchmarks/README.md",
    "notebooks/glossary.md",
]


@pytest.mark.parametrize("text", PAGES)
def test_a_page_leads_nowhere_wrong_and_can_be_read_aloud(text):
    page = ROOT / text
    assert broken_links_in(page.read_text("utf-8"), page.parent) == []
    assert faults_in(page.read_text("utf-8")) == []


@each_lesson
def test_student_version_has_no_solutions_and_runs_unsolved(lesson, tmp_path):
    student = course.student_version(read(lesson))
    text = json.dumps(student)
    assert course.BEGIN not in text
    assert course.END not in text
    run(student, tmp_path)


def run(notebook: dict, folder: Path) -> dict:
    """Execute a notebook in `folder`; raises where a cell does."""
    node = nbformat.reads(json.dumps(notebook), as_version=4)
    client = NotebookClient(
        node,
        timeout=CELL_TIMEOUT,
        startup_timeout=CELL_TIMEOUT,  # nbclient gives a kernel a minute: too few beside others
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        store_widget_state=False,
        record_timing=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client.execute()
    return json.loads(nbformat.writes(node))


SMALL = [
    ("markdown", "# A small lesson?"),
    ("code", "import torch\nfrom tqdm import trange"),
    ("code", "x = torch.arange(4.0)\nprint(f'{x.sum():.1f}')"),
    ("code", "for _ in trange(3):\n    pass\nprint('took 0.13 s', object())"),
    ("code", "x.mean()"),
    ("code", "y = x + 1"),
    ("code", "z = y.sum()"),
]


@pytest.fixture(scope="module")
def small_lesson(tmp_path_factory) -> dict:
    """A lesson of a few cells, executed."""
    cells = [
        {"cell_type": kind, "id": f"small-{i:03}", "metadata": {}, "source": text}
        | ({"execution_count": None, "outputs": []} if kind == "code" else {})
        for i, (kind, text) in enumerate(SMALL)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}}
    notebook |= {"nbformat": 4, "nbformat_minor": 5}
    return run(notebook, tmp_path_factory.mktemp("small"))


def nbval(notebook: dict, folder: Path) -> list[int]:
    """The code cells, counted from 0, in which strict nbval finds something wrong."""
    path = folder / "lesson.ipynb"
    path.write_text(json.dumps(notebook), "utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-rf"]
    command += ["--nbval", "--nbval-current-env", f"--nbval-cell-timeout={CELL_TIMEOUT}"]
    command += [f"--nbval-sanitize-with={ROOT / 'tests' / 'nbval_sanitize.cfg'}"]
    command += ["-p", "nbval_tolerance", "--rootdir", str(folder), "--color=no", str(path)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return sorted(int(n) for n in re.findall(r"(?m)^FAILED .*::Cell (\d+)", done.stdout))


def damage(notebook: dict) -> tuple[dict, list[int]]:
    """Change a number in an output, strip an output, break a cell: a copy, and which cells."""
    damaged = copy.deepcopy(notebook)
    cells = code_cells(damaged)
    compared = compared_numbers(cells)
    changed, stripped = compared[0], compared[-1]
    output = next(o for o in cells[changed]["outputs"] if re.search(r"\d", text_in(o)))
    set_text(output, re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), text_in(output)))
    cells[stripped]["outputs"] = []
    broken = next(i for i in reversed(range(len(cells))) if i not in (changed, stripped))
    cells[broken]["source"] = source(cells[broken]) + "\nraise RuntimeError('broken on purpose')"
    return damaged, sorted([changed, stripped, broken])


def text_in(output: dict) -> str:
    text = output.get("text") or output.get("data", {}).get("text/plain") or ""
    return text if isinstance(text, str) else "".join(text)


def set_text(output: dict, text: str) -> None:
    if "text" in output:
        output["text"] = text
    else:
        output["data"]["text/plain"] = text


def compared_numbers(cells: list[dict]) -> list[int]:
    """Which code cells have stored text with a decimal number in it that nbval compares."""

    def compares(output: dict) -> bool:
        plain = output["output_type"] == "execute_result" or output.get("name") == "stdout"
        rich = "text/html" in output.get("data", {})
        return plain and not rich and bool(re.search(r"\d\.\d", text_in(output)))

    return [
        i
        for i, cell in enumerate(cells)
        if not is_exempt(cell) and any(map(compares, cell["outputs"]))
    ]


def beginning(notebook: dict) -> dict:
    """A lesson up to its third cell with numbers: enough to damage, and soon run."""
    cells = code_cells(notebook)
    last = cells[compared_numbers(cells)[:3][-1]]
    return {**notebook, "cells": notebook["cells"][: notebook["cells"].index(last) + 1]}


def test_an_undamaged_lesson_passes(small_lesson, tmp_path):
    assert faults(small_lesson) == []
    assert nbval(small_lesson, tmp_path) == []


def test_damage_is_caught_by_nbval(small_lesson, tmp_path):
    damaged, where = damage(small_lesson)
    assert len(set(where)) == 3
    assert nbval(damaged, tmp_path) == where


@pytest.mark.parametrize("lesson", LESSONS[:1], ids=lambda path: path.stem)
def test_damage_is_caught_in_a_real_lesson(lesson, tmp_path):
    damaged, where = damage(beginning(read(lesson)))
    assert len(set(where)) == 3
    assert nbval(damaged, tmp_path) == where


@pytest.mark.parametrize("lesson", [None, *LESSONS], ids=lambda path: path and path.stem)
def test_what_nbval_lets_pass_the_rules_catch(lesson, small_lesson):
    """Outputs and counts stripped together: nbval compares nothing then."""
    notebook = read(lesson) if lesson else small_lesson
    stripped = course.student_version(notebook)
    found = " ".join(faults(stripped))
    assert "not run once" in found
    assert "no output is stored" in found


def test_what_else_the_rules_catch(small_lesson):
    def fault(change) -> str:
        notebook = copy.deepcopy(small_lesson)
        change(notebook)
        (found,) = faults(notebook)
        return found

    cells = code_cells
    tagged = {"tags": ["nbval-ignore-output"]}
    picture = [{"output_type": "display_data", "data": {"image/png": ""}, "metadata": {}}]
    long = {"source": "x = 1\n" * 21}
    assert "stored" in fault(lambda nb: cells(nb)[1].update(outputs=[]))
    assert "not run once" in fault(lambda nb: cells(nb)[1].update(execution_count=7))
    assert "exempt" in fault(
        lambda nb: [c["metadata"].update(tagged, nbval_reason="why") for c in cells(nb)[:2]]
    )
    assert "nbval_reason" in " ".join(
        faults({**small_lesson, "cells": [{**c, "metadata": tagged} for c in cells(small_lesson)]})
    )
    assert "alt text" in fault(lambda nb: cells(nb)[0].update(outputs=picture))
    assert "unique" in fault(lambda nb: cells(nb)[0].update(id="small-003"))
    assert "widget" in fault(lambda nb: nb["metadata"].update(widgets={}))
    assert "lines" in fault(lambda nb: cells(nb)[0].update(long))
    assert "one title" in fault(lambda nb: nb["cells"][0].update(source="## A small lesson?"))
    assert "one title" in fault(lambda nb: nb["cells"][0].update(source="# A\n\n# B"))
    assert "picture" in fault(lambda nb: nb["cells"][0].update(source="# A\n\n![](a.png)"))
    assert "skips a level" in fault(lambda nb: nb["cells"][0].update(source="# A\n\n### B"))
    assert "skipped" in fault(lambda nb: cells(nb)[0]["metadata"].update(tags=["nbval-skip"]))
    assert "comment" in fault(lambda nb: cells(nb)[0].update(source="# NBVAL_IGNORE_OUTPUT\nx=1"))


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "here.md").touch()
    text = "[a](here.md#part) [b](gone.md) ![c](gone.png) [d](https://e.org) `[x](y)` [e](#f)"
    assert broken_links_in(text, tmp_path) == ["gone.md", "gone.png"]


def test_what_a_screen_reader_stumbles_over_is_found():
    assert (
        faults_in("# A\n## B\n```\n# no heading\n```\n### C\n## D ![a dog on a red ball](a.png)")
        == []
    )
    assert faults_in("## A") == ["one title (# ...) at the top, and no other"]
    assert faults_in("# A\n#### B") == ["a heading skips a level: [1, 4]"]
    for unnamed in ("![](a.png)", "![figure](a.png)", '<img src="a.png">', '<img alt="" src="a">'):
        assert faults_in(f"# A\n{unnamed}") == ["a picture without alt text"]
