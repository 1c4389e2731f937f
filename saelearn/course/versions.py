"""The student version of the lessons, and the learner's own copies in `my_course/`.

The lessons in `notebooks/` are complete; a solution stands between the lines `### BEGIN SOLUTION`
and `### END SOLUTION`. A learner works on copies without solutions. What is in a learner's folder
is theirs, and three rules keep it so:

1. A file that is there is never written to. A new file appears whole, under a name that was free.
2. A lesson whose cells still are what was handed out (their sources, outputs and counts; JupyterLab
   rewrites the rest when it opens a file) may be exchanged for a newer version. Anything else
   counts as the learner's work, also outputs alone; it stays, and the newer version is put beside
   it as `NN_topic.new.ipynb`, and the learner is told.
3. `.lessons.json` remembers two sha256 of each version handed out, of its bytes and of its cells.
   It is only a memory: if it is lost or damaged, every lesson that differs from the current version
   counts as the learner's.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelearn import artifacts
from saelearn.errors import ArtifactError, Refusal

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB, STUB_IN_WORDS = "...  # your code here", "*Write your answer in place of this line.*"
CLAIM = "claim"  # the tag of a cell that holds what the lesson says to what it shows
MEMORY = ".lessons.json"


def notebooks_dir() -> Path:
    """The folder of the lessons: complete in a clone, without solutions in an installed package."""
    package = Path(__file__).resolve().parents[1]
    in_wheel = package / "notebooks"  # where the build puts them, see hatch_build.py
    return in_wheel if in_wheel.is_dir() else package.parent / "notebooks"


def learners_dir() -> Path:
    """Where a learner's own copies are unless told otherwise: in the clone, else right here."""
    source = notebooks_dir()
    in_clone = (source.parent / "pyproject.toml").exists()
    return (source.parent if in_clone else Path.cwd()) / "my_course"


def lessons(source: Path | None = None) -> list[Path]:
    """The complete lessons in the order of their numbers.

    Raises:
        ArtifactError: there are none.
    """
    source = source or notebooks_dir()
    found = sorted(source.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise ArtifactError(
            f"lessons NN_topic.ipynb in {source}",
            "none",
            "install the package anew, or work in a clone with `pip install -e .`",
        )
    return found


def pages(source: Path | None = None) -> list[Path]:
    """What lessons link to and nobody solves, such as the glossary; there may be none."""
    return sorted((source or notebooks_dir()).glob("*.md"))


def student_version(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with each solution replaced by a stub, outputs and counts cleared.

    Cells with the tag `claim` are left out: a reader who turns a knob is to see what changes.

    Raises:
        Refusal: a solution's markers do not come in pairs.
    """
    shown = [cell for cell in notebook["cells"] if not is_claim(cell)]
    return {**notebook, "cells": [_student_cell(cell) for cell in shown]}


def is_claim(cell: dict[str, Any]) -> bool:
    """Whether a cell is there for the tests alone."""
    return cell["cell_type"] == "code" and CLAIM in cell["metadata"].get("tags", [])


def student_bytes(lesson: Path) -> bytes:
    """The student version of a lesson as a file's content, the same bytes each time.

    A page has nothing to solve and is handed out as it is.
    """
    if lesson.suffix != ".ipynb":
        return lesson.read_bytes()
    student = student_version(artifacts.read_json(lesson))
    return (json.dumps(student, indent=1, ensure_ascii=False) + "\n").encode()


def write_student(out: Path, source: Path | None = None) -> list[Path]:
    """Write the student versions into the folder `out`, for a teacher to hand out.

    Raises:
        ArtifactError: a lesson of another content is there already; none is written then.
    """
    found = lessons(source) + pages(source)
    versions = {out / lesson.name: student_bytes(lesson) for lesson in found}
    for path, content in versions.items():
        if path.exists() and path.read_bytes() != content:
            remedy = "choose an empty folder, or remove the old version first"
            raise ArtifactError(f"to write {path.name} into {out}", "another one is there", remedy)
    for path, content in versions.items():
        with artifacts.replacing(path) as temporary:
            temporary.write_bytes(content)
    return list(versions)


@dataclass(frozen=True)
class Outcome:
    """What `prepare` did about one lesson.

    `state` is "created", "current" (nothing to do), "renewed" (it was untouched), "offered" (the
    learner's stays, the new version was put beside it at `beside`) or "kept" (that was earlier).
    """

    path: Path
    state: str
    beside: Path | None = None

    @property
    def message(self) -> str:
        """What to tell the learner; empty if there is nothing to tell."""
        name = self.path.name
        if self.state == "created":
            return f"{name}: new in {self.path.parent.name}/"
        if self.state == "renewed":
            return f"{name}: replaced by its new version (you had not changed it)"
        if self.beside is not None:
            return (
                f"{name}: has changed upstream. Yours is kept as it is; "
                f"the new version stands beside it: {self.beside.name}"
            )
        return ""


def prepare(folder: Path, source: Path | None = None) -> list[Outcome]:
    """Give the learner's `folder` what it lacks; see the rules at the top of this module.

    Raises:
        ArtifactError: there are no lessons, or the folder cannot be written to.
    """
    found = lessons(source) + pages(source)
    memory = _recall(folder)
    outcomes = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for lesson in found:
            known = memory.setdefault(lesson.name, [])
            _sweep(folder / lesson.name, set(known))
            content = student_bytes(lesson)
            outcomes.append(_settle(folder / lesson.name, content, set(known)))
            known += [digest for digest in _digests(content) if digest not in known]
    except ArtifactError:
        raise
    except OSError as error:
        raise ArtifactError(
            f"to write the lessons into {folder}",
            f"{type(error).__name__}: {error}",
            f"{artifacts.to_free(folder)}, or choose one that you may write to with --folder",
        ) from error
    if memory != _recall(folder):
        artifacts.write_json(folder / MEMORY, memory)
    return outcomes


def _settle(path: Path, content: bytes, known: Set[str]) -> Outcome:
    """Decide about one lesson. `known` are the digests of the versions handed out so far."""
    if _create(path, content):
        return Outcome(path, "created")
    if _same(path, content, known):
        return Outcome(path, "current")
    if _renew(path, content, known):
        return Outcome(path, "renewed")
    beside = next(_names_beside(path))
    if not known.isdisjoint(
        _digests(content)
    ):  # handed out before: the learner may have used it, or removed it
        return Outcome(path, "kept", beside if beside.exists() else None)
    for name in _names_beside(path):
        if _create(name, content) or _same(name, content, known):
            return Outcome(path, "offered", name)
        if _renew(name, content, known):
            return Outcome(path, "offered", name)
    raise AssertionError("unreachable: the names beside a lesson do not end")


def _names_beside(path: Path) -> Iterator[Path]:
    yield path.with_suffix(f".new{path.suffix}")
    for number in itertools.count(2):
        yield path.with_suffix(f".new{number}{path.suffix}")


def _same(path: Path, content: bytes, known: Set[str]) -> bool:
    """Whether a file holds this version: its bytes, or its cells in what JupyterLab made of it."""
    there, new = _digests_of(path), _digests(content)
    # the same cells in a file that nobody has written to since: only what is around them is newer
    return bool(there & new) and (there == new or not there <= known)


def _renew(path: Path, content: bytes, known: Set[str]) -> bool:
    """Exchange an untouched file for a newer version; False if it is the learner's."""
    if path.is_symlink() or known.isdisjoint(_digests_of(path)):
        return False
    with _written(path, content) as new:
        if artifacts.exchange(new, path):
            if known.isdisjoint(_digests_of(new)):  # saved by the learner since the look
                artifacts.exchange(new, path)
                return False
            return True
        return _renew_in_steps(path, new, known)


def _renew_in_steps(path: Path, new: Path, known: Set[str]) -> bool:
    """The same where two files cannot change places at once."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.stem}.", dir=path.parent)) / path.name
    try:
        os.rename(path, aside)
    except OSError:  # open elsewhere (Windows) or gone meanwhile
        aside.parent.rmdir()
        return False
    if known.isdisjoint(_digests_of(aside)):  # saved by the learner between the look and the move
        if _link(aside, path):
            _discard(aside)
        return False
    _link(new, path)
    _discard(aside)
    return True


def _sweep(path: Path, known: Set[str]) -> None:
    """Remove what a killed `prepare` left of a lesson; what it had put aside gets its name back."""
    for scrap in path.parent.glob(f".{glob.escape(path.stem)}*.{'?' * 8}"):
        with contextlib.suppress(OSError):
            if time.time() - scrap.stat().st_mtime < artifacts.SCRAP_AGE:
                continue  # of one that runs at this moment
            if scrap.is_file():
                scrap.unlink()
                continue
            for aside in scrap.iterdir():  # unless it is the learner's, saved in between
                if not known.isdisjoint(_digests_of(aside)) or _link(
                    aside, path.with_name(aside.name)
                ):
                    aside.unlink()
            scrap.rmdir()


def _discard(aside: Path) -> None:
    with contextlib.suppress(OSError):
        aside.unlink()
        aside.parent.rmdir()


def _create(path: Path, content: bytes) -> bool:
    """Let a file appear, whole, under a name that is free; False if the name is taken."""
    if os.path.lexists(path):
        return False
    with _written(path, content) as new:
        return _link(new, path)


@contextlib.contextmanager
def _written(path: Path, content: bytes) -> Iterator[Path]:
    """A file beside `path` with this content; what lies under its name is removed afterwards."""
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _link(source: Path, path: Path) -> bool:
    """Give the file `source` the name `path` as well, unless that is taken."""
    try:
        if os.name == "nt":
            os.rename(source, path)  # refuses, on Windows, a name that is taken
        else:
            os.link(source, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links, such as a memory stick's
        with contextlib.suppress(FileExistsError), path.open("xb") as file:
            file.write(source.read_bytes())
            return True
        return False


def _recall(folder: Path) -> dict[str, list[str]]:
    try:
        memory = artifacts.read_json(folder / MEMORY)
        return {str(name): [str(d) for d in digests] for name, digests in memory.items()}
    except (ArtifactError, AttributeError, TypeError):
        return {}


def _digests(content: bytes) -> set[str]:
    """The sha256 of a file's bytes and, if it is a notebook, of what its cells hold."""
    found = [content]
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        cells = [_held(cell) for cell in json.loads(content)["cells"]]
        found.append(json.dumps(cells, sort_keys=True).encode())
    return {hashlib.sha256(each).hexdigest() for each in found}


def _held(cell: dict[str, Any]) -> list[Any]:
    """What a cell says and what came of it; not how it is folded, tagged or numbered."""
    source = cell["source"]
    source = source if isinstance(source, str) else "".join(source)
    return [cell["cell_type"], source, cell.get("outputs"), cell.get("execution_count"),
            cell.get("attachments")]  # fmt: skip


def _digests_of(path: Path) -> set[str]:
    """A file's digests, or none if it cannot be read: then it is not ours to judge."""
    try:
        return _digests(path.read_bytes())
    except OSError:
        return set()


def _student_cell(cell: dict[str, Any]) -> dict[str, Any]:
    source, code = cell["source"], cell["cell_type"] == "code"
    lines = source.splitlines(keepends=True) if isinstance(source, str) else source
    stubbed = _stub(lines, STUB if code else STUB_IN_WORDS)
    cleared = {"execution_count": None, "outputs": []} if code else {}
    return {**cell, **cleared, "source": "".join(stubbed) if isinstance(source, str) else stubbed}


def _stub(lines: list[str], stub: str) -> list[str]:
    """Replace each marked block by one stub at the indentation of its first marker."""
    kept, inside = [], False
    for line in lines:
        mark = line.strip()
        if mark not in (BEGIN, END):
            kept += [] if inside else [line]
            continue
        if (mark == BEGIN) == inside:
            raise Refusal(
                f"`{BEGIN}` and `{END}` in pairs, each on a line of its own",
                f"`{mark}` {'inside' if inside else 'outside'} a solution",
                "look at the cell that starts with: " + lines[0].strip(),
            )
        inside = mark == BEGIN
        to_fill = kept and "= ..." in kept[-1]  # there the dots are the place to write
        if inside and not to_fill:
            kept.append(line[: len(line) - len(line.lstrip())] + stub + "\n")
    if inside:
        raise Refusal(f"`{END}` after `{BEGIN}`", "the end of the cell", "close the solution")
    if kept and not lines[-1].endswith("\n"):
        kept[-1] = kept[-1].removesuffix("\n")
    return kept
