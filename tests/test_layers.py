"""The house's order: layers point one way, without circles; importing does nothing."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "saelearn"
README = PACKAGE.parent / "README.md"
LAYERS = [
    ["errors", "style", "progress", "compiled"],
    ["artifacts", "metrics", "corpus", "toy"],
    ["sae", "lm"],
    ["train", "activations", "steer"],
    ["features"],
    ["tiny", "real"],
    ["plots", "exercises"],
    ["widgets", "course"],
    ["cli"],
]
"""The rooms from the ground up; a room imports from lower floors. Drawn in README, CONTRIBUTING."""
FLOOR = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
DISPLAY = {"matplotlib", "ipywidgets", "anywidget", "IPython"}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py" and path.name != "__main__.py"
}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


def room(module: str) -> str:
    return module.split(".")[0]


def layer(module: str) -> int:
    return FLOOR[room(module)]


def imports(module: str) -> set[str]:
    """The saelearn modules that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            assert "saelearn" not in names, f"{module}:{node.lineno} imports the package root"
            found |= {n.removeprefix("saelearn.") for n in names if n.startswith("saelearn.")}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            source = node.module or ""
            if source == "saelearn" or source.startswith("saelearn."):
                inner = source.removeprefix("saelearn").removeprefix(".")
                found |= {resolve(inner, a.name, f"{module}:{node.lineno}") for a in node.names}
    return found - {module}


def resolve(inner: str, name: str, where: str) -> str:
    """The module that `from saelearn.inner import name` reads."""
    candidate = f"{inner}.{name}".strip(".")
    if candidate in MODULES:
        return candidate
    assert inner, f"{where} takes `{name}` from the package root, or there is no such module"
    assert inner in MODULES, f"{where}: there is no module saelearn.{inner}"
    return inner


def rooms_between(links: dict[str, set[str]]) -> dict[str, set[str]]:
    """Which rooms each room imports from."""
    found: dict[str, set[str]] = {}
    for module, others in links.items():
        found.setdefault(room(module), set()).update(room(o) for o in others)
    return {name: others - {name} for name, others in found.items()}


def complaints(links: dict[str, set[str]]) -> list[str]:
    """What is against the order: a file that stands on no floor, an import upwards, a circle."""
    found = [f"{m}: its room stands on no floor" for m in links if room(m) not in FLOOR]
    found += [
        f"{module} imports {other}, which is not below it"
        for module, others in links.items()
        for other in others
        if room(module) != room(other) and FLOOR.get(room(other), 99) >= FLOOR.get(room(module), 0)
    ]
    for graph in (links, rooms_between(links)):
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            found.append(f"a circle: {' -> '.join(error.args[1])}")
    return found


def test_rooms_import_from_lower_floors_and_files_without_circles():
    assert not complaints({module: imports(module) for module in MODULES})


@pytest.mark.parametrize(
    ("links", "said"),
    [
        ({"sae.base": {"train.loop"}}, "sae.base imports train.loop, which is not below it"),
        ({"sae.base": {"lm.model"}}, "not below"),  # side by side is not below
        ({"attic.boxes": set()}, "attic.boxes: its room stands on no floor"),
        ({"sae.base": {"sae.topk"}, "sae.topk": {"sae.base"}}, "a circle"),
        ({"train.loop": {"sae.base"}, "sae.topk": {"train.state"}}, "a circle: "),
    ],
)
def test_the_order_can_be_broken(links, said):
    assert any(said in complaint for complaint in complaints(links))


def test_every_room_stands_on_a_floor_and_every_floor_is_a_room():
    assert {room(module) for module in MODULES} == set(FLOOR)


def test_the_drawing_in_the_readme_is_this_order():
    drawing = README.read_text("utf-8").split("```text rooms")[1].split("```")[0]
    drawn = [re.findall(r"[a-z]+", line.split("  ")[0]) for line in drawing.strip().splitlines()]
    assert drawn == LAYERS[::-1]


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) < FLOOR["plots"]])
def test_computation_knows_nothing_of_display(module):
    nodes = [n for n in ast.walk(tree(module)) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    assert module == "style" or not {name.split(".")[0] for name in names} & DISPLAY


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


NO_NETWORK = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise SystemExit(f"an import went to the network: {event} {arguments[1:]}")
sys.addaudithook(watch)
"""


def absent() -> set[str]:
    """Modules for hardware that this machine may not have, and what they then lack."""
    needs = {"train.fast.triton_kernels": "triton"}
    assert set(needs) <= set(MODULES)
    return {module for module, package in needs.items() if not find_spec(package)}


def test_importing_the_package_loads_nothing_and_stays_off_the_network():
    done = run(NO_NETWORK + "import saelearn; assert not {'torch', 'numpy'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_importing_every_module_stays_off_the_network_and_prints_nothing():
    names = ", ".join(f"saelearn.{module}" for module in MODULES if module not in absent())
    done = run(NO_NETWORK + f"import {names}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_import_takes_no_longer_than_torch():
    def seconds(module: str) -> float:
        start = time.perf_counter()
        assert run(f"import {module}").returncode == 0
        return time.perf_counter() - start

    ours, torchs = (min(seconds(module) for _ in range(3)) for module in ("saelearn", "torch"))
    assert ours <= 1.2 * torchs
