"""Grading a class: every submission once, each result in a file of its own, whatever happens.

    grades/
        key                     what hidden numbers are drawn from; the same for the whole class
        results/NAME.json       one for each student and lesson, written whole
        gradebook.csv, .json    every check of every student
        totals.csv              students by lessons
        feedback/NAME.html      for each student
        written.csv             answers in words, for the teacher to fill in points
        names.csv               whose id is whose, if the grading is anonymous

A grading that is killed goes on where it was: what has a result of the same notebook is not judged
again, and the gradebook is made of the results alone, so that it does not depend on the kill.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import hmac
import io
import json
import re
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from saelearn import artifacts
from saelearn.course import collect, copies, reports, written
from saelearn.course.answers import Mother
from saelearn.course.collect import Submission
from saelearn.course.confine import Limits
from saelearn.course.handout import Release, read_release
from saelearn.course.judge import Judged, common, imported, judge
from saelearn.course.marks import Answer, Graded, Mark
from saelearn.course.versions import lessons
from saelearn.errors import ArtifactError, Refusal

TRIES = 2  # of a submission in whose grading the grader itself ended; then in a process apart
MANY = 4  # submissions of a lesson, from which on it pays to compute once what they share
NAMES = "names.csv"
FIELDS = ("student", "lesson", "check", "exercise", "points", "earned", "state", "message")


def _quiet(_: str) -> None:
    """Where nobody asked to be told how it goes."""


def grade(
    folder: Path,
    release_at: Path,
    out: Path,
    *,
    workers: int = 1,
    anonymous: bool = False,
    limits: Limits | None = None,
    say: Callable[[str], None] = _quiet,
    mother: Mother | None = None,
) -> list[Graded]:
    """Grade what is in `folder`, and write the gradebook and feedback into `out`.

    Args:
        folder: an entry for each student.
        release_at: the zip that was handed out.
        out: where results go; an earlier grading there goes on.
        workers: how many submissions at once.
        anonymous: call students by ids; `names.csv` alone says who they are.
        limits: of each submission.
        say: is told how it goes, a line at a time.
        mother: what forks sandboxes, if one runs already.

    Raises:
        Refusal: `out` holds the grades of another release, or with names where ids are asked for
            or the reverse; or the package changed meanwhile.
        ArtifactError: a folder that is missing or cannot be written.
    """
    release = read_release(release_at)
    _claim(out, release, anonymous)
    students = _students(folder, release, out)
    if anonymous:
        rows = [[called, student] for called, (student, _) in students.items()]
        _write(out / NAMES, _csv(("id", "student"), rows))
        (out / NAMES).chmod(0o600)
    if workers > 1:
        parts = [{"part": (k, workers), "aloud": say is not _quiet} for k in range(workers)]
        for process in [_apart(folder, release_at, out, limits, **part) for part in parts]:
            process.wait()  # what one of them leaves undone is done below
    grade_part(folder, release_at, out, limits=limits, say=say, mother=mother)
    known = (_recall(_place(out, s)) for s in _all(students, release))
    graded = [each for each in known if each]
    sheet = written.read(out / written.SHEET)
    counted = written.counted(graded, sheet)
    _write_sheet(out, graded, sheet)
    write_gradebook(out, counted)
    return counted


def grade_part(
    folder: Path,
    release_at: Path,
    out: Path,
    *,
    part: tuple[int, int] = (0, 1),
    only: tuple[str, str] | None = None,
    limits: Limits | None = None,
    say: Callable[[str], None] = _quiet,
    mother: Mother | None = None,
) -> None:
    """Grade what has no result yet: every n-th of them, `part` is which, and n; or `only` one."""
    release = read_release(release_at)
    key = _key(out)
    package = _package()
    limits = limits or Limits()
    todo = []
    for number, submission in enumerate(_all(_students(folder, release, out), release)):
        digest = _digest(submission, release, package, limits)
        known = _recall(_place(out, submission))
        mine = number % part[1] == part[0]
        if only is not None:
            mine = only == (submission.student, submission.lesson)
        if mine and (known is None or known.digest != digest):
            todo.append((submission.student, submission.lesson, digest))
    todo.sort(key=lambda each: each[1])  # what a lesson computes is kept while it is its turn
    with _mothers(release, Counter(lesson for _, lesson, _ in todo)) as mother_of:
        for number, (student, lesson, digest) in enumerate(todo, 1):
            forking = mother or mother_of(lesson)
            submission = _again(_students(folder, release, out), release, student, lesson)
            salt = hashlib.sha256(key + digest.encode()).digest()
            graded = None
            if only is None and _tries(out, submission) >= TRIES:
                told = {"only": (student, lesson), "aloud": False}
                fault = _apart(folder, release_at, out, limits, **told).wait() != 0
                graded = _left_to_you(submission, release, forking, digest) if fault else None
                graded = graded or _recall(_place(out, submission))
            graded = graded or _grade_one(submission, release, out, forking, digest, limits, salt)
            artifacts.write_json(_place(out, submission), asdict(graded))
            _started(out, submission).unlink(missing_ok=True)
            took = f"{graded.seconds:.0f} s"
            say(f"{number}/{len(todo)}  {student}, {lesson}: {graded.so_far}; {took}")
            if _package() != package:
                raise Refusal(
                    "the package to stay as it is while it grades",
                    f"files of saelearn that changed while {student}'s code ran",
                    "install it anew, delete that result, and grade where Landlock is available",
                )


@contextlib.contextmanager
def _mothers(release: Release, counts: Counter[str]) -> Iterator[Callable[[str], Mother]]:
    """A function from a lesson to what forks its sandboxes; one of them lives at a time.

    If many handed in, it computes what the lesson's answers do not decide once for all of them.
    """
    known: dict[str, Mother] = {}
    with contextlib.ExitStack() as stack:

        def mother_of(lesson: str) -> Mother:
            if lesson not in known:
                stack.close()
                known.clear()
                released = release.lessons[lesson]
                once = _common(lesson, released) if counts[lesson] >= MANY else []
                known[lesson] = stack.enter_context(Mother(imported(released), once))
            return known[lesson]

        yield mother_of


def _common(lesson: str, released: dict[str, Any]) -> list[str]:
    own = {path.stem: path for path in lessons()}.get(lesson)
    return common(artifacts.read_json(own), released) if own else []


def _grade_one(
    submission: Submission, release: Release, out: Path, mother: Mother,
    digest: str, limits: Limits, salt: bytes,
) -> Graded:  # fmt: skip
    """Judge a submission, and leave a trace if the grader ends in it."""
    with _started(out, submission).open("ab") as file:
        file.write(b".")
    lesson = release.lessons[submission.lesson]
    judged = judge(submission.notebook, lesson, mother, limits=limits, salt=salt)
    graded = _graded(submission, digest, judged, list(submission.notes))
    in_words = written.marks_of(submission.notebook, lesson)
    answers = copies.answers_of(submission.notebook, lesson)
    return replace(graded, marks=graded.marks + in_words, answers=answers)


def _left_to_you(submission: Submission, release: Release, mother: Mother, digest: str) -> Graded:
    """No points for a submission that ends graders. Killed ones are not its doing."""
    note = "the grader ended again and again while it judged this: please look at it yourself"
    judged = judge(None, release.lessons[submission.lesson], mother)
    graded = _graded(submission, digest, judged, [*submission.notes, note])
    in_words = written.marks_of(submission.notebook, release.lessons[submission.lesson])
    return replace(graded, marks=graded.marks + in_words)


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
    kept = written.counted(kept, written.read(out / written.SHEET))
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
    alike = [asdict(group) for group in copies.alike(graded)]
    book = {"checks": rows, "notes": _notes(graded), "alike": alike}
    artifacts.write_json(out / "gradebook.json", book)
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
        unread = sum(each.unread for each in theirs)
        totals.append([student, *cells, round(sum(cells), 2), possible, unread])
    _write(out / "totals.csv", _csv(("student", *lessons, "earned", "possible", "unread"), totals))
    for student, theirs in by_student.items():
        _write(out / "feedback" / f"{slug(student)}.html", reports.feedback(student, theirs))


def _write_sheet(out: Path, graded: list[Graded], sheet: dict[str, dict[str, str]]) -> None:
    """The answers in words, with what the teacher filled in so far; nothing filled in is lost."""
    rows = written.rows_of(graded)
    for name, row in sheet.items():
        filled = {field: row[field] for field in ("points", "comment") if row.get(field)}
        if name in rows or filled:
            rows[name] = rows.get(name, row) | filled
    if rows:
        table = [[row.get(field, "") for field in written.FIELDS] for row in rows.values()]
        _write(out / written.SHEET, _csv(written.FIELDS, table))


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
        marks = [Mark(**mark) for mark in kept["marks"]]
        answers = [Answer(**answer) for answer in kept["answers"]]
        return Graded(**{**kept, "marks": marks, "answers": answers})
    except (ArtifactError, TypeError, KeyError):
        return None


def _started(out: Path, submission: Submission) -> Path:
    """A file as long as a submission's grading has begun, and not come to an end, times."""
    return _place(out, submission).with_suffix(".started")


def _tries(out: Path, submission: Submission) -> int:
    started = _started(out, submission)
    return started.stat().st_size if started.exists() else 0


def _place(out: Path, submission: Submission) -> Path:
    return out / "results" / f"{slug(submission.student)}.{submission.lesson}.json"


# --- the class ------------------------------------------------------------------------------------


Students = dict[str, tuple[str, list[Path]]]  # as they are called -> name, entries


def _students(folder: Path, release: Release, out: Path) -> Students:
    """The class; in an anonymous grading by ids that nobody can tell without its key."""
    names = collect.students(folder, release)
    if not (out / NAMES).exists():
        return {name: (name, entries) for name, entries in names.items()}
    key = _key(out)
    ids = {name: hmac.digest(key, name.encode("utf-8", "replace"), "sha256") for name in names}
    called = {f"student-{ids[name].hex()[:8]}": (name, names[name]) for name in names}
    return dict(sorted(called.items()))


def _all(students: Students, release: Release) -> Iterator[Submission]:
    for called, (student, entries) in students.items():
        instead = called if called != student else ""
        yield from collect.submissions(student, entries, release, called=instead)


def _again(students: Students, release: Release, called: str, lesson: str) -> Submission:
    """One submission, read when it is its turn: a class does not have to fit into memory."""
    found = _all({called: students.get(called, ("", []))}, release)
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


def _key(out: Path) -> bytes:
    return bytes.fromhex((out / "key").read_text().strip())


def _claim(out: Path, release: Release, anonymous: bool) -> None:
    """Make `out` the grading of this release, with a key that stays."""
    kept = out / "release"
    if kept.exists() and (out / NAMES).exists() != anonymous:
        raise Refusal(
            f"{out} to be new, or {'an anonymous grading' if anonymous else 'one with names'}",
            "one with names" if anonymous else "an anonymous one",
            "choose another --out, or the same way as before",
        )
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
        if anonymous:
            _write(out / NAMES, "")
        _write(kept, release.digest + "\n")


def _apart(
    folder: Path, release_at: Path, out: Path, limits: Limits | None, *, aloud: bool, **which: Any
) -> subprocess.Popen:
    """Let another process grade `which`; it ends when this one does."""
    code = (
        "import json, sys; from pathlib import Path; from saelearn.course import grade, confine\n"
        "confine.die_with_parent()\n"
        "folder, release, out, limits, which, aloud = json.loads(sys.argv[1])\n"
        "limits = confine.Limits(**limits) if limits else None\n"
        "which = {name: tuple(value) for name, value in which.items()}\n"
        "say = (lambda line: print(line, flush=True)) if aloud else (lambda line: None)\n"
        "grade.grade_part(Path(folder), Path(release), Path(out), limits=limits, say=say, **which)"
    )
    known = asdict(limits) if limits else None
    given = json.dumps([str(folder), str(release_at), str(out), known, which, aloud])
    return subprocess.Popen([sys.executable, "-P", "-c", code, given])
