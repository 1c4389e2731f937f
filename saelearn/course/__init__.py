"""The lessons: student versions, and the learner's own copies."""

from saelearn.course.versions import (
    BEGIN,
    END,
    MEMORY,
    STUB,
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
    "lessons",
    "notebooks_dir",
    "pages",
    "prepare",
    "student_bytes",
    "student_version",
    "write_student",
]
