"""Sixteen small SAEs at once against sixteen textbook trainings, one after the other.

    python -m benchmarks.sweep --json

Toy data with 64 planted features in 32 dimensions, 128 features each, sixteen values of lambda.
The textbook loop is two linear layers, the loss as written, autograd and Adam; each training draws
its own batches. Both train from a fresh start and take turns; the ratio is a median over rounds.
`apart` says how far the SAEs of a sweep are from separate trainings after 200 steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import torch
from torch import nn

from benchmarks import machine
from saelearn.toy import PlantedFeatures
from saelearn.train import sweep, train

K, F = 16, 128
COEFFICIENTS = [float(v) for v in torch.logspace(-1.5, 0.3, K)]
SETTINGS = {"lr": 3e-3, "l1_warmup": 0.05, "lr_warmup": 0.02, "normalize": False}


def ours(steps: int, batch_size: int) -> None:
    planted = PlantedFeatures.make()
    sweep(
        lambda: planted.batches(batch_size), F, COEFFICIENTS, steps=steps,
        log_every=steps, progress=False, **SETTINGS,
    )  # fmt: skip


def textbook(steps: int, batch_size: int) -> None:
    planted = PlantedFeatures.make()
    for coefficient in COEFFICIENTS:
        torch.manual_seed(0)
        encoder, decoder = nn.Linear(32, F), nn.Linear(F, 32)
        parameters = [*encoder.parameters(), *decoder.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=SETTINGS["lr"])
        stream = planted.batches(batch_size)
        for _ in range(steps):
            x_BD = next(stream)
            f_BF = torch.relu(encoder(x_BD))
            error = (x_BD - decoder(f_BF)).square().sum(1).mean()
            loss = error + coefficient * (f_BF * decoder.weight.norm(dim=0)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def apart(steps: int, batch_size: int) -> dict:
    """The largest relative difference of a parameter between sweep and separate training."""
    planted, settings = PlantedFeatures.make(), SETTINGS | {"log_every": steps, "progress": False}
    together = sweep(lambda: planted.batches(batch_size), F, COEFFICIENTS, steps=steps, **settings)
    differences = []
    for coefficient, one in zip(COEFFICIENTS, together, strict=True):
        alone = train(
            planted.batches(batch_size), F, l1_coefficient=coefficient, steps=steps, **settings
        )
        pairs = zip(one.sae.parameters(), alone.sae.parameters(), strict=True)
        differences.append(max(float(((p - q).norm() / q.norm()).detach()) for p, q in pairs))
    l0 = [one.history[-1]["l0"] for one in together]
    return {"largest": max(differences), "median": sorted(differences)[K // 2], "l0": l0}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    results = []
    for batch_size in (256, 1_024):
        ours(10, batch_size)  # measures the plan, warms up
        times: dict[str, list[float]] = {"saelearn": [], "textbook": []}
        for _ in range(arguments.rounds):
            for name, way in (("saelearn", ours), ("textbook", textbook)):
                started = time.perf_counter()
                way(arguments.steps, batch_size)
                times[name].append(time.perf_counter() - started)
        results.append(
            {
                "batch_size": batch_size,
                "steps": arguments.steps,
                "seconds": {name: round(min(t), 2) for name, t in times.items()},
                "ratio": round(machine.ratio(times["textbook"], times["saelearn"]), 2),
                "apart": apart(200, batch_size),
            }
        )
    print(json.dumps({"machine": machine.describe(), "saes": K, "results": results}))


if __name__ == "__main__":
    main()
