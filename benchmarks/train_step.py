"""One L1 training step in steady state: ours against the textbook's and the peers'.

    python -m benchmarks.train_step --json --size M --l0 0.01 --threads 1 --peers installed

Weights that keep a given share of features active, the same for all; forward, backward and
optimizer. All take turns, and ratios are medians over the rounds. The limit is the encoder's
product alone, 2 B D F operations, at the best fp32 product measured in the same rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Sequence

import torch

from benchmarks import machine, peers

SIZES = {"S": (1_024, 128, 1_024), "M": (2_048, 512, 4_096), "L": (4_096, 768, 8_192)}  # B, D, F
SECONDS = 0.15  # of a turn, at least one step


def measure(size: str, l0: float, *, with_peers: bool, rounds: int) -> dict:
    """Samples a second of each, ours over theirs, and the share of the limit."""
    B, D, F = SIZES[size]
    problem = peers.Problem.make(B, D, F, l0)
    steps = {"saelearn": peers.saelearn, "textbook": peers.textbook}
    if with_peers:
        steps |= {
            make.__name__: make for make, name in peers.PACKAGES.items() if machine.version(name)
        }
    ways, left_out = {}, {}
    for name, make in steps.items():
        try:
            ways[name] = make(problem)
            ways[name]()
        except (RuntimeError, MemoryError) as error:  # one peer needs 48 GB for a step of size L
            left_out[name] = str(error).splitlines()[0]
            ways.pop(name, None)
    times = machine.interleaved(ways | machine.products(B, D, F), rounds=rounds, seconds=SECONDS)
    limits = [min(r) for r in zip(*(t for n, t in times.items() if n not in ways), strict=True)]
    ratios = {n: round(machine.ratio(times[n], times["saelearn"]), 2) for n in list(ways)[1:]}
    return {
        "size": size,
        "l0": l0,
        "threads": torch.get_num_threads(),
        "samples_per_s": {n: round(B / statistics.median(times[n])) for n in ways},
        "ratio": ratios,
        "left_out": left_out,
        "share_of_limit": round(machine.ratio(limits, times["saelearn"]), 3),
        "product_gflops": {
            n.removeprefix("product_"): round(2e-9 * B * D * F / statistics.median(t))
            for n, t in times.items()
            if n not in ways
        },
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument("--size", choices=SIZES, action="append", help="default: M")
    parser.add_argument("--l0", type=float, action="append", help="share active; default: 0.01")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", choices=("none", "installed"), default="installed")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    results = []
    for size in arguments.size or ["M"]:
        for l0 in arguments.l0 or [0.01]:
            with contextlib.redirect_stdout(sys.stderr):  # some peers talk
                results.append(
                    measure(
                        size, l0, with_peers=arguments.peers == "installed", rounds=arguments.rounds
                    )
                )
            if not arguments.json:
                print(json.dumps(results[-1]), file=sys.stderr)
    print(json.dumps({"machine": machine.describe(), "results": results}))


if __name__ == "__main__":
    main()
