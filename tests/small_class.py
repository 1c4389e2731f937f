"""A small lesson with real checks, and students who answer it: what tests of grading share."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from saelearn.course import points

NAME = "04_small"
CELLS = [
    "# A small lesson?",
    "import torch\nfrom torch import nn\n\nfrom saelearn.exercises import lesson04 as check",
    "A guess.",
    (
        "my_guess = ...\n### BEGIN SOLUTION\nmy_guess = 32\n### END SOLUTION",
        "check.predicted_found(my_guess)",
    ),
    "### Exercise 4.1 ★ (8 min): one matrix",
    (
        'def tied(x_BD, M_FD, b_F):\n    """The code and the reconstruction."""\n'
        "    ### BEGIN SOLUTION\n    c_BF = torch.relu(x_BD @ M_FD.T + b_F)\n"
        "    return c_BF, c_BF @ M_FD\n    ### END SOLUTION",
        "check.tied(tied)",
    ),
    "### Exercise 4.3 ★★ (12 min): a step",
    (
        "def train_step(M_FD, b_F, optimizer, x_BD, alpha):\n    ### BEGIN SOLUTION\n"
        "    c_BF, x_hat_BD = tied(x_BD, M_FD, b_F)\n"
        "    loss = ((x_BD - x_hat_BD) ** 2).sum(1).mean() + alpha * c_BF.sum(1).mean()\n"
        "    optimizer.zero_grad()\n    loss.backward()\n    optimizer.step()\n"
        "    with torch.no_grad():\n        M_FD /= M_FD.norm(dim=1, keepdim=True)\n"
        "    return loss.detach()\n    ### END SOLUTION",
        "check.train_step(train_step)",
    ),
    "### Exercise 4.6 ★★ (10 min): ingredients",
    (
        "def ingredients(f_F, W_dec_FD, k):\n    ### BEGIN SOLUTION\n"
        "    strength_K, which_K = f_F.topk(k)\n"
        "    return which_K, strength_K[:, None] * W_dec_FD[which_K]\n    ### END SOLUTION",
        "check.ingredients(ingredients)",
    ),
]
POINTS = {"predicted_found": 1, "tied": 2, "train_step": 4, "ingredients": 4}
TOTAL = sum(POINTS.values())


def complete() -> dict:
    """The lesson with its solutions."""
    cells = []
    for i, text in enumerate(CELLS):
        kind = "code" if isinstance(text, tuple) or text.startswith("import") else "markdown"
        source = "\n\n\n".join(text) if isinstance(text, tuple) else text
        cell = {"cell_type": kind, "id": f"small-{i:03}", "metadata": {}}
        cell |= {"source": source.splitlines(keepends=True)}
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def released() -> dict:
    """What students get of it."""
    return points.released(complete(), NAME)


def answered(**answers: str) -> dict:
    """A submission: for a check's name the source of its answer cell; `True` is the solution."""
    notebook = released()
    solutions = {cell["id"]: points.text(cell) for cell in complete()["cells"]}
    for cell, following in zip(notebook["cells"], notebook["cells"][1:], strict=False):
        name = following["id"].rpartition("-")[2]
        if points.is_answer(cell) and name in answers:
            right = points.split(solutions[cell["id"]], "check")[0]
            cell["source"] = right if answers[name] is True else answers[name]
    return copy.deepcopy(notebook)


def publish(source: Path) -> Path:
    """Put the lesson where lessons are."""
    source.mkdir(parents=True, exist_ok=True)
    (source / f"{NAME}.ipynb").write_text(json.dumps(complete()), "utf-8")
    return source


def hand_in(place: Path, notebook: dict | bytes, name: str = f"{NAME}.ipynb") -> Path:
    """Write a student's file."""
    place.mkdir(parents=True, exist_ok=True)
    content = notebook if isinstance(notebook, bytes) else json.dumps(notebook).encode()
    (place / name).write_bytes(content)
    return place / name
