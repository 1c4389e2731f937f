"""The course where little is allowed: the network cut, another user without a home, umask 077,
LC_ALL=C, a clone that cannot be written, a path with spaces and accents."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from private import private_environment

ROOT = Path(__file__).resolve().parents[1]
USER = "65534"  # nobody
CUT_OFF = 'ip link set lo up && umask 077 && exec "$@"'
# what is read may lie where only its owner may look, as an interpreter in somebody's home
AS_USER = ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups",
           "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A clone that cannot be written, and a folder beside it that the user can."""

    clone: Path
    work: Path

    def command(self, *arguments: str, **environment: str) -> dict:
        """What subprocess takes to run Python there."""
        few = {"PATH": os.defpath, "HOME": "/nonexistent", "LC_ALL": "C", "OMP_NUM_THREADS": "1",
               "PYTHONPATH": f"{self.clone}:{self.clone / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1",
               "TMPDIR": str(self.work)}  # fmt: skip
        python = [sys.executable, *arguments]
        args = ["unshare", "--net", "sh", "-c", CUT_OFF, "sh", *AS_USER, *python]
        return {"args": args, "cwd": self.work, "env": few | environment}


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    if not all(map(shutil.which, ("unshare", "setpriv", "ip"))) or os.geteuid() != 0:
        pytest.skip("needs Linux, and root to become another user and to cut the network")
    top = Path(tempfile.mkdtemp(prefix="saelearn leçons à part "))
    there = Place(top / "le clone ü", top / "mes copies é")
    try:
        top.chmod(0o755)
        files = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True
        ).stdout
        for name in filter(None, files.split("\0")):
            (there.clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, there.clone / name)
        there.work.mkdir()
        os.chown(there.work, int(USER), int(USER))
        yield there
    finally:
        shutil.rmtree(top, ignore_errors=True)


WORLD = """
import locale, os, pathlib, socket
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    print(error.strerror)
for path in (pathlib.Path.home(), pathlib.Path({clone!r})):
    try:
        (path / "x").write_text("")
    except OSError as error:
        print(type(error).__name__)
print(os.geteuid(), oct(os.umask(0)), os.environ["LC_ALL"])
"""


@pytest.mark.slow
def test_little_is_allowed_there(place):
    """Or what follows would show nothing."""
    run = place.command("-c", WORLD.format(clone=str(place.clone)))
    said = subprocess.run(**run, capture_output=True, text=True, check=True).stdout.split("\n")
    assert said[:4] == ["Network is unreachable", "FileNotFoundError", "PermissionError",
                        f"{USER} 0o77 C"]  # fmt: skip


VISIT = """
import os, subprocess, sys
from pathlib import Path
from servers import printed_address, start_kernel, stop, wait_for

log = Path("lab.log")
with log.open("w") as out:
    lab = [sys.executable, "-m", "saelearn.cli", "lab", "--no-browser", "--folder", sys.argv[1]]
    process = subprocess.Popen(lab, stdout=out, stderr=out, start_new_session=True)
try:
    address = printed_address(process, log, 120)
    page = wait_for(address, process, log).decode()
    server, token = address.partition("/lab")[0], address.partition("token=")[2]
    (runtime,) = Path(os.environ["TMPDIR"]).glob("saelearn-*/jupyter_runtime_dir")
    kernel = start_kernel(server, token, runtime, "from saelearn import tiny; lm = tiny.load_lm()")
    print("JupyterLab" in page, kernel["reply"])
finally:
    stop(process)
"""


@pytest.mark.slow
def test_the_lab_serves_and_computes(place):
    """`saelearn lab`: copies for the learner alone, a server, a kernel that finds the model."""
    run, log = place.command("-c", VISIT, "Übung 1"), place.work / "lab.log"
    done = subprocess.run(**run, capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == ["True", "ok"], done.stderr + log.read_text("utf-8")
    assert "home folder cannot be written" in log.read_text("utf-8")
    folder = place.work / "Übung 1"
    names = {path.name for path in (place.clone / "notebooks").glob("[0-9]*.ipynb")}
    assert {path.name for path in folder.glob("*.ipynb")} == names
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0 and path.stat().st_uid == int(USER), path


@pytest.mark.slow
def test_every_lesson_gives_what_is_stored(place):
    """The solved lessons, from a folder of the user's; outputs are compared as `make test` does."""
    lessons = place.work / "leçons"
    shutil.copytree(place.clone / "notebooks", lessons)
    for path in (lessons, *lessons.rglob("*")):
        os.chown(path, int(USER), int(USER))
    how = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--durations=0", "--nbval",
           "--nbval-current-env", "--nbval-cell-timeout=600",
           f"--nbval-sanitize-with={place.clone / 'tests' / 'nbval_sanitize.cfg'}",
           "-c", str(place.clone / "pyproject.toml")]  # fmt: skip
    here = private_environment(place.work / "jupyter") | {"SAELEARN_REAL_MODEL": "none"}
    run = place.command("-m", "pytest", *how, str(lessons), **here)
    done = subprocess.run(**run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout)
    assert done.returncode == 0
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 300
