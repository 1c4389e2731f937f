"""Puts data/ and the lessons into the wheel, so that nobody needs a clone.

Lessons go along without what stands between the markers of a solution, and without outputs: what
`saelearn lab` and `saelearn release` make of them is the same to the bit, and a student who
installs the package does not install the answers. An editable install finds both in the clone.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


class Data(BuildHookInterface):
    """What `[tool.hatch.build.targets.wheel.hooks.custom]` in pyproject.toml runs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "standard":
            return
        self.lessons = Path(tempfile.mkdtemp(prefix="saelearn-lessons-"))
        source = Path(self.root) / "notebooks"
        for path in (path for path in source.rglob("*") if path.is_file()):
            target = self.lessons / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".ipynb":
                target.write_text(
                    json.dumps(unsolved(json.loads(path.read_text("utf-8")))), "utf-8"
                )
            else:
                shutil.copy(path, target)
        build_data["force_include"]["data"] = "saelearn/data"
        build_data["force_include"][str(self.lessons)] = "saelearn/notebooks"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version == "standard":
            shutil.rmtree(self.lessons)


def unsolved(notebook: dict[str, Any]) -> dict[str, Any]:
    """The lesson without solutions, their markers left, and without outputs."""
    for cell in notebook["cells"]:
        source, inside, kept = cell["source"], False, []
        for line in source.splitlines(keepends=True) if isinstance(source, str) else source:
            inside = inside and line.strip() != END
            kept += [] if inside else [line]
            inside = inside or line.strip() == BEGIN
        cell["source"] = "".join(kept) if isinstance(source, str) else kept
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    return notebook
