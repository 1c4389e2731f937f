"""Several writers of one store, several sites of one pass, and what a store knows of its rows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parts import DOCUMENTS, SITE
from test_activations import count_rows, every_row, sinks
from tiny_models import WIDTH, make, some_tokens

from saelearn.activations import ActivationStore, gather, splice, write, write_all
from saelearn.errors import ArtifactError, Misplaced, Refusal
from saelearn.lm import LM
from saelearn.train import train

HOW = {"shard_rows": 20, "dtype": "float32"}


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")
def test_two_processes_one_of_them_killed_write_the_rows_of_one(tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.Popen:
        script = Path(__file__).parent / "parts.py"
        return subprocess.Popen([sys.executable, script, tmp_path / "s", *map(str, arguments)])

    together = [run(0, 2, 7), run(1, 2)]
    assert [process.wait() for process in together] == [-9, 0]
    with pytest.raises(ArtifactError, match="interrupted writer"):
        ActivationStore(tmp_path / "s")
    half = sorted((tmp_path / "s" / "part_0_of_2").glob("shard_*"))
    kept = [(path.stat().st_mtime_ns, path.read_bytes()) for path in half]
    assert run(0, 2).wait() == 0
    assert len(kept) > 2 and kept == [(p.stat().st_mtime_ns, p.read_bytes()) for p in half]
    account = write(make("gpt2"), DOCUMENTS, SITE, tmp_path / "one", **HOW)
    store = ActivationStore(tmp_path / "s", epochs=1)
    assert store.tokens == account and store.rows == 297
    one = every_row(ActivationStore(tmp_path / "one", epochs=1))
    assert count_rows(every_row(store)) == count_rows(one)


@pytest.mark.parametrize("n", [1, 3, 11])
@pytest.mark.parametrize("max_norm", [None, 10.0])
def test_parts_are_the_whole(tmp_path: Path, n: int, max_norm: float | None) -> None:
    lm, how = make("llama"), HOW | {"max_norm": max_norm}
    sinks(lm)
    site = "model.layers.0:in"
    whole = write(lm, DOCUMENTS, site, tmp_path / "one", **how)
    accounts = [write(lm, DOCUMENTS, site, tmp_path / "s", part=(i, n), **how) for i in range(n)]
    assert (whole.stored < 297) == (max_norm is not None)
    assert sum(accounts[1:], accounts[0]) == whole
    elsewhere = [shutil.move(tmp_path / "s" / f"part_{n - 1}_of_{n}", tmp_path / "moved")]
    if n > 1:
        with pytest.raises(ArtifactError, match="all parts"):
            ActivationStore(tmp_path / "s")
        elsewhere.append(tmp_path / "s")
    store, one = ActivationStore(elsewhere, epochs=1), ActivationStore(tmp_path / "one", epochs=1)
    assert store.tokens == whole and store.rows == one.rows
    assert count_rows(every_row(store)) == count_rows(every_row(one))


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    lm = make("gpt2")
    for name, change in {"a": {}, "b": {"skip": 2}, "c": {"seed": 3}}.items():
        write(lm, DOCUMENTS, SITE, tmp_path / name, **HOW | change)
    write(lm, DOCUMENTS, SITE, tmp_path / "d", part=(0, 2), **HOW)
    write(lm, DOCUMENTS, SITE, tmp_path / "d", part=(1, 3), **HOW)
    assert ActivationStore([tmp_path / "a", tmp_path / "c"]).rows == 2 * 297
    for names, said in (("ab", "belong together"), ("aa", "twice"), ("ad", "all parts"),
                        ("d", "all parts"), ("", "at least one folder")):  # fmt: skip
        with pytest.raises(Refusal, match=said):
            ActivationStore([tmp_path / name for name in names])
    for wrong in ((2, 2), (-1, 2), (0, 0), (0,), 1, (0.0, 2), "02", (True, 2)):
        with pytest.raises(Refusal, match="part"):
            write(lm, DOCUMENTS, SITE, tmp_path / "e", part=wrong)
    with pytest.raises(Refusal, match="fewer parts"):
        write(lm, DOCUMENTS, SITE, tmp_path / "e", part=(11, 12))


def test_several_sites_are_written_in_one_pass(tmp_path: Path, monkeypatch) -> None:
    lm, sites = make("gpt2"), ["blocks.0.hook_resid_post", "blocks.1.mlp.hook_post", SITE]
    alone = [write(lm, DOCUMENTS, site, tmp_path / f"a{i}", **HOW) for i, site in enumerate(sites)]
    passes, capture = [], LM.capture

    def count(self, tokens_BT, sites, **how):
        passes.append((len(tokens_BT), len(sites)))
        return capture(self, tokens_BT, sites, **how)

    monkeypatch.setattr(LM, "capture", count)
    folders = {site: tmp_path / f"b{i}" for i, site in enumerate(sites)}
    shutil.copytree(tmp_path / "a0", tmp_path / "b0")  # there from before
    assert list(write_all(lm, DOCUMENTS, folders, **HOW).values()) == alone
    assert [sites for documents, sites in passes if documents == 3] == [2] * 11
    for i in range(3):
        for path in (tmp_path / f"a{i}").iterdir():
            assert (tmp_path / f"b{i}" / path.name).read_bytes() == path.read_bytes()


def test_rows_know_where_they_belong_and_so_does_an_sae_of_them(tmp_path: Path) -> None:
    """Model, site, tokenizer, BOS and scale; a use elsewhere warns."""
    lm = make("gpt2")
    lm.name = "someone/gpt2"
    about = lm.about(SITE, context_size=10)
    assert about["model_name"] == "someone/gpt2" and about["prepend_bos"] is True
    tokens_NT = some_tokens(40, 10)
    write(lm, tokens_NT, SITE, tmp_path / "parts", part=(0, 1), **HOW)
    stores = [
        gather(lm, tokens_NT, SITE, batch_size=64),
        gather(lm, tokens_NT, SITE, folder=tmp_path / "s", memory_limit=2**13, batch_size=64),
        ActivationStore(tmp_path / "s"),
        ActivationStore(tmp_path / "parts"),
    ]
    for store in stores:
        assert store.about == about
    sae = train(store, 2 * WIDTH, l1_coefficient=1.0, steps=2, progress=False).sae
    assert sae.metadata == about | {"scale": sae.metadata["scale"]}
    sae.save(tmp_path / "sae")
    with pytest.warns(Misplaced, match="made for the site"):
        lm.logits(tokens_NT[:2], {"blocks.0.hook_resid_post": splice(sae)})
    lm.name = "someone/else"
    with pytest.warns(Misplaced, match="made for the model"):
        lm.logits(tokens_NT[:2], {SITE: splice(sae)})
    told = train(store, 32, l1_coefficient=1.0, steps=2, progress=False, metadata={"a": 1}).sae
    assert told.metadata.keys() == {"a", "scale"}
    assert ActivationStore(torch.randn(100, 4), about={"b": 2}).about == {"b": 2}
