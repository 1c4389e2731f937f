"""pyproject.toml, constraints.txt, environment.yml and the Makefile tell the same story."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [
    Requirement(line)
    for line in PROJECT["dependencies"] + [x for extra in EXTRAS.values() for x in extra]
]
PINS = {
    canonicalize_name(line.partition("==")[0]): line.partition("==")[2]
    for line in (ROOT / "constraints.txt").read_text("utf-8").split()
}


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda requirement: requirement.name)
def test_each_dependency_is_pinned_within_its_bounds(requirement):
    exact = [s.version for s in requirement.specifier if s.operator == "=="]
    pin = PINS.get(canonicalize_name(requirement.name)) or (exact and exact[0])
    assert pin, f"{requirement.name} is not in constraints.txt"
    assert Version(pin) in requirement.specifier


def test_pins_are_plain_versions():
    for name, version in PINS.items():
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}=={version}"


def test_what_is_installed_is_what_is_pinned():
    wrong = {}
    for name in {canonicalize_name(requirement.name) for requirement in DECLARED} & set(PINS):
        installed = Version(importlib.metadata.version(name)).public
        if installed != PINS[name]:
            wrong[name] = (installed, PINS[name])
    assert not wrong


def test_what_the_dependencies_need_is_pinned_too():
    """Walk the installed packages from ours: every one that is met has a pin."""
    waiting = [r for r in DECLARED if canonicalize_name(r.name) in PINS]
    seen, unpinned = set(), set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        if name not in PINS and name != "setuptools":  # torch's compiler; every venv has its own
            unpinned.add(name)
        for line in importlib.metadata.requires(name) or []:
            child = Requirement(line)
            wanted = [{"extra": extra} for extra in requirement.extras] or [{"extra": ""}]
            if child.marker is None or any(child.marker.evaluate(extra) for extra in wanted):
                waiting.append(child)
    assert not unpinned


def conda_pip_block() -> list[str]:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    return next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))


def test_conda_gets_the_same_as_pip():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert environment["name"] == PROJECT["name"]
    python = next(d for d in environment["dependencies"] if str(d).startswith("python="))
    assert (
        Version(python.partition("=")[2])
        in Requirement(f"python{PROJECT['requires-python']}").specifier
    )
    assert conda_pip_block() == ["-c constraints.txt", "-e .[lab]"]


def test_the_makefile_installs_extras_that_there_are():
    named = re.search(r"-e '\.\[(.*?)\]'", (ROOT / "Makefile").read_text("utf-8"))
    assert named is not None
    assert set(named[1].split(",")) == set(EXTRAS) - {"grade", "hub", "real", "write"}


@pytest.mark.slow
def test_conda_block_installs_with_pip(tmp_path):
    """conda writes the block to a requirements file beside the yml and gives that to pip."""
    requirements = ROOT / ".condaenv.test.requirements.txt"
    requirements.write_text("\n".join(conda_pip_block()) + "\n")
    try:
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "-r", requirements.name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    finally:
        requirements.unlink()
    assert done.returncode == 0, done.stderr
