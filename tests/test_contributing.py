"""CONTRIBUTING.md: its examples run, its files are there, its commands are commands."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from notebook_rules import faults, open_asserts

from saelearn import course, exercises, sae
from saelearn.sae import SAE
from saelearn.train import engines

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")


def blocks(heading: str, language: str = "python") -> list[str]:
    """The blocks of code in one section."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"(?s)```{language}\n(.*?)```", section)


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> Any:
    """What the examples of architecture and engine define, run one after the other."""
    known, fast, found = dict(SAE.known), list(engines.FAST), {}
    try:
        with contextlib.chdir(tmp_path_factory.mktemp("contributing")):
            for block in blocks("An architecture, with its objective") + blocks("An engine"):
                exec(block, found)
        yield found
    finally:  # other tests have a Loud of their own
        SAE.known.clear()
        SAE.known.update(known)
        engines.FAST[:] = fast


@pytest.fixture
def lesson(tmp_path, monkeypatch) -> types.ModuleType:
    """The page's lesson 20 with its check, where the tests of the others look for theirs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(course, "notebooks_dir", lambda: tmp_path)
    monkeypatch.syspath_prepend(ROOT / "tests" / "exercises")
    check, cases = blocks("An exercise, with its check")
    exec(blocks("A lesson")[0], {})
    found = types.ModuleType("saelearn.exercises.lesson20")
    monkeypatch.setitem(sys.modules, found.__name__, found)
    monkeypatch.setattr(exercises, "lesson20", found, raising=False)
    exec(check, vars(found))
    tests = types.ModuleType("test_lesson20")
    exec(cases, vars(tests))
    return tests


# --- the examples ---------------------------------------------------------------------------------


def test_the_architecture_shown_is_the_one_that_is_tested():
    """Without its first line, tests/own_architecture.py is what the page prints."""
    file = (ROOT / "tests" / "own_architecture.py").read_text("utf-8")
    assert blocks("An architecture, with its objective")[0] == file.partition('"""\n\n')[2]


def test_the_architecture_trains_resamples_sweeps_and_is_read_again(names):
    trained, again, several = (names[name] for name in ("trained", "again", "several"))
    x_ND = names["x_ND"]
    first, last = (trained.history[i]["reconstruction"] for i in (0, -1))
    assert last < 0.6 * first  # while the penalty rises
    assert type(again) is names["Loud"] and again.level == trained.sae.level > 0
    assert torch.equal(again(x_ND).x_hat, trained.sae(x_ND).x_hat)
    weak, strong = (each.history[-1]["sparsity"] for each in several)
    assert strong < weak


def test_who_says_what_says_it():
    """Of the table: each class really changes what its line names."""
    rows = re.findall(r"(?m)^\| [^|]+ \| (`.+) \| (`.+) \|$", PAGE)
    assert len(rows) == 6
    for said, kinds in rows:
        for kind in re.findall(r"`(\w+)`", kinds):
            changed = vars(getattr(sae, kind))
            assert [name for name in re.findall(r"`(\w+)`", said) if name not in changed] == []


def test_the_engine_is_chosen_and_trains_as_autograd(names, monkeypatch):
    """On the page it is held against autograd on one batch; here over a whole training."""
    how = {"objective": names["LogSparsity"](0.1), "progress": False} | names["how"]
    called = []
    original = names["ByHand"].__call__
    monkeypatch.setattr(
        names["ByHand"], "__call__", lambda *given: called.append(1) or original(*given)
    )
    by_hand = names["train"](names["x_ND"], 48, **how)
    assert len(called) == how["steps"]
    monkeypatch.setattr(engines, "FAST", [])
    by_autograd = names["train"](names["x_ND"], 48, **how)
    assert len(called) == how["steps"]
    losses = [each.history[-1]["loss"] for each in (by_hand, by_autograd)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_exercise_passes_what_every_exercise_must(lesson, monkeypatch):
    """The tests that its module takes over are run on the cases that they would be given."""
    every = importlib.import_module("every_lesson")
    assert all(getattr(lesson, name) is getattr(every, name) for name in every.__all__)
    cases = every.cases_of(lesson)
    request = types.SimpleNamespace(module=lesson)
    for name in (name for name in every.__all__ if name.startswith("test_")):
        test = getattr(every, name)
        wanted = test.__code__.co_varnames[: test.__code__.co_argcount]
        (varied,) = set(wanted) - {"request", "monkeypatch"} or {None}
        assert varied is None or cases[varied]
        for case in cases[varied] if varied else [None]:
            with pytest.MonkeyPatch.context() as patch:
                given = {"request": request, "monkeypatch": patch, varied: case}
                test(**{argument: given[argument] for argument in wanted})


def test_the_lesson_is_solved_and_handed_out_unsolved(lesson):
    (path,) = course.lessons(Path.cwd())
    complete = nbformat.read(path, as_version=4)
    nbformat.validate(complete)
    states = []
    for notebook in (complete, course.student_version(complete)):
        cells = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
        names: dict = {}
        for cell in cells[:-1]:
            exec(cell, names)
        *body, last = cells[-1].splitlines()
        exec("\n".join(body), names)
        states.append(eval(last, names).state)
    assert states == ["passed", "open"]
    kept = copy.deepcopy(complete)
    for count, cell in enumerate((c for c in kept["cells"] if c["cell_type"] == "code"), 1):
        cell["execution_count"] = count
    assert faults(kept) == []
    assert open_asserts(kept) == 0


def test_the_tables_shown_are_tables():
    (table,) = (json.loads(block) for block in blocks("A lesson", "json"))
    assert [set(claim) for claim in table["claims"]] == [{"claim", "control", "shown", "held"}]
    assert [set(knob) for knob in table["knobs"]] == [{"cell", "from", "to"}]


def test_the_registers_guide_is_where_the_page_says():
    (link,) = re.findall(r"\]\((data/README\.md#[^)]+)\)", PAGE)
    headings = re.findall(r"(?m)^#+ (.+)$", (ROOT / "data" / "README.md").read_text("utf-8"))
    assert link.partition("#")[2] in {h.lower().replace(" ", "-") for h in headings}


# --- what the page names --------------------------------------------------------------------------


def test_the_rooms_are_those_of_the_readme():
    drawn = [page.split("```text rooms\n")[1].split("```")[0] for page in (PAGE, README)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("page", [PAGE, README], ids=["CONTRIBUTING", "README"])
def test_files_and_tests_that_are_named_are_there(page):
    prose = re.sub(r"(?s)```.*?```", "", page)
    said = set(re.findall(r"`((?:saelearn|tests|notebooks|benchmarks|data)/[\w./]*)`", prose))
    assert said
    assert [path for path in said if "NN" not in path and not (ROOT / path).exists()] == []
    code = "".join(path.read_text("utf-8") for path in (ROOT / "tests").glob("*.py"))
    tests = set(re.findall(r"`(test_\w+)`", prose))
    assert [name for name in tests if f"def {name}(" not in code] == []


def test_the_readmes_questions_lead_to_what_they_name():
    """Each answer is a name and the file that defines it; at most two files a question."""
    rows = re.findall(r"(?m)^\| (.+\?) \| (.+) \|$", README.split("Where to look first")[1])
    assert len(rows) == 6
    for question, answer in rows:
        found = re.findall(r"`(\w+)` in \[`([\w/.]+)`\]\(([\w/.]+)\)", answer)
        pages = re.findall(r"\]\((\w+\.md)[#)]", answer)
        assert 1 <= len({path for _, _, path in found} | set(pages)) <= 2, question
        for name, shown, path in found:
            assert path.endswith(shown)
            assert re.search(rf"(?m)^\s*(?:def|class) {name}\b", (ROOT / path).read_text("utf-8"))


def test_make_has_the_targets():
    said = re.findall(r"(?m)^make ([\w-]+)", blocks("What to run", "bash")[0])
    there = re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"))
    assert len(said) == 7 and set(said) <= set(there)


COMMANDS = [
    shlex.split(line)[2:]
    for line in blocks("What to run", "bash")[0].splitlines()
    if line.startswith(".venv")
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command)[:40])
def test_a_command_does_what_it_says(command, tmp_path):
    """In a folder with one untidy file, one test and one lesson."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "code.py").write_text("import os\nx = { }\n", "utf-8")
    command = ["notebooks/02_superposition.ipynb" if p == "02" else p for p in command]
    paths = [part for part in command if re.match("notebooks/|tests/", part)]
    assert all((ROOT / path).exists() for path in paths)
    wrong = nbformat.v4.new_output("execute_result", {"text/plain": "3"}, execution_count=1)
    lesson = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_markdown_cell("# A lesson", id="a"),
        nbformat.v4.new_code_cell("1 + 1", id="b", outputs=[wrong]),
    ])  # fmt: skip
    for path in paths:
        if path.startswith("tests/"):
            (tmp_path / path).write_text("def test_topk():\n    pass\n\n\ndef test_of_k(): 1 / 0\n")
        else:
            nbformat.write(lesson, tmp_path / path)
    command = [part.replace("tests/nbval", str(ROOT / "tests/nbval")) for part in command]
    if command[0] == "saelearn.cli":
        command[2] = "02"
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    if command[0] == "ruff":
        changed = {"check": "x = { }\n", "format": "import os\n\nx = {}\n"}
        assert (tmp_path / "code.py").read_text("utf-8") == changed[command[1]]
    elif command[0] == "saelearn.cli":
        executed = nbformat.read(tmp_path / paths[0], as_version=4)
        assert faults(executed) == [], said
        assert executed["cells"][1]["outputs"][0]["data"] == {"text/plain": "2"}
    else:  # the stored output is wrong; one test of two is broken
        expected = {"--nbval": "1 failed", "-k": "1 passed, 1 deselected"}
        (how,) = [expected[part] for part in command if part in expected] or ["1 failed, 1 passed"]
        assert how in said, said
