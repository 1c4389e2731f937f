"""A server that a test started: wait for it, end it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path


def wait_for(address: str, process: subprocess.Popen, log: Path, seconds: float = 60) -> bytes:
    """Ask for an address until it answers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return answer.read()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise AssertionError(f"no answer from {address.split('?')[0]}:\n{log.read_text()[-3000:]}")


def printed_address(process: subprocess.Popen, log: Path, seconds: float = 30) -> str:
    """Where `saelearn lab` says that it is, with its token."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"http://\S+token=\w{32,}", log.read_text()):
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"no address was printed:\n{log.read_text()}")


def start_kernel(server: str, token: str, runtime: Path, code: str = "") -> dict:
    """Start a kernel and wait until it answers: it has then said all that it says at first.

    Returns how one connects to it, and how it replied to `code`.
    """
    from jupyter_client import BlockingKernelClient  # tests of the GPU's engine run without it

    headers = {"Authorization": f"token {token}"}
    request = urllib.request.Request(f"{server}/api/kernels", data=b"{}", headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        file = runtime / f"kernel-{json.loads(answer.read())['id']}.json"
    client = BlockingKernelClient(connection_file=str(file))
    client.load_connection_file()
    client.start_channels()
    deadline = time.monotonic() + 120
    while True:
        try:
            client.wait_for_ready(timeout=120)
            break
        except RuntimeError:  # "died": on a busy machine one that is still starting looks so
            if time.monotonic() > deadline:
                raise
    reply = client.execute_interactive(code, timeout=120)["content"]["status"]
    client.stop_channels()
    return json.loads(file.read_text("utf-8")) | {"reply": reply}


def stop(process: subprocess.Popen) -> None:
    """End a server that was started in a session of its own, and the kernels it started."""
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
