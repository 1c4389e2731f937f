"""SECURITY.md promises nothing without a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def tests_in(file: str) -> set[str]:
    """Names of its tests, defined or assigned."""
    found = set()
    for node in ast.parse((ROOT / file).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def test_every_promise_names_a_test_that_is_there():
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    promises = [row for row in rows if not row.startswith(("| Promise |", "|---"))]
    assert len(promises) > 20
    for row in promises:
        named = NAMED.findall(row)
        assert named, f"no test is named: {row}"
        for file, name in named:
            assert name in tests_in(file), f"{file} has no {name}"


def test_one_that_is_gone_would_be_noticed():
    assert "test_every_promise_names_a_test_that_is_there" in tests_in("tests/test_security.py")
    assert "test_of_a_promise_that_nobody_wrote" not in tests_in("tests/test_security.py")
