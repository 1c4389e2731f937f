"""The house's order: layers point one way, without circles; importing does nothing."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "saelearn"
LAYERS = [
    ["errors", "artifacts", "style"],
    ["toy", "sae", "variants", "metrics", "corpus"],
    ["kernels", "train", "lm"],
    ["activations", "features", "steer", "exchange"],
    ["plots", "widgets", "exercises", "course", "doctor", "build"],
    ["cli"],
]
DESIGNED = {name: number for number, names in enumerate(LAYERS) for name in names}
DISPLAY = {"matplotlib", "plotly", "ipywidgets", "anywidget", "IPython"}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


def layer(module: str) -> int:
    """The layer that the module's docstring states; a module in a package has the package's."""
    package = module.split(".")[0]
    stated = re.search(r"\bLayer (\d)\b", ast.get_docstring(tree(package)) or "")
    assert stated, f"{package}: end the first paragraph of its docstring with 'Layer N.'"
    return int(stated[1])


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


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_own_layer_or_a_lower_one(module):
    for other in imports(module):
        assert layer(other) <= layer(module), f"{module} (below) imports {other} (above)"


def test_no_circles():
    order = graphlib.TopologicalSorter({module: imports(module) for module in MODULES})
    order.prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("module", sorted(set(DESIGNED) & set(MODULES)))
def test_layers_are_those_of_the_design(module):
    assert layer(module) == DESIGNED[module]


@pytest.mark.parametrize("module", [m for m in MODULES if m != "style" and layer(m) < 4])
def test_computation_knows_nothing_of_display(module):
    nodes = [n for n in ast.walk(tree(module)) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in names} & DISPLAY


@pytest.mark.parametrize("module", MODULES)
def test_files_are_read_in_one_sitting(module):
    lines = MODULES[module].read_text("utf-8").count("\n")
    assert lines <= 300, f"{module} has {lines} lines: at most 300 are read in one sitting"
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and node.body[1:] else node.body[0]
            length = node.end_lineno - first.lineno + 1  # of the code: docstrings may be long
            assert length <= 50, f"{module}.{node.name} has {length} lines of code"


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


NO_NETWORK = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise SystemExit(f"an import went to the network: {event} {arguments[1:]}")
sys.addaudithook(watch)
"""


def test_importing_the_package_loads_nothing_and_stays_off_the_network():
    done = run(NO_NETWORK + "import saelearn; assert not {'torch', 'numpy'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_importing_every_module_stays_off_the_network_and_prints_nothing():
    names = ", ".join(f"saelearn.{module}" for module in MODULES)
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
