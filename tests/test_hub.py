"""The guides' command lines are commands that there are; the hub's settings are settings."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from saelearn.cli import commands

ROOT = Path(__file__).resolve().parents[1]
GUIDES = ("README.md", "TEACHING.md", "hub/README.md")
CLASSES = {
    "jupyterhub_config.py": {
        "JupyterHub": "jupyterhub.app.JupyterHub",
        "Authenticator": "jupyterhub.auth.Authenticator",
        "LocalAuthenticator": "jupyterhub.auth.LocalAuthenticator",
        "PAMAuthenticator": "jupyterhub.auth.PAMAuthenticator",
        "Spawner": "jupyterhub.spawner.Spawner",
    },
    "nbgrader_config.py": {
        "CourseDirectory": "nbgrader.coursedir.CourseDirectory",
        "Exchange": "nbgrader.exchange.Exchange",
    },
}


def lines(guide: str) -> list[str]:
    """The command lines of `saelearn` in a guide's blocks."""
    text = (ROOT / guide).read_text("utf-8").replace("\\\n", " ")
    blocks = "\n".join(re.findall(r"(?ms)^```bash\n(.*?)^```", text))
    return re.findall(r"(?m)^saelearn (.*)$", blocks)


@pytest.mark.parametrize("guide", GUIDES)
def test_command_lines_can_be_given(guide):
    assert lines(guide)
    for line in lines(guide):
        assert commands._parser().parse_args(shlex.split(line, comments=True)).run


@pytest.mark.parametrize("name", CLASSES)
def test_settings_are_known(name):
    """Whatever is set belongs to a class that the file may set, and is a trait where it is here."""
    found = set(re.findall(r"(?m)^c\.(\w+)\.(\w+) \+?= ", (ROOT / "hub" / name).read_text("utf-8")))
    assert found and {kind for kind, _ in found} <= set(CLASSES[name])
    pytest.importorskip(CLASSES[name][next(iter(CLASSES[name]))].partition(".")[0])
    for kind, trait in found:
        module, _, each = CLASSES[name][kind].rpartition(".")
        assert trait in getattr(importlib.import_module(module), each).class_trait_names()
