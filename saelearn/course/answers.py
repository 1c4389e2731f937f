"""The judge's end of the wire: a sandbox, and stand-ins for the functions that live in it.

A check calls a stand-in as it would call the student's function. The arguments go to the sandbox,
the result comes back as a new value, in-place changes and gradients of the arguments as well; an
object of a student's class stays there, see `standins`. So checks are written without a thought of
any of this.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelearn import artifacts
from saelearn.course import calls, standins, wire
from saelearn.course.confine import Limits
from saelearn.course.sandbox import warm_up
from saelearn.course.standins import Far, Function
from saelearn.course.wire import Broken
from saelearn.errors import Refusal

MOST_QUESTIONS = 10_000  # calls of the judge's functions that one request may make
ENDED = "your code ended Python, or took more memory or processor time than it may"
RAISED = {
    kind.__name__: kind
    for kind in (
        ArithmeticError, AssertionError, AttributeError, IndexError, KeyError, LookupError,
        MemoryError, NameError, NotImplementedError, OSError, OverflowError, RecursionError,
        RuntimeError, TypeError, ValueError, ZeroDivisionError,
    )
}  # fmt: skip


class Gone(BaseException):
    """The sandbox has ended, or was ended: its own doing, out of time, or not keeping to the rules.

    Not an Exception, so that no check takes it for an error of the student's function.
    """


class Mother:
    """The process that forks sandboxes; a context.

    Args:
        modules: what it imports for all of them.
        common: statements that it runs for all of them, once and unconfined: of the package's own
            lessons only, never of a file. Cut short afterwards where that did not work.
    """

    def __init__(self, modules: Iterable[str] = (), common: Iterable[str] = ()):
        self._modules = sorted(set(modules))
        self.common = list(common)
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None

    def __enter__(self) -> Mother:
        self._control, theirs = socket.socketpair()
        self._profile = tempfile.TemporaryDirectory(prefix="saelearn-ipython-")
        environment = _environment() | {"IPYTHONDIR": self._profile.name}
        command = [sys.executable, "-P", "-m", "saelearn.course.sandbox", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command, env=environment, pass_fds=[theirs.fileno()], cwd="/"
            )
        self._request(["import", *self._modules])
        if self.common and (ran := int(self._request(["share", json.dumps(self.common)]))) < len(
            self.common
        ):
            self.__exit__()
            self.common = self.common[:ran]
            return self.__enter__()
        warm_up()  # here too: an import that a check's time limit cut short would stay half done
        return self

    def __exit__(self, *_: object) -> None:
        assert self._control and self._process
        self._control.close()
        self._process.kill()
        self._process.wait()
        self._profile.cleanup()

    def fork(self, inward: int, outward: int, scratch: Path, limits: Limits) -> int:
        """A new sandbox that reads from `inward` and writes to `outward`: its process id."""
        numbers = (limits.cell, limits.check, limits.total, limits.memory, limits.disk)
        words = ["start", str(scratch), *map(str, numbers)]
        return int(self._request(words, [inward, outward]))

    def end(self, pid: int) -> None:
        """Kill a sandbox, and wait until it is gone."""
        self._request(["end", str(pid)])

    def _request(self, words: list[str], pipes: list[int] | None = None) -> str:
        message = "\n".join(words).encode()
        assert self._control
        try:
            socket.send_fds(self._control, [message], pipes or [])
            reply = self._control.recv(4_096).decode()
        except OSError:
            reply = ""
        if not reply:
            expected = "a process that starts sandboxes"
            raise Refusal(expected, "none: it has ended", "the same command goes on where it was")
        return reply


class Sandbox:
    """One submission's process; a context.

    Args:
        mother: what forks it.
        limits: of time and memory.

    Raises:
        Gone: whenever it ends before it has answered.
    """

    def __init__(self, mother: Mother, limits: Limits):
        self._mother, self.limits = mother, limits
        self._questions: list[Callable] = []
        self.holds: list[str] = []
        self.gone = ""  # why it ended

    def __enter__(self) -> Sandbox:
        self._scratch = tempfile.TemporaryDirectory(prefix="saelearn-", ignore_cleanup_errors=True)
        theirs, self._to = os.pipe()
        self._from, also_theirs = os.pipe()
        self._pid = self._mother.fork(theirs, also_theirs, Path(self._scratch.name), self.limits)
        for descriptor in (theirs, also_theirs):
            os.close(descriptor)
        for descriptor in (self._to, self._from):
            os.set_blocking(descriptor, False)
        self._until(30)
        header, _ = wire.read_frame(self._read)
        if "failed" in header:
            raise Refusal(
                "a sandbox", f"{_exception(header['failed'])}", "grade outside of containers"
            )
        self.holds = [str(each) for each in header["holds"]]
        return self

    def __exit__(self, *_: object) -> None:
        self._mother.end(self._pid)
        for descriptor in (self._to, self._from):
            os.close(descriptor)
        with contextlib.suppress(RecursionError):  # folders in folders, thousands of them: left
            self._scratch.cleanup()

    def needed(self, sources: list[str], wanted: list[bool]) -> tuple[list[str], bool]:
        """What to run of each cell, see `saelearn.course.needed`; all of it if that fails.

        And whether what the mother has run stands for the rest.
        """
        common = self._mother.common
        self._until(self.limits.cell)
        with contextlib.suppress(Gone), self._by_the_rules():
            asked = {"do": "needed", "sources": sources, "wanted": wanted, "common": common}
            header, _ = self._ask(asked)
            found = header.get("value")
            if isinstance(found, list) and len(found) == len(sources):
                return [str(each) for each in found], header.get("early") == common
        return sources, False

    def forget(self) -> None:
        """Begin with an empty notebook, without what the mother has run."""
        self._until(self.limits.cell)
        with contextlib.suppress(Gone), self._by_the_rules():
            self._ask({"do": "forget"})

    def run(self, source: str) -> str:
        """Run a cell; returns what it raised, in words, or nothing."""
        self._until(self.limits.cell)
        with self._by_the_rules():
            header, _ = self._ask({"do": "cell", "source": source})
            if "raised" not in header:
                return ""
            error = _exception(header["raised"])
            return f"{type(error).__name__}: {error}"

    def value(self, source: str) -> Any:
        """What an expression is, where the student's names are.

        Raises:
            Exception: what it raised there.
        """
        with self._by_the_rules():
            return self._result(*self._ask({"do": "value", "source": source}), [])

    def start_check(self) -> None:
        """From now on everything together may take the time of one check."""
        self._until(self.limits.check)
        self._questions = []

    # --- for the stand-ins

    def call(
        self, function: int, arguments: tuple, keywords: dict[str, Any], method: str = ""
    ) -> Any:
        """Call a function of the sandbox; the arguments are changed as it changed its copies.

        Args:
            function: its number; with a method, that of the object, which is the first argument.
            arguments, keywords: what it gets.
            method: which one of the object is called.
        """
        body, taken = calls.call_into(arguments, keywords, self._keep)
        with self._by_the_rules():
            header, back = self._ask({"do": "call", "function": function, "method": method}, body)
            unpack = self._unpacker(back, taken.tensors).unpack
            calls.do_the_same(taken, header, unpack)
            if "raised" in header:
                raise _exception(header["raised"])
            return unpack(header.get("value"))

    def attribute(self, far: Far, name: str) -> Any:
        """What an object of the sandbox has under a name."""
        with self._by_the_rules():
            header, back = self._ask({"do": "attribute", "of": far.number, "name": name})
            if header.get("method") is True:
                return functools.partial(far.ask, name)
            return self._result(header, back, [])

    def slopes(self, graph: int, slope: Tensor, n: int) -> list[Tensor | None]:
        """The gradients of a result with respect to the `n` learned arguments of its call."""
        body = calls.into([slope], self._keep)
        with self._by_the_rules():
            found = self._result(*self._ask({"do": "slopes", "graph": graph}, body), [])
            if not isinstance(found, list) or len(found) != n:
                raise Broken("gradients that do not fit")
        return [each if isinstance(each, Tensor) else None for each in found]

    # --- the wire

    def _ask(self, header: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Send a request and return its answer; the judge's own functions are called meanwhile."""
        number = secrets.token_hex(8)  # an answer that was sent before its question is none
        self._write(wire.frame({**header, "number": number}, body))
        for _ in range(MOST_QUESTIONS):
            reply, back = wire.read_frame(self._read)
            if reply.get("number") != number:
                raise Broken("an answer to another question")
            if "ask" not in reply:
                return reply, back
            self._write(self._answer(reply, back))
        raise Broken("too many calls of one of the check's functions")

    @contextlib.contextmanager
    def _by_the_rules(self) -> Iterator[None]:
        """Once something came that the protocol does not allow, nothing is believed any more."""
        if self.gone:
            raise Gone(self.gone)
        try:
            yield
        except Broken as broken:
            self.gone = f"your code sent {broken}"
            raise Gone(self.gone) from broken
        except Gone as gone:
            self.gone = str(gone)
            raise

    def _answer(self, reply: dict[str, Any], body: bytes) -> bytes:
        arguments = self._unpacker(body, []).unpack(reply.get("value"))
        if not isinstance(reply["ask"], int) or not isinstance(arguments, list):
            raise Broken("a question that cannot be read")
        try:
            result = self._questions[reply["ask"]](*arguments)
            return wire.frame({}, calls.into(result, self._keep))
        except Exception as error:
            return wire.frame({"refused": str(error)[:500]})

    def _result(self, header: dict[str, Any], body: bytes, leaves: list[Tensor]) -> Any:
        if "raised" in header:
            raise _exception(header["raised"])
        return self._unpacker(body, leaves).unpack(header.get("value"))

    def _unpacker(self, body: bytes, leaves: list[Tensor]) -> wire.Unpacker:
        learned = [leaf for leaf in leaves if leaf.requires_grad]

        def graph(value: Tensor, number: int) -> Tensor:
            if not value.is_floating_point():
                return value
            if not learned:
                return value.requires_grad_()
            return _Through.apply(self, number, value, *learned)

        def thing(number: int, name: str, *module: Any) -> Far:
            return standins.of(self, number, name, *module)

        return wire.Unpacker(body, lambda number: Function(self, number), graph, thing)

    def _keep(self, function: Callable) -> int:
        self._questions.append(function)
        return len(self._questions) - 1

    def _until(self, seconds: float) -> None:
        self._seconds, self._deadline = seconds, time.monotonic() + seconds

    def _wait(self, read: list[int], write: list[int]) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0 or not any(select.select(read, write, [], left)[:2]):
            raise Gone(f"your code took longer than {self._seconds:g} seconds")

    def _read(self, n: int) -> bytes:
        parts = bytearray()
        while len(parts) < n:
            self._wait([self._from], [])
            part = os.read(self._from, min(n - len(parts), 2**20))
            if not part:
                raise Gone(ENDED)
            parts += part
        return bytes(parts)

    def _write(self, content: bytes) -> None:
        rest = memoryview(content)
        while rest:
            self._wait([], [self._to])
            try:
                rest = rest[os.write(self._to, rest) :]
            except BrokenPipeError:
                raise Gone(ENDED) from None


class _Through(torch.autograd.Function):
    """A result from the sandbox; its gradient with respect to the arguments is asked for there."""

    @staticmethod
    def forward(ctx, sandbox: Sandbox, graph: int, value: Tensor, *leaves: Tensor) -> Tensor:
        ctx.sandbox, ctx.graph, ctx.shapes = sandbox, graph, [leaf.shape for leaf in leaves]
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope: Tensor):
        found = ctx.sandbox.slopes(ctx.graph, slope, len(ctx.shapes))
        fits = [
            s if s is not None and s.shape == n else None
            for s, n in zip(found, ctx.shapes, strict=True)
        ]
        return None, None, None, *fits


def _exception(told: Any) -> Exception:
    """An exception of the student's, as one of the plain kinds that a check may look for."""
    told = told if isinstance(told, dict) else {}
    names = [name for name in told.get("names", []) if isinstance(name, str)] or ["Exception"]
    base = next((RAISED[name] for name in names if name in RAISED), Exception)
    text = str(told.get("text", ""))
    name = "".join(c for c in names[0] if c.isalnum() or c == "_") or "Exception"
    where = str(told.get("where", ""))  # on the class: a check may raise the same kind anew
    return type(name, (base,), {"__str__": lambda e: str(e.args[0]), "where": where})(text)


def _environment() -> dict[str, str]:
    """What a sandbox sees of the environment: nothing of the teacher's but where Python is."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "MPLCONFIGDIR")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    quiet = {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "PYTHONHASHSEED": "0", "USER": "student"}
    alone = {"TOKENIZERS_PARALLELISM": "false"}  # its threads would keep a mother from forking
    package = Path(__file__).resolve().parents[2]  # the same package there as here
    where = {"MALLOC_ARENA_MAX": "2", "SAELEARN_DATA": str(artifacts.data_dir())}
    where["PYTHONPATH"] = os.pathsep.join([str(package), *filter(os.path.isabs, sys.path)])
    return environment | one_thread | quiet | alone | where
