"""What the learner writes in lesson 13 equals what the library does."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tokenizers import byte_level
from transformers import GPT2Config, GPT2LMHeadModel

from saelearn import metrics
from saelearn.lm import LM
from saelearn.real import labels
from saelearn.sae import SAE

LESSON = Path(__file__).resolve().parent.parent / "notebooks" / "13_real_models.ipynb"


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    """The lesson's functions, without the rest of its cells."""
    names: dict[str, Any] = {"torch": torch, "metrics": metrics}
    for cell in json.loads(LESSON.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            body = ast.parse("".join(cell["source"])).body
            kept = [n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
            exec(compile(ast.Module(kept, []), LESSON.name, "exec"), names)
    return names


def test_rows_that_are_kept_are_those_that_a_harvest_keeps(lesson):
    """Special tokens by id, and giants by the median of what is left."""
    draw = torch.Generator().manual_seed(0)
    x_ND = torch.randn(200, 8, generator=draw)
    tokens_N = torch.randint(20, (200,), generator=draw)
    x_ND[tokens_N == 3] *= 100
    x_ND[:4] *= 50
    norm_N = x_ND.norm(dim=1)
    right_N = (tokens_N != 3) & (norm_N <= 10 * norm_N[tokens_N != 3].median())
    assert torch.equal(lesson["keep"](x_ND, tokens_N, [3], 10.0), right_N)


def test_the_words_of_a_label_are_the_librarys(lesson):
    draw = torch.Generator().manual_seed(1)
    for _ in range(5):
        words_N = torch.randint(50, (2_000,), generator=draw)
        fires_N = torch.rand(2_000, generator=draw) < torch.rand(50, generator=draw)[words_N] ** 4
        mine, library = lesson["label_words"](words_N, fires_N), labels.words(words_N, fires_N)
        scores = [
            metrics.f1(torch.isin(words_N, torch.tensor(ids))[:, None], fires_N[:, None])
            for ids in (mine, library)
        ]
        assert scores[0] == scores[1]


def test_the_interval_is_the_librarys(lesson):
    for hits, n in ((0, 4), (3, 7), (90, 100)):
        assert lesson["interval"](hits, n) == pytest.approx(labels.interval(hits, n))


def test_gpt2_by_name_with_the_bos_that_its_sae_was_trained_with(lesson, capsys):
    """A small model and SAE in the places of those on the hub."""
    tokenizer, sae = byte_level(), SAE(16, 32)
    sizes = {"n_embd": 16, "n_layer": 9, "n_head": 2, "vocab_size": len(tokenizer)}
    model, asked = GPT2LMHeadModel(GPT2Config(**sizes)), []

    class Named:
        @staticmethod
        def load(name, *, bos):
            asked.append((name, bos))
            return LM(model, tokenizer, bos=bos)

    lesson |= {"LM": Named, "load": lambda name: asked.append(name) or sae}
    for bos in (True, False):
        sae.metadata = {"prepend_bos": bos}
        lesson["on_gpt2"]("The ferry left.")
        lines = capsys.readouterr().out.splitlines()
        tokens_1T = LM(model, tokenizer, bos=bos).tokenize("The ferry left.")
        assert len(lines) == tokens_1T.shape[1] - 1 and asked[-1] == ("gpt2", bos)
    assert asked[0] == "hub:jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre"
