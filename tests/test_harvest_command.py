"""`saelearn harvest` writes what `saelearn train` reads: in parts, of several sites."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from test_activations import count_rows, every_row

from saelearn import cli, corpus
from saelearn.activations import ActivationStore, chunk, shards
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process with torch in it")
def test_two_commands_killed_again_and_again_write_the_rows_of_one(
    tmp_path: Path, monkeypatch
) -> None:
    """At random moments: in a pass, in a file half written, between the two."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 2**18)
    lm, draw = LM.load("tiny"), random.Random(0)
    monkeypatch.setattr(LM, "load", lambda *name, **how: lm)
    command = ["harvest", "--documents", "400", "--quiet", "--dtype", "float32", "--out"]
    assert cli.main([*command, str(tmp_path / "one")]) == 0
    one = ActivationStore(tmp_path / "one", epochs=1)

    def start(part: int) -> int:
        if (pid := os.fork()) == 0:
            os._exit(cli.main([*command, str(tmp_path / "s"), "--part", f"{part}/2"]))
        return pid

    def written(part: int) -> dict[str, int]:
        """The files that the index knows, with the time at which each was written."""
        folder = tmp_path / "s" / f"part_{part}_of_2"
        if not (folder / "index.json").exists():
            return {}
        n = len(json.loads((folder / "index.json").read_text("utf-8"))["shards"])
        return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("shard_*"))[:n]}

    kills = 0
    for part in (0, 1):
        code = -signal.SIGKILL
        while code:
            kept = written(part)
            enough, pid, found = len(kept) + draw.randint(1, 4), start(part), (0, 0)
            while len(written(part)) < enough and found == (0, 0):
                found = os.waitpid(pid, os.WNOHANG)
            if found == (0, 0):
                time.sleep(draw.random() * 0.02)
                os.kill(pid, signal.SIGKILL)
                found = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(found[1])
            assert code in (0, -signal.SIGKILL)
            assert kept.items() <= written(part).items()
            kills += code != 0
    store = ActivationStore(tmp_path / "s", epochs=1)
    assert kills >= 5 and store.tokens == one.tokens
    assert count_rows(every_row(store)) == count_rows(every_row(one))
