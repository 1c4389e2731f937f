"""What all tests share: an environment of their own, JupyterLab on loopback, a browser."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings
from private import private_environment
from servers import stop, wait_for

# The same draws each time: what passed must pass again. HYPOTHESIS_PROFILE=default looks further.
settings.register_profile("steady", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

ROOT = Path(__file__).resolve().parent.parent
if find_spec("nbclient") is None:  # a checkout on a GPU's machine: `pytest -m gpu tests`
    collect_ignore = [
        str(path)
        for path in Path(__file__).parent.rglob("test_*.py")
        if "mark.gpu" not in path.read_text("utf-8")
    ]
SCRATCH = "SAELEARN_TEST_SCRATCH"


def pytest_configure() -> None:
    """Cut the tests and the kernels they start off from the user's settings and from the network.

    Set in pytest's main process, before it starts workers, so that all of them inherit it.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker one thread: they share the cores
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    os.environ["SAELEARN_REAL_MODEL"] = "none"  # lessons are compared with what is stored
    if SCRATCH not in os.environ:
        os.environ[SCRATCH] = tempfile.mkdtemp(prefix="saelearn-test-")
    os.environ.update(private_environment(Path(os.environ[SCRATCH])))


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ and SCRATCH in os.environ:
        shutil.rmtree(os.environ.pop(SCRATCH), ignore_errors=True)


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab."""

    url: str  # http://127.0.0.1:PORT
    token: str
    folder: Path
    log: Path

    def address(self, notebook: str) -> str:
        """Where a browser finds a notebook, the token included."""
        return f"{self.url}/lab/tree/{notebook}?token={self.token}"


@pytest.fixture
def jupyterlab(tmp_path: Path) -> Iterator[Callable[[Path], Lab]]:
    """A function that starts JupyterLab on a folder; all of them stop after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda folder: stack.enter_context(serve(folder, tmp_path / "jupyter"))


@contextlib.contextmanager
def serve(folder: Path, scratch: Path) -> Iterator[Lab]:
    """JupyterLab on a free loopback port, with a token and with settings of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    defaults = scratch / "jupyter_config_dir" / "labconfig" / "default_setting_overrides.json"
    defaults.parent.mkdir(parents=True, exist_ok=True)
    news = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}
    defaults.write_text(json.dumps(news))
    lab = Lab(f"http://127.0.0.1:{port}", secrets.token_hex(16), folder, scratch / "lab.log")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.root_dir={folder}", "--ServerApp.ip=127.0.0.1"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={lab.token}", "--LabApp.expose_app_in_browser=True"]
    environment = {**os.environ, **private_environment(scratch)}
    with lab.log.open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(f"{lab.url}/api/status?token={lab.token}", process, lab.log)
        yield lab
    finally:
        stop(process)


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Chromium's path; without it (or playwright) the test is skipped, or fails where it must run.

    Continuous integration sets SAELEARN_REQUIRE_BROWSER=1.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    missing = "" if path else "Chromium (Debian: apt install chromium)"
    try:
        import playwright  # noqa: F401
    except ImportError:
        missing = "playwright (pip install -e '.[browser]')"
    if missing and os.environ.get("SAELEARN_REQUIRE_BROWSER") == "1":
        pytest.fail(f"this test needs {missing}")
    if missing:
        pytest.skip(f"needs {missing}")
    return str(path)
