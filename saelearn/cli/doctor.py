"""What this machine has, and whether its backends compute the same.

`examine()` looks and returns a `Report`; `str(report)` is what a person reads. Nothing is printed
and nothing is changed here.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saelearn import artifacts
from saelearn.errors import ArtifactError
from saelearn.train.fast import processor

PACKAGES = [
    *("saelearn", "torch", "numpy", "transformers", "tokenizers", "safetensors"),
    *("matplotlib", "jupyterlab", "notebook", "ipywidgets", "anywidget"),
]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # of the largest value of each result
CRAMPED_GIB = 4.0  # of memory: the heaviest lesson takes about half of that


@dataclass(frozen=True)
class Agreement:
    """How far a backend is from the CPU in float64 on the same small computation.

    `error` is the largest difference, relative to the largest value of the result it occurs in,
    over the loss and its gradients; infinite if the computation failed, with the reason in `note`.
    """

    backend: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def agrees(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Report:
    """What was found. `problems` need a remedy, `advice` may be left; both say what to do."""

    machine: dict[str, str]
    versions: dict[str, str]
    agreements: list[Agreement]
    data: str
    problems: list[str]
    advice: list[str]

    @property
    def healthy(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        agreements = {
            a.backend: f"{'agrees' if a.agrees else 'DISAGREES'}, off by {a.error:.1e} "
            f"(may be {a.tolerance:.0e}) {a.note}".rstrip()
            for a in self.agreements
        }
        sections = {
            "This machine": self.machine,
            "Versions": self.versions,
            "Against the CPU in float64": agreements,
            "Course data": {"data/": self.data},
        }
        lines = []
        for title, rows in sections.items():
            lines += [title, *(f"  {key:<14} {value}" for key, value in rows.items()), ""]
        lines += [f"PROBLEM  {text}" for text in self.problems]
        lines += [f"advice   {text}" for text in self.advice]
        lines.append("Everything is fine." if self.healthy else "Please mend the above.")
        return "\n".join(lines)


def examine() -> Report:
    """Look at the machine, compare its backends and verify the course's data."""
    agreements = [compare(device, dtype) for device, dtype in backends()]
    data, damage = _check_data()
    problems = [*map(_remedy, (a for a in agreements if not a.agrees)), *damage]
    versions = {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}}
    return Report(describe(), versions, agreements, data, problems, _advise())


def describe() -> dict[str, str]:
    """CPU, threads, accelerators and memory in words."""
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    cuda = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus)
    memory = memory_gib()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": f"{processor()}, {cores()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "torch threads": str(torch.get_num_threads()),
        "memory": f"{memory:.1f} GiB" if memory else "unknown",
        "cuda": cuda or "none",
        "apple gpu": "yes (mps)" if torch.backends.mps.is_available() else "none",
    }


def backends() -> list[tuple[str, torch.dtype]]:
    """Each backend of this machine with the precisions that the course uses on it."""
    found = [("cpu", torch.float32)]
    if torch.cuda.is_available():
        found += [("cuda", torch.float64), ("cuda", torch.float32)]
    if torch.backends.mps.is_available():
        found.append(("mps", torch.float32))  # Apple's GPUs have no float64
    return found


def compare(
    device: str,
    dtype: torch.dtype,
    compute: Callable[[str, torch.dtype], list[Tensor]] | None = None,
) -> Agreement:
    """Run a small SAE forward and backward on a backend and on the CPU in float64.

    Args:
        device: "cpu", "cuda" or "mps".
        dtype: the precision there.
        compute: what to run there; the test passes a broken one.
    """
    name = f"{device} {str(dtype).removeprefix('torch.')}"
    reference = small_sae("cpu", torch.float64)
    try:
        results = (compute or small_sae)(device, dtype)
    except RuntimeError as error:  # out of memory, a missing kernel, a driver that does not fit
        note = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return Agreement(name, float("inf"), TOLERANCE[dtype], note)
    pairs = zip(results, reference, strict=True)
    errors = torch.stack([(a - b).abs().max() / b.abs().max() for a, b in pairs])
    worst = errors.nan_to_num(nan=float("inf")).max()  # not-a-number is as wrong as can be
    return Agreement(name, float(worst), TOLERANCE[dtype])


def small_sae(device: str, dtype: torch.dtype) -> list[Tensor]:
    """Loss and gradients of an SAE 32 -> 128 on 256 rows, as doubles on the CPU.

    The random numbers are drawn on the CPU in float64, so every backend gets the same ones. The
    loss is written out, not taken from `sae`: a measure that depends on nothing that it judges.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
        return numbers.to(dtype).to(device)

    x_ND, W_enc, W_dec = draw(256, 32), draw(32, 128) * 0.2, draw(128, 32) * 0.1
    b_enc = draw(128) * 0.01
    weights = [w.requires_grad_() for w in (W_enc, W_dec, b_enc)]
    f_NF = torch.relu(x_ND @ W_enc + b_enc)
    error = (f_NF @ W_dec - x_ND).pow(2).sum(-1).mean()
    loss = error + 0.1 * (f_NF * W_dec.norm(dim=-1)).sum(-1).mean()
    gradients = torch.autograd.grad(loss, weights)
    return [t.detach().to("cpu").double() for t in (loss, *gradients)]


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gib() -> float | None:
    """The machine's memory in GiB, if the system tells it."""
    try:
        import psutil  # comes with jupyterlab's kernel, and works on every system

        return psutil.virtual_memory().total / 2**30
    except ImportError:
        return None


def _advise() -> list[str]:
    advice, threads, memory = [], torch.get_num_threads(), memory_gib()
    if threads > cores():
        advice.append(
            f"torch uses {threads} threads on {cores()} cores, which can be many times slower "
            f"than one. Set OMP_NUM_THREADS={cores()} (or 1) before starting Python."
        )
    elif cores() <= 4 and threads > 1 and "OMP_NUM_THREADS" not in os.environ:
        advice.append(
            "On few cores shared with other programs, one thread is often the fastest for small "
            "models: if a lesson is slow, set OMP_NUM_THREADS=1 before starting Python."
        )
    if memory and memory < CRAMPED_GIB:
        advice.append(f"{memory:.1f} GiB of memory is little: keep one lesson open at a time.")
    return advice


def _remedy(agreement: Agreement) -> str:
    device = agreement.backend.split()[0]
    remedies = {
        "cpu": "Reinstall torch in a fresh environment (make clean, make lab). If it stays, "
        'try ATEN_CPU_CAPABILITY=default, and pass device="cpu", dtype=torch.float64.',
        "cuda": 'Pass device="cpu" for now. Update the driver to one that fits this torch '
        "(nvidia-smi shows it), and see that TF32 and NVIDIA_TF32_OVERRIDE are off.",
        "mps": 'Pass device="cpu" for now: the lessons are made for it. Updating macOS and torch '
        "often helps.",
    }
    return f"{agreement.backend} does not agree with the CPU in float64. {remedies[device]}"


def _check_data() -> tuple[str, list[str]]:
    """Verify what data/ holds: one line to read, and the problems."""
    root = artifacts.data_dir()
    try:
        listed = artifacts.read_json(root / "manifest.json")
    except ArtifactError as error:
        return "not readable", [f"data/ cannot be used. {error}"]
    problems = []
    for name in sorted({file.split("/")[0] for file in listed}):
        try:
            artifacts.find(name)
        except ArtifactError as error:
            problems.append(str(error))
    size = sum((root / file).stat().st_size for file in listed if (root / file).is_file())
    state = "verified" if not problems else f"{len(problems)} damaged"
    return f"{len(listed)} files, {size / 2**20:.1f} MiB, {state}", problems


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
