"""Checkpoints: a run that was killed goes on as if nothing had happened, to the bit.

A checkpoint is one safetensors file. Its header holds the numbers, the arguments and a sha256 of
everything, so what is cut short, damaged or mixed from two is never loaded. It is written under
another name, forced to the disk, and renamed; the one before it is kept as `previous`. So there
is a whole one at every moment from the first on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saelearn.artifacts import replacing
from saelearn.errors import ArtifactError, Refusal
from saelearn.train import parallel
from saelearn.train.autograd import Plan
from saelearn.train.batches import Feed
from saelearn.train.state import State

FORMAT = "saelearn checkpoint 3"
LATEST, PREVIOUS, LOCK = "latest.safetensors", "previous.safetensors", "lock"


class Stored(NamedTuple):
    """What a file holds: tensors by name, and a dictionary of JSON's kinds."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def save(folder: str | os.PathLike, tensors: Mapping[str, Tensor], record: Mapping) -> None:
    """Write a checkpoint into a folder, and keep the one before it.

    Raises:
        ArtifactError: it could not be written; the one before is still there.
    """
    folder = Path(folder)
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(record)
    header = {"format": FORMAT, "record": text, "sha256": _digest(tensors, text)}
    with replacing(folder / LATEST) as temporary:
        save_file(tensors, temporary, metadata=header)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if (folder / LATEST).exists():
            os.replace(folder / LATEST, folder / PREVIOUS)  # a kill here leaves this one


def load(folder: str | os.PathLike) -> Stored | None:
    """The newest whole checkpoint of a folder; None if there never was one.

    Raises:
        ArtifactError: there are files, but all of them are damaged.
    """
    problems = []
    for name in (LATEST, PREVIOUS):
        path = Path(folder) / name
        if not path.exists():
            continue
        try:
            stored = _read(path)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            problems.append(f"{name}: {error}")
            continue
        if problems:
            warnings.warn(f"{problems[0]}; going on from {name}", stacklevel=2)
        return stored
    if problems:
        raise ArtifactError(
            f"a whole checkpoint in {folder}",
            "; ".join(problems),
            "restore the folder from a copy, or choose another to start from scratch",
        )
    return None


def _read(path: Path) -> Stored:
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header.get("format") != FORMAT:
        raise ValueError(f"not a file of the format {FORMAT!r}")
    if _digest(tensors, header["record"]) != header["sha256"]:
        raise ValueError("its sha256 is another than when it was written")
    return Stored(tensors, json.loads(header["record"]))


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pack(tree: Any, prefix: str) -> tuple[Any, dict[str, Tensor]]:
    """A tree of dictionaries and lists without its tensors, and the tensors by name."""
    if isinstance(tree, Tensor):
        return {"tensor": prefix}, {prefix: tree}
    if not isinstance(tree, dict | list | tuple):
        return tree, {}
    pairs = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
    packed = {key: pack(value, f"{prefix}.{key}") for key, value in pairs}
    tensors = {name: t for _, found in packed.values() for name, t in found.items()}
    bare = {key: value for key, (value, _) in packed.items()}
    return (bare if isinstance(tree, dict) else list(bare.values())), tensors


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` took apart."""
    if isinstance(tree, list):
        return [unpack(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if set(tree) == {"tensor"}:
        return tensors[tree["tensor"]]
    return {key: unpack(value, tensors) for key, value in tree.items()}


class Keeper:
    """Looks after the checkpoints of one run.

    Args:
        folder: where they lie; None: nothing is kept.
        every: steps between two, or the time.
        settings: all that decides the result; a checkpoint with others is refused.
        writes: whether this process is the one that writes.
    """

    def __init__(
        self,
        folder: str | os.PathLike | None,
        every: int | timedelta,
        settings: Mapping[str, Any],
        *,
        writes: bool = True,
    ):
        if not isinstance(every, int | timedelta) or every <= type(every)(0):
            raise Refusal("checkpoint_every as steps (int) or a timedelta above 0", repr(every))
        self.folder, self.every = folder and Path(folder), every
        self.writes = writes and folder is not None
        self.settings = json.loads(json.dumps(settings, default=float))  # as a file has them
        self._saved_step, self._saved_at = -1, time.monotonic()

    def load(self) -> Stored | None:
        """The checkpoint to go on from; None if this folder has none yet.

        Raises:
            Refusal: the checkpoint is of a run with other arguments or other data.
            ArtifactError: it is damaged.
        """
        stored = load(self.folder) if self.folder else None
        if stored is None:
            return None
        theirs = stored.record["settings"]
        names = [n for n in {**theirs, **self.settings} if theirs.get(n) != self.settings.get(n)]
        if names:
            raise Refusal(
                f"the run that {self.folder} is of: "
                + ", ".join(f"{name} = {_short(theirs.get(name))}" for name in names),
                ", ".join(f"{name} = {_short(self.settings.get(name))}" for name in names),
                "call it as the first time, or choose another folder for another run",
            )
        for name, here in environment().items():
            there = stored.record["environment"].get(name)
            if there != here and name != "threads":  # threads are set back: `same_threads`
                warnings.warn(
                    f"the checkpoint was written with {name} {there}, here it is {here}: "
                    "the run goes on, but not to the bit as it would have",
                    stacklevel=3,
                )
        self._saved_step = stored.record["step"]
        return stored

    def due(self, step: int) -> bool:
        """Whether it is time for the next one."""
        if not self.writes:
            return False
        if isinstance(self.every, int):
            return step % self.every == 0 and step > self._saved_step
        return time.monotonic() - self._saved_at >= self.every.total_seconds()

    def save(self, state: State, feed: Feed, plan: Plan | None) -> None:
        """Write all that a run needs to go on, unless that is done or a step is under way."""
        if not self.writes or not state.whole or state.step == self._saved_step:
            return
        place, tensors = pack(feed.state_dict(), "data")
        record = state.numbers() | {"settings": self.settings, "environment": environment()}
        record |= {"data": place, "plan": plan and asdict(plan)}
        save(self.folder, state.tensors() | tensors, record)
        self._saved_step, self._saved_at = state.step, time.monotonic()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing here; what a killed one left half-done is removed."""
        if not self.writes:
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(_unwritten(self.folder / LOCK), blocking=False)
            lock.acquire()  # the system lets it go when the process ends, however it ends
        except Timeout as error:
            raise Refusal(
                f"a folder that no other run is using: {self.folder}",
                "one that a running process holds",
                "wait for its end, or choose another folder",
            ) from error
        except ArtifactError:
            raise
        except OSError as error:
            raise ArtifactError(
                f"a folder for checkpoints that can be made and written: {self.folder}",
                f"{type(error).__name__}: {error}",
                "choose a folder of your own, on a disk with room",
            ) from error
        with lock:
            for scratch in self.folder.glob(f".{LATEST}.*"):
                shutil.rmtree(scratch, ignore_errors=True)
            yield


def _unwritten(path: Path) -> Path:
    """The path of a lock, if it is free or a lock: taking one empties the file that is there."""
    if path.is_symlink() or (path.exists() and not (path.is_file() and not path.stat().st_size)):
        what = "a link" if path.is_symlink() else "a file or folder of somebody else's"
        remedy = "choose another folder for checkpoints, or move it away"
        raise ArtifactError(f"no {path.name} in {path.parent} that is not ours", what, remedy)
    return path


def environment() -> dict[str, Any]:
    """What besides the arguments decides the last bits."""
    return {
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": parallel.size(),
    }


@contextlib.contextmanager
def same_threads(threads: int) -> Iterator[None]:
    """Compute with this number of threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    if threads != before:
        warnings.warn(
            f"the run began with {threads} threads and goes on with them, not with {before}: "
            "sums would be rounded otherwise",
            stacklevel=3,
        )
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
