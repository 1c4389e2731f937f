"""What the learner writes in lesson 11 equals what the library does."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from saelearn import metrics
from saelearn.sae import SAE, BatchTopK, Gated, JumpReLU, Matryoshka, Now, TopK
from saelearn.sae.objectives import output_of
from saelearn.tiny import looks

LESSON = Path(__file__).resolve().parent.parent / "notebooks" / "11_beyond_l1.ipynb"


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    """The lesson's functions, without the rest of its cells."""
    names: dict[str, Any] = {"torch": torch, "metrics": metrics, "SAE": SAE, "TopK": TopK}
    for cell in json.loads(LESSON.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            body = ast.parse("".join(cell["source"])).body
            kept = [n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
            exec(compile(ast.Module(kept, []), LESSON.name, "exec"), names)
    return names


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_top_k_is_the_librarys(lesson):
    pre_BF = randn(0, 40, 30)
    expected_BF = TopK(4, 30, k=5).activate(pre_BF)
    for name in ("top_k", "librarys_top_k"):
        assert torch.equal(lesson[name](pre_BF, 5), expected_BF)
    assert torch.equal(lesson["RowsChoose"](4, 30, k=5).activate(pre_BF), expected_BF)


def test_batch_top_k_is_the_librarys_in_training(lesson):
    pre_BF = randn(1, 40, 30)
    expected_BF = BatchTopK(4, 30, k=5).activate_in_training(pre_BF, Now())
    for name in ("batch_top_k", "librarys_batch_top_k"):
        assert torch.equal(lesson[name](pre_BF, 5), expected_BF)
    assert torch.equal(lesson["BatchesChoose"](4, 30, k=5).activate(pre_BF), expected_BF)


def test_gated_and_jump_are_the_librarys(lesson):
    pre_BF, sae, jumper = randn(2, 50, 12), Gated(6, 12), JumpReLU(6, 12)
    with torch.no_grad():
        for seed, name in enumerate(("b_gate", "b_mag", "r_mag")):
            getattr(sae, name).copy_(randn(3 + seed, 12))
        jumper.threshold.copy_(randn(7, 12).abs())
        ours_BF = lesson["gated"](pre_BF, sae.b_gate, sae.r_mag, sae.b_mag)
        torch.testing.assert_close(ours_BF, sae.activate(pre_BF))
        assert torch.equal(lesson["jump"](pre_BF, jumper.threshold), jumper.activate(pre_BF))


def test_the_nested_error_is_matryoshkas(lesson):
    sae, x_BD = BatchTopK(6, 20, k=3), randn(8, 30, 6)
    with torch.no_grad():
        loss, _ = Matryoshka(widths=(2, 7))(sae, x_BD)
        f_BF = output_of(sae, x_BD, Now()).f
        for name in ("nested_error", "librarys_nested"):
            ours = lesson[name](x_BD, f_BF, sae.W_dec, sae.b_dec, (2, 7, 20))
            torch.testing.assert_close(ours, loss.total)


def test_the_refitted_decoder_is_the_librarys(lesson):
    f_NF = randn(9, 300, 8).relu()
    f_NF[:, 3] = 0
    x_ND = 2 + f_NF @ randn(10, 8, 5) + randn(11, 300, 5)
    for ours, expected in zip(lesson["refit"](f_NF, x_ND), looks.refit(f_NF, x_ND), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_edges_add_up_to_what_the_reconstruction_brings(lesson):
    sae, x_TD, slope_TD = TopK(10, 16, k=4), randn(13, 7, 10), randn(14, 7, 10)
    with torch.no_grad():
        f_TF = sae.encode(x_TD)
        whole_T = ((sae.decode(f_TF) - sae.b_dec) * slope_TD).sum(1)
        edges_TF = lesson["edges"](f_TF, sae.W_dec, slope_TD)
    torch.testing.assert_close(edges_TF.sum(1), whole_T)
