"""The GPU's kernels on a machine without one: Triton's interpreter runs them on the CPU."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TRITON = ROOT / ".venv" / "triton"

pytestmark = pytest.mark.skipif(
    not (TRITON / "triton").exists(), reason="no Triton here: `make test` fetches it on Linux"
)

QUICK = "test_a_few_batches"
SHORT = f"{QUICK} or equals or rounded or recorded or frozen or (adam and weighted-1.0-fp32)"
"""What is interpreted in a minute; all of it takes ten."""
MUTATIONS = {
    "a sum that forgets the price": (
        "tl.sum(e * w[None, :], 1) + price",
        "tl.sum(e * w[None, :], 1)",
    ),
    "a mask that counts zeros": ("on = inside & (z > 0)", "on = inside & (z >= 0)"),
    "a list that starts one too late": ("- base + tl.cumsum(n, 0) - n", "- base + tl.cumsum(n, 0)"),
    "a bit turned into another row": (
        "<< shift[None, None, :], 2)",
        "<< (31 - shift)[None, None, :], 2)",
    ),
    "pieces added once too few": ("for s in range(0, pieces):", "for s in range(1, pieces):"),
}


MISSING = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
GONE = {"nbval", "nbclient", "nbformat", "nbgrader", "ipywidgets", "anywidget", "plotly",
        "jupyter_client", "jupyterlab", "IPython"}
PathFinder.find_spec = classmethod(
    lambda cls, name, *more: None if name.split(".")[0] in GONE else find(name, *more))
"""


def test_a_gpus_machine_needs_no_notebooks(tmp_path):
    """`pytest -m gpu tests` from a checkout, where PyTorch and pytest are all that is installed."""
    (tmp_path / "without.py").write_text(MISSING, "utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "without", "-p", "no:nbval"]
    command += ["-p", "no:cacheprovider", "-p", "no:anyio", "-m", "gpu", "tests"]
    environment = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-2_000:]
    assert "error" not in done.stdout
    assert int(re.search(r"(\d+) skipped", done.stdout)[1]) > 30


def interpreted(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """pytest over the engine's tests, with the package of a folder."""
    path = os.pathsep.join(map(str, (TRITON, folder, ROOT)))
    environment = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), "-m", "gpu and not slow", *arguments]
    command += [str(ROOT / "tests" / "test_gpu_engine.py")]
    # pytest looks for packages in the folder that it is started in before all others
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


@pytest.mark.parametrize("chosen", [SHORT, pytest.param("", marks=pytest.mark.slow)])
def test_they_agree_with_autograd(chosen):
    done = interpreted(ROOT, "-k", chosen)
    assert done.returncode == 0, done.stdout[-3_000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 5


NAMES = [name if i < 3 else pytest.param(name, marks=pytest.mark.slow)
         for i, name in enumerate(MUTATIONS)]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_kernel_is_noticed(name, tmp_path):
    right, wrong = MUTATIONS[name]
    shutil.copytree(
        ROOT / "saelearn", tmp_path / "saelearn", ignore=shutil.ignore_patterns("__pycache__")
    )
    path = tmp_path / "saelearn" / "train" / "fast" / "triton_kernels.py"
    text = path.read_text("utf-8")
    assert text.count(right) >= 1
    path.write_text(text.replace(right, wrong), "utf-8")
    done = interpreted(tmp_path, "-k", QUICK)
    wrote_elsewhere = done.returncode < 0  # the interpreter's process crashed
    assert wrote_elsewhere or (done.returncode == 1 and "1 failed" in done.stdout), done.stdout
