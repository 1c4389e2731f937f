"""Grading a class: every submission once, each result in a file of its own, whatever happens.

    grades/
        key                     what hidden numbers are drawn from; the same for the whole class
        results/NAME.json       one for each student and lesson, written whole
        gradebook.csv, .json    every check of every student
        totals.csv              students by lessons
        feedback/NAME.html      for each student

A grading that is killed goes on where it was: what has a result of the same notebook is not judged
again, and the gradebook is made of the results alone, so that it does not depend on the kill.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saelearn import artifacts
from saelearn.course import collect, reports
from saelearn.course.answers import Mother
from saelearn.course.collect import Submission
from saelearn.course.confine import Limits
from saelearn.course.handout import Release, read_release
from saelearn.course.judge import Judged, imported, judge
from saelearn.course.marks import Graded, Mark
from saelearn.errors import ArtifactError, Refusal

TRIES = 2  # of a submission in whose grading the grader itself ended
FIELDS = ("student", "lesson", "check", "exercise", "points", "earned", "state", "message")


def grade(
    folder: Path,
    release_at: Path,
    out: Path,
    *,
    workers: int = 1,
    limits: Limits | None = None,
    say: Callable[[str], None] = lambda _: None,
    mother: Mother | None = None,
) -> list[Graded]:
    """Grade what is in `folder`, and write the gradebook and feedback into `out`.

    Args:
        folder: an entry for each student.
        release_at: the zip that was handed out.
        out: where results go; an earlier grading there goes on.
        workers: how many submissions at once.
        limits: of each submission.
        say: is told how it goes, a line at a time.
        mother: what forks sandboxes, if one runs already.

    Raises:
        Refusal: `out` holds the grades of another release, or the package changed meanwhile.
        ArtifactError: a folder that is missing or cannot be written.
    """
    release = read_release(release_at)
    _claim(out, release)
    names = collect.students(folder, release)
    if workers > 1:
        _share(folder, release_at, out, workers, limits)
    grade_part(folder, release_at, out, limits=limits, say=say, mother=mother)
    graded = [_recall(_place(out, s)) for s in _all(names, release)]
    write_gradebook(out, [each for each in graded if each])
    return [each for each in graded if each]


def grade_part(
    folder: Path,
    release_at: Path,
    out: Path,
    *,
    part: tuple[int, int] = (0, 1),
    limits: Limits | None = None,
    say: Callable[[str], None] = lambda _: None,
    mother: Mother | None = None,
) -> None:
    """Grade every n-th submission that has no result yet; `part` is which, and n."""
    release = read_release(release_at)
    key = bytes.fromhex((out / "key").read_text().strip())
    package = _package()
    limits = limits or Limits()
    todo = []
    for number, submission in enumerate(_all(collect.students(folder, release), release)):
        digest = _digest(submission, release, package, limits)
        known = _recall(_place(out, submission))
        if number % part[1] == part[0] and (known is None or known.digest != digest):
            todo.append((submission.student, submission.lesson, digest))
    if not todo:
        return
    modules = set().union(*map(imported, release.lessons.values()))
    with contextlib.nullcontext(mother) if mother else Mother(modules) as mother:
        for number, (student, lesson, digest) in enumerate(todo, 1):
            submission = _again(folder, release, student, lesson)
            salt = hashlib.sha256(key + digest.encode()).digest()
            graded = _grade_one(submission, release, out, mother, digest, limits, salt)
            artifacts.write_json(_place(out, submission), asdict(graded))
            say(f"{number}/{len(todo)}  {student}, {lesson}: {graded.earned:g} of "
                f"{graded.points:g} points in {graded.seconds:.0f} s")  # fmt: skip
            if _package() != package:
                raise Refusal(
                    "the package to stay as it is while it grades",
                    f"files of saelearn that changed while {student}'s code ran",
                    "install it anew, delete that result, and grade where Landlock is available",
                )


def _grade_one(
    submission: Submission, release: Release, out: Path, mother: Mother,
    digest: str, limits: Limits, salt: bytes,
) -> Graded:  # fmt: skip
    """Judge a submission, unless the grader itself ended in it twice."""
    started = _place(out, submission).with_suffix(".started")
    tries = len(started.read_bytes()) if started.exists() else 0
    notes = list(submission.notes)
    notebook = submission.notebook
    if tries >= TRIES:
        notebook = None
        notes.append("the grader ended twice while it judged this: please look at it yourself")
    with started.open("ab") as file:
        file.write(b".")
    judged = judge(notebook, release.lessons[submission.lesson], mother, limits=limits, salt=salt)
    started.unlink()
    return _graded(submission, digest, judged, notes)


def _graded(submission: Submission, digest: str, judged: Judged, notes: list[str]) -> Graded:
    student, lesson = submission.student, submission.lesson
    notes = notes + judged.notes
    return Graded(student, lesson, digest, judged.marks, notes, judged.holds, judged.seconds)


# --- results --------------------------------------------------------------------------------------


def results(out: Path) -> list[Graded]:
    """All results of a grading, by student and lesson.

    Raises:
        ArtifactError: there are none.
    """
    found = [_recall(path) for path in sorted((out / "results").glob("*.json"))]
    kept = sorted((each for each in found if each), key=lambda g: (g.student, g.lesson))
    if not kept:
        remedy = "`saelearn grade SUBMISSIONS --release ZIP --out GRADES` makes some"
        raise ArtifactError(f"results in {out}", "none", remedy)
    return kept


def write_gradebook(out: Path, graded: list[Graded]) -> None:
    """Write the gradebook, the totals and everybody's feedback."""
    rows = [
        {
            "student": each.student, "lesson": each.lesson, "check": mark.grade_id,
            "exercise": mark.title, "points": mark.points, "earned": mark.earned,
            "state": mark.state, "message": mark.message,
        }
        for each in graded for mark in each.marks
    ]  # fmt: skip
    artifacts.write_json(out / "gradebook.json", {"checks": rows, "notes": _notes(graded)})
    _write(out / "gradebook.csv", _csv(FIELDS, [[row[field] for field in FIELDS] for row in rows]))
    lessons = sorted({each.lesson for each in graded})
    by_student: dict[str, list[Graded]] = {}
    for each in graded:
        by_student.setdefault(each.student, []).append(each)
    totals = []
    for student, theirs in by_student.items():
        earned = {each.lesson: each.earned for each in theirs}
        possible = sum(each.points for each in theirs)
        cells = [earned.get(lesson, 0) for lesson in lessons]
        totals.append([student, *cells, round(sum(cells), 2), possible])
    _write(out / "totals.csv", _csv(("student", *lessons, "earned", "possible"), totals))
    for student, theirs in by_student.items():
        _write(out / "feedback" / f"{slug(student)}.html", reports.feedback(student, theirs))


def slug(student: str) -> str:
    """A file name for a student: readable, and never that of another."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", student).strip("-")[:40] or "student"
    return f"{plain}-{hashlib.sha256(student.encode('utf-8', 'replace')).hexdigest()[:8]}"


def _notes(graded: list[Graded]) -> list[dict[str, str]]:
    return [
        {"student": each.student, "lesson": each.lesson, "note": note}
        for each in graded
        for note in each.notes
    ]


def _csv(header: tuple[str, ...], rows: list[list[Any]]) -> str:
    """A table for a spreadsheet; what a student wrote never becomes a formula in it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(
            [f"'{v}" if isinstance(v, str) and v[:1] in "=+-@\t\r" and v else v for v in row]
        )
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    with artifacts.replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def _recall(path: Path) -> Graded | None:
    try:
        kept = artifacts.read_json(path)
        return Graded(**{**kept, "marks": [Mark(**mark) for mark in kept["marks"]]})
    except (ArtifactError, TypeError, KeyError):
        return None


def _place(out: Path, submission: Submission) -> Path:
    return out / "results" / f"{slug(submission.student)}.{submission.lesson}.json"


# --- the class ------------------------------------------------------------------------------------


def _all(names: dict[str, list[Path]], release: Release) -> Iterator[Submission]:
    for student, entries in names.items():
        yield from collect.submissions(student, entries, release)


def _again(folder: Path, release: Release, student: str, lesson: str) -> Submission:
    """One submission, read when it is its turn: a class does not have to fit into memory."""
    entries = collect.students(folder, release).get(student, [])
    found = collect.submissions(student, entries, release)
    return next(submission for submission in found if submission.lesson == lesson)


def _digest(submission: Submission, release: Release, package: str, limits: Limits) -> str:
    parts = [submission.digest, release.digest, package, repr(limits), *submission.notes]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()


def _package() -> str:
    """What this package's files hold."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _claim(out: Path, release: Release) -> None:
    """Make `out` the grading of this release, with a key that stays."""
    kept = out / "release"
    if kept.exists() and kept.read_text().strip() != release.digest:
        raise Refusal(
            f"{out} to be new, or a grading of this release",
            "grades of another release",
            "choose another --out, or the zip that was handed out then",
        )
    (out / "results").mkdir(parents=True, exist_ok=True)
    if not (out / "key").exists():
        _write(out / "key", secrets.token_hex(32) + "\n")
        (out / "key").chmod(0o600)
    if not kept.exists():
        _write(kept, release.digest + "\n")


def _share(folder: Path, release_at: Path, out: Path, workers: int, limits: Limits | None) -> None:
    """Let other processes do their parts; what one of them leaves undone is done afterwards."""
    code = (
        "import json, sys; from pathlib import Path; from saelearn.course import grade, confine\n"
        "confine.die_with_parent()\n"
        "folder, release, out, k, n, limits = json.loads(sys.argv[1])\n"
        "limits = confine.Limits(**limits) if limits else None\n"
        "grade.grade_part(Path(folder), Path(release), Path(out), part=(k, n), limits=limits, "
        "say=lambda line: print(line, flush=True))"
    )
    known = asdict(limits) if limits else None
    started = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", code,
             json.dumps([str(folder), str(release_at), str(out), k, workers, known])]
        )
        for k in range(workers)
    ]  # fmt: skip
    for process in started:
        process.wait()
