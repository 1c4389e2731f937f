"""Texts of any size: the tokens of the whole, from any source, in little memory."""

from __future__ import annotations

import json
import random
import string
import subprocess
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pytest
import tiny_models
import torch
from small_tokenizers import TEXT, byte_level, sentencepiece

from saelearn.activations import chunk, chunks
from saelearn.errors import ArtifactError, Refusal
from saelearn.lm import LM, reading

TOKENIZERS = {"bytes": byte_level, "sentencepiece": sentencepiece, "words": tiny_models.tokenizer}
MODEL = tiny_models.make("gpt2").model


@pytest.fixture(params=TOKENIZERS)
def lm(request: pytest.FixtureRequest) -> LM:
    return LM(MODEL, TOKENIZERS[request.param]())


def a_text(lm: LM, seed: int, n: int = 400) -> str:
    """Words that the tokenizer knows and odd ones, and all kinds of space."""
    rng = random.Random(seed)
    if lm.separator:
        return " ".join(f"w{rng.randrange(2, 40)}" for _ in range(n))
    words = [*"".join(TEXT).split(), "====", "\n\n", "  ", "\t", "🐕🐕", "e\u0301", "3.14"]
    words += ["".join(rng.choices(string.printable, k=rng.randrange(9))) for _ in range(50)]
    return "".join(rng.choice(words) + rng.choice([" ", " ", "\n", "   ", ""]) for _ in range(n))


def joined(parts: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("piece", "around"), [(100, 40), (333, 60), (10**6, 1000)])
def test_pieces_give_the_tokens_of_the_whole(lm: LM, seed, piece, around, monkeypatch) -> None:
    monkeypatch.setattr(reading, "PIECE", piece)
    monkeypatch.setattr(reading, "AROUND", around)
    text, rng = a_text(lm, seed), random.Random(seed)
    cuts = sorted(rng.sample(range(len(text)), 60))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    parts = list(lm.ids_of(pieces))
    assert joined(parts) == lm.ids(text)
    assert (sum(map(bool, parts)) > 3) == (piece < 10**6)


def test_a_run_without_an_end_is_read_as_a_whole(monkeypatch) -> None:
    """Where tokens follow from how a run began, no piece of it may stand for itself."""
    monkeypatch.setattr(reading, "PIECE", 100)
    monkeypatch.setattr(reading, "AROUND", 20)
    lm = LM(MODEL, byte_level())
    text = "he went" + 150 * "sea" + " " + 500 * "=" + " to the sea" + 299 * " " + "she"
    pieces = (text[i : i + 7] for i in range(0, len(text), 7))
    assert joined(lm.ids_of(pieces)) == lm.ids(text)
    assert joined(lm.ids_of([])) == [] == joined(lm.ids_of(["", ""]))


def test_all_sources_of_the_same_documents_give_the_same(tmp_path: Path) -> None:
    lm = LM(MODEL, sentencepiece())
    documents = [a_text(lm, seed, 30) for seed in range(4)]
    documents = [document.replace("\r", " ") for document in documents]
    lines = [json.dumps({"text": documents[0], "more": 1}), "", json.dumps(documents[1])]
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (tmp_path / "in" / "b.txt").write_text(documents[2], "utf-8")
    (tmp_path / "in" / "b_nothing.txt").write_text("")
    (tmp_path / "in" / "deep" / "c.txt").write_text(documents[3], "utf-8")
    (tmp_path / "in" / "picture.png").write_bytes(b"\xff\xfe")
    end = lm.tokenizer.eos_token_id
    ids = [lm.ids(document) for document in documents]
    whole = [*ids[0], end, *ids[1], end, *ids[2], end, *ids[3]]
    for source in (tmp_path / "in", documents, iter(documents)):
        tokens_NT = chunk(lm, source, length=9)
        assert (tokens_NT[:, 0] == lm.tokenizer.bos_token_id).all()
        assert tokens_NT[:, 1:].flatten().tolist() == whole[: len(whole) // 8 * 8]
    single = chunk(lm, tmp_path / "in" / "b.txt", length=9)
    assert single.equal(chunk(lm, documents[2], length=9))
    batches = list(chunks(lm, documents, length=9, batch_size=5))
    assert [len(b) for b in batches[:-1]] == [5] * (len(batches) - 1)
    assert torch.cat(batches).equal(chunk(lm, documents, length=9))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"text": "he"', r"JSON in line 2"),
        ('{"words": "he"}', r'(?s)"text", in line 2.*NoneType'),
        ("[1]", r'(?s)"text", in line 2.*list'),
        ("\udcff", "a readable text file"),
    ],
)
def test_files_with_something_else_are_refused(tmp_path: Path, lines: str, said: str) -> None:
    lm, path = LM(MODEL, byte_level()), tmp_path / "x.jsonl"
    path.write_bytes(f'"he went"\n{lines}\n'.encode(errors="surrogateescape"))
    with pytest.raises(ArtifactError, match=said):
        chunk(lm, path, length=4)


def test_other_sources_are_refused(tmp_path: Path) -> None:
    lm = LM(MODEL, byte_level())
    with pytest.raises(ArtifactError, match="readable text file"):
        chunk(lm, tmp_path / "none.txt", length=4)
    with pytest.raises(ArtifactError, match=r"\.jsonl or \.txt files"):
        chunk(lm, tmp_path, length=4)
    for wrong in (3, None, b"he went", [b"he"], ["he", None]):
        with pytest.raises(Refusal, match="a text"):
            chunk(lm, wrong, length=4)


LARGE = """
import resource, sys
from pathlib import Path
from small_tokenizers import byte_level
import tiny_models
from saelearn.activations import chunk
from saelearn.lm import LM

lm = LM(tiny_models.make("gpt2").model, byte_level())
chunk(lm, "he went to the sea . " * 9, length=8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokens_NT = chunk(lm, Path(sys.argv[1]), length=128)
grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(grown / 2**20, tokens_NT.nbytes / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the memory in KiB")
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """Beyond the result and what it is collected in, half as large."""
    for megabytes in (2, 8):
        path = tmp_path / f"{megabytes}.txt"
        words = "".join(TEXT) + "the shore of a long sea\n"
        path.write_text(words * (megabytes * 2**20 // len(words.encode())), "utf-8")
        script = [sys.executable, "-c", LARGE, str(path)]
        grown, result = map(float, subprocess.check_output(script, cwd="tests").split())
        assert grown - 1.5 * result < 60  # of 8 MB, tokenized at once, several hundred
