"""Students who try: nobody earns a point that was not earned, stops the grading, or goes unseen.

Each case is what stands in the answer cell of one exercise; the last exercise is answered rightly,
and must be paid whatever was tried before it.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from pathlib import Path

import pytest
import small_class
from small_class import POINTS, answered

from saelearn.course import grade, judge
from saelearn.course.answers import Mother, Sandbox
from saelearn.course.confine import Limits

pytestmark = pytest.mark.skipif(os.name == "nt", reason="students' code runs on POSIX alone")
LIMITS = Limits(cell=3, check=3, total=20, memory=2**30, disk=2**20)
CLONE = Path(__file__).resolve().parents[1]

WRONG = "def tied(x, M, b):\n    return torch.zeros(5, 7), torch.zeros(5, 3)\n"
RIGHT = "def tied(x, M, b):\n    c = (x @ M.T + b).relu()\n    return c, c @ M\n"


def if_it_can(attempt: str) -> str:
    """An answer that is right if `attempt` does not raise: then something was not kept from it."""
    body = textwrap.indent(textwrap.dedent(attempt).strip(), "    ")
    kept = f"try:\n{body}\n    can = True\nexcept BaseException:\n    can = False\n"
    return f"{WRONG}wrong = tied\n{RIGHT}right = tied\n{kept}tied = right if can else wrong\n"


def inside(body: str) -> str:
    """An answer that does something while it is called."""
    return "def tied(x, M, b):\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ")


ATTEMPTS = {
    "variables": f"import os\nos.environ.pop('SAELEARN_GRADE', 0)\nos.environ.clear()\n{WRONG}",
    "torch patched": (
        f"{WRONG}torch.allclose = torch.equal = lambda *a, **k: True\n"
        "torch.Tensor.__eq__ = lambda *a: True\ntorch.as_tensor = lambda *a, **k: a[0]"
    ),
    "numpy patched": f"{WRONG}import numpy\nnumpy.allclose = numpy.array_equal = lambda *a, **k: 1",
    "checks patched": (
        f"{WRONG}import saelearn.exercises as e\ne.diagnose = e.need_shape = lambda *a, **k: None\n"
        "e.close = lambda *a, **k: True\n"
        "check.tied = check.diagnose = lambda *a, **k: e.Verdict('passed', '', '')\n"
        "e.Verdict.passed = e.Verdict.share = True"
    ),
    "grader patched": (
        f"{WRONG}import saelearn.course.judge as j, saelearn.course.answers as a\n"
        "j.judge = j._verdict = a.Sandbox.call = lambda *a, **k: 1"
    ),
    "builtins patched": f"{WRONG}import builtins\nbuiltins.isinstance = lambda *a: True",
    "showtraceback": f"{WRONG}get_ipython().showtraceback = get_ipython().run_cell = print",
    "returns points": inside("return 100.0"),
    "returns a verdict": inside(
        "from saelearn.exercises import Verdict\nreturn Verdict('passed', 'Exercise 4.1', 'yes')"
    ),
    "equal to everything": inside(
        """
        class Any:
            shape = (5, 7)
            def __eq__(self, other): return True
            __float__ = __len__ = lambda self: 1
        return Any(), Any()
        """
    ),
    "a tensor with the right text": inside(
        """
        class Liar(torch.Tensor):
            def __repr__(self): return "✓ Exercise 4.1"
            def __torch_function__(*a, **k): return True
        return torch.zeros(5, 7).as_subclass(Liar), torch.zeros(5, 3)
        """
    ),
    "an object that says it is a tensor": inside(
        """
        class Any:
            __class__ = property(lambda self: torch.Tensor)
            shape, dtype, requires_grad = (5, 7), torch.float32, False
            detach = cpu = double = float = lambda self: self
        return Any(), Any()
        """
    ),
    "a module that lies about its parts": inside(
        """
        from saelearn.sae import SAE
        class Liar(SAE):
            named_parameters = lambda self, *a, **k: iter([("encode", M), ("number", b), ("", x)])
            named_buffers = lambda self, *a, **k: iter([("share", M), ("sandbox", b)])
        return Liar(3, 7), Liar(3, 7)
        """
    ),
    "a module that asks for the check": inside(
        """
        class Spy(nn.Module):
            def __getattr__(self, name): return lambda *a, **k: (100.0, "passed")
        return Spy(), Spy()
        """
    ),
    "prints a verdict": (
        f"{WRONG}import os\nprint('✓ Exercise 4.1: passed')\n"
        "os.write(1, b'{\"earned\": 2}')\nos.write(2, b'{\"earned\": 2}')"
    ),
    "by heart": (
        "seen = []\n"
        "check.diagnose = lambda value, right, *a, **k: seen.append(right)\n"
        "check.tied.__wrapped__(lambda x, M, b: (torch.zeros(5, 7), torch.zeros(5, 3)))\n"
        "def tied(x, M, b):\n    return seen[0], seen[1]"
    ),
    "looks at its caller": inside(
        """
        import sys
        frame, found = sys._getframe(), []
        while frame:
            found += [v for k, v in frame.f_locals.items() if k in ("right", "c_BF", "before_BF")]
            frame = frame.f_back
        return found[0], found[0] @ M
        """
    ),
    "looks for the hidden inputs": inside(
        """
        import gc
        found = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.shape == (5, 7)]
        return (found or [torch.zeros(5, 7)])[0], torch.zeros(5, 3)
        """
    ),
    "draws what the check will draw": (
        "def tied(x, M, b):\n    return kept[0], kept[1]\n"
        "kept = []\n"
        "def spy(*a):\n    kept[:] = [(a[0] @ a[1].T + a[2]).relu(), a[0]]\n"
        "    kept[1] = kept[0] @ a[1]\n    return kept[0], kept[1]\n"
        "check.tied.__wrapped__(spy)"
    ),
    "keeps a signal from ending it": (
        f"{WRONG}import signal\n"
        "for s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass"
    ),
    "kills itself": f"{WRONG}import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "links to everything": (
        f"{WRONG}import os\nfor i in range(1000): os.symlink('/', f'link {{i}}')\n"
        "os.symlink('loop', 'loop')"
    ),
    "raises what a check raises": inside(
        """
        class NotPassed(AssertionError): pass
        class Gone(BaseException): pass
        raise type("passed", (Gone, NotPassed), {"half": 1.0, "share": 1.0, "where": "passed"})("✓")
        """
    ),
    "an error without a text": inside(
        """
        class Mute(Exception):
            def __str__(self): raise SystemExit
        raise Mute
        """
    ),
    "sys.exit": f"{WRONG}import sys\nsys.exit(0)",
    "sys.exit when called": inside("import sys; sys.exit(0)"),
    "os._exit": f"{WRONG}import os\nos._exit(0)",
    "os._exit when called": inside("import os; os._exit(0)"),
    "stopped": f"{WRONG}import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "endless loop": "while True: pass",
    "endless loop when called": inside("while True: pass"),
    "endless generator": inside("import itertools; return itertools.count()"),
    "threads that live on": (
        f"{WRONG}import threading\ndef spin():\n    while True: pass\n"
        "for _ in range(3): threading.Thread(target=spin).start()"
    ),
    "100 GB": f"{WRONG}big = torch.ones(25 * 10**9)",
    "100 GB when called": inside("return [bytes(10**9) for _ in range(100)]"),
    "a large answer": inside("return torch.zeros(10**8), torch.zeros(5, 3)"),
    "a large answer of one number": inside("return torch.zeros(1).expand(10**13), 1"),
    "a deep answer": inside("a = []\nfor _ in range(10**5): a = [a]\nreturn a, a"),
    "a circular answer": inside("a = []\na.append(a)\nreturn a, a"),
    "a large number": inside("return 10**(10**6), 1"),
    "500 MB of output": f"{WRONG}for _ in range(500): print('x' * 2**20)",
    "a large file": f"{WRONG}open('big', 'wb').write(bytes(2**24))",
    "code in a pickle": inside(
        """
        class Bomb:
            def __reduce__(self): return (open, (MARKER, "w"))
        return Bomb(), Bomb()
        """
    ),
    "code in a name": inside("return type(\"__import__('os').system('touch x')\", (), {})(), 1"),
    "junk on the wire": (
        f"{WRONG}import os\nfor fd in range(3, 64):\n"
        "    try: os.write(fd, b'\\0' * 8 + b'junk' * 99)\n"
        "    except OSError: pass"
    ),
    "closed wire": f"{WRONG}import os\nos.closerange(3, 64)",
    "forged replies": (
        f"{WRONG}import gc\nfrom saelearn.course.sandbox import Child\n"
        "Child._do_call = lambda *a: {'value': {'is': 'str', 'as': 'passed'}, 'verdict': True,\n"
        "    'earned': 100, 'after': [None] * 99, 'hooks': [10**9], 'optimizers': 'x'}\n"
        "Child._do_value = lambda *a: {'value': {'is': 'tensor', 'index': '7', 'numpy': 'x'}}"
    ),
    "forged numbers": (
        f"{WRONG}import saelearn.course.wire as w\n"
        "w.frame = lambda *a: w.HEAD.pack(2**32 - 1, 2**32 - 1) + b'x' * 100"
    ),
    "forged tensors": (
        f"{WRONG}import saelearn.course.wire as w\n"
        "w.Packer.body = lambda self: b'\\xff' * 8 + b'{' * 1000"
    ),
    "another default": f"{WRONG}torch.set_default_dtype(torch.half)\ntorch.set_grad_enabled(False)",
    "deep folders": f"{WRONG}import os\nfor _ in range(4000): os.mkdir('d'); os.chdir('d')",
    "locked folders": f"{WRONG}import os\nos.mkdir('d')\nopen('d/f', 'w')\nos.chmod('d', 0)",
    "deletes its folder": f"{WRONG}import os, shutil\nshutil.rmtree(os.getcwd())",
    "a terminal's codes": inside("raise ValueError('\\x1b]0;owned\\x07\\x1b[2J')"),
    "a source too deep to read": f"{WRONG}x = {'-' * 200_000}1",
    "a source with a null": f"{WRONG}\0",
    "a syntax error": "def tied(x, M, b) return",
}
KEPT_AWAY = {  # what the system can refuse: if it does not, the answer becomes right
    "reads the solution": f"open({str(CLONE / 'notebooks' / '04_first_sae.ipynb')!r}).read()",
    "reads the tests": f"open({__file__!r}).read()",
    "reads the gradebook": "open(PRIVATE).read()",
    "reads through a link": "import os\nos.symlink(PRIVATE, 'link')\nopen('link').read()",
    "lists its neighbours": "import os\nassert os.listdir(os.path.dirname(PRIVATE))",
    "patches the package on disk": (
        "import saelearn.exercises as e\nopen(e.__file__, 'a').write('\\n# patched\\n')"
    ),
    "adds a package": "import torch\nopen(torch.__file__[:-11] + 'saelearn_x.py', 'w').write('')",
    "writes elsewhere": "open(PRIVATE + '.new', 'w').write('x')",
    "starts a program": "import subprocess\nsubprocess.run(['true'], check=True)",
    "forks": "import os\nif not os.fork(): os._exit(0)",
    "fork bomb": "import os\nfor _ in range(10**4): os.fork()",
    "a shell": "get_ipython().system('true')\nassert get_ipython().user_ns['_exit_code'] == 0",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)",
    "a socket": "import socket\nsocket.socket()",
    "kills the grader": "import os\nos.kill(os.getppid(), 0)",
    "kills everybody": "import os\nos.kill(-1, 0)",
    "limits the grader": "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
    "looks into the grader": "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    "reads the grader's variables": "import os\nopen(f'/proc/{os.getppid()}/environ').read()",
    "traces": ("import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0"),
    "takes its limits back": (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)\n"
        "assert len(bytes(2 * 2**30))"
    ),
}


ODD_NAMES = [
    "Zoë O'Brien [2] (x)", "../../etc", "a b\tc", "-rf", "$(touch x)", "..", "con", "名前",
    "é" * 90, "=cmd()", "<script>", "a;b", "%s%n", "~root", "x" * 200,
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_only_a_name(name, tmp_path):
    """It becomes a file of the gradebook's own folder, and never that of another student."""
    slugs = {grade.slug(each) for each in ODD_NAMES}
    assert len(slugs) == len(ODD_NAMES)
    path = tmp_path / f"{grade.slug(name)}.html"
    path.write_text("page")
    assert path.parent.resolve() == tmp_path and re.fullmatch(r"[A-Za-z0-9-]+\.html", path.name)


def test_there_are_enough_attempts():
    """Of each kind that the guide promises something about."""
    assert len(ATTEMPTS) + len(KEPT_AWAY) >= 70
    everything = "\n".join([*ATTEMPTS.values(), *KEPT_AWAY.values()])
    for kind in (
        "os.environ", "showtraceback", "torch.allclose", "numpy.allclose", "check.tied =",
        "e.__file__", "j.judge", "_getframe", "04_first_sae", "open(PRIVATE)", "gc.get_objects",
        "return 100.0", "__eq__", "__repr__", "✓", "os.write(2", "sys.exit", "os._exit", "signal",
        "threading", "os.fork", "25 * 10**9", "while True", "range(500)", "socket", "symlink",
        "__reduce__",
    ):  # fmt: skip
        assert kind in everything, kind


@pytest.fixture(scope="module")
def mother():
    with Mother(judge.imported(small_class.released())) as started:
        yield started


@pytest.fixture(scope="module")
def kept_away(mother):
    """Skips where the system does not offer what is tested; the report says so there."""
    with Sandbox(mother, LIMITS) as sandbox:
        if not {"Landlock", "seccomp"} <= set(re.findall(r"\((\w+)\)", " ".join(sandbox.holds))):
            pytest.skip("needs Landlock and seccomp")


@pytest.fixture
def graded(mother, tmp_path):
    """A function that grades a lesson with this in the first exercise: points by check."""
    private = tmp_path / "gradebook.csv"
    private.write_text("secret")

    def points_for(source: str, **others):
        named = f"MARKER, PRIVATE, PORT = {str(tmp_path / 'marker')!r}, {str(private)!r}, 9\n"
        notebook = answered(tied=named + source, ingredients=True, **others)
        judged = judge.judge(notebook, small_class.released(), mother, limits=LIMITS, salt=b"s")
        assert not (tmp_path / "marker").exists()
        assert private.read_text() == "secret"
        assert len(judged.marks) == len(POINTS)
        return {mark.grade_id.split("-")[2]: mark for mark in judged.marks}

    return points_for


SPOILT = {"torch patched", "builtins patched", "showtraceback", "forged replies", "forged numbers",
          "forged tensors", "junk on the wire", "closed wire", "another default",
          "deletes its folder", "threads that live on"}  # fmt: skip
"""What spoils one's own process for what follows: that may cost points, and one's own alone."""


@pytest.mark.parametrize("name", ATTEMPTS)
def test_nothing_is_earned_by_trying_and_what_is_right_is_paid(name, graded):
    marks = graded(ATTEMPTS[name])
    assert marks["tied"].earned == 0
    assert marks["tied"].state in ("wrong", "open")
    assert marks["tied"].message.replace("\n", "").isprintable() and marks["tied"].message
    assert marks["train_step"].earned == marks["predicted_found"].earned == 0
    paid = marks["ingredients"].earned == POINTS["ingredients"]
    assert paid or name in SPOILT, marks["ingredients"]


@pytest.mark.parametrize("attempt", KEPT_AWAY.values(), ids=KEPT_AWAY)
def test_what_is_out_of_reach(attempt, graded, kept_away):
    marks = graded(if_it_can(attempt))
    assert marks["tied"].earned == 0, "it could"
    assert marks["ingredients"].earned == POINTS["ingredients"]


HEARD: list[str] | None = None


def _listen(event: str, arguments: tuple) -> None:
    if HEARD is not None and event in ("pickle.find_class", "exec", "import", "marshal.loads"):
        HEARD.append(f"{event} {arguments}")


@pytest.mark.parametrize("name", ["code in a pickle", "code in a name", "forged replies"])
def test_the_grader_unpickles_runs_and_imports_nothing(name, graded):
    """Heard by Python's own audit, in the process that judges."""
    global HEARD
    graded(RIGHT)  # so that what a check imports itself is there
    sys.addaudithook(_listen)
    HEARD = []
    try:
        graded(ATTEMPTS[name], train_step=True)
        assert HEARD == []
        exec("pass")
        assert HEARD  # it does listen
    finally:
        HEARD = None


def test_an_attempt_that_can_is_seen(graded):
    """The cases above are no proof unless they would pay where nothing is refused."""
    assert graded(if_it_can("pass"))["tied"].earned == POINTS["tied"]


def test_noise_costs_nothing(graded):
    noise = "import sys, warnings\nwarnings.warn('old')\nprint('x', file=sys.stderr)\n"
    assert graded(noise + RIGHT)["tied"].earned == POINTS["tied"]


def test_an_honest_half_is_paid(graded):
    half = "def tied(x, M, b):\n    return (x @ M.T + b).relu(), x\n"
    assert graded(half)["tied"].earned == POINTS["tied"] / 2
