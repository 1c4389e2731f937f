"""Activations on disk: shards that a kill cannot spoil, and an index that counts them.

A folder holds `shard_00000.safetensors`, ... and `index.json`. A shard appears under its name only
when it is whole, then the index names it: what the index does not name does not count. The rows of
a shard lie in random order, so that neighbours on disk come from different documents.

Shapes: N rows, D activation width.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelearn import artifacts
from saelearn.errors import ArtifactError, Refusal, check_activations, check_choice, check_whole

FORMAT = "saelearn activations 1"
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}  # torch's name, safetensors'
_WORDS = {  # the whole numbers of the same size, and which of them is infinity
    torch.float16: (np.uint16, 0x7C00),
    torch.bfloat16: (np.uint16, 0x7F80),
    torch.float32: (np.uint32, 0x7F80_0000),
}
SHARD_BYTES = 2**28
SCRATCH = 2**19  # numbers that a reader looks at at once: each look asks for the interpreter's lock
BLOCK_BYTES = 2**20  # read at a stretch: large enough for disks, small enough to mix
_INDEX = "index.json"
_AGAIN = "delete the folder and write it again"


@dataclass(frozen=True)
class Tokens:
    """Where each token that was read has gone: read = stored + skipped + padding.

    skipped are the first positions of each document, padding what fills it up at its end.
    """

    read: int
    stored: int
    skipped: int
    padding: int

    def __post_init__(self) -> None:
        if self.read != self.stored + self.skipped + self.padding:
            raise Refusal("read = stored + skipped + padding tokens", str(self))

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def block_rows(d_in: int, dtype: torch.dtype) -> int:
    """How many rows are read at a stretch, and have a checksum of their own."""
    return max(1, BLOCK_BYTES // (d_in * dtype.itemsize + 16))  # 16: a row's place in an order


def to_dtype(x_ND: Tensor, dtype: str) -> Tensor:
    """Rows in the dtype they are stored in, on the CPU.

    Rounding costs a relative 2^-12 (float16) or 2^-9 (bfloat16) of each value at most.

    Raises:
        Refusal: NaN, infinity, or more than the dtype can hold (65,504 in float16).
    """
    check_choice(dtype, "dtype", DTYPES)
    stored_ND = x_ND.to(getattr(torch, dtype))
    if not math.isfinite(sum(map(float, stored_ND.aminmax() if stored_ND.numel() else ()))):
        check_activations(x_ND)
        raise Refusal(
            f"activations within ±{torch.finfo(stored_ND.dtype).max:,.0f}, what {dtype} can hold",
            f"one of size {x_ND.abs().max().item():,.0f}",
            'dtype="bfloat16" (coarser) or "float32"; or a larger skip: first tokens are largest',
        )
    return stored_ND.cpu()


class ShardWriter:
    """Rows in, shards out; a folder that was begun from the same settings is gone on with.

    Args:
        folder: new, empty, or begun by an earlier writer.
        settings: what the rows are made from (JSON); they must be equal to go on.
        about: what an SAE of the rows has to remember (JSON); nothing depends on it.
        shard_rows: rows of one shard, held in memory until it is full: what a kill loses at
            most; by default 256 MiB of them.
        seed: of the order within shards.

    Attributes:
        rows: how many have been taken, those of earlier writers included.
        last: the mark that the last shard was written with.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: dict,
        *,
        d_in: int,
        dtype: str = "float16",
        shard_rows: int | None = None,
        seed: int = 0,
        about: Mapping[str, Any] | None = None,
    ):
        self.folder, self.dtype, self.seed = Path(folder), dtype, check_whole(seed, "seed", 0)
        empty = to_dtype(torch.empty(0, d_in), dtype)
        if shard_rows is None:
            shard_rows = max(1, SHARD_BYTES // (d_in * empty.itemsize))
        check_whole(shard_rows, "shard_rows", 1)
        self.settings = dict(settings)
        self.settings |= {"d_in": d_in, "dtype": dtype, "shard_rows": shard_rows, "seed": seed}
        self.index = self._begin(dict(about or {}))
        self.rows = sum(shard["rows"] for shard in self.index["shards"])
        self.last = self.index["shards"][-1]["mark"] if self.rows else None
        self._held_ND, self._held = empty.new_empty(shard_rows, d_in), 0

    def reserve(self, rows: int) -> None:
        """Refuse to begin with more rows than the disk can hold."""
        need = rows * self._held_ND.shape[1] * self._held_ND.itemsize + 2**20  # index, headers
        if (free := shutil.disk_usage(self.folder).free) < need:
            expected = f"{need / 2**30:.2f} GiB free for {self.folder}"
            remedy = artifacts.to_free(self.folder)
            remedy += "; or take fewer documents, a smaller dtype, another disk"
            raise ArtifactError(expected, f"{free / 2**30:.2f} GiB", remedy)

    def agree(self, mark: dict, rows: int) -> None:
        """Refuse a reading, of so many rows by now, that is not the one of the last shard."""
        ahead = mark["batches"] - self.last["batches"] if self.last else 1
        if (ahead < 0 and rows >= self.rows) or (ahead == 0 and mark != self.last):
            raise self._others()

    def add(self, x_ND: Tensor, mark: dict) -> None:
        """Append rows. `mark` (JSON, with "batches") says how far the reading is."""
        if self.index["tokens"]:  # it is complete
            raise self._others()
        x_ND = to_dtype(x_ND, self.dtype)
        while len(x_ND):
            n = min(len(x_ND), len(self._held_ND) - self._held)
            self._held_ND[self._held : self._held + n] = x_ND[:n]
            self._held, self.rows, x_ND = self._held + n, self.rows + n, x_ND[n:]
            if self._held == len(self._held_ND):
                self._flush(mark)

    def close(self, tokens: Tokens, mark: dict) -> None:
        """Write what is left, and say that this was all."""
        if tokens.stored != self.rows or mark != self.index.get("mark", mark):
            raise self._others()
        if self.rows == 0:
            raise Refusal("at least one token to store", str(tokens))
        if self._held:
            self._flush(mark)
        self.index |= {"tokens": asdict(tokens), "mark": mark}
        artifacts.write_json(self.folder / _INDEX, self.index)

    def _others(self) -> Refusal:
        return Refusal(
            f"the documents that {self.folder} was begun with",
            "others, or more or fewer, or cut into other batches",
            f"the same call as before, or another folder, or {_AGAIN}",
        )

    def _begin(self, about: dict) -> dict:
        for scrap in self.folder.glob(".*.*"):  # half a file of a writer that was killed
            if scrap.name.startswith((".shard_", f".{_INDEX}.")):
                shutil.rmtree(scrap, ignore_errors=True)
        fresh = {"format": FORMAT, "about": about, "settings": self.settings}
        fresh |= {"tokens": None, "shards": []}
        if not (self.folder / _INDEX).exists():
            if any(not path.name.startswith(".") for path in self.folder.glob("*")):
                raise ArtifactError("a new or empty folder", f"{self.folder} with files in it")
            artifacts.write_json(self.folder / _INDEX, fresh)
            return fresh
        index, _ = _read_index(self.folder)
        for key in sorted(self.settings | index["settings"]):
            mine, theirs = self.settings.get(key), index["settings"].get(key)
            if mine != theirs:
                expected = f"{self.folder} begun with {key} = {mine!r}"
                remedy = f"the settings of before, or another folder, or {_AGAIN}"
                raise ArtifactError(expected, f"{key} = {theirs!r}", remedy)
        return index

    def _flush(self, mark: dict) -> None:
        number = len(self.index["shards"])
        order_N = np.random.default_rng((self.seed, number)).permutation(self._held)
        path, x_ND = self.folder / _name(number), self._held_ND
        self.reserve(self._held)
        with artifacts.replacing(path) as temporary, temporary.open("wb") as file:
            file.write(_header(self.dtype, (self._held, x_ND.shape[1])))
            sums = []
            for part_N in torch.from_numpy(order_N).split(block_rows(x_ND.shape[1], x_ND.dtype)):
                part_ND = x_ND[part_N]
                sums.append(_sum(part_ND))
                file.write(part_ND.view(torch.uint8).numpy().data)
        self.index["shards"].append({"rows": self._held, "mark": mark, "crc32": sums})
        artifacts.write_json(self.folder / _INDEX, self.index)
        self.last, self._held = mark, 0


PART = re.compile(r"part_\d+_of_\d+")
_OWN = ("part", "seed", "shard_rows")  # settings in which folders of one store may differ


def part_folder(folder: Path, part: tuple[int, int]) -> Path:
    """Where the i-th of n writers writes, `part = (i, n)`; i counts from 0."""
    return folder / f"part_{part[0]}_of_{part[1]}"


@dataclass(frozen=True)
class Shards:
    """Complete folders, checked: each shard is there and as long as the index says.

    Attributes:
        paths_S: the shards' files.
        rows_S: rows of each shard.
        starts_S: where each shard's rows begin in its file, in bytes.
        tokens: what became of the tokens that were read.
        settings: what the rows were made from.
        marks: the writers' last.
        about: what an SAE of the rows has to remember.
        sums_S: of each shard the CRC-32 of each block of rows; () in folders of before there were.
    """

    paths_S: tuple[Path, ...]
    rows_S: tuple[int, ...]
    starts_S: tuple[int, ...]
    tokens: Tokens
    settings: dict
    marks: list[dict]
    about: dict
    sums_S: tuple[tuple[int, ...], ...]

    @classmethod
    def open(cls, *folders: str | os.PathLike) -> Shards:
        """Check folders and open them as one; one whose writers were several stands for theirs.

        Raises:
            ArtifactError: no index, one of another program, an incomplete folder, a shard that
                is missing, truncated or of another shape, or a count that does not agree; a part
                that is missing; folders of rows that do not belong together.
        """
        paths = [path for folder in folders for path in _with_parts(Path(folder))]
        if not paths:
            raise Refusal("at least one folder of rows", "none")
        first, *others = found = [cls._open(path) for path in paths]
        parts = [shards.settings.get("part") for shards in found]
        n_parts = max((part[1] for part in parts if part), default=0)
        if n_parts and sorted(parts, key=str) != sorted(
            ([i, n_parts] for i in range(n_parts)), key=str
        ):
            raise ArtifactError(
                f"all parts, each once, in {', '.join(map(str, folders))}",
                ", ".join(f"{p[0]} of {p[1]}" if p else "one that is no part" for p in parts),
                "wait for the other writers, or call them again: they go on where they stopped",
            )
        if not others:
            return first
        if len({path.resolve() for path in paths}) < len(paths):
            raise ArtifactError("different folders", f"one twice in {', '.join(map(str, paths))}")
        for path, shards in zip(paths, found, strict=True):
            if shards._common() != first._common():
                expected = f"rows that belong together, as in {paths[0]}"
                raise ArtifactError(expected, f"others in {path}: {shards._common()}")
        return cls(
            sum((s.paths_S for s in found), ()),
            sum((s.rows_S for s in found), ()),
            sum((s.starts_S for s in found), ()),
            sum((s.tokens for s in others), first.tokens),
            first._common(),
            [mark for shards in found for mark in shards.marks],
            first.about,
            sum((s.sums_S for s in found), ()),
        )

    @classmethod
    def _open(cls, folder: Path) -> Shards:
        index, starts_S = _read_index(folder)
        if index["tokens"] is None:
            received = f"{sum(s['rows'] for s in index['shards'])} rows of an interrupted writer"
            remedy = "call again what wrote it: it goes on where it stopped"
            raise ArtifactError(f"{folder} written to its end", received, remedy)
        rows_S, tokens = tuple(s["rows"] for s in index["shards"]), index["tokens"]
        if sum(rows_S) != tokens["stored"]:
            raise ArtifactError(f"{tokens['stored']} rows in {folder}", str(sum(rows_S)), _AGAIN)
        paths_S = tuple(folder / _name(number) for number in range(len(rows_S)))
        sums_S = tuple(tuple(shard.get("crc32", ())) for shard in index["shards"])
        settings, about, marks = index["settings"], index.get("about", {}), [index["mark"]]
        return cls(paths_S, rows_S, starts_S, Tokens(**tokens), settings, marks, about, sums_S)

    def _common(self) -> dict:
        return {key: value for key, value in self.settings.items() if key not in _OWN}

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.settings["dtype"])

    @property
    def d_in(self) -> int:
        return self.settings["d_in"]

    def read(
        self,
        shard: int,
        runs: Sequence[tuple[int, int]],
        out_ND: Tensor,
        *,
        finite: bool = True,
    ) -> None:
        """Fill `out_ND` with some runs of a shard's rows, each a first row and how many.

        Read rather than mapped: a file cut short meanwhile is an error then, not a crash. There are
        as few calls as can be that let go of the interpreter's lock and have to get it back: the
        thread that trains asks for it at every operation, and there are several readers.

        Args:
            out_ND: contiguous, as many rows as the runs have together.
            finite: look for NaN; else the caller does.
        """
        path, width = self.paths_S[shard], self.d_in * self.dtype.itemsize
        if len(out_ND) != sum(n for _, n in runs):
            raise Refusal(f"room for {sum(n for _, n in runs)} rows", str(len(out_ND)))
        room, at = memoryview(out_ND.view(-1).view(torch.uint8).numpy()), 0
        try:
            with path.open("rb", buffering=0) as file:
                for first, n in runs:
                    _fill(room[at : at + n * width], file, self.starts_S[shard] + first * width)
                    at += n * width
        except OSError as error:
            raise ArtifactError(f"to read {path}", str(error), _AGAIN) from error
        self._compare(shard, runs, room)
        if finite and not _finite(np.frombuffer(room, _WORDS[self.dtype][0]), self.dtype):
            check_activations(out_ND, name=f"activations in {path.name}")

    def _compare(self, shard: int, runs: Sequence[tuple[int, int]], room: memoryview) -> None:
        """Refuse rows of which a whole block differs from its sum; runs of whole blocks at once."""
        size, width = block_rows(self.d_in, self.dtype), self.d_in * self.dtype.itemsize
        sums, at = self.sums_S[shard], 0
        if sums and all(first % size == n % size == 0 for first, n in runs):
            whole = [range(first // size, (first + n) // size) for first, n in runs]
            expected = _joined([sums[i] for numbers in whole for i in numbers], size * width)
            if zlib.crc32(room) == expected:
                return
        for first, n in runs:
            self._compare_each(shard, first, n, room[at : at + n * width])
            at += n * width

    def _compare_each(self, shard: int, first: int, n: int, rows: memoryview) -> None:
        """The same of `n` rows from the given one on, block by block: which of them it is."""
        sums, size = self.sums_S[shard], block_rows(self.d_in, self.dtype)
        width = len(rows) // n
        for number in range(-(-first // size), len(sums)):
            low, high = number * size, min((number + 1) * size, self.rows_S[shard])
            if high > first + n:
                return
            if zlib.crc32(rows[(low - first) * width : (high - first) * width]) != sums[number]:
                path, received = self.paths_S[shard], "others: the disk, or somebody, changed them"
                expected = f"rows {low:,} to {high:,} of {path} as they were written"
                raise ArtifactError(expected, received, _AGAIN)

    def verify(self) -> None:
        """Read everything once, and compare each row.

        Raises:
            ArtifactError: a bit of the rows is not as it was written.
        """
        size = block_rows(self.d_in, self.dtype)
        room_ND = torch.empty(size, self.d_in, dtype=self.dtype)
        for shard, n in enumerate(self.rows_S):
            for first in range(0, n, size):
                rows = min(size, n - first)
                self.read(shard, [(first, rows)], room_ND[:rows])


def verify(folder: str | os.PathLike) -> None:
    """Compare all rows of a folder that `write` made with their checksums.

    Training compares what it reads at a stretch by itself, unless `memory_limit` is so small
    (below 128 MiB) that it reads less than a block of 1 MiB.

    Raises:
        ArtifactError: a file is missing or cut short, or a bit is not as it was written.
    """
    Shards.open(folder).verify()


def _sum(x_ND: Tensor) -> int:
    return zlib.crc32(x_ND.contiguous().view(torch.uint8).numpy().data)


def _with_parts(folder: Path) -> list[Path]:
    """The folder, or those of the parts in it."""
    if (folder / _INDEX).exists() or not folder.is_dir():
        return [folder]
    return sorted(p for p in folder.iterdir() if PART.fullmatch(p.name)) or [folder]


def _fill(part: memoryview, file: FileIO, at: int) -> None:
    """With what the file holds from a byte on."""
    while part:
        if hasattr(os, "preadv"):
            n = os.preadv(file.fileno(), [part], at)
        else:  # Windows: two calls
            file.seek(at)
            n = file.readinto(part)
        if not n:
            raise OSError("the file ends too early")
        part, at = part[n:], at + n


def _joined(sums: Sequence[int], length: int) -> int:
    """The CRC-32 of blocks of the same length, one after the other, from that of each."""
    tables, joined = _after_zeros(length), 0
    for each in sums:
        a, b, c, d = joined.to_bytes(4, "little")
        joined = tables[0][a] ^ tables[1][b] ^ tables[2][c] ^ tables[3][d] ^ each
    return joined


@functools.lru_cache(maxsize=8)
def _after_zeros(length: int) -> list[list[int]]:
    """What so many zeros make of a CRC-32 that they follow, for each value of each of its bytes.

    It is linear in the bits that stood there before, apart from a constant.
    """
    zeros = bytes(length)
    constant = zlib.crc32(zeros)
    bits = [zlib.crc32(zeros, 1 << bit) ^ constant for bit in range(32)]
    tables = []
    for byte in range(4):
        table = [0]
        for bit in bits[8 * byte : 8 * byte + 8]:
            table += [value ^ bit for value in table]
        tables.append(table)
    return tables


def _finite(bits_M: np.ndarray, dtype: torch.dtype) -> bool:
    """Whether numbers, given as words, are finite: infinity and NaN have an exponent of ones.

    NumPy looks at them in the thread that asks. PyTorch would wake a team of threads for each of
    the readers, and the teams would wait for each other's cores.
    """
    words, infinite = _WORDS[dtype]
    scratch_M = np.empty(min(SCRATCH, len(bits_M)), dtype=words)
    for low in range(0, len(bits_M), SCRATCH):
        part_M = bits_M[low : low + len(scratch_M)]
        size_M = np.bitwise_and(part_M, np.iinfo(words).max // 2, out=scratch_M[: len(part_M)])
        if size_M.max() >= infinite:
            return False
    return True


def _dtype(settings: dict) -> torch.dtype:
    return getattr(torch, settings["dtype"])


def _name(number: int) -> str:
    return f"shard_{number:05d}.safetensors"


def _header(dtype: str, shape: tuple[int, int]) -> bytes:
    """What a safetensors file of one tensor begins with: a length of 8 bytes, then JSON."""
    size = shape[0] * shape[1] * getattr(torch, dtype).itemsize
    entry = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [0, size]}
    text = json.dumps({"x_ND": entry}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_index(folder: Path) -> tuple[dict, tuple[int, ...]]:
    """The index, and where the rows begin in each shard."""
    index = artifacts.read_json(folder / _INDEX)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ArtifactError(f"an index of {FORMAT!r}", f"another file {folder / _INDEX}")
    try:
        if index["tokens"] is not None:  # it was written to its end
            counts = vars(Tokens(**index["tokens"])).values()
            if not all(type(n) is int and n >= 0 for n in counts):
                raise TypeError(f"tokens {index['tokens']!r:.80}")
            if not isinstance(index["mark"], dict):
                raise TypeError(f"mark {index['mark']!r:.80}")
        if not isinstance(index.get("about", {}), dict):
            raise TypeError(f"about {index['about']!r:.80}")
        return index, _check_shards(folder, index)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"a whole index in {folder}", repr(error), _AGAIN) from error


def _check_shards(folder: Path, index: dict) -> tuple[int, ...]:
    """Where the rows begin; refuses shards that are missing or not as long as they must be."""
    starts = []
    for number, shard in enumerate(index["shards"]):
        path, settings = folder / _name(number), index["settings"]
        header = _header(settings["dtype"], (shard["rows"], settings["d_in"]))
        size = shard["rows"] * settings["d_in"] * getattr(torch, settings["dtype"]).itemsize
        expected = f"{path} of {len(header) + size:,} bytes"
        if not path.is_file():
            raise ArtifactError(expected, "no such file", _AGAIN)
        if (got := path.stat().st_size) != len(header) + size:
            raise ArtifactError(expected, f"{got:,} bytes", _AGAIN)
        with path.open("rb") as file:
            if file.read(len(header)) != header:
                raise ArtifactError(expected, "another header than was written", _AGAIN)
        starts.append(len(header))
        sums = shard.get("crc32", [])
        blocks = math.ceil(shard["rows"] / block_rows(settings["d_in"], _dtype(settings)))
        if not isinstance(sums, list) or len(sums) not in (0, blocks):
            raise TypeError(f"crc32 {sums!r:.80}")
    return tuple(starts)
