"""Find, verify, load and safely write files: data/ of the course, or a user's own.

What the course ships lies in `data/`, and `data/manifest.json` holds each file's sha256. A file
is compared with it once per process, before it is used. Writing always goes to a temporary name
in the same folder, then is renamed: a reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import json
import os
import pickle
import shutil
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from saelearn.errors import ArtifactError, checked, whole


def data_dir() -> Path:
    """The folder of shipped artefacts: `$SAELEARN_DATA`, the wheel's own, or data/ of the clone."""
    if named := os.environ.get("SAELEARN_DATA"):
        return Path(named)
    package = Path(__file__).resolve().parent
    in_wheel = package / "data"  # where the build puts it, see pyproject.toml
    return in_wheel if in_wheel.is_dir() else package.parent / "data"


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@checked()
def find(name: str) -> Path:
    """Path of the shipped file or folder `name` in data/, each of its files verified.

    Raises:
        ArtifactError: it is missing, unlisted, or differs from its sha256 in the manifest.
    """
    root = data_dir()
    manifest = _manifest(root)
    files = [f for f in manifest if f == name or f.startswith(f"{name}/")]
    if not files:
        known = sorted({f.split("/")[0] for f in manifest})
        raise ArtifactError(
            f"an artefact in data/: one of {', '.join(known)}",
            repr(name),
            "check the name; `saelearn data` lists and rebuilds them",
        )
    for file in files:
        _verify(root / file, manifest[file])
    return root / name


def write_manifest(root: Path) -> None:
    """Record the sha256 of every file under `root` in its manifest.json."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix not in {".md", ".log"})
    listed = {p.relative_to(root).as_posix(): sha256(p) for p in files if p.name != "manifest.json"}
    write_json(root / "manifest.json", listed)
    _manifest.cache_clear()
    _verify.cache_clear()


@contextlib.contextmanager
def replacing(target: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it onto `target` if the block succeeds.

    A folder replaces a folder that holds nothing else than the new one, a file a file; of a link,
    what it leads to. If the block raises, what it wrote is removed and `target` stays as it was.

    Raises:
        ArtifactError: the system could not write (full disk, no permission), or a folder with
            files of somebody else would be lost.
    """
    target = Path(os.path.realpath(target))  # "." has no name; a link goes on leading there
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield scratch / target.name
        _put(scratch / target.name, target)
    except ArtifactError:
        raise
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"to write {target.name} into {target.parent}",
            f"{type(error).__name__}: {error}",
            f"{to_free(target.parent)}, or choose a folder you may write to; nothing was changed",
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


SCRAP_AGE = 3_600.0
"""Seconds after which what a writer has begun is left from one that was killed."""


def _sweep(target: Path) -> None:
    """Remove what killed writers of `target` left beside it."""
    for scrap in target.parent.glob(f".{glob.escape(target.name)}.{'?' * 8}"):
        with contextlib.suppress(OSError):  # of another user, or another process was quicker
            ours = all(p.name.startswith(target.name) for p in scrap.iterdir())
            if ours and time.time() - scrap.stat().st_mtime > SCRAP_AGE:
                shutil.rmtree(scrap)


def to_free(folder: Path) -> str:
    """For a message of what could not be written: where to free space, and how much is left."""
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(folder).free / 2**20
        return f"free some space on the disk of {folder} ({free:,.0f} MiB are left)"
    return "free some space"


def _put(new: Path, target: Path) -> None:
    """Rename `new` onto `target`; tries again if another writer was quicker.

    No folder can be renamed onto a full one: both change places, where the system can do that at
    once; else what is there steps aside, and back on failure.
    """
    if new.is_dir() and target.is_dir():
        _refuse_loss(new, target)
        if exchange(new, target):
            return
    aside = None
    for attempt in range(10):
        try:
            os.replace(new, target)
            return
        except OSError:
            if aside is not None:
                with contextlib.suppress(OSError):
                    os.replace(aside, target)
            if attempt == 9 or not new.is_dir() or target.is_file():
                raise
        aside = new.with_name(f"{new.name}.{attempt}")
        with contextlib.suppress(FileNotFoundError):  # another writer has moved it meanwhile
            _refuse_loss(new, target)
            os.replace(target, aside)


def exchange(a: Path, b: Path) -> bool:
    """Let two paths change places, at once, so that no kill comes in between; False if it cannot.

    Linux can (`renameat2`), on most file systems.
    """
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2) and renameat2(here, os.fsencode(a), here, os.fsencode(b), swap) == 0


def _refuse_loss(new: Path, target: Path) -> None:
    """Refuse to replace a folder that holds files which the new one does not have."""
    there, here = ({p.relative_to(root) for p in root.rglob("*")} for root in (target, new))
    if lost := sorted(str(path) for path in there - here):
        raise ArtifactError(
            f"{target} to be new, empty, or an earlier version of what is saved",
            f"a folder that also holds {', '.join(lost[:5])}",
            "choose another folder, or delete this one if nothing in it is needed",
        )


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with replacing(path) as temporary:
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        # half of a pair of UTF-16 has no bytes in UTF-8, but an escape that JSON knows
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        ArtifactError: it is missing, is not JSON, or gives a name in one object twice.
    """
    return _reading(Path(path), lambda p: json.loads(p.read_text("utf-8"), object_pairs_hook=_once))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names differ: of two values for one name a reader would take either."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"given more than once: {', '.join(twice)}")
    return found


def write_tensors(
    path: str | os.PathLike, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as one safetensors file, atomically."""
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask leaves; safetensors' own is 600
        contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(contiguous, temporary, metadata=metadata)
        temporary.chmod(mode)


def read_tensors(path: str | os.PathLike, device: str = "cpu") -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ArtifactError: it is missing, truncated or not safetensors, or larger than the memory.
    """
    return _reading(Path(path), lambda p: load_file(_fitting(p), device=device))


def _fitting(path: Path) -> Path:
    check_room(path.stat().st_size)
    return path


def shapes(path: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """The tensors of a safetensors file by name, without reading them.

    Raises:
        ArtifactError: as for `read_tensors`.
    """

    def read(path: Path) -> dict[str, tuple[int, ...]]:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    return _reading(Path(path), read)


def read_pt(path: str | os.PathLike) -> Any:
    """Read what `torch.save` wrote, if it is nothing but tensors, numbers, texts and containers.

    Tensors are mapped: they take memory when they are used.

    Raises:
        ArtifactError: it is missing or damaged, or would have to run code to be read.
    """

    def read(path: Path) -> Any:
        how = {"weights_only": True, "map_location": "cpu"}
        if zipped := zipfile.is_zipfile(path):
            _check_sums(path, "data.pkl")  # a changed shape or stride would read other numbers
        try:
            return torch.load(path, mmap=zipped, **how)
        except pickle.UnpicklingError as error:
            # PyTorch's own words say how to run it after all
            raise ValueError("it would run code when it is read, or is damaged") from error

    return _reading(Path(path), read)


def _check_sums(path: Path, ending: str) -> None:
    """Read the members of an archive with this ending, which compares them with their checksums."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.endswith(ending):
                check_room(member.file_size)
                archive.read(member)


def read_npz(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read the arrays of an .npz file as tensors; Python objects among them are refused.

    Raises:
        ArtifactError: it is missing or damaged, holds something else than numbers, or more than
            fits into memory.
    """

    def read(path: Path) -> dict[str, Tensor]:
        if not zipfile.is_zipfile(path):
            raise ValueError("no archive of arrays")
        with np.load(path, allow_pickle=False) as arrays:
            # a packed file may be a thousandth of what it unpacks to
            check_room(sum(_unpacked(arrays.zip, name) for name in arrays.zip.namelist()))
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}

    return _reading(Path(path), read)


def _unpacked(archive: zipfile.ZipFile, name: str) -> int:
    """How many bytes an array takes, as its own header says."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}
        shape, _, dtype = read.get(version, np.lib.format.read_array_header_2_0)(file)
    return prod(shape) * dtype.itemsize


@checked(size=whole(0))
def check_room(size: int) -> None:
    """Refuse to read more bytes than the machine has memory for.

    Raises:
        ArtifactError: more than is available.
    """
    room = psutil.virtual_memory().available
    if size > room:
        free, remedy = f"at most {room / 1e9:.1f} GB, which are free", "a machine with more memory"
        raise ArtifactError(free, f"{size / 1e9:,.1f} GB", remedy)


_UNREADABLE = (
    OSError, ValueError, TypeError, RuntimeError, SafetensorError, RecursionError, EOFError,
    LookupError, AttributeError, AssertionError, OverflowError, MemoryError, zipfile.BadZipFile,
    zlib.error, struct.error, pickle.PickleError,
)  # fmt: skip
"""What reading a damaged file ends in: its bytes are others' arguments."""


def _reading(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except ArtifactError:
        raise
    except _UNREADABLE as error:
        said = (str(error).strip() or "no reason given").splitlines()[0][:300]  # may quote the file
        raise ArtifactError(
            f"a readable file {path.name} in {path.parent}",
            f"{type(error).__name__}: {said}",
            "check the path; a damaged file has to be fetched or built again",
        ) from error


@cache
def _manifest(root: Path) -> dict[str, str]:
    listed = read_json(root / "manifest.json")
    if not isinstance(listed, dict) or not all(isinstance(d, str) for d in listed.values()):
        raise ArtifactError(
            f"{root / 'manifest.json'} as an object of file names and sha256 digests",
            "something else",
            "restore it with `git checkout -- data`, or rebuild it: `saelearn data`",
        )
    return listed


@cache
def _verify(path: Path, digest: str) -> None:
    remedy = f"restore it with `git checkout -- data`, or rebuild it: `saelearn data` ({path.name})"
    if not path.is_file():
        raise ArtifactError(f"the file {path}", "no such file", remedy)
    if (actual := sha256(path)) != digest:
        received = f"{actual[:12]}..., so the file was changed or cut short"
        raise ArtifactError(f"{path.name} with sha256 {digest[:12]}...", received, remedy)
