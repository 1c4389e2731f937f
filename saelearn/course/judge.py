"""From one student's notebook to points: the checks run here, the student's code elsewhere.

Each check judges first with the numbers that it has at home, so that a student reads the same
words as there. What passes is judged once more with numbers drawn for this grading: an answer that
knew the first ones by heart does not know these.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from saelearn.course.answers import Gone, Mother, Sandbox
from saelearn.course.confine import Limits
from saelearn.course.marks import Mark
from saelearn.course.needed import split
from saelearn.course.points import Check, checks_of, is_check, text
from saelearn.course.points import released as of_lesson
from saelearn.course.restore import Step, restored, solved
from saelearn.exercises import Verdict, told

RESTARTS = 3  # after code that ended its process; what it ended in is then left out
DRAWS = 3  # new draws of which one must be passed: a right answer fails one in a hundred at most
BY_HEART = "right for the numbers that the check shows at home, and wrong for others"


@dataclass(frozen=True)
class Judged:
    """All marks of a lesson, in its order.

    Attributes:
        marks: one for each check.
        notes: what had to be put right in the notebook, and cells that raised.
        holds: what the sandbox was kept from, in words.
        seconds: of the whole lesson.
    """

    marks: list[Mark]
    notes: list[str]
    holds: list[str]
    seconds: float


def judge(
    student: dict[str, Any] | None,
    released: dict[str, Any],
    mother: Mother,
    *,
    limits: Limits | None = None,
    salt: bytes = b"",
) -> Judged:
    """Grade one notebook.

    Args:
        student: what was handed in; None if nothing was.
        released: what was handed out.
        mother: what forks sandboxes.
        limits: of each sandbox.
        salt: what the hidden numbers are drawn from.
    """
    started = time.monotonic()
    untouched, _ = restored(released, released)
    steps, notes = restored(student, released) if student is not None else (untouched, [])
    if steps == untouched:
        said = "nothing was handed in that can be read" if student is None else "not answered"
        verdict = Verdict("open", "", said)
        return Judged([_mark(s.check, verdict) for s in steps if s.check], notes, [], 0.0)
    lesson = _Lesson(steps, mother, limits or Limits(), salt)
    lesson.run()
    rest = Verdict("wrong", "", "not reached: your code ended Python again and again before it")
    return Judged(
        [lesson.marks.get(s.name) or _mark(s.check, rest) for s in steps if s.check],
        list(dict.fromkeys(notes + lesson.notes)),
        lesson.holds,
        round(time.monotonic() - started, 2),
    )


class _Lesson:
    """One run of a lesson's steps, in as many sandboxes as it takes."""

    def __init__(self, steps: list[Step], mother: Mother, limits: Limits, salt: bytes):
        self._steps, self._mother, self._limits, self._salt = steps, mother, limits, salt
        self.marks: dict[str, Mark] = {}
        self.notes: list[str] = []
        self.holds: list[str] = []

    def run(self) -> None:
        """Take all steps; what ends a sandbox is left out of the next one."""
        left, shared = self._needed()
        for _ in range(1 + RESTARTS):
            with Sandbox(self._mother, self._limits) as sandbox:
                self.holds = sandbox.holds
                if not shared:
                    sandbox.forget()
                fatal = next((step for step in left if self._ends(step, sandbox)), None)
            if fatal is None:
                return
            left.remove(fatal)

    def _needed(self) -> tuple[list[Step], bool]:
        """The steps to take, and whether what the mother has run goes before them.

        A student's code is read where it would run, before any of it has.
        """
        with Sandbox(self._mother, self._limits) as sandbox:
            left, shared = sandbox.needed(*_sources(self._steps))
        steps = [
            replace(step, source=source) if step.shown else step
            for step, source in zip(self._steps, left, strict=True)
            if source or not step.shown
        ]
        return steps, shared

    def _ends(self, step: Step, sandbox: Sandbox) -> bool:
        """Take a step; whether the sandbox is no more."""
        if step.check is None:
            self._run_cell(step, sandbox)
        elif step.name not in self.marks:
            started = time.monotonic()
            verdict = _verdict(step.check, sandbox, self._salt)
            took = round(time.monotonic() - started, 2)
            self.marks[step.name] = _mark(step.check, verdict, took)
        return bool(sandbox.gone)

    def _run_cell(self, step: Step, sandbox: Sandbox) -> None:
        try:
            if raised := sandbox.run(step.source):
                self.notes.append(f"cell {step.name} raised {printable(raised[:300])}")
        except Gone as gone:
            self.notes.append(f"cell {step.name}: {gone}")


def _mark(check: Check, verdict: Verdict, seconds: float = 0.0) -> Mark:
    earned = round(check.points * verdict.share, 2)
    state, message = verdict.state, printable(verdict.message)
    return Mark(check.grade_id, check.title, check.points, earned, state, message, seconds)


def printable(text: str) -> str:
    """A student's text without what would steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _verdict(check: Check, sandbox: Sandbox, salt: bytes) -> Verdict:
    function = vars(importlib.import_module(f"saelearn.exercises.{check.module}"))[check.function]
    sandbox.start_check()
    try:
        values = [sandbox.value(source) for source in _asked(check)]
    except Gone:
        return Verdict("wrong", check.title, sandbox.gone)
    except Exception as error:
        where = getattr(error, "where", "")
        message = f"{type(error).__name__}: {error} (at: {where})"
        return Verdict("open", check.title, f"not there: {message}")
    if check.prediction:
        return _noted(check, function, *values)
    verdict = _run(function, values, sandbox)
    if not verdict.passed:
        return verdict
    return _confirmed(function, values, sandbox, salt, verdict)


def _asked(check: Check) -> tuple[str, ...]:
    """The arguments of a check that decide about it: of a prediction the first, the guess."""
    return check.arguments[:1] if check.prediction else check.arguments


def _noted(check: Check, function: Callable, guess: Any) -> Verdict:
    """A guess that can be read counts; the truth, which takes a lesson long, is not asked for."""
    if guess is ... or guess is None:
        return Verdict("open", check.title, "no guess was written down")
    verdict = function(guess, *[math.inf] * (len(check.arguments) - 1))
    return replace(verdict, message="your guess was noted") if verdict.passed else verdict


def _run(function: Callable, values: list[Any], sandbox: Sandbox) -> Verdict:
    """A check's verdict, or why there is none."""
    with _within(10 * sandbox.limits.check):
        verdict = told(function.title, "", lambda: function.__wrapped__(*values), tuple(values))
    if sandbox.gone:
        return Verdict("wrong", function.title, sandbox.gone)
    return verdict


def _confirmed(
    function: Callable, values: list[Any], sandbox: Sandbox, salt: bytes, verdict: Verdict
) -> Verdict:
    again = verdict
    for draw in range(DRAWS):
        sandbox.start_check()
        with drawn_anew(hashlib.sha256(salt + bytes([draw])).digest()):
            again = _run(function, values, sandbox)
        if again.passed or sandbox.gone:
            break
    if again.passed:
        return verdict
    reason = f" ({again.message})" if again.message else ""
    return replace(again, message=sandbox.gone or BY_HEART + reason)


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Bound the check's own work as well: an answer may be too large for it."""

    def ring(*_: object) -> None:
        raise TimeoutError("the check did not come to an end with what your code returned")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def drawn_anew(salt: bytes) -> Iterator[None]:
    """Within the block every seed means other numbers, the same ones for the same salt."""
    generator, manual_seed = torch.Generator, torch.manual_seed

    def other(seed: int) -> int:
        digest = hashlib.blake2b(str(seed).encode(), key=salt[:64], digest_size=7)
        return int.from_bytes(digest.digest(), "big")

    class Salted(generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(other(seed))

    torch.Generator, torch.manual_seed = Salted, lambda seed: manual_seed(other(seed))
    try:
        yield
    finally:
        torch.Generator, torch.manual_seed = generator, manual_seed


def _sources(steps: list[Step]) -> tuple[list[str], list[bool]]:
    """What each step reads or runs, and whether it is a student's or a check's."""
    asked = ["\n".join(_asked(s.check)) if s.check else s.source for s in steps]
    return asked, [not step.shown for step in steps]


def common(complete: dict[str, Any], released: dict[str, Any]) -> list[str]:
    """What of a lesson may be run once for a whole class: its answers do not decide it.

    Args:
        complete: the lesson as the package has it.
        released: what was handed out.

    Returns:
        statements; none if something else was handed out than this lesson.
    """
    if (
        of_lesson(complete, released["metadata"]["saelearn"]["lesson"])["cells"]
        != released["cells"]
    ):
        return []
    steps, _ = restored(solved(complete, released), released)
    return split(*_sources(steps))[1]


def imported(released: dict[str, Any]) -> set[str]:
    """The modules that a lesson imports at the start of its lines, for a mother to know."""
    found = {f"saelearn.exercises.{checks_of(released)[0]}"}
    if any("train_toy" in text(cell) for cell in released["cells"]):
        found.add("saelearn.toy.toy_loops")  # each child would compile it anew: it cannot keep it
    for cell in released["cells"]:
        if cell["cell_type"] != "code" or is_check(cell):
            continue
        for line in text(cell).splitlines():
            words = line.split()
            if len(words) > 1 and words[0] in ("import", "from"):
                found.add(words[1].rstrip(","))
                if words[0] == "from":
                    found |= {f"{words[1]}.{name.strip(', ()')}" for name in words[3:]}
    return {name for name in found if name.replace(".", "").replace("_", "").isalnum()}
