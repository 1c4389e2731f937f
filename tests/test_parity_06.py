"""What the learner writes in lesson 06 equals what the library does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from taught import taught

from saelearn import activations, metrics
from saelearn.exercises import lesson06 as check

MODULE = "transformer.h.1.mlp"


@pytest.fixture
def lesson() -> dict[str, Any]:
    return taught("06")


@pytest.fixture(scope="module")
def model():
    return tiny_models.make("gpt2"), tiny_models.some_tokens(n=4)


def hooks(module: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) for m in module.modules())


def test_surprise(lesson, model):
    lm, tokens_NT = model
    logits_TV = lm.logits(tokens_NT[:1])[0]
    theirs_T = lesson["surprise"](logits_TV, tokens_NT[0])
    torch.testing.assert_close(theirs_T, metrics.surprise(logits_TV, tokens_NT[0]))
    assert float(theirs_T.mean()) == pytest.approx(lm.loss(tokens_NT[:1]), rel=1e-5)


@torch.no_grad()
def test_swap(lesson, model):
    lm, tokens_NT = model
    ours = lm.logits(tokens_NT, {f"{MODULE}:out": lambda x_BTD, positions_T: 2 * x_BTD})
    module = lm.model.get_submodule(MODULE)
    for one in (lesson["swap"], activations.swap):
        theirs = one(lm.model, module, tokens_NT, lambda x_BTD: 2 * x_BTD).logits
        torch.testing.assert_close(theirs, ours)
    assert not torch.allclose(theirs, lm.logits(tokens_NT))
    assert hooks(lm.model) == 0


def test_patch_map(lesson, model):
    lm, tokens_NT = model
    given = lm, tokens_NT[:2], tokens_NT[2:], lm.residual_sites(), lambda z_BTV: z_BTV[:, -1].std()
    theirs_LT, ours_LT = lesson["patch_map"](*given), activations.patch_map(*given)
    torch.testing.assert_close(theirs_LT, ours_LT)
    assert ours_LT.std() > 0


def test_answers_to_all(lesson):
    draw = torch.Generator().manual_seed(0)
    register_N = torch.randint(0, 5, (400,), generator=draw)
    a_NS = torch.randn(400, 7, generator=draw).relu() * (1 + torch.rand(5, 7)[register_N])
    by_register = [a_NS.numpy()[register_N.numpy() == r] for r in range(5)]
    for wanted in ([0, 2], [1, 3, 4]):
        least = [
            min(np.mean(by_register[w][:, s]) for w in wanted)
            / sum(np.mean(each[:, s]) for each in by_register)
            for s in range(7)
        ]
        for one in (lesson["answers_to_all"], check.searched):  # the second while it is open
            assert one(a_NS, register_N, wanted) == int(np.argmax(least))


def test_best_label_is_the_librarys_f1(lesson):
    """For one unit and one label the choice of the threshold is all; then both agree roughly."""
    draw = torch.Generator().manual_seed(1)
    label_N = torch.rand(4_000, generator=draw) < 0.05
    unit_NS = (torch.randn(4_000, 1, generator=draw) + 4 * label_N[:, None]).relu()
    noise_NC = torch.rand(4_000, 3, generator=draw) < 0.1
    lesson |= {"half": 2_000, "labels_NC": torch.cat([noise_NC, label_N[:, None]], 1).float()}
    f1_S, which_S = lesson["best_label"](unit_NS)
    ours = metrics.best_f1(unit_NS, label_N[:, None]).f1_C
    assert which_S.tolist() == [3]
    assert float(f1_S) == pytest.approx(float(ours), abs=0.1)
