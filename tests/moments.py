"""For tests: at a chosen moment of what a program does to files it is killed, or the disk is full.

Moments are counted by Python's audit events, which come before what they announce. An audit hook
stays as long as its process lives, and so does a disk of one's own: both are for forks.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.chmod", "os.truncate"}
NEW_MOUNTS, NEW_USER, PRIVATE = 0x00020000, 0x10000000, (1 << 18) | 16384


class Count:
    """How many moments were seen of what is done to files under a folder; acts at one of them."""

    def __init__(self, folder: Path, number: int = 0, act: Callable[[], object] = print):
        self.seen, self.folder, self.number, self.act = 0, os.path.realpath(folder), number, act
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            writes = event in CHANGES
        if writes and str(arguments[0]).startswith(self.folder):
            self.seen += 1
            if self.seen == self.number:
                self.act()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_fork(function: Callable[[], Any]) -> Any:
    """What a function returns, as JSON can hold it; None if it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                said = {"value": function()}
            except BaseException:
                said = {"error": traceback.format_exc()}
            with os.fdopen(writing, "w") as file:
                json.dump(said, file)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    if (code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) == -signal.SIGKILL:
        return None
    said = json.loads(said) if said else {"error": f"ended with {code}"}
    assert "error" not in said, said["error"]
    return said["value"]


def own_disk(folder: Path, size: int) -> bool:
    """Put an empty disk of so many bytes at a folder, for this process; False if that is denied."""
    libc, root = ctypes.CDLL(None, use_errno=True), os.geteuid() == 0
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_MOUNTS | (0 if root else NEW_USER)):
        return False
    if not root:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    if libc.mount(None, b"/", None, PRIVATE, None):
        return False
    options = f"size={size}".encode()
    return libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options) == 0


def fill(ballast: Path) -> None:
    """Write a file until its disk has no room for one more byte."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
