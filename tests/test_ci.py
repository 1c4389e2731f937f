"""`.ci/run`, with a make that only says what it was asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parent.parent / ".ci" / "run"
MAKE = """#!/bin/sh
echo "make $1"
if [ "$1" = "$FAILS" ]; then echo "no $1 today" >&2; exit 2; fi
"""


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
@pytest.mark.parametrize(
    ("fails", "code", "said", "not_said"),
    [
        ("", 0, "make live", "Skipped"),
        ("model", 0, "no model today", "make live"),  # no network
        ("live", 2, "make live", "Skipped"),
        ("test", 2, "make test", "make live"),
    ],
)
def test_a_model_that_cannot_be_had_is_said_and_no_failure(
    fails: str, code: int, said: str, not_said: str, tmp_path: Path
) -> None:
    for name, text in (("make", MAKE), ("chromium", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text, "utf-8")
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".ci").mkdir()
    shutil.copy(RUN, tmp_path / ".ci" / "run")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "FAILS": fails}
    done = subprocess.run(
        [tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout and not_said not in done.stdout
