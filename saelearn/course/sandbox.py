"""The process in which a student's code runs. It computes what it is asked, and decides nothing.

`python -m saelearn.course.sandbox` is a mother process that imports what lessons import, knows
nothing of students, and forks a child for each submission, so that each starts at once and alone.
(She may also have run what the package's own lesson computes before any answer counts.)
A child gives up its rights (`confine`), then answers the judge's requests one by one: run a cell,
evaluate an expression, call one of the functions that came out of it.

Whatever a student's code patches, prints or sends, the worst that reaches the judge is a value.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from saelearn.compiled import MISSING
from saelearn.course import calls, confine, wire
from saelearn.course.confine import Limits
from saelearn.course.needed import split

TEXT = 2_000  # characters of an error


class Child:
    """Serves one submission over a pair of pipes; `ask` and `tell` are the judge's side of them."""

    def __init__(self, inward: int, outward: int, shell: Any):
        self._inward, self._outward, self._shell = inward, outward, shell
        self._leaves: list[Tensor] = []
        self._functions: list[Callable] = []
        self._graphs: list[tuple[Tensor, list[Tensor]]] = []
        self._number: Any = None

    def serve(self, ready: dict[str, Any]) -> None:
        self._number = "ready"
        self._send(ready)
        while True:
            header, body = wire.read_frame(self._read)
            self._number = header["number"]
            packer = wire.Packer(self._keep, self._keep_graph)
            try:
                reply = getattr(self, f"_do_{header['do']}")(header, body, packer)
            except BaseException as error:  # a student's code raised, also SystemExit
                self._send({"raised": _told(error)})
            else:
                self._send(reply, packer.body())

    # --- what can be asked

    def _do_needed(self, header: dict, body: bytes, packer: wire.Packer) -> dict[str, Any]:
        magic = self._shell.input_transformer_manager
        python = [magic.transform_cell(source) for source in header["sources"]]
        left, early = split(python, header["wanted"], header["common"])
        return {"value": left, "early": early}

    def _do_forget(self, header: dict, body: bytes, packer: wire.Packer) -> dict[str, Any]:
        """Begin with an empty notebook: what the mother has run may not be run early here."""
        self._shell.reset(new_session=False)
        return {}

    def _do_cell(self, header: dict, body: bytes, packer: wire.Packer) -> dict[str, Any]:
        """Run a cell as a notebook does; what it raises is told and nothing more."""
        self._functions, self._graphs = [], []
        result = self._shell.run_cell(header["source"], store_history=False)
        if error := result.error_before_exec or result.error_in_exec:
            raise error
        return {}

    def _do_value(self, header: dict, body: bytes, packer: wire.Packer) -> dict[str, Any]:
        self._leaves = []
        return {"value": packer.pack(eval(header["source"], self._shell.user_ns))}

    def _do_call(self, header: dict, body: bytes, packer: wire.Packer) -> dict[str, Any]:
        arguments, keywords, taken = calls.call_from_judge(body, self._load)
        self._leaves = taken.tensors
        before = calls.Before(taken)
        function = self._functions[header["function"]]
        outcome: dict[str, Any] = {}
        try:
            if header["method"]:
                function, arguments = getattr(function, header["method"]), arguments[1:]
            outcome["value"] = packer.pack(function(*arguments, **keywords))
        except BaseException as error:
            outcome["raised"] = _told(error)
        return outcome | before.changed(packer)

    def _do_attribute(self, header: dict, body: bytes, packer: wire.Packer) -> dict[str, Any]:
        self._leaves = []
        owner = self._functions[header["of"]]
        value = getattr(owner, header["name"])
        if getattr(value, "__self__", None) is owner:
            return {"method": True}
        return {"value": packer.pack(value)}

    def _do_slopes(self, header: dict, body: bytes, packer: wire.Packer) -> dict[str, Any]:
        """The gradient of a kept result with respect to the arguments of its call."""
        result, leaves = self._graphs[header["graph"]]
        learned = [leaf for leaf in leaves if leaf.requires_grad]
        slopes = torch.autograd.grad(
            result,
            learned,
            calls.from_judge(body, self._load),
            retain_graph=True,
            allow_unused=True,
        )
        return {"value": packer.pack(list(slopes))}

    # --- how

    def _keep(self, function: Callable) -> int:
        self._functions.append(function)
        return len(self._functions) - 1

    def _keep_graph(self, result: Tensor) -> int:
        self._graphs.append((result, self._leaves))
        return len(self._graphs) - 1

    def _load(self, reference: tuple[str, Any]) -> Any:
        kind, which = reference
        if kind == "yours":
            return self._functions[which]
        if kind == "part":
            number, name = which
            return wire.parts_of(self._functions[number])[name][0]
        return functools.partial(self._ask, which)

    def _ask(self, number: int, *arguments: Any) -> Any:
        """Call a function that stays with the judge."""
        packer = wire.Packer(self._keep, self._keep_graph)
        packed = packer.pack(list(arguments))
        self._send({"ask": number, "value": packed}, packer.body())
        header, body = wire.read_frame(self._read)
        if "refused" in header:
            raise RuntimeError(header["refused"])
        return calls.from_judge(body, self._load)

    def _send(self, header: dict[str, Any], body: bytes = b"") -> None:
        rest = memoryview(wire.frame({**header, "number": self._number}, body))
        while rest:
            rest = rest[os.write(self._outward, rest) :]

    def _read(self, n: int) -> bytes:
        parts = bytearray()
        while len(parts) < n:
            part = os.read(self._inward, n - len(parts))
            if not part:
                os._exit(0)  # the judge has ended
            parts += part
        return bytes(parts)


def _shell() -> Any:
    """An IPython without a terminal, history or files: magics and `display` work as in a lesson."""
    from IPython.core.history import HistoryManager
    from IPython.core.interactiveshell import InteractiveShell

    HistoryManager.enabled = False
    shell = InteractiveShell.instance()
    shell.showtraceback = shell.showsyntaxerror = lambda *_, **__: None
    return shell


def _told(error: BaseException) -> dict[str, Any]:
    """An exception as names and texts."""
    try:
        text = str(error)[:TEXT]
    except BaseException:
        text = "(an error whose text cannot be shown)"
    frames = traceback.extract_tb(error.__traceback__)
    where = (frames[-1].line or frames[-1].name or "")[:TEXT] if frames else ""
    clean = [each.encode("utf-8", "replace").decode() for each in (text, where)]
    names = [kind.__name__[:100] for kind in type(error).__mro__]
    return {"names": names, "text": clean[0], "where": clean[1]}


# --- the mother -----------------------------------------------------------------------------------


def mother(control: int) -> None:
    """Fork a child for each request on the socket `control`, and end it when asked."""
    import socket

    shell = _shell()
    warm_up()
    with socket.socket(fileno=control) as judge:
        while True:
            message, pipes, _, _ = socket.recv_fds(judge, 65_536, 2)
            if not message:
                return
            word, *rest = message.decode().split("\n")
            if word == "import":
                for name in rest:
                    with contextlib.suppress(*MISSING):
                        importlib.import_module(name)
                judge.sendall(b"done")
            elif word == "share":
                judge.sendall(str(_shared(shell, json.loads(rest[0]))).encode())
            elif word == "start":
                own = os.getpid()
                gc.freeze()  # so that a child's collector leaves shared memory alone
                pid = os.fork()
                if not pid:
                    confine.die_with_parent(own)
                    judge.close()
                    _child(pipes[0], pipes[1], shell, *rest)
                for pipe in pipes:
                    os.close(pipe)
                judge.sendall(str(pid).encode())
            else:
                _end(int(rest[0]))
                judge.sendall(b"done")


def _shared(shell: Any, statements: list[str]) -> int:
    """Run what a lesson needs in any case, for all children: how many of these statements can be.

    One that raises, or starts a thread, after which no process should fork, and all behind it
    cannot.
    """
    tqdm.monitor_interval = 0  # its bars start one, to look after slow loops
    threads = Path("/proc/self/task")
    for number, each in enumerate(statements):
        fine = shell.run_cell(each, store_history=False).success
        if not fine or (threads.exists() and len(list(threads.iterdir())) > 1):
            return number
    return len(statements)


def warm_up() -> None:
    """torch imports parts of itself at an optimizer's first step, a second that is paid once here.

    Without `backward`, which may start threads, and with threads no process should fork.
    """
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.step()
    optimizer.zero_grad()


def _end(pid: int) -> None:
    """Kill a child with all that it started, and wait until it is gone."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _child(inward: int, outward: int, shell: Any, scratch: str, *limits: str) -> None:
    """Become a sandbox; never returns."""
    try:
        os.setsid()
        os.environ.update(HOME=scratch, TMPDIR=scratch, SAELEARN_CACHE=scratch)
        tempfile.tempdir = scratch
        os.chdir(scratch)
        values = (float(limits[0]), float(limits[1]), *map(int, limits[2:]))
        holds = confine.confine(Path(scratch), Limits(*values))
        Child(inward, outward, shell).serve({"holds": holds})
    except BaseException as error:
        with contextlib.suppress(BaseException):
            os.write(outward, wire.frame({"failed": _told(error)}))
    os._exit(1)


if __name__ == "__main__":
    confine.die_with_parent()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    mother(int(sys.argv[1]))
