"""Pages to read: a student's feedback, and where a class is stuck. Everything in them is text.

Whatever a student's code or file name holds is escaped; the pages load nothing from anywhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from saelearn.course.copies import Alike, alike
from saelearn.course.marks import Graded
from saelearn.exercises import MARKS
from saelearn.style import as_html

ALIKE = "Answers that are alike: for you to look at, and no verdict. They may have worked together."
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;"
    "color:#222;background:#fff}table{border-collapse:collapse;width:100%}"
    "td,th{text-align:left;vertical-align:top;padding:.4em .6em;border-bottom:1px solid #ddd}"
    "td.n{text-align:right;white-space:nowrap}.bar{background:#0072B2;height:.7em}"
)


@dataclass(frozen=True)
class Row:
    """One check of one lesson, over the class.

    Attributes:
        lesson, check, title: which.
        n: how many students.
        solved: the share of them with all points, from 0 to 1.
        half: the share with some.
        tried: the share that wrote something.
        mistakes: the most frequent things that a check said, with how often.
        seconds: the median time that judging it took.
    """

    lesson: str
    check: str
    title: str
    n: int
    solved: float
    half: float
    tried: float
    mistakes: list[tuple[str, int]]
    seconds: float


def where_stuck(graded: Iterable[Graded], most: int = 3) -> list[Row]:
    """The class, check by check, in the lessons' order."""
    by_check: dict[tuple[str, str], list] = {}
    for each in graded:
        for mark in each.marks:
            by_check.setdefault((each.lesson, mark.grade_id), []).append(mark)
    rows = []
    for (lesson, check), marks in by_check.items():
        n, full = len(marks), sum(m.earned >= m.points for m in marks)
        unread = sum(m.state == "unread" for m in marks)
        some = sum(0 < m.earned < m.points for m in marks)
        tried = sum(m.state != "open" for m in marks)
        mistakes = _mistakes(m.message for m in marks if m.state == "wrong")[:most]
        mistakes += [("waits to be read: no mistake", unread)] if unread else []
        rows.append(Row(lesson, check, marks[0].title, n, full / n, some / n, tried / n, mistakes,
                        median(m.seconds for m in marks)))  # fmt: skip
    return rows


def _mistakes(messages: Iterable[str]) -> list[tuple[str, int]]:
    """Messages by how often they came; those that differ in numbers alone are one."""
    count: Counter[str] = Counter()
    example: dict[str, str] = {}
    for message in messages:
        kind = re.sub(r"\d[\d.,]*", "#", message.splitlines()[0] if message else "")
        count[kind] += 1
        example.setdefault(kind, message.splitlines()[0] if message else "")
    return [(example[kind], n) for kind, n in count.most_common()]


def in_words(rows: list[Row], graded: list[Graded]) -> str:
    """The report for a terminal."""
    lines = [f"{len({g.student for g in graded})} students"]
    lesson = ""
    for row in rows:
        if row.lesson != lesson:
            lesson = row.lesson
            lines += ["", f"{lesson}", "solved  in part  tried"]
        shares = f"{row.solved:5.0%}   {row.half:5.0%}   {row.tried:5.0%}"
        lines.append(f"{shares}   {row.title}")
        lines += [f"{'':24} {n} x {text[:150]}" for text, n in row.mistakes]
    if noted := [(g.student, g.lesson, note) for g in graded for note in g.notes]:
        lines += ["", "to look at"]
        lines += [f"  {student}, {lesson}: {note}" for student, lesson, note in noted]
    if groups := alike(graded):
        lines += ["", ALIKE]
        lines += [f"  {', '.join(g.students)}: {g.exercise}, {_how(g)}" for g in groups]
    return "\n".join(lines)


def _how(group: Alike) -> str:
    how = "to the letter" if group.to_the_letter else "but for names, comments and layout"
    return f"{how}, {group.length} words and signs"


def report(rows: list[Row], graded: list[Graded]) -> str:
    """The report as a page."""
    n = len({g.student for g in graded})
    body = [f"<h1>Where the class is stuck</h1><p>{n} students.</p>"]
    body += ["<table><tr><th>exercise<th>solved<th>in part<th>tried<th>most frequent mistakes</tr>"]
    for row in rows:
        said = "<br>".join(f"{n} × {as_html(text)}" for text, n in row.mistakes)
        bar = f'<div class="bar" style="width:{row.solved:.0%}"></div>'
        body.append(
            f"<tr><td>{as_html(row.title)}<br><small>{as_html(row.lesson)}, median "
            f'{row.seconds:.1f} s</small><td class="n">{row.solved:.0%}{bar}'
            f'<td class="n">{row.half:.0%}<td class="n">{row.tried:.0%}<td>{said}</tr>'
        )
    body.append("</table><h2>To look at</h2><ul>")
    for each in graded:
        where = f"{as_html(each.student)}, {as_html(each.lesson)}"
        body += [f"<li>{where}: {as_html(note)}" for note in each.notes]
    if groups := alike(graded):
        body.append(f"</ul><h2>Alike</h2><p>{ALIKE}</p><ul>")
        for group in groups:
            who = ", ".join(map(as_html, group.students))
            body.append(f"<li>{who}: {as_html(group.exercise)}, {_how(group)}</li>")
    held = sorted({hold for each in graded for hold in each.holds})
    body.append("</ul><h2>What students' code was kept from</h2><ul>")
    body += [f"<li>{as_html(hold)}" for hold in held] + ["</ul>"]
    return _page("Where the class is stuck", "\n".join(body))


def feedback(student: str, graded: list[Graded]) -> str:
    """A page for one student."""
    body = [f"<h1>{as_html(student)}</h1>"]
    for each in graded:
        body.append(f"<h2>{as_html(each.lesson)}: {each.so_far}</h2><table>")
        for mark in each.marks:
            unread = mark.state == "unread"
            sign, colour = MARKS["noted" if unread else mark.state]
            earned = "not read yet" if unread else f"{mark.earned:g}"
            body.append(
                f'<tr><td style="color:{colour}"><b>{sign}</b><td><b>{as_html(mark.title)}</b>'
                f'<br>{as_html(mark.message)}<td class="n">{earned} of {mark.points:g}</tr>'
            )
        body.append("</table>")
        if each.notes:
            body.append("<ul>" + "".join(f"<li>{as_html(note)}" for note in each.notes) + "</ul>")
    return _page(f"Feedback: {student}", "\n".join(body))


def _page(title: str, body: str) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{as_html(title)}</title>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{STYLE}</style>'
        f"</head><body>\n{body}\n</body></html>\n"
    )
