"""What a lesson teaches, without its cells being run: what the parity tests compare with."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import torch

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def code_of(number: str) -> list[str]:
    """The sources of a lesson's code cells, such as "04"."""
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def taught(number: str, **names: Any) -> dict[str, Any]:
    """A lesson's functions and classes by name, besides `names` that they know of and `torch`."""
    names = {"torch": torch} | names
    for source in code_of(number):
        body = ast.parse(source).body
        kept = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        exec(compile(ast.Module(kept, []), f"lesson {number}", "exec"), names)
    return names
