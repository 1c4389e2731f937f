"""What a lesson must keep to, and what it should: pure functions of a notebook's JSON.

nbval compares outputs that are there. It cannot know of outputs that were never stored, of
figures that nobody can read without eyes, or of links to nowhere; these functions do.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from nbval_tolerance import faults_of

from saelearn.course import BEGIN, END
from saelearn.course.execute import alt_texts, pictures
from saelearn.course.versions import is_claim

EXEMPT = "nbval-ignore-output"
EXEMPT_SHARE = 0.15  # of a lesson's code cells
FIGURES = {"image/png", "image/svg+xml", "image/jpeg"}
MAX_LINES = 20  # of a code cell, markers not counted
SHOULD = {
    "cells": (45, 75),
    "code cells": (15, 30),
    "words": (1500, 2500),
    "figures": (6, 10),
    "exercises": (3, 6),
}

Notebook = dict[str, Any]


def faults(notebook: Notebook) -> list[str]:
    """Everything that must not be in a committed lesson, each as a sentence."""
    rules = (_counts, _stored, _exempt, _hidden, _described, _clean, _short, _read_aloud, _claims)
    return [fault for rule in rules for fault in rule(notebook)]


def remarks(notebook: Notebook) -> list[str]:
    """Where a lesson leaves its budget: a feeling for proportion, so a warning."""
    text = "\n".join(source(cell) for cell in notebook["cells"] if is_prose(cell))
    shown = [cell for cell in notebook["cells"] if not is_claim(cell)]
    have = {
        "cells": len(shown),
        "code cells": sum(not is_prose(cell) for cell in shown),
        "words": len(re.findall(r"[^\W\d_]{2,}", text)),
        "figures": sum(has_figure(cell) for cell in code_cells(notebook)),
        "exercises": len(re.findall(r"(?m)^### Exercise ", text)),
    }
    outside = [
        f"{have[what]} {what}, where {low} to {high} are planned"
        for what, (low, high) in SHOULD.items()
        if not low <= have[what] <= high
    ]
    bare = sum(not is_prose(a) and not is_prose(b) for a, b in pairwise(shown))
    return outside + ([f"{bare} times two code cells without prose between"] if bare else [])


def broken_links(notebook: Notebook, folder: Path) -> list[str]:
    """Relative links and pictures in the prose that lead to no file, seen from `folder`."""
    text = "\n".join(source(cell) for cell in notebook["cells"] if is_prose(cell))
    return broken_links_in(text, folder)


def broken_links_in(markdown: str, folder: Path) -> list[str]:
    """The same for a text in Markdown."""
    prose = re.sub(r"(?s)```.*?```|`[^`\n]*`", "", markdown)
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", prose)
    targets += re.findall(r"(?:src|href)=[\"']([^\"']+)[\"']", prose)
    local = {t.partition("#")[0] for t in targets if not re.match(r"[a-z]+:|#", t)}
    return sorted(t for t in local if t and not (folder / t).exists())


def faults_in(markdown: str) -> list[str]:
    """What a screen reader stumbles over in a text: headings out of order, pictures unnamed."""
    text = re.sub(r"(?s)```.*?```|`[^`\n]*`", "", markdown)
    levels = [len(marks) for marks in re.findall(r"(?m)^(#{1,6}) ", text)]
    found = []
    if levels[:1] != [1] or levels.count(1) != 1:
        found.append("one title (# ...) at the top, and no other")
    if any(deeper > level + 1 for level, deeper in pairwise(levels)):
        found.append(f"a heading skips a level: {levels}")
    said = re.findall(r"!\[([^\]]*)\]\(", text)
    said += [
        alt[1] if (alt := re.search(r"\balt=[\"']([^\"']*)", tag)) else ""
        for tag in re.findall(r"<img\b[^>]*>", text)
    ]
    if any(len(alt.split()) < 5 for alt in said):
        found.append("a picture without alt text")
    return found


def code_cells(notebook: Notebook) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell: dict[str, Any]) -> str:
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def is_prose(cell: dict[str, Any]) -> bool:
    return cell["cell_type"] == "markdown"


def is_exempt(cell: dict[str, Any]) -> bool:
    return EXEMPT in cell["metadata"].get("tags", [])


def has_figure(cell: dict[str, Any]) -> bool:
    return any(FIGURES & set(output.get("data", {})) for output in cell["outputs"])


def _counts(notebook: Notebook) -> Iterator[str]:
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"not run once from top to bottom: execution counts are {counts}"


def _stored(notebook: Notebook) -> Iterator[str]:
    for cell in code_cells(notebook):
        if not cell["outputs"] and shows_something(source(cell)):
            yield f"cell {cell.get('id')} shows something, but no output is stored"


def shows_something(code: str) -> bool:
    """Whether a cell prints, draws or ends with a value, as far as its text can tell."""
    body = ast.parse(_unmagical(code)).body
    top = [node for node in body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    calls = [n.func for node in top for n in ast.walk(node) if isinstance(n, ast.Call)]
    if any(isinstance(f, ast.Name) and f.id in {"print", "display"} for f in calls):
        return True
    if any(ast.unparse(f) == "plt.show" for f in calls):
        return True
    last = body[-1] if body else None
    silent = code.rstrip().endswith(";") or isinstance(getattr(last, "value", None), ast.Call)
    return isinstance(last, ast.Expr) and not silent


def _exempt(notebook: Notebook) -> Iterator[str]:
    cells = code_cells(notebook)
    exempt = [cell for cell in cells if is_exempt(cell)]
    if len(exempt) > EXEMPT_SHARE * len(cells):
        yield f"{len(exempt)} of {len(cells)} code cells are exempt from comparison"
    for cell in exempt:
        if not cell["metadata"].get("nbval_reason", "").strip():
            yield f"cell {cell.get('id')} is exempt from comparison without an nbval_reason"


def _hidden(notebook: Notebook) -> Iterator[str]:
    """Other ways round the comparison than the one that is counted."""
    for cell in code_cells(notebook):
        if {"nbval-skip", "skip"} & set(cell["metadata"].get("tags", [])):
            yield f"cell {cell.get('id')} is skipped"
        if re.search(r"#\s*(NBVAL_|PYTEST_VALIDATE_)", source(cell)):
            yield f"cell {cell.get('id')} steers nbval by a comment; use tags"


def _described(notebook: Notebook) -> Iterator[str]:
    for cell in code_cells(notebook):
        if has_figure(cell) and len(str(cell["metadata"].get("alt", "")).split()) < 5:
            yield f"cell {cell.get('id')} has a figure without alt text in its metadata"
            continue
        carried = [metadata.get(kind, {}).get("alt") for metadata, kind in pictures(cell)]
        if carried and carried != alt_texts(cell):
            yield f"cell {cell.get('id')} has a picture without its alt text: saelearn execute"


def _clean(notebook: Notebook) -> Iterator[str]:
    ids = [cell.get("id") for cell in notebook["cells"]]
    if None in ids or len(set(ids)) < len(ids):
        yield "cell ids are missing or not unique"
    if "widgets" in notebook["metadata"]:
        yield "widget state is stored: megabytes that nobody needs"
    if any("execution" in cell["metadata"] for cell in notebook["cells"]):
        yield "times of execution are stored"
    for cell in code_cells(notebook):
        raised = {o.get("ename") for o in cell["outputs"] if o["output_type"] == "error"}
        if raised and "raises-exception" not in cell["metadata"].get("tags", []):
            yield f"cell {cell.get('id')} ended with {raised}"
        if "ipykernel_" in str([o.get("text") for o in cell["outputs"]]):
            yield f"cell {cell.get('id')} shows a warning with a path of the writer's machine"


def _short(notebook: Notebook) -> Iterator[str]:
    for cell in code_cells(notebook):
        lines = [x for x in source(cell).splitlines() if x.strip() not in ("", BEGIN, END)]
        if len(lines) > MAX_LINES:
            yield f"cell {cell.get('id')} has {len(lines)} lines; at most {MAX_LINES} are read"


def _claims(notebook: Notebook) -> Iterator[str]:
    """A claim cell asserts and nothing else; a tolerance is one."""
    for cell in code_cells(notebook):
        if "tolerance" in cell["metadata"]:
            for fault in faults_of(cell["metadata"]["tolerance"]):
                yield f"cell {cell.get('id')}: {fault}"
        if is_claim(cell):
            body = ast.parse(source(cell)).body
            leaves = [n for top in body for n in ast.walk(top) if isinstance(n, ast.stmt)]
            if not all(isinstance(n, ast.Assert | ast.For) for n in leaves) or not leaves:
                yield f"cell {cell.get('id')} has the tag claim and does more than assert"


def open_asserts(notebook: Notebook) -> int:
    """How many code cells could greet a reader who turns a knob with an AssertionError."""
    return sum(
        any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(_unmagical(source(cell)))))
        for cell in code_cells(notebook)
        if not is_claim(cell)
    )


def _unmagical(code: str) -> str:
    lines = code.splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def _read_aloud(notebook: Notebook) -> Iterator[str]:
    yield from faults_in("\n".join(source(cell) for cell in notebook["cells"] if is_prose(cell)))
