"""Toy models of superposition: seconds to train, against the published einsum form.

    python -m benchmarks.toy --json [--threads 1] [--rounds 5]

Both train the same model on data of the same law, with the same Adam, schedule, batch size and
number of steps. They run in turn; each round gives a ratio, and the median of ratios is told with
the range. `train_toy`'s own last evaluation counts against it. A longer run of each then shows
that the losses they reach are distributed alike, measured on the same fresh samples.

The published form (Elhage et al., 2022, and its public replications): own samples for each
instance, two draws and `torch.where`; two `torch.einsum` over instances; autograd; Adam.
Shapes: K instances, B batch, G features, D hidden dimensions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from saelearn import toy

LR = 1e-2


@dataclass(frozen=True)
class Size:
    """One comparison: G features in D dimensions, K instances, batch B, probability p."""

    n_features: int
    d_hidden: int
    n_instances: int
    batch_size: int
    p: float


SIZES = (
    Size(5, 2, 8, 1024, 0.1),
    Size(5, 2, 64, 1024, 0.1),
    Size(5, 2, 64, 1024, 1.0),
    Size(20, 5, 32, 1024, 0.05),
    Size(100, 15, 1, 256, 0.05),
    Size(100, 15, 8, 1024, 0.05),
)


def published(size: Size, steps: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Train in the published form; returns `W` [K, G, D] and `b` [K, G]."""
    K, G, B = size.n_instances, size.n_features, size.batch_size
    start = toy.ToyModel(G, size.d_hidden, n_instances=K, seed=seed)
    W, b = start.W, start.b
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam([W, b], lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        f_BKG = torch.where(torch.rand(B, K, G) <= size.p, torch.rand(B, K, G), torch.zeros(()))
        h_BKD = torch.einsum("bkg,kgd->bkd", f_BKG, W)
        f_hat_BKG = torch.relu(torch.einsum("bkd,kgd->bkg", h_BKD, W) + b)
        loss = (f_BKG - f_hat_BKG).square().mean(dim=(0, 2)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return W.detach(), b.detach()


def ours(size: Size, steps: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The same by `toy.train_toy`."""
    names = asdict(size)
    run = toy.train_toy(
        names.pop("n_features"), names.pop("d_hidden"), **names, steps=steps, lr=LR, seed=seed
    )
    return run.W, run.b


def compare(size: Size, rounds: int, steps: int) -> dict:
    """Seconds for `steps` steps of both, run in turn, and the ratios of the rounds."""
    seconds = {"saelearn": [], "published": []}
    forms = {"saelearn": ours, "published": published}
    for form in forms.values():
        form(size, 5)  # warm up
    for i in range(rounds):
        for name in sorted(forms, reverse=bool(i % 2)):
            start = time.perf_counter()
            forms[name](size, steps)
            seconds[name].append(time.perf_counter() - start)
    ratios = [theirs / mine for mine, theirs in zip(*seconds.values(), strict=True)]
    return {
        **asdict(size),
        "steps": steps,
        "seconds": {name: round(statistics.median(all_), 4) for name, all_ in seconds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


@torch.no_grad()
def losses(size: Size, W: Tensor, b: Tensor, chunks: int = 20) -> Tensor:
    """Loss of each instance, `[K]`, over 5,000 fresh samples a chunk, the same for all."""
    model = toy.ToyModel(size.n_features, size.d_hidden, n_instances=size.n_instances)
    model.W.data, model.b.data = W, b
    generator = torch.Generator().manual_seed(2**31)
    total_K = torch.zeros(size.n_instances)
    for _ in range(chunks):
        f_BG = toy.sample_features(5_000, size.n_features, size.p, generator=generator)
        total_K += toy.toy_loss(f_BG, model(f_BG), torch.ones(size.n_features))
    return total_K / chunks


def reached(size: Size, steps: int) -> dict:
    """Quartiles of the loss over instances after `steps` steps, in both forms."""
    marks = {"best": 0.0, "lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}
    found = {}
    for name, form in {"saelearn": ours, "published": published}.items():
        loss_K = losses(size, *form(size, steps))
        quantiles = loss_K.quantile(torch.tensor(list(marks.values()))).tolist()
        found[name] = {k: float(f"{v:.4g}") for k, v in zip(marks, quantiles, strict=True)}
    return {"steps": steps, **found}


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.toy", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object (else a table)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--steps",
        type=int,
        default=600,
        help="in each timed run; `train_toy` takes 2,000 by itself",
    )
    parser.add_argument("--loss-steps", type=int, default=1000, help="0: do not compare losses")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    results = []
    for size in SIZES:
        result = compare(size, options.rounds, options.steps)
        if options.loss_steps:
            result["loss"] = reached(size, options.loss_steps)
        results.append(result)
        if not options.json:
            print(result, flush=True)
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": options.threads,
    }
    if options.json:
        print(json.dumps({"machine": machine, "results": results}))


if __name__ == "__main__":
    main()
