"""How much memory a training takes, known before it is spent. Lesson 07 counts by hand.

Shapes: B batch, D activation width, F features; P = 2 D F + D + F parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch

from saelearn.errors import Refusal
from saelearn.sae import SAE
from saelearn.train.autograd import Autograd, Plan
from saelearn.train.batches import AHEAD
from saelearn.train.engines import engine_for
from saelearn.train.fast import gpu
from saelearn.train.frame import may_turn
from saelearn.train.settings import Settings

FP32 = 4  # bytes
LISTED = 10  # bytes for an active entry: row and value, and a fifth more room
SPARSE_BELOW = Plan().sparse_below
AUTOGRAD = 8  # matrices of the features' size that it holds at once (seen: 5 to 8)


def needed(
    d_in: int,
    d_sae: int,
    batch_size: int,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    processes: int = 1,
    sparse_below: float = SPARSE_BELOW,
    checkpoint: bool = False,
    parameters: tuple[int, int] | None = None,
    turned: int = 0,
    autograd: bool = False,
) -> dict[str, int]:
    """Bytes that training one SAE takes on a device, by what they are for; without the data.

    What `train` copies of these to a GPU it counts itself, as "data" (`beside`).

    Weights, gradients and moments are exact: four numbers a parameter. The step's own room is
    the most that it takes: features, their gradients and a temporary of each; the last step's
    gradients until the new ones are there. Or, later, going the sparse way, lists of active entries
    beside what the dense way keeps.
    The rest (PyTorch itself, a GPU's context) is not counted.

    Args:
        d_in, d_sae, batch_size: D, F and B.
        device: "cpu", "cuda", "mps"; on a GPU the next batch is already on its way.
        precision: "bf16" keeps rounded copies of weights, batch and features.
        processes: of `torchrun`, which share the batch and exchange gradients.
        sparse_below: of the kernel's plan: the largest share of active entries in such lists.
        checkpoint: whether some are written: the encoder and its moments are turned for it.
        parameters: how many belong to each feature, and how many to none; of the standard SAE if
            not given.
        turned: how many numbers the bases have that activations are turned to.
        autograd: the step goes by automatic differentiation, which keeps what it computes.
    """
    each, rest = parameters or (2 * d_in + 1, d_in)
    parameters = each * d_sae + rest
    rows = -(-batch_size // processes)
    on_gpu = torch.device(device).type != "cpu"
    step = FP32 * (rows * (3 * d_sae + 4 * d_in) + 2 * d_in * d_sae)
    if torch.device(device).type == "cuda" and not autograd and gpu.available():
        step = gpu.room(rows, d_in, d_sae, precision)
        ahead = FP32 * rows * d_in * (AHEAD + 3)  # those that travel are in fp32 at most
        return _parts(parameters, ahead, step, turned, processes, d_sae)
    if autograd:
        step += FP32 * rows * (AUTOGRAD - 3) * d_sae
    if precision == "bf16":
        step += 2 * (2 * d_in * d_sae + 2 * rows * (d_sae + d_in))
    elif not on_gpu and not autograd:
        lists = int(LISTED * sparse_below * rows * d_sae)
        step = max(step, FP32 * rows * (2 * d_sae + 4 * d_in) + lists)
    batch = FP32 * batch_size * d_in * (2 if on_gpu else 1)
    kept = 3 * FP32 * d_in * d_sae if checkpoint and not on_gpu else 0
    return _parts(parameters, batch, step, turned, processes, d_sae) | {"checkpoint": kept}


def _parts(
    parameters: int, batch: int, step: int, turned: int, processes: int, d_sae: int
) -> dict[str, int]:
    """What `needed` gives; a basis is there with the scale in it and without."""
    return {
        "weights": FP32 * parameters,
        "gradients": FP32 * parameters,
        "moments": 2 * FP32 * parameters,
        "batch": batch,
        "step": step,
        "axes": 2 * FP32 * turned,
        "exchange": FP32 * (parameters + d_sae) if processes > 1 else 0,
        "checkpoint": 0,
    }


def of_kind(sae: SAE, settings: Settings) -> dict[str, Any]:
    """What `needed` has to know of an architecture and its training.

    Args:
        sae: one of the kind, with however few features.
        settings: of the training.
    """
    each = sum(p.numel() for n, p in sae.named_parameters() if n in sae.feature_axis) // sae.d_sae
    rest = sum(p.numel() for n, p in sae.named_parameters() if n not in sae.feature_axis)
    how = {"device": settings.device, "precision": settings.precision}
    turned = 0
    if settings.basis == "principal" and may_turn(sae, settings.objective):
        turned = sum(width**2 for width in {sae.d_in, sae.d_out})
    engine = engine_for(sae, settings.objective, plan=Plan(), **how)
    return how | {
        "parameters": (each, rest),
        "turned": turned,
        "autograd": isinstance(engine, Autograd),
    }


def free(device: str = "cpu") -> int | None:
    """Bytes that can still be had on a device; None if the system does not tell."""
    kind = torch.device(device).type
    if kind == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if kind == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    known = [psutil.virtual_memory().available, _container()]
    return min(bytes_ for bytes_ in known if bytes_ is not None)


def _container() -> int | None:
    """What a container's limit leaves; pages that only cache files are given back when needed."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text("ascii"))
        used = int((group / "memory.current").read_text("ascii"))
        stat = dict(li.split() for li in (group / "memory.stat").read_text("ascii").splitlines())
        return limit - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):  # no limit is the word "max"
        return None


def check(
    d_in: int,
    d_sae: int,
    batch_size: int,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    processes: int = 1,
    sparse_below: float = SPARSE_BELOW,
    checkpoint: bool = False,
    neighbours: int = 1,
    parameters: tuple[int, int] | None = None,
    turned: int = 0,
    autograd: bool = False,
) -> dict[str, int]:
    """`needed`, if there is room for it.

    Args:
        neighbours: how many processes take the same from the same memory.

    Raises:
        Refusal: there is not; it names the largest d_sae and the largest batch_size that fit.
    """
    more = {"device": device, "precision": precision, "processes": processes}
    more |= {"sparse_below": sparse_below, "checkpoint": checkpoint}
    more |= {"parameters": parameters, "turned": turned, "autograd": autograd}
    parts, room = needed(d_in, d_sae, batch_size, **more), free(device)
    total = neighbours * sum(parts.values())
    if room is None or total <= room:
        return parts

    def fits(features: int, rows: int) -> bool:
        return neighbours * sum(needed(d_in, features, rows, **more).values()) <= room

    features = _largest(lambda n: fits(n, batch_size), d_sae)
    rows = _largest(lambda n: fits(d_sae, n), batch_size)
    ways = [f"d_sae={features:,}"] * (features > 0) + [f"batch_size={rows:,}"] * (rows > 0)
    if not ways:  # neither alone is enough
        halves = ((max(1, d_sae >> n), max(1, batch_size >> n)) for n in range(64))
        both = next((pair for pair in halves if fits(*pair)), None)
        ways = [f"d_sae={both[0]:,} with batch_size={both[1]:,}"] if both else []
    raise Refusal(
        f"{in_units(total)} of free memory on {device} ({describe(parts)})",
        in_units(room),
        f"{' or '.join(ways)} fits" if ways else "another device: the width alone is too much",
    )


def _largest(fits, below: int) -> int:
    """The largest number below `below` that fits (a multiple of 64 if above that); 0 if none."""
    low, high = 0, below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low // 64 * 64 if low > 64 else low


def describe(parts: dict[str, int]) -> str:
    """The parts in words."""
    return ", ".join(f"{name} {in_units(n)}" for name, n in parts.items() if n)


def title(name: str, parts: dict[str, int]) -> str:
    """What a training's progress bar is called: it says the memory before it is spent."""
    return f"{name}, {in_units(sum(parts.values()))} of memory"


def in_units(n: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("bytes", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.1f} GB"
