"""The commands: `saelearn lab`, `train`, `release`, `grade`, `doctor` and others: see --help.

Thin, and the same on Linux, macOS and Windows; the Makefile calls these. What a command needs is
imported when it runs, so that `saelearn --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

FIRST_PORT, LAST_PORT = 8888, 65_535
FEW_CORES = 4
FIRST_LESSONS = ("00", "02")  # which lesson to open: the first of these that there is


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the process's exit code."""
    arguments = _parser().parse_args(argv)
    from saelearn.errors import Refusal

    try:
        return arguments.run(arguments) or 0
    except Refusal as refusal:
        print(f"saelearn {arguments.command}: {refusal}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; what was finished is kept.", file=sys.stderr)
        return 130


def lab(arguments: argparse.Namespace) -> None:
    """Prepare the learner's folder and serve it with JupyterLab on loopback."""
    from saelearn import course

    if arguments.port is not None:
        check_port(arguments.port)  # before anything is written
    folder = _learners(arguments)
    outcomes = course.prepare(folder)
    for outcome in outcomes:
        if outcome.message:
            print(outcome.message)
    names = [outcome.path.name for outcome in outcomes]
    first = next((n for prefix in FIRST_LESSONS for n in names if n.startswith(prefix)), names[0])
    port, claim = claimed_port(arguments.port)
    token = secrets.token_hex(24)
    print(
        f"\nYour lessons are in {folder}\nStarting JupyterLab; in a few seconds the course is at\n"
        f"\n    http://127.0.0.1:{port}/lab/tree/{first}?token={token}\n\n"
        "Stop it with Ctrl-C, then y.",
        flush=True,
    )
    show = not arguments.no_browser and has_display()
    with claim, tempfile.TemporaryDirectory(prefix="saelearn-") as scratch:
        _quiet_news(Path(scratch))
        _stand_in_for_home(Path(scratch))
        _quiet_log()
        _share_cores()
        from jupyterlab.labapp import LabApp

        LabApp.launch_instance(argv=server_arguments(folder, first, port, token, show))


def progress(arguments: argparse.Namespace) -> None:
    """Say what is solved in the learner's folder, lesson by lesson, and what comes next."""
    import importlib

    from saelearn import course
    from saelearn.exercises import checks_in
    from saelearn.progress import of_folder

    solved, following = of_folder(_learners(arguments)), ""
    for lesson in course.lessons():
        module = f"saelearn.exercises.lesson{lesson.stem[:2]}"
        importlib.import_module(module)
        checks = checks_in(module)
        passed = (
            solved[lesson.stem[:2]].checks & checks.keys() if lesson.stem[:2] in solved else set()
        )
        bar = "#" * len(passed) + "." * (len(checks) - len(passed))
        print(f"{lesson.stem:<20} {len(passed):>2} of {len(checks):>2}  {bar}")
        left = [title for name, title in checks.items() if name not in passed]
        following = following or (left[0] if left else "")
    print(f"\nnext: {following}" if following else "\nall solved")


def _learners(arguments: argparse.Namespace) -> Path:
    from saelearn import course

    return (arguments.folder or course.learners_dir()).resolve()


def student(arguments: argparse.Namespace) -> None:
    """Write the student version of every lesson."""
    from saelearn import course

    written = course.write_student(arguments.out)
    n = sum(path.suffix == ".ipynb" for path in written)
    print(f"{n} lessons without solutions are in {arguments.out}")


def execute(arguments: argparse.Namespace) -> None:
    """Run complete lessons and store their outputs, for whoever writes them."""
    from saelearn.course import handout
    from saelearn.course.execute import execute as run

    for path in handout.find(arguments.lessons, arguments.folder):
        start = time.perf_counter()
        run(path)
        print(f"{path.name}: stored after {time.perf_counter() - start:.0f} s", flush=True)


def release(arguments: argparse.Namespace) -> None:
    """Write what a class gets: chosen lessons, what they need, a cover; a folder and a zip."""
    from saelearn.course import handout

    names = handout.release(
        arguments.lessons, arguments.out, due=arguments.due, hand_in=arguments.hand_in,
        wheel=arguments.wheel,
    )  # fmt: skip
    print(f"{', '.join(names)}\nfor students: {arguments.out}/ and {arguments.out}.zip\n"
          "keep the zip: grading takes the checks and points from it")  # fmt: skip


def grade(arguments: argparse.Namespace) -> None:
    """Grade submissions; goes on where it was stopped."""
    from saelearn.errors import Refusal

    if os.name == "nt":
        raise Refusal("Linux or macOS to run students' code in", "Windows", "grade in WSL")
    from saelearn.course import confine, written
    from saelearn.course import grade as grading

    limits = confine.Limits(cell=arguments.cell_seconds, memory=int(arguments.memory_gb * 2**30))
    graded = grading.grade(
        arguments.submissions, arguments.release, arguments.out, workers=arguments.workers,
        anonymous=arguments.anonymous, limits=limits, say=lambda line: print(line, flush=True),
    )  # fmt: skip
    n = len({each.student for each in graded})
    print(f"{n} students graded; gradebook.csv, totals.csv and feedback/ are in {arguments.out}")
    if unread := written.unread(written.read(arguments.out / written.SHEET)):
        print(f"{unread} answers in words have no points yet: read them in {written.SHEET}")
    report(arguments)


def report(arguments: argparse.Namespace) -> None:
    """Say where the class is stuck, and write it as a page."""
    from saelearn import artifacts
    from saelearn.course import grade as grading
    from saelearn.course import reports

    graded = grading.results(arguments.out)
    rows = reports.where_stuck(graded)
    with artifacts.replacing(arguments.out / "report.html") as temporary:
        temporary.write_text(reports.report(rows, graded), "utf-8")
    print(f"{reports.in_words(rows, graded)}\n\nas a page: {arguments.out / 'report.html'}")


def doctor(arguments: argparse.Namespace) -> int:
    """Say what the machine has and whether it computes rightly."""
    from saelearn.cli.doctor import examine

    report = examine()
    print(report)
    return 0 if report.healthy else 1


def data(arguments: argparse.Namespace) -> None:
    """List or rebuild what lies in data/."""
    from saelearn import artifacts, real
    from saelearn.tiny import build

    if arguments.list:
        for name, step in build.STEPS.items():
            print(f"{name:<12} {step.minutes:>4g} min  {step.what}")
        print(f"{'real':<12} {real.MINUTES:>4g} min  {real.WHAT}")
    elif arguments.names == ["real"]:  # it fetches a model, so it is never among all
        real.rebuild(artifacts.data_dir())
    else:
        build.build(arguments.names)


def fetch(arguments: argparse.Namespace) -> None:
    """Bring lesson 13's real model into the user's cache."""
    from saelearn import real

    print(f"{real.NAME} lies in {real.fetch()}")


def train(arguments: argparse.Namespace) -> int:
    """Train an SAE, alone or under torchrun."""
    from saelearn.cli import jobs

    named = {k: v for k, v in vars(arguments).items() if k not in ("command", "run", "quiet")}
    return jobs.run(**named, progress=not arguments.quiet)


def harvest(arguments: argparse.Namespace) -> None:
    """Write a model's activations to the disk."""
    from saelearn.cli import harvest as harvesting

    named = {k: v for k, v in vars(arguments).items() if k not in ("command", "run", "quiet")}
    harvesting.run(**named, progress=not arguments.quiet)


def i_of_n(text: str) -> tuple[int, int]:
    """`0/2` is the first of two."""
    i, n = text.split("/")
    return int(i), int(n)


def steps_or_seconds(text: str) -> int | timedelta:
    """`500` is every 500 steps, `90s` every 90 seconds."""
    return timedelta(seconds=float(text[:-1])) if text.endswith("s") else int(text)


def server_arguments(folder: Path, first: str, port: int, token: str, show: bool) -> list[str]:
    """JupyterLab's arguments: loopback only, with a token, the first lesson open.

    The token is passed inside this process, so other users do not see it in the process list.
    """
    arguments = [
        f"--ServerApp.root_dir={folder}",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        "--PasswordIdentityProvider.hashed_password=",
        f"--ServerApp.open_browser={show}",
        f"--LabApp.default_url=/lab/tree/{first}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--Application.log_level=WARN",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # in a container one often is
        arguments.append("--ServerApp.allow_root=True")
    if _can_encrypt():  # what a kernel and its server say to each other is then no one else's
        arguments.append("--KernelManager.transport_encryption=auto")
    return arguments


def check_port(port: int) -> None:
    """Refuse what is no port; the server would start and nobody could reach it."""
    from saelearn.errors import check_whole

    check_whole(port, "--port", 1, LAST_PORT)


def claimed_port(port: int | None = None) -> tuple[int, socket.socket]:
    """A free port, and what keeps other labs from it for as long as it is open.

    The server listens seconds later, so a second lab would find the port free as well. What is
    claimed is the UDP port of the same number, which no server needs, and which is free again
    whenever and however this process ends.

    Args:
        port: this one; by default the first from 8888 on.

    Raises:
        Refusal: it is in use.
    """
    from saelearn.errors import Refusal

    first = port or FIRST_PORT
    while True:
        found = free_port(first, 1 if port else FIRST_PORT + 100 - first)
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", found))
            return found, claim
        except OSError as error:
            claim.close()
            if port or found == FIRST_PORT + 99:
                raise Refusal(f"a port that no lab has: {found}", str(error), "--port") from error
            first = found + 1


def free_port(first: int = FIRST_PORT, tries: int = 100) -> int:
    """The first port from `first` on that nobody listens to on loopback."""
    for port in range(first, min(first + tries, LAST_PORT + 1)):
        with socket.socket() as probe:
            if os.name != "nt":  # on Windows this option would take a port that is in use
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    from saelearn.errors import Refusal

    span = f"{first} to {first + tries - 1}"
    raise Refusal(f"a free port from {span}", "all of them in use", "pass --port")


def has_display() -> bool:
    """Whether a browser could show itself here."""
    if os.name == "nt" or sys.platform == "darwin":
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _share_cores() -> None:
    """Settings that kernels inherit, so that a lesson stays quick beside other programs.

    Threads that wait must not burn cores that others need; and where cores are few, one thread
    computes, as it did for the outputs that the lessons come with: on a busy machine two wait for
    each other most of the time. What the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if (os.cpu_count() or 1) <= FEW_CORES:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def _can_encrypt() -> bool:
    import zmq
    from jupyter_client.manager import KernelManager

    return "transport_encryption" in KernelManager.class_trait_names() and bool(zmq.has("curve"))


def _quiet_log() -> None:
    """Leave out what the server warns of although nothing is wrong, and no learner can act on it.

    A lesson is not signed before it is first saved; a laptop that slept did not answer a ping.
    """
    harmless = ("is not trusted", "WebSocket ping timeout")
    for name in ("ServerApp", "LabApp"):
        logging.getLogger(name).addFilter(
            lambda record: not any(words in record.getMessage() for words in harmless)
        )


def _quiet_news(scratch: Path) -> None:
    """Add a default to JupyterLab, below the user's own settings: do not ask about news."""
    overrides = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}
    target = scratch / "labconfig" / "default_setting_overrides.json"
    target.parent.mkdir()
    target.write_text(json.dumps(overrides), "utf-8")
    paths = [os.environ.get("JUPYTER_CONFIG_PATH", ""), str(scratch)]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, paths))


def _stand_in_for_home(scratch: Path) -> None:
    """Where no home can be written, Jupyter and its kernels keep what they need in `scratch`."""
    if os.access(os.path.expanduser("~"), os.W_OK):
        return
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR",
                 "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "MPLCONFIGDIR",
                 "SAELEARN_CACHE"):  # fmt: skip
        os.environ.setdefault(name, str(scratch / name.lower()))
    print("Your home folder cannot be written: settings of JupyterLab last until it ends.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="saelearn", description="A course on sparse autoencoders, and its library."
    )
    version = sys.modules["saelearn"].__version__  # a checkout has no other
    parser.add_argument("--version", action="version", version=f"saelearn {version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("lab", help="open the lessons, your own copies, in JupyterLab")
    command.add_argument("--port", type=int, help="the port to serve on (default: 8888 or above)")
    command.add_argument("--no-browser", action="store_true", help="only print the address")
    command.add_argument(
        "--folder",
        type=Path,
        help="where your copies live (default: my_course/ in the clone, or here)",
    )
    command.set_defaults(run=lab)

    command = commands.add_parser("progress", help="what you have solved so far")
    command.add_argument("--folder", type=Path, help="of your lessons (default: as `lab` has it)")
    command.set_defaults(run=progress)

    command = commands.add_parser("student", help="write the lessons without their solutions")
    command.add_argument("--out", type=Path, required=True, help="the folder to write them to")
    command.set_defaults(run=student)

    command = commands.add_parser("execute", help="for authors: run lessons, store their outputs")
    command.add_argument("lessons", nargs="+", metavar="NN", help="which lessons, such as 04 05")
    command.add_argument("--folder", type=Path, help="of the lessons (default: notebooks/)")
    command.set_defaults(run=execute)

    command = commands.add_parser("release", help="for a class: lessons as folder and zip")
    command.add_argument("lessons", nargs="+", metavar="NN", help="which lessons, such as 04 05")
    command.add_argument("--out", type=Path, required=True, help="the folder; the zip lies beside")
    command.add_argument("--due", default="", help="by when to hand in, for the cover")
    command.add_argument("--hand-in", default="", help="how to hand in, for the cover")
    command.add_argument("--wheel", type=Path, help="the package to hand out as well, a .whl")
    command.set_defaults(run=release)

    command = commands.add_parser("grade", help="grade what a class handed in")
    command.add_argument("submissions", type=Path, help="folder with an entry for each student")
    command.add_argument("--release", type=Path, required=True, help="the zip that was handed out")
    command.add_argument("--out", type=Path, required=True, help="the folder for the grades")
    command.add_argument("--workers", type=int, default=1, help="submissions at once (default: 1)")
    command.add_argument("--anonymous", action="store_true", help="ids in place of names")
    command.add_argument("--cell-seconds", type=float, default=120.0, help="for one cell (120)")
    command.add_argument("--memory-gb", type=float, default=3.0, help="for one submission (3)")
    command.set_defaults(run=grade)

    command = commands.add_parser("report", help="where the class is stuck, from its grades")
    command.add_argument("out", type=Path, metavar="GRADES", help="the folder of the grades")
    command.set_defaults(run=report)

    command = commands.add_parser("doctor", help="what this machine has, and if it computes right")
    command.set_defaults(run=doctor)

    command = commands.add_parser("data", help="rebuild what lies in data/, all or by name")
    what = "which (default: all that needs no network; real is made alone)"
    command.add_argument("names", nargs="*", metavar="NAME", help=what)
    command.add_argument("--list", action="store_true", help="say what there is, build nothing")
    command.set_defaults(run=data)

    command = commands.add_parser("fetch", help="get lesson 13's real model: 93 MB, once")
    command.add_argument("name", choices=["smollm2"], help="SmolLM2-135M-Instruct, Apache-2.0")
    command.set_defaults(run=fetch)
    _add_harvest(commands)
    _add_train(commands)
    return parser


def _add_harvest(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "harvest",
        help="write a model's activations over texts to the disk",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Write a model's activations to the disk, for `saelearn train --activations`. "
        "Called again it goes on where it was stopped; --part shares the work.",
    )
    command.set_defaults(run=harvest)
    add = command.add_argument
    add("--out", type=Path, required=True, help="the folder; of several sites, one in it for each")
    add("--site", nargs="+", default=(), dest="sites", metavar="SITE",
        help="places in the model, read in one pass (tiny has a default)")  # fmt: skip
    _add_source(add)
    add("--part", type=i_of_n, metavar="I/N", help="the I-th of N processes, from 0: 0/2 and 1/2")
    add("--skip", type=int, default=1, help="first positions of each document to leave out")
    add("--dtype", default="float16", help="of the rows: float16, bfloat16 or float32")
    add("--device", default="cpu", help="that the model runs on: cpu, cuda or mps")
    add("--quiet", action="store_true", help="no progress bar")


def _add_source(add) -> None:
    """What rows of a model are made from."""
    add("--model", default="tiny", help="the model: tiny, a folder or a name")
    add("--text", type=Path, help="a file (.txt, .jsonl) or a folder (default: the course's own)")
    add("--documents", type=int, default=4_000, help="how many of the course's corpus")
    add("--length", type=int, default=128, help="tokens in one document of a text")
    add("--bos", action=argparse.BooleanOptionalAction,
        help="open documents by BOS, or not (default: as the model was trained)")  # fmt: skip
    add("--max-norm", type=float, help="leave out rows longer than so many times the median row")
    add("--leave-tokens", type=int, nargs="*", default=(), metavar="ID",
        help="leave out the rows of these token ids")  # fmt: skip


def _add_train(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "train",
        help="train an SAE on a file of activations, or on a model and a text",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Train a sparse autoencoder. Called again it goes on where it was stopped. "
        "On several processes: torchrun --nproc-per-node 2 -m saelearn.cli train ...",
    )
    command.set_defaults(run=train)
    add = command.add_argument
    add("--out", type=Path, required=True, help="the folder to save to, in SAELens' layout")
    add("--activations", type=Path, help=".npy or .safetensors with [N, D], or a store's folder")
    add("--site", help="a place in the model, such as transformer.h.1:out (tiny has a default)")
    _add_source(add)
    add("--d-sae", type=int, help="number of features (default: 16 times the width)")
    add("--kind", default="standard", help="standard, topk, batchtopk, jumprelu or gated")
    add("--k", type=int, help="active features, for topk and batchtopk")
    add("--target-l0", type=float, help="active features that jumprelu comes to")
    add("--l1", type=float, default=1.0, dest="l1_coefficient", help="lambda: more is sparser")
    add("--steps", type=int, default=4_000, help="optimizer steps")
    add("--batch-size", type=int, default=2_048, help="rows a step, of all processes together")
    add("--lr", type=float, help="peak learning rate (default: by batch size and width)")
    add("--resample-at", type=float, nargs="*", default=(), metavar="SHARE",
        help="when dead features start anew, as shares of the steps")  # fmt: skip
    add("--seed", type=int, default=0, help="of weights, shuffling and resampling")
    add("--device", default="cpu", help="cpu, cuda or mps")
    add("--precision", default="fp32", help="fp32, bf16, or on CUDA tf32")
    add("--checkpoint", type=Path, help="folder of checkpoints (default: beside --out, until done)")
    add("--checkpoint-every", type=steps_or_seconds, default="60s", metavar="N|Ns",
        help="steps, or seconds with an s")  # fmt: skip
    add("--timeout", type=float, default=120.0, help="seconds until a lost process is given up")
    add("--quiet", action="store_true", help="no progress bar")


if __name__ == "__main__":
    sys.exit(main())
