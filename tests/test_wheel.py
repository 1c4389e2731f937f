"""The built wheel gives a student and a teacher everything, without the clone and without answers.

In most tests the package is taken from the wheel and what it depends on from the environment of the
tests; that the declared dependencies are enough is read off the imports, and tried once.
"""

from __future__ import annotations

import ast
import csv
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from servers import printed_address, stop, wait_for

from saelearn import artifacts, course
from saelearn.course import handout, points, restore

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 60 * 2**20  # bytes


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built as TEACHING.md says."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "Temporary failure in name resolution" in done.stderr:
        pytest.skip("needs hatchling, from the network")
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def saelearn(wheel, tmp_path_factory):
    """A function that runs Python far from the clone, with the wheel's package."""
    place = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(place / "site"), str(wheel)], check=True)
    paths = [str(place / "site"), sysconfig.get_paths()["purelib"]]
    known = {k: v for k, v in os.environ.items() if k not in ("SAELEARN_DATA", "PYTHONPATH")}
    environment = known | {"PYTHONPATH": os.pathsep.join(paths)}
    work = place / "work"
    work.mkdir()

    def run(*arguments: str) -> str:
        command = [sys.executable, "-P", *arguments]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.work = work
    return run


@pytest.mark.slow
def test_it_is_small_and_holds_no_solution(wheel):
    assert wheel.stat().st_size < LARGEST
    with zipfile.ZipFile(wheel) as opened:
        names = [n for n in opened.namelist() if re.search(r"/notebooks/\d\d_\w+\.ipynb$", n)]
        held = {Path(name).stem: json.loads(opened.read(name)) for name in names}
    assert set(held) == {path.stem for path in course.lessons()}
    for lesson, notebook in held.items():
        for cell in notebook["cells"]:
            source = points.text(cell)
            assert not cell.get("outputs")
            inside = re.findall(rf"(?s){course.BEGIN}\n(.*?)[ \t]*{course.END}", source)
            assert inside.count("") == len(inside) == source.count(course.BEGIN), lesson


@pytest.mark.slow
def test_a_learner_and_a_teacher_get_from_it_what_the_clone_gives(saelearn, tmp_path):
    where = saelearn("-c", "import saelearn; print(saelearn.__file__)").strip()
    assert str(ROOT) not in where
    saelearn("-c", "from pathlib import Path; from saelearn import course\n"
             "assert course.learners_dir() == Path.cwd() / 'my_course'\n"
             "course.prepare(course.learners_dir())")  # fmt: skip
    mine = saelearn.work / "my_course"
    for path in course.lessons() + course.pages():
        assert (mine / path.name).read_bytes() == course.student_bytes(path)
    numbers = [path.stem[:2] for path in course.lessons()]
    saelearn("-m", "saelearn.cli", "release", *numbers, "--out", "autumn")
    handout.release(numbers, tmp_path / "autumn")
    ours = (saelearn.work / "autumn.zip").read_bytes()
    assert ours == (tmp_path / "autumn.zip").read_bytes()
    assert "next: Exercise 0.1" in saelearn("-m", "saelearn.cli", "progress")
    assert "doctor" in saelearn("-m", "saelearn.cli", "--help")
    saelearn("-c", "from saelearn import tiny; tiny.load_lm(), tiny.load_sae()")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="students' code runs on POSIX alone")
def test_a_class_is_graded_with_it(saelearn):
    saelearn("-m", "saelearn.cli", "release", "00", "--out", "first")
    (lesson,) = handout.find(["00"])
    release = handout.read_release(saelearn.work / "first.zip")
    right = restore.solved(artifacts.read_json(lesson), release.lessons[lesson.stem])
    artifacts.write_json(saelearn.work / "in" / "ann" / lesson.name, right)
    saelearn("-m", "saelearn.cli", "grade", "in", "--release", "first.zip", "--out", "grades")
    with (saelearn.work / "grades" / "gradebook.csv").open(newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if not r["exercise"].startswith("Question")]
    # the others wait for a reader
    assert rows and all(float(r["earned"]) == float(r["points"]) for r in rows)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="students' code runs on POSIX alone")
def test_an_empty_environment_needs_nothing_else(wheel, tmp_path):
    """As the hand-out's cover says: an environment, pip, the wheel. No clone is in sight."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    programs, work = tmp_path / "env" / "bin", tmp_path / "work"
    constraints = ["-c", str(ROOT / "constraints.txt")]
    command = [str(programs / "pip"), "install", "-q", *constraints, f"{wheel}[lab]"]
    done = subprocess.run(command, capture_output=True, text=True)
    if "No matching distribution" in done.stderr:
        pytest.skip(f"needs packages, from the network: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    known = {k: v for k, v in os.environ.items() if k not in ("SAELEARN_DATA", "PYTHONPATH")}
    work.mkdir()

    def saelearn(*arguments: str) -> None:
        command = [str(programs / "saelearn"), *arguments]
        done = subprocess.run(command, cwd=work, env=known, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    saelearn("release", "00", "--out", "first")
    (lesson,) = handout.find(["00"])
    release = handout.read_release(work / "first.zip")
    right = restore.solved(artifacts.read_json(lesson), release.lessons[lesson.stem])
    artifacts.write_json(work / "in" / "ann" / lesson.name, right)
    saelearn("grade", "in", "--release", "first.zip", "--out", "grades")
    _, totals = (work / "grades" / "totals.csv").read_text().splitlines()
    assert float(totals.split(",")[-2]) > 0
    log = tmp_path / "lab.log"
    with log.open("w") as out:
        lab = subprocess.Popen(
            [str(programs / "saelearn"), "lab"], cwd=work, env=known, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    try:
        assert "JupyterLab" in wait_for(printed_address(lab, log, 120), lab, log).decode()
    finally:
        stop(lab)
    mine = {path.name for path in (work / "my_course").glob("*.ipynb")}
    assert mine == {path.name for path in course.lessons()}


def test_what_the_package_imports_is_declared():
    """At its top a file imports what comes with a plain install; within functions, also extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    plain, more = _closure(project["dependencies"]), _closure(extras["lab"])
    more |= plain | _closure(extras["test"])  # `execute` is for authors
    whose = importlib.metadata.packages_distributions()
    missing = []
    on_cuda = ROOT / "saelearn" / "train" / "fast" / "triton_kernels.py"  # PyTorch brings Triton
    for path in set((ROOT / "saelearn").rglob("*.py")) - {on_cuda}:
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            for name in _imported(node) - set(sys.stdlib_module_names) - {"saelearn"}:
                given = {canonicalize_name(each) for each in whose.get(name, [])}
                if not given & (plain if node in tree.body else more):
                    missing.append((path.name, name))
    assert missing == []


def _imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {(node.module or "").partition(".")[0]} if isinstance(node, ast.ImportFrom) else set()


def _closure(lines: list[str]) -> set[str]:
    """What an install of these brings, as it is installed here."""
    waiting, seen = [Requirement(line) for line in lines], set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in seen:
            continue
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        seen.add(name)
        children = map(Requirement, needs)
        waiting += [c for c in children if c.marker is None or c.marker.evaluate({"extra": ""})]
    return seen
