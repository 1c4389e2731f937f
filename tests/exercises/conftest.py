"""Gives the tests of every_lesson.py the cases of the module that they stand in."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("every_lesson")

import every_lesson  # noqa: E402


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not hasattr(metafunc.module, "RIGHT"):
        return
    for name, cases in every_lesson.cases_of(metafunc.module).items():
        if name in metafunc.fixturenames:
            checks = [case[0] if isinstance(case, tuple) else case for case in cases]
            metafunc.parametrize(name, cases, ids=[check.__name__ for check in checks])
