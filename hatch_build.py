"""Puts data/ into the wheel, so that a student needs no clone; the lessons come with a release.

An editable install finds data/ in the clone, and would copy it each time.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Data(BuildHookInterface):
    """What `[tool.hatch.build.targets.wheel.hooks.custom]` in pyproject.toml runs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["force_include"]["data"] = "saelearn/data"
