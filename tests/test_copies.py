"""Answers that are alike are listed; what two people write of themselves is not."""

from __future__ import annotations

import random

import pytest
import small_class
from small_class import NAME, answered

from saelearn.course import copies, reports
from saelearn.course.marks import Graded

OWN = """\
def train_step(M_FD, b_F, optimizer, x_BD, alpha):
    # first the code
    code, back = tied(x_BD, M_FD, b_F)
    miss = ((x_BD - back) ** 2).sum(1).mean()
    price = alpha * code.sum(1).mean()
    optimizer.zero_grad()
    (miss + price).backward()
    optimizer.step()
    return (miss + price).detach()
"""
RENAMED = OWN.replace("code", "c").replace("back,", "xh,").replace("- back", "- xh")
RENAMED = RENAMED.replace("c, back", "c, xh").replace("miss", "error").replace("price", "cost")
RENAMED = RENAMED.replace("    # first the c\n", '    """Mine alone."""\n\n').replace(" + ", "+")
OTHER = OWN.replace(".mean()", ".sum() / len(x_BD)")


def graded(**students: str) -> list[Graded]:
    """Students by name, each with this answer to one exercise."""
    released = small_class.released()
    return [
        Graded(name, NAME, "", [], [], [], 0.0,
               copies.answers_of(answered(train_step=source), released))
        for name, source in students.items()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("second", "letters"),
    [(OWN, True), (RENAMED, False), (OTHER, None), (OWN + "x = 1", None), ("...", None)],
)
def test_two_answers(second, letters):
    found = copies.alike(graded(ann=OWN, ben=second, cleo=OTHER + "\nlast = 3"))
    said = [(g.students, g.to_the_letter, g.exercise.split(":")[0]) for g in found]
    assert said == ([(("ann", "ben"), letters, "Exercise 4.3")] if letters is not None else [])


def test_what_was_handed_out_and_what_is_short_is_no_copy():
    stub = graded(ann="", ben="")
    assert stub[0].answers and not copies.alike(stub)
    assert copies.answers_of(answered(), small_class.released()) == []
    assert copies.answers_of(None, small_class.released()) == []
    short = "train_step = lambda M, b, o, x, a: None"
    assert not copies.alike(graded(ann=short, ben=short))


def test_what_half_of_a_class_writes_is_the_natural_way_unless_to_the_letter():
    names = [f"s{i}" for i in range(8)]
    each = {name: OWN.replace("price", f"price_{name}") for name in names}
    assert not copies.alike(graded(**each))
    (same,) = copies.alike(graded(**dict.fromkeys(names, OWN)))
    assert same.to_the_letter and len(same.students) == 8
    (three,) = copies.alike(graded(**dict(list(each.items())[:3])))
    assert not three.to_the_letter


def test_damaged_sources_are_read_too():
    draw = random.Random(0)
    for _ in range(200):
        signs = "".join(draw.choice("\"'#\\\n x=.0é\0") for _ in range(60))
        assert len(graded(ann=signs)[0].answers) == 1


def test_the_teacher_sees_it_and_the_student_does_not():
    both = graded(ann=OWN, ben=RENAMED)
    for text in (reports.in_words([], both), reports.report([], both)):
        assert "ann, ben: Exercise 4.3" in text and "no verdict" in text
        assert "but for names" in text
    assert "ben" not in reports.feedback("ann", both[:1])
    assert "alike" not in reports.in_words([], both[:1])
