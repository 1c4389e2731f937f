"""Texts of any size as documents of equal length, in constant memory. Lesson 07.

Shapes: B documents in a batch, N in all, T tokens in each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelearn.errors import ArtifactError, Refusal, brief, check_pieces, check_whole, checked, whole
from saelearn.lm import LM

SUFFIXES = (".jsonl", ".txt")
_READ = 2**16  # characters

Text = str | os.PathLike | Iterable[str]
"""A text; or the path of a file or folder; or the texts of documents, one after the other."""


@checked(length=whole(1))
def chunk(lm: LM, text: Text, *, length: int) -> Tensor:
    """A long text as documents `tokens_NT` of `length` tokens, opened by BOS if `lm.bos` says so.

    The last, incomplete piece is left out, so there is nothing to fill up. Where the source has
    several documents their ends are kept: EOS (BOS, if the tokenizer has none) stands between two.
    `leave_tokens` of `collect` and others leaves out the rows of that token.

    Args:
        lm: the model, whose tokenizer is used.
        text: a text; a `Path` of a file; of a .jsonl file with a document a line, as a string or
            an object's "text"; of a folder, whose .txt and .jsonl files are read by their names'
            order; or an iterable of documents. Of files and iterables little is in memory at once.
        length: T.

    Raises:
        Refusal: less text than one document, no room for text in one, a model without tokenizer.
        ArtifactError: files that cannot be read, or hold something else.
    """
    parts = [part_BT.int() for part_BT in chunks(lm, text, length=length)]
    if not parts:
        expected = f"a text of at least {length - lm.bos} tokens"
        raise Refusal(expected, "a shorter one", "shorten length")
    tokens_NT, at = torch.empty(sum(map(len, parts)), length, dtype=torch.long), 0
    for i, part_BT in enumerate(parts):
        tokens_NT[at : at + len(part_BT)] = part_BT
        at, parts[i] = at + len(part_BT), None  # given up: the result takes its memory
    return tokens_NT


@checked(length=whole(1), batch_size=whole(1))
def chunks(lm: LM, text: Text, *, length: int, batch_size: int = 128) -> Iterator[Tensor]:
    """As `chunk`, in batches `tokens_BT`: for `write`, `stream`, `gather`; of text without end.

    Args:
        lm, text, length: as for `chunk`.
        batch_size: B; the last batch may be smaller.
    """
    size = check_whole(length, "length", 1 + lm.bos) - lm.bos
    return _batches(lm, _documents(text), size, size * batch_size)


def _batches(lm: LM, texts: Iterable[Iterable[str]], size: int, n: int) -> Iterator[Tensor]:
    """`n` tokens of text in each batch, `size` in each document."""
    held, n_held = [], 0
    for ids in _ids(lm, texts):
        held.append(np.asarray(ids, np.int64))
        n_held += len(ids)
        if n_held >= n:
            ids_N = np.concatenate(held)
            full = n_held // n * n
            for part_N in np.split(ids_N[:full], n_held // n):
                yield _opened(lm, part_N.reshape(-1, size))
            held, n_held = [ids_N[full:]], n_held - full
    if n_held >= size:
        yield _opened(lm, np.concatenate(held)[: n_held // size * size].reshape(-1, size))


def _opened(lm: LM, ids_BT: np.ndarray) -> Tensor:
    tokens_BT = torch.from_numpy(ids_BT)
    if not lm.bos:
        return tokens_BT.clone()  # or it would keep all that it was cut from
    return torch.nn.functional.pad(tokens_BT, (1, 0), value=lm.tokenizer.bos_token_id)


def _ids(lm: LM, texts: Iterable[Iterable[str]]) -> Iterator[list[int]]:
    """Ids of all documents, and their ends between them."""
    ends = (lm.tokenizer.eos_token_id, lm.tokenizer.bos_token_id)
    end = [token for token in ends if token is not None][:1]
    ended = False
    for pieces in texts:
        before = ended
        for ids in lm.ids_of(pieces):
            if ids and before:
                yield end
                before = False
            yield ids
            ended = ended or bool(ids)


# --- where texts come from ------------------------------------------------------------------------


def _documents(text: Text) -> Iterator[Iterable[str]]:
    """Each document in pieces."""
    if isinstance(text, str):
        yield (text[start : start + _READ] for start in range(0, len(text), _READ))
    elif isinstance(text, os.PathLike):
        for path in _files(Path(text)):
            yield from _lines(path) if path.suffix == ".jsonl" else [_read(path)]
    elif isinstance(text, bytes | Tensor):
        raise Refusal("a text, a path, or texts", brief(text))
    else:
        for document in check_pieces(text, "a text, a path, or texts"):
            yield [_checked(document)]


def _checked(document: Any) -> str:
    if not isinstance(document, str):
        raise Refusal("a text as each document", brief(document))
    return document


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if found := sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file()):
        return found
    raise ArtifactError(f"{' or '.join(SUFFIXES)} files in {path}", "none")


def _read(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            while piece := file.read(_READ):
                yield piece
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"a readable text file {path}", str(error)) from error


def _lines(path: Path) -> Iterator[list[str]]:
    """A document from each line that is not blank."""
    rest, number = "", 0
    for piece in _read(path):
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            number += 1
            yield from _document(line, path, number)
    yield from _document(rest, path, number + 1)


def _document(line: str, path: Path, number: int) -> Iterator[list[str]]:
    if not line.strip():
        return
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ArtifactError(f"JSON in line {number} of {path}", str(error)) from error
    found = found.get("text") if isinstance(found, dict) else found
    if not isinstance(found, str):
        expected = f'a string, or an object with "text", in line {number} of {path}'
        raise ArtifactError(expected, type(found).__name__)
    yield [found]
