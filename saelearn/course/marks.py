"""What grading gives: a mark for each check, and all of a student's lesson together."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mark:
    """What one check gave.

    Attributes:
        grade_id: which check.
        title: what the exercise is called.
        points: what it is worth.
        earned: what was earned of it.
        state: "passed", "noted", "wrong" or "open", as in a verdict; or "unread", of an answer in
            words that its teacher has given no points yet.
        message: what the check said.
        seconds: how long it took.
    """

    grade_id: str
    title: str
    points: float
    earned: float
    state: str
    message: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What is kept of an answer, to find others that are alike; the answer cannot be read off it.

    Attributes:
        exercise: its title.
        letters: a digest of the text.
        shape: a digest of it without comments, layout and the names that were chosen.
        length: in words and signs.
    """

    exercise: str
    letters: str
    shape: str
    length: int


@dataclass(frozen=True)
class Graded:
    """What was found out about one student's lesson; a result file holds it.

    Attributes:
        student: the name.
        lesson: such as `04_first_sae`.
        digest: of what was handed in, of the release and of this package.
        marks: one for each check.
        notes: for the teacher.
        holds: what the student's code was kept from.
        seconds: that it took; in no gradebook, since it is another each time.
        answers: those that were changed.
    """

    student: str
    lesson: str
    digest: str
    marks: list[Mark]
    notes: list[str]
    holds: list[str]
    seconds: float
    answers: list[Answer] = field(default_factory=list)

    @property
    def points(self) -> float:
        return sum(mark.points for mark in self.marks)

    @property
    def earned(self) -> float:
        return round(sum(mark.earned for mark in self.marks), 2)

    @property
    def unread(self) -> float:
        """The points of answers in words that nobody has read yet."""
        return sum(mark.points for mark in self.marks if mark.state == "unread")

    @property
    def so_far(self) -> str:
        """What was earned of what was judged, and what waits for the teacher."""
        judged = f"{self.earned:g} of {self.points - self.unread:g} points"
        return f"{judged}, {self.unread:g} more wait to be read" if self.unread else judged
