"""The lessons and who works on them: a learner's own copies; a class that hands in and is graded.

For a learner: `versions`. For an author: `execute`. For a class, in the order of use: `points` and
`handout` (what students get), `collect` and `restore` (what came back), `wire`, `confine`,
`sandbox` and `answers` (a student's code in a process of its own), `needed`, `judge`, `grade`,
`written`, `copies` and `reports` (points, gradebook, pages).
"""

from saelearn.course.versions import (
    BEGIN,
    END,
    MEMORY,
    STUB,
    learners_dir,
    lessons,
    notebooks_dir,
    pages,
    prepare,
    student_bytes,
    student_version,
    write_student,
)

__all__ = [
    "BEGIN",
    "END",
    "MEMORY",
    "STUB",
    "learners_dir",
    "lessons",
    "notebooks_dir",
    "pages",
    "prepare",
    "student_bytes",
    "student_version",
    "write_student",
]
