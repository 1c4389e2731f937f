"""What the learner writes in lesson 02 equals what the library does."""

from __future__ import annotations

import ast
import json
import re
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from saelearn import toy
from saelearn.toy import toy_step

LESSON = Path(__file__).resolve().parent.parent / "notebooks" / "02_superposition.ipynb"


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    """The lesson's functions and classes, without the rest of its cells."""
    names: dict[str, Any] = {"torch": torch, "toy": toy}
    for cell in json.loads(LESSON.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            body = ast.parse("".join(cell["source"])).body
            kept = [n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
            exec(compile(ast.Module(kept, []), LESSON.name, "exec"), names)
    return names


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("p", [0.0, 0.1, 1.0])
def test_sampler(lesson, p):
    ours = toy.sample_features(200, 5, p, generator=generator())
    assert torch.equal(lesson["sample"](200, 5, p, generator=generator()), ours)


def test_model_and_loss(lesson):
    model = toy.ToyModel(5, 2, n_instances=2, seed=3)
    model.b.data += 0.1 * torch.randn(2, 5, generator=generator())
    f_BG = toy.sample_features(64, 5, 0.3, generator=generator())
    importance_G = 0.8 ** torch.arange(5.0)
    f_hat_KBG = model(f_BG)
    loss_K = toy.toy_loss(f_BG, f_hat_KBG, importance_G)
    for k in range(2):
        f_hat_BG = lesson["reconstruct"](f_BG, model.W[k], model.b[k])
        torch.testing.assert_close(f_hat_BG, f_hat_KBG[k])
        loss = lesson["weighted_loss"](f_BG, f_hat_BG, importance_G)
        torch.testing.assert_close(loss, loss_K[k])


def test_dimensionality(lesson):
    W_GD = torch.cat([torch.randn(7, 3, generator=generator()), torch.zeros(1, 3)])
    torch.testing.assert_close(lesson["share"](W_GD), toy.dimensionality(W_GD))


def test_training_loop(lesson, monkeypatch):
    """Autograd and torch's Adam give what the library does by hand, from the same batches."""
    batches = toy_step.busy_batches(1024, 5, 0.1, generator=generator())

    def the_librarys(n, n_features, p, *, generator):
        busy_NG = next(batches)
        return torch.cat([busy_NG, torch.zeros(n - len(busy_NG), n_features)])

    importance_G = 0.8 ** torch.arange(5.0)
    model = toy.ToyModel(5, 2, n_instances=3)
    with monkeypatch.context() as patch:
        patch.setattr(toy, "sample_features", the_librarys)
        history = lesson["fit"](model, 0.1, importance_G, steps=30)
    run = toy.train_toy(5, 2, p=0.1, importance_G=importance_G, n_instances=3, steps=30)
    torch.testing.assert_close(model.W.detach(), run.W)
    torch.testing.assert_close(model.b.detach(), run.b)
    torch.testing.assert_close(history[-1].mean().item(), run.history[-1][1])


def test_the_fold_out_trains_with_the_learners_own_functions(lesson):
    prose = "\n".join("".join(c["source"]) for c in json.loads(LESSON.read_text("utf-8"))["cells"])
    (code,) = re.findall(r"(?s)```python\n(.*?)```", prose)
    shown = []
    drawn = types.SimpleNamespace(planes=lambda W_KGD, *_, **__: shown.append(W_KGD))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(code.replace("1000", "300"), lesson | {"geometry": drawn})
    (W_KGD,) = shown
    assert W_KGD.shape == (1, 5, 2)
    assert (W_KGD.norm(dim=-1) > 0.5).sum() >= 4


def test_cost_of_dropping_is_what_an_empty_answer_costs(lesson):
    p_G, importance_G = torch.tensor([0.5, 0.1, 0.02]), torch.tensor([1.0, 3.0, 10.0])
    f_BG = toy.sample_features(400_000, 3, p_G, generator=generator())
    measured = (importance_G * f_BG.square()).mean(0)
    expected = lesson["cost_of_dropping"](p_G, importance_G)
    torch.testing.assert_close(measured, expected, rtol=0.05, atol=0)
