"""What the learner writes in lesson 06 equals what the library does."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from torch.nn.functional import cross_entropy

from saelearn import features

LESSON = Path(__file__).resolve().parent.parent / "notebooks" / "06_language_model.ipynb"
MODULE = "transformer.h.1.mlp"


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    """The lesson's functions, without the rest of its cells."""
    names: dict[str, Any] = {"torch": torch, "cross_entropy": cross_entropy}
    for cell in json.loads(LESSON.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            body = ast.parse("".join(cell["source"])).body
            kept = [n for n in body if isinstance(n, ast.FunctionDef)]
            exec(compile(ast.Module(kept, []), LESSON.name, "exec"), names)
    return names


@pytest.fixture(scope="module")
def model():
    return tiny_models.make("gpt2"), tiny_models.some_tokens(n=4)


def hooks(module: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) for m in module.modules())


def test_surprise(lesson, model):
    lm, tokens_NT = model
    nats = [lesson["surprise"](lm.logits(t[None])[0], t).mean() for t in tokens_NT]
    assert float(sum(nats) / len(nats)) == pytest.approx(lm.loss(tokens_NT), rel=1e-5)


@torch.no_grad()
def test_read(lesson, model):
    lm, tokens_NT = model
    ours = lm.capture(tokens_NT, [f"{MODULE}:out"])[f"{MODULE}:out"]
    theirs = lesson["read"](lm.model, lm.model.get_submodule(MODULE), tokens_NT)
    torch.testing.assert_close(theirs, ours)
    assert hooks(lm.model) == 0


@torch.no_grad()
def test_replace(lesson, model):
    lm, tokens_NT = model
    ours = lm.logits(tokens_NT, {f"{MODULE}:out": lambda x_BTD, positions_T: 2 * x_BTD})
    module = lm.model.get_submodule(MODULE)
    theirs = lesson["replace"](lm.model, module, tokens_NT, lambda x_BTD: 2 * x_BTD).logits
    torch.testing.assert_close(theirs, ours)
    assert not torch.allclose(theirs, lm.logits(tokens_NT))
    assert hooks(lm.model) == 0


def test_the_identity_splice_changes_no_bit(lesson, model):
    lm, tokens_NT = model
    for site in lm.residual_sites():
        spliced = lm.logits(tokens_NT, {site: lesson["identity"]})
        assert torch.equal(spliced, lm.logits(tokens_NT))


def test_spread(lesson):
    draw = torch.Generator().manual_seed(0)
    a_NS = torch.randn(400, 7, generator=draw).relu()
    register_N = torch.randint(0, 5, (400,), generator=draw)
    a_NS[register_N == 2, 3] = 0
    ours = features.effective_registers(a_NS, register_N)
    torch.testing.assert_close(lesson["spread"](a_NS, register_N).double(), ours, rtol=1e-5, atol=0)


def test_answers_to_all(lesson):
    share_SR = torch.tensor([[0.5, 0.5, 0.0], [0.3, 0.3, 0.4], [0.2, 0.4, 0.4]])
    assert lesson["answers_to_all"](share_SR, [0, 2]) == 1
    assert lesson["answers_to_all"](share_SR, [1, 2]) == 2
    assert lesson["answers_to_all"](share_SR, [0, 1]) == 0
