"""`saelearn harvest` writes what `saelearn train` reads: in parts, of several sites."""

from __future__ import annotations

import json
from pathlib import Path

from saelearn import cli, corpus
from saelearn.activations import ActivationStore, chunk
from saelearn.lm import LM
from saelearn.sae import SAE


def test_the_command_writes_parts_that_train_reads(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    lm = LM.load("tiny")
    words = " ".join(doc.text for doc in corpus.documents(60))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(words, "utf-8")
    (tmp_path / "texts" / "b.jsonl").write_text(json.dumps({"text": words}), "utf-8")
    loaded = []
    monkeypatch.setattr(LM, "load", lambda *name, **how: loaded.append(how) or lm)
    common = ["harvest", "--text", "texts", "--length", "32", "--quiet", "--dtype", "float32"]
    for part in ("0/2", "1/2"):
        assert cli.main([*common, "--out", "rows", "--part", part, "--device", "cpu"]) == 0
    assert "tokens a second on cpu" in capsys.readouterr().out
    store = ActivationStore("rows")
    tokens_NT = chunk(lm, Path("texts"), length=32)
    assert store.rows == tokens_NT[:, 1:].numel() and store.about["prepend_bos"] is True
    train_it = ["train", "--activations", "rows", "--d-sae", "64", "--steps", "3", "--quiet"]
    assert cli.main([*train_it, "--out", "sae"]) == 0
    assert SAE.load("sae").metadata["site"] == "transformer.h.1:out"
    two = ["--site", "transformer.h.0:out", "transformer.h.1:out", "--no-bos"]
    assert cli.main([*common, "--out", "two", *two]) == 0
    assert loaded == [*2 * [{"device": "cpu", "bos": None}], {"device": "cpu", "bos": False}]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "transformer.h.0_out", "transformer.h.1_out",
    ]  # fmt: skip
    capsys.readouterr()
    for wrong, said in (
        (["--device", "abacus"], "device as one of"),
        (["--part", "2/2"], "i of part"),
        (["--text", "none.txt"], "readable text"),
        (["--site", "nowhere"], "a site of this model"),
    ):
        assert cli.main([*common, "--out", "other", *wrong]) == 1
        assert said in capsys.readouterr().err
