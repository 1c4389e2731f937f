"""A class on JupyterHub, as hub/README.md sets it up: three students and a teacher in Chromium.

Users of the system are made for it and removed afterwards, so it runs as root on Linux, in an
environment that all users may read:

    python3 -m venv /opt/saelearn
    /opt/saelearn/bin/pip install -c constraints.txt WHEEL[lab,hub,test,browser]
    npm install -g configurable-http-proxy
    /opt/saelearn/bin/python -m pytest -m slow tests/test_hub_class.py
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from servers import stop, wait_for
from test_browser import PATIENCE, browser_page, eventually, ready

from saelearn import artifacts, course
from saelearn.course import handout, points, restore

ROOT = Path(__file__).resolve().parents[1]
LESSON = "00_start_here"
STUDENTS = ("ann", "ben", "cleo")
WRITE = """async (answers) => {
    const app = window.jupyterapp, widget = app.shell.currentWidget;
    for (const cell of widget.content.model.cells) {
        if (cell.id in answers) cell.sharedModel.setSource(answers[cell.id]);
    }
    await app.commands.execute('docmanager:save');
}"""
RUN = """async (code) => {
    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    const future = kernel.requestExecute({code});
    let said = '';
    future.onIOPub = (message) => {
        const content = message.content;
        said += content.text || (content.evalue ? content.ename + ': ' + content.evalue : '');
    };
    await future.done;
    return said;
}"""
ASK = """async (path) => {
    const answer = await fetch(path, {credentials: 'same-origin'});
    return [answer.status, await answer.text()];
}"""
LISTEN = """
import time, zmq
context, heard = zmq.Context(), []
for port in {ports}:
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(f"tcp://127.0.0.1:{{port}}")
    heard.append(socket)
deadline = time.monotonic() + {seconds}
while time.monotonic() < deadline:
    for socket in heard:
        try:
            print(socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            pass
    time.sleep(0.05)
print("listened")
"""


def missing() -> str:
    """What this test lacks here, in words."""
    if sys.platform != "linux" or os.geteuid():
        return "root on Linux: it makes users"
    for package in ("jupyterhub", "nbgrader", "playwright"):
        if importlib.util.find_spec(package) is None:
            return f"{package}: pip install '.[lab,hub,test,browser]'"
    if not proxy():
        return "configurable-http-proxy: npm install -g configurable-http-proxy"
    where = Path(sys.executable).resolve()
    if any(not folder.stat().st_mode & 1 for folder in [where, *where.parents]):
        return f"a Python that all users may run, not {where}"
    return ""


def proxy() -> str | None:
    return os.environ.get("SAELEARN_PROXY") or shutil.which("configurable-http-proxy")


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=f"needs {missing()}")]


@dataclass
class Class:
    """A hub and its users; `name` of a role is the system's name, `home` its folder."""

    url: str
    place: Path
    mark: str
    log: Path
    passwords: dict[str, str] = field(default_factory=dict)

    def name(self, role: str) -> str:
        return f"{role}-{self.mark}"

    def home(self, role: str) -> Path:
        return self.place / "home" / self.name(role)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def system(*command: str, given: str = "") -> None:
    done = subprocess.run(command, input=given, text=True, capture_output=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.fixture(scope="module")
def hub() -> Iterator[Class]:
    with started() as here:
        yield here


@contextlib.contextmanager
def started() -> Iterator[Class]:
    """JupyterHub with the configuration of hub/, on other ports and another exchange."""
    with contextlib.ExitStack() as after:
        place = Path(after.enter_context(tempfile.TemporaryDirectory(prefix="saelearn-hub-")))
        place.chmod(0o755)
        mark = secrets.token_hex(3)
        here = Class(f"http://127.0.0.1:{free_port()}", place, mark, place / "hub.log")
        (place / "home").mkdir()
        system("groupadd", group := here.name("class"))
        after.callback(subprocess.run, ["groupdel", group])
        for role in (*STUDENTS, "teacher"):
            name, here.passwords[role] = here.name(role), secrets.token_hex(8)
            more = ["--groups", group] if role in STUDENTS else []
            system("useradd", "--create-home", "--home-dir", str(here.home(role)), *more, name)
            after.callback(subprocess.run, ["userdel", name], capture_output=True)
            after.callback(subprocess.run, ["pkill", "-KILL", "-u", name])
            here.home(role).chmod(0o700)
            system("chpasswd", given=f"{name}:{here.passwords[role]}\n")
        (place / "exchange").mkdir()
        (place / "exchange").chmod(0o777)
        settings = (ROOT / "hub" / "nbgrader_config.py").read_text()
        assert "/srv/nbgrader/exchange" in settings
        (place / "jupyter").mkdir()
        (place / "jupyter" / "nbgrader_config.py").write_text(
            settings.replace("/srv/nbgrader/exchange", str(place / "exchange"))
        )
        news = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}
        (place / "jupyter" / "labconfig").mkdir()
        overrides = place / "jupyter" / "labconfig" / "default_setting_overrides.json"
        overrides.write_text(json.dumps(news))
        (place / "config.py").write_text(
            f"load_subconfig({str(ROOT / 'hub' / 'jupyterhub_config.py')!r})\n"
            f"c.JupyterHub.bind_url = {here.url!r}\n"
            f"c.JupyterHub.hub_bind_url = 'http://127.0.0.1:{free_port()}'\n"
            f"c.ConfigurableHTTPProxy.api_url = 'http://127.0.0.1:{free_port()}'\n"
            f"c.ConfigurableHTTPProxy.command = [{proxy()!r}]\n"
            f"c.Spawner.environment['JUPYTER_CONFIG_PATH'] = {str(place / 'jupyter')!r}\n"
            "c.Spawner.args += ['--LabApp.expose_app_in_browser=True']\n"
            "c.Spawner.start_timeout = c.Spawner.http_timeout = 300\n"
        )
        kept = {k: os.environ[k] for k in ("PATH", "LANG") if k in os.environ}
        who = {"SAELEARN_CLASS": group, "SAELEARN_TEACHER": here.name("teacher")}
        (place / "run").mkdir(mode=0o700)
        with here.log.open("w") as log:
            command = [sys.executable, "-m", "jupyterhub", "-f", str(place / "config.py")]
            process = subprocess.Popen(
                command, cwd=place / "run", env=kept | who | {"HOME": str(place / "run")},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        after.callback(stop, process)
        wait_for(f"{here.url}/hub/health", process, here.log, seconds=180)
        yield here


@contextlib.contextmanager
def logged_in(hub: Class, role: str, chromium: Any) -> Iterator[Any]:
    """A page in JupyterLab, of a browser of their own; or, given one that runs, of a session."""
    with contextlib.ExitStack() as stack:
        if isinstance(chromium, str):
            page = stack.enter_context(browser_page(chromium))
        else:
            page = stack.enter_context(chromium.new_context()).new_page()
            page.set_default_timeout(PATIENCE)
        page.goto(f"{hub.url}/hub/login")
        page.fill("#username_input", hub.name(role))
        page.fill("#password_input", hub.passwords[role])
        page.click("#login_submit")
        try:
            page.wait_for_url(re.compile(r"/user/[^/]+/lab"), timeout=300_000)
        except Exception as error:
            raise AssertionError(hub.log.read_text()[-3000:]) from error
        page.wait_for_function("window.jupyterapp")
        page.evaluate("async () => { await window.jupyterapp.restored; }")
        yield page


def in_terminal(hub: Class, role: str, page: Any, script: str, meanwhile: Any = None) -> str:
    """Type into a terminal of JupyterLab what runs a script in the user's home: what it printed."""
    name = f"script-{secrets.token_hex(3)}"
    (hub.home(role) / f"{name}.sh").write_text(script)
    page.evaluate(
        "async () => { await window.jupyterapp.commands.execute('terminal:create-new'); }"
    )
    page.wait_for_function(
        "window.jupyterapp.shell.currentWidget.content?.session?.connectionStatus === 'connected'"
    )
    page.locator(".jp-Terminal .xterm-screen:visible").last.click()
    page.keyboard.type(f"cd ~; bash {name}.sh > {name}.part 2>&1; mv {name}.part {name}.said\n")
    said = hub.home(role) / f"{name}.said"

    def ended() -> bool:
        if meanwhile is not None:
            meanwhile()
        return said.exists()

    eventually(ended, bool, seconds=600)
    return said.read_text()


def press(page: Any, button: str) -> None:
    """Press a button in the list of assignments, which the menu opens."""
    page.locator(".lm-MenuBar-item", has_text="Nbgrader").click()
    page.locator(".lm-Menu-item", has_text="Assignment List").click()
    page.locator(".lm-DockPanel-widget:visible").get_by_text(button, exact=True).first.click()


def open_lesson(hub: Class, role: str, page: Any) -> None:
    page.goto(f"{hub.url}/user/{hub.name(role)}/lab/tree/saelearn/autumn/{LESSON}.ipynb")
    page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.sessionContext")
    ready(page)


def answers_of(share: str) -> dict[str, str]:
    """What a student writes: the answer cells' ids and sources."""
    (path,) = handout.find(["00"], ROOT / "notebooks")
    complete = artifacts.read_json(path)
    released = points.released(complete, path.stem)
    solved = restore.solved(complete, released)
    found = {c["id"]: points.text(c) for c in solved["cells"] if points.is_answer(c)}
    keep = {"all": len(found), "half": len(found) // 2, "none": 0}[share]
    return dict(list(found.items())[:keep])


SHARES = {"ann": "all", "ben": "half", "cleo": "none"}
HAND_OUT = """
saelearn release 00 --out autumn --due Friday --hand-in 'Nbgrader > Assignment List'
mkdir -p release && cp -r autumn release/autumn
nbgrader release_assignment autumn
"""
COLLECT = """
nbgrader collect autumn --update
saelearn grade submitted --release autumn.zip --out grades
"""


def works(hub: Class, role: str, chromium: str) -> None:
    """Log in, fetch by the menu, write and run answers, submit by the menu."""
    with logged_in(hub, role, chromium) as page:
        press(page, "Fetch")
        mine = hub.home(role) / "saelearn" / "autumn" / f"{LESSON}.ipynb"
        eventually(mine.exists, bool)
        open_lesson(hub, role, page)
        answers = answers_of(SHARES[role])
        page.evaluate(WRITE, answers)
        said = page.evaluate(RUN, f"secret_of_{role} = 1; print('{secret(hub, role)}')")
        assert secret(hub, role) in said
        kept = lambda: {c["id"]: points.text(c) for c in artifacts.read_json(mine)["cells"]}  # noqa: E731
        eventually(kept, lambda cells: answers.items() <= cells.items())
        press(page, "Submit")
        inbound = hub.place / "exchange" / "saelearn" / "inbound"
        eventually(lambda: list(inbound.glob(f"{hub.name(role)}+*")), bool)


def secret(hub: Class, role: str) -> str:
    return f"known-to-{role}-alone-{hub.passwords[role]}"


@pytest.fixture(scope="module")
def handed_in(hub, chromium_path) -> Class:
    """The teacher has handed out; three students came at once, worked and handed in."""
    with logged_in(hub, "teacher", chromium_path) as page:
        said = in_terminal(hub, "teacher", page, HAND_OUT)
        outbound = hub.place / "exchange" / "saelearn" / "outbound" / "autumn"
        assert (outbound / f"{LESSON}.ipynb").exists(), said
    with ThreadPoolExecutor(len(STUDENTS)) as at_once:
        for done in [at_once.submit(works, hub, role, chromium_path) for role in STUDENTS]:
            done.result()
    return hub


def test_the_teacher_collects_and_grades(handed_in, chromium_path):
    hub = handed_in
    with logged_in(hub, "teacher", chromium_path) as page:
        said = in_terminal(hub, "teacher", page, COLLECT)
    book = hub.home("teacher") / "grades" / "gradebook.csv"
    assert book.exists(), said
    checked = [row for row in csv.DictReader(book.open()) if "Question" not in row["exercise"]]
    assert {row["student"] for row in checked} == {hub.name(role) for role in STUDENTS}
    share = {
        role: [float(r["earned"]) / float(r["points"]) for r in checked if r["student"] == name]
        for role, name in ((role, hub.name(role)) for role in STUDENTS)
    }
    assert set(share["ann"]) == {1.0} and set(share["cleo"]) == {0.0}
    assert set(share["ben"]) == {0.0, 1.0}


def test_no_student_reads_what_is_not_theirs(handed_in, chromium_path):
    """By the contents API and the hub's own, by a kernel, by a terminal, by others' kernels."""
    hub = handed_in
    ann, ben, solution = hub.name("ann"), hub.name("ben"), "a line of the teacher's alone"
    (hub.home("teacher") / "solutions.txt").write_text(solution)
    private = [
        hub.home("ben"), hub.home("ben") / "saelearn" / "autumn" / f"{LESSON}.ipynb",
        hub.home("teacher"), hub.home("teacher") / "solutions.txt",
        hub.place / "exchange" / "saelearn" / "inbound", hub.place / "run",
    ]  # fmt: skip
    with (
        logged_in(hub, "ann", chromium_path) as page,
        logged_in(hub, "ben", page.context.browser) as theirs,
    ):
        open_lesson(hub, "ben", theirs)
        open_lesson(hub, "ann", page)
        for path in (
            f"/user/{ben}/api/contents", f"/user/{ben}/lab", f"/user/{ben}/api/kernels",
            f"/hub/api/users/{ben}", "/hub/api/users", "/hub/admin",
        ):  # fmt: skip
            status, text = page.evaluate(ASK, path)
            assert status in (403, 404), (path, status, text[:300])
        up = "/".join([".."] * 9)
        for path in private:
            address = f"/user/{ann}/api/contents/{up}{path}"
            for way in (address, address.replace("..", "%2e%2e"), address.replace("../", "..%2f")):
                status, text = page.evaluate(ASK, way)
                assert status >= 400 and solution not in text, (way, status, text[:300])
        reads = (
            f"for path in {[str(p) for p in private]}:\n"
            "    try:\n"
            "        print('READ', open(path).read())\n"
            "    except OSError as error:\n"
            "        print(type(error).__name__)\n"
        )
        assert page.evaluate(RUN, reads).split() == ["PermissionError"] * len(private)
        ports = kernel_ports(hub, "ben")
        assert len(ports) >= 4
        (hub.home("ann") / "listen.py").write_text(LISTEN.format(ports=ports, seconds=15))
        script = "python listen.py\n" + "".join(f"cat {p}; ls {p}\n" for p in private)
        script += "cat /proc/[0-9]*/environ | tr '\\0' '\\n'; ps -ef\n"
        speaks = f"print({secret(hub, 'ben')!r})"
        heard = in_terminal(hub, "ann", page, script, lambda: theirs.evaluate(RUN, speaks))
    assert "listened" in heard
    for word in (secret(hub, "ben"), solution, course.BEGIN):
        assert word not in heard
    assert f"USER={ann}" in heard and f"USER={ben}" not in heard
    assert heard.count("Permission denied") >= len(private)


def kernel_ports(hub: Class, role: str) -> list[int]:
    """The loopback ports of a user's kernels, which anybody on the machine can find by trying."""
    runtime = hub.home(role) / ".local" / "share" / "jupyter" / "runtime"
    found = [json.loads(path.read_text()) for path in runtime.glob("kernel-*.json")]
    return [each[key] for each in found for key in each if key.endswith("_port")]


def test_what_is_installed_holds_no_solution():
    """Students may read the whole package: none of the lessons' own lines of solutions is there."""
    shipped = Path(sysconfig.get_paths()["purelib"]) / "saelearn" / "notebooks"
    if not shipped.exists():
        pytest.skip("the package is not installed from a wheel")
    for path in course.lessons(ROOT / "notebooks"):
        for cell in artifacts.read_json(shipped / path.name)["cells"]:
            source = points.text(cell)
            inside = re.findall(rf"(?s){course.BEGIN}\n(.*?)[ \t]*{course.END}", source)
            assert not any(inside), path.name
