"""The commands as a person types them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from conftest import stop, wait_for

import saelearn
from saelearn import build, cli, course
from saelearn.errors import Refusal


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "saelearn.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_help_names_every_command_and_is_quick():
    start = time.perf_counter()
    done = run("--help")
    assert time.perf_counter() - start < 1.0  # torch alone takes longer
    assert done.returncode == 0
    for command in ("lab", "student", "doctor", "data"):
        assert re.search(rf"(?m)^ +{command} ", done.stdout)


def test_version():
    assert run("--version").stdout.strip() == f"saelearn {saelearn.__version__}"
    assert importlib.metadata.version("saelearn") == saelearn.__version__


def test_doctor():
    done = run("doctor")
    assert done.returncode == 0, done.stdout
    assert "Against the CPU in float64" in done.stdout


def test_student(tmp_path):
    done = run("student", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == [path.name for path in course.lessons()]


def test_a_refusal_is_three_lines_and_not_a_traceback(tmp_path):
    (tmp_path / "file").touch()
    done = run("student", "--out", str(tmp_path / "file" / "out"))
    assert done.returncode == 1
    assert done.stderr.startswith("saelearn student: expected")
    assert "Traceback" not in done.stderr


def test_data_builds_what_is_named_and_refuses_what_is_unknown(monkeypatch, capsys, tmp_path):
    built = []
    steps = {name: build.Step(built.append, 0.1, f"a {name}") for name in ("toy", "model")}
    monkeypatch.setattr(build, "STEPS", steps)
    monkeypatch.setenv("SAELEARN_DATA", str(tmp_path))
    assert cli.main(["data", "--list"]) == 0
    assert "a model" in capsys.readouterr().out
    assert not built
    assert cli.main(["data", "model"]) == 0
    assert cli.main(["data"]) == 0
    assert built == [tmp_path] * 3
    assert cli.main(["data", "nonsense"]) == 1
    assert "toy, model" in capsys.readouterr().err
    assert len(built) == 3


def test_a_taken_port_is_passed_over():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.free_port(port) > port
        with pytest.raises(Refusal, match="--port"):
            cli.free_port(port, tries=1)


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_lab_serves_the_first_lesson_on_loopback_with_a_token(tmp_path):
    """The user's own settings, which would take the token away, do not matter."""
    home = tmp_path / "home"
    (home / ".jupyter").mkdir(parents=True)
    (home / ".jupyter" / "jupyter_server_config.py").write_text(
        "c.IdentityProvider.token = ''\nc.ServerApp.ip = '0.0.0.0'\n"
    )
    drop = {"DISPLAY", "WAYLAND_DISPLAY", "JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR"}
    environment = {k: v for k, v in os.environ.items() if k not in drop} | {"HOME": str(home)}
    folder, log = tmp_path / "mine", tmp_path / "log"
    command = [sys.executable, "-m", "saelearn.cli", "lab", "--folder", str(folder)]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        address = printed_address(process, log)
        assert address.startswith("http://127.0.0.1:")
        page = wait_for(address, process, log).decode()
        assert "JupyterLab" in page
        server = address.partition("/lab")[0]
        lesson = re.search(r"/lab/tree/(.*)\?", address)[1]
        assert lesson.startswith(("00_", "02_"))
        token = address.partition("token=")[2]
        api = f"{server}/api/contents/{lesson}?content=0"
        assert lesson in wait_for(f"{api}&token={token}", process, log).decode()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(api)
        api = f"{server}/lab/api/settings?token={token}"
        known = {s["id"]: s for s in json.loads(wait_for(api, process, log))["settings"]}
        news = known["@jupyterlab/apputils-extension:notification"]["schema"]["properties"]
        assert news["fetchNews"]["default"] == "false"  # no question about news
        assert not list((home / ".jupyter").glob("lab/**/*.jupyterlab-settings"))
        assert token not in processes()
    finally:
        stop(process)
    assert sorted(path.name for path in folder.glob("*.ipynb")) == [
        path.name for path in course.lessons()
    ]


def printed_address(process: subprocess.Popen, log, seconds: float = 30) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"http://\S+token=\w{32,}", log.read_text()):
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"no address was printed:\n{log.read_text()}")


def processes() -> str:
    """The command lines that any user of this machine may read."""
    return subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True).stdout
