"""What students hand in: folders, zips and notebooks under any name, read and never run.

The folder that a teacher points at holds one entry for each student: a folder, a zip, or a
notebook whose name says whose it is. Nothing is unpacked to the disk, links are not followed,
and what cannot be read becomes a problem with a name, not an exception.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import saelearn.course.points as of
from saelearn.course.handout import Release
from saelearn.errors import ArtifactError

LARGEST = 64 * 2**20  # bytes of one notebook: a lesson with its pictures has two
MOST = 500  # files looked at for one student
ENCODINGS = ("utf-8-sig", "utf-16", "cp1252")  # as they come from Windows
HIDDEN = re.compile(r"(^|/)(\.[^./]|__MACOSX/|Thumbs\.db)")


@dataclass(frozen=True)
class Submission:
    """One student's notebook for one lesson.

    Attributes:
        student: as the folder, zip or file is called.
        lesson: such as `04_first_sae`.
        notebook: what was handed in; None if nothing was, or nothing readable.
        notes: what the teacher should know about how it came.
        digest: sha256 of what was read; of nothing where there was nothing.
    """

    student: str
    lesson: str
    notebook: dict[str, Any] | None
    notes: tuple[str, ...] = ()
    digest: str = field(default=hashlib.sha256(b"").hexdigest())


@dataclass(frozen=True)
class Found:
    """A file of a student's, and what it seems to be."""

    name: str
    content: bytes | None
    problem: str = ""


def students(folder: Path, release: Release) -> dict[str, list[Path]]:
    """The students by name, each with the entries of `folder` that are theirs, in order.

    Raises:
        ArtifactError: the folder is missing or empty.
    """
    if not folder.is_dir():
        raise ArtifactError(f"a folder of submissions at {folder}", "none", "check the path")
    by_name: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if HIDDEN.search(path.name) or not _is_entry(path):
            continue
        name = path.name if path.is_dir() and not path.is_symlink() else path.stem
        by_name.setdefault(_student(name, release), []).append(path)
    if not by_name:
        raise ArtifactError(
            "a folder, zip or notebook for each student", f"none in {folder}", "check the path"
        )
    return dict(sorted(by_name.items()))


def submissions(
    student: str, entries: list[Path], release: Release, *, called: str = ""
) -> list[Submission]:
    """What one student handed in, for each lesson of the release.

    Args:
        student: the name.
        entries: the student's.
        release: what was handed out.
        called: an id in place of the name; then notes do not name files either.
    """
    files = [file for entry in entries for file in _files(entry)]
    if called:
        student = called
        files = [
            replace(file, name=_nameless(i, file.name, release)) for i, file in enumerate(files, 1)
        ]
    by_lesson: dict[str, list[tuple[Found, dict[str, Any]]]] = {
        name: [] for name in release.lessons
    }
    problems: dict[str | None, list[str]] = {}
    for file in files:
        notebook, problem = _read(file)
        lesson = _lesson(file.name, notebook, release)
        if notebook is not None and lesson is not None:
            by_lesson[lesson].append((file, notebook))
        else:
            problem = problem or "is none of the lessons that were handed out"
            problems.setdefault(lesson, []).append(f"{_shown(file.name)}: {problem}")
    everywhere = problems.pop(None, [])
    return [
        _chosen(student, lesson, found, problems.get(lesson, []) + everywhere, release)
        for lesson, found in by_lesson.items()
    ]


def _chosen(
    student: str, lesson: str, found: list[tuple[Found, dict]], notes: list[str], release: Release
) -> Submission:
    """One of several notebooks: the one in which most answers differ from what was handed out."""
    if not found:
        notes = notes or ["nothing was handed in"]
        read = hashlib.sha256("\n".join(notes).encode()).hexdigest()
        return Submission(student, lesson, None, tuple(notes), read)
    handed_out = {
        of.grade_id(cell): of.text(cell)
        for cell in release.lessons[lesson]["cells"]
        if of.is_answer(cell) or of.is_written(cell)
    }

    def n_answered(item: tuple[Found, dict]) -> tuple[int, str]:
        cells = item[1]["cells"]
        changed = {
            of.grade_id(c)
            for c in cells
            if handed_out.get(of.grade_id(c), of.text(c)) != of.text(c)
        }
        return len(changed), item[0].name

    file, notebook = max(found, key=n_answered)
    if len(found) > 1:
        names = ", ".join(sorted(_shown(other.name) for other, _ in found))
        notes = [*notes, f"{len(found)} notebooks ({names}): {_shown(file.name)} was graded"]
    assert file.content is not None
    return Submission(
        student, lesson, notebook, tuple(notes), hashlib.sha256(file.content).hexdigest()
    )


def _nameless(number: int, name: str, release: Release) -> str:
    """A file's name without whose it is: the lesson that it tells, and a number."""
    lesson = _told_by(name, release)
    return f"{f'{lesson} ' if lesson else ''}file {number}{PurePosixPath(name).suffix.lower()}"


def _is_entry(path: Path) -> bool:
    """Whether this is somebody's: a folder, zip or notebook. A link is, too, and is told."""
    return path.is_dir() or path.is_symlink() or path.suffix.lower() in (".zip", ".ipynb")


def _student(name: str, release: Release) -> str:
    """A student's name out of an entry's: without the lesson's, and composed in one way."""
    name = unicodedata.normalize("NFC", name)
    for lesson in release.lessons:
        rest = re.sub(rf"[\s_\-()\[\]]*{re.escape(lesson)}[\s_\-()\[\]]*", " ", name).strip()
        name = rest or name
    return _shown(name)


def _shown(name: str) -> str:
    """A name with what no terminal or page should be sent made visible."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)[:200]


def _files(entry: Path) -> Iterator[Found]:
    if entry.is_symlink():
        yield Found(entry.name, None, "is a link, which is not followed")
    elif entry.is_dir():
        paths = sorted(path for path in entry.rglob("*") if _wanted(path.relative_to(entry)))
        for path in paths[:MOST]:
            yield from _files(path)
    elif entry.suffix.lower() == ".zip":
        yield from _in_zip(entry)
    else:
        yield _bounded(entry.name, entry)


def _wanted(path: Path) -> bool:
    return path.suffix.lower() in (".zip", ".ipynb") and not HIDDEN.search(path.as_posix())


def _bounded(name: str, path: Path) -> Found:
    try:
        if not path.is_file():
            return Found(name, None, "is no regular file")
        with path.open("rb") as opened:
            content = opened.read(LARGEST + 1)
    except OSError as error:
        return Found(name, None, f"cannot be read ({type(error).__name__})")
    if len(content) > LARGEST:
        return Found(name, None, f"is larger than {LARGEST // 2**20} MB")
    return Found(name, content)


def _in_zip(path: Path) -> Iterator[Found]:
    """The notebooks in a zip, read within bounds whatever the zip says of their sizes."""
    archive = _bounded(path.name, path)
    if archive.content is None:
        yield archive
        return
    try:
        with zipfile.ZipFile(io.BytesIO(archive.content)) as opened:
            entries = [e for e in opened.infolist() if _wanted(Path(e.filename)) and not e.is_dir()]
            for entry in sorted(entries, key=lambda e: e.filename)[:MOST]:
                name = PurePosixPath(entry.filename.replace("\\", "/")).name
                with opened.open(entry) as file:
                    content = file.read(LARGEST + 1)
                if len(content) > LARGEST:
                    yield Found(name, None, f"is larger than {LARGEST // 2**20} MB")
                elif name.lower().endswith(".ipynb"):
                    yield Found(name, content)
                else:
                    yield Found(name, None, "is a zip in a zip")
    except Exception as error:  # a zip can be broken in many ways: zlib, encodings, passwords
        yield Found(path.name, None, f"is no readable zip ({type(error).__name__})")


def _read(file: Found) -> tuple[dict[str, Any] | None, str]:
    """A notebook with a list of cells, each a dictionary; or the problem."""
    if file.content is None:
        return None, file.problem
    for encoding in ENCODINGS:
        try:
            notebook = json.loads(file.content.decode(encoding))
        except (ValueError, RecursionError):
            continue
        cells = notebook.get("cells") if isinstance(notebook, dict) else None
        if isinstance(cells, list) and all(isinstance(cell, dict) for cell in cells):
            return notebook, ""
        return None, "is no notebook of today's format (open it and save it anew)"
    return None, "is damaged or only half written"


def _lesson(name: str, notebook: dict | None, release: Release) -> str | None:
    """Which lesson a file is for, by what it says, by its cells, or by its name."""
    if notebook is not None:
        metadata = notebook.get("metadata")
        ours = metadata.get("saelearn") if isinstance(metadata, dict) else None
        said = ours.get("lesson") if isinstance(ours, dict) else None
        if isinstance(said, str) and said in release.lessons:
            return said
        cells = {key for cell in notebook["cells"] for key in (of.grade_id(cell), cell.get("id"))
                 if isinstance(key, str)}  # fmt: skip
        shared = {
            lesson: len(cells & {c.get("id") for c in known["cells"]})
            for lesson, known in release.lessons.items()
        }
        best = max(shared, key=lambda lesson: shared[lesson])
        if shared[best] >= 3:
            return best
    return _told_by(name, release)


def _told_by(name: str, release: Release) -> str | None:
    """Which lesson a file is for by its name alone."""
    named = [lesson for lesson in release.lessons if lesson in name]
    named = named or [
        lesson for lesson in release.lessons if re.match(rf"{lesson[:2]}\b|{lesson[:2]}_", name)
    ]
    return named[0] if len(named) == 1 else None
