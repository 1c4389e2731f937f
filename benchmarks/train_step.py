"""One training step in steady state, L1 or TopK: ours against the textbook's and the peers'.

    python -m benchmarks.train_step --json --size M --kind l1 --kind topk --threads 1 --busy

Weights that keep a given share of features active, the same for all; forward, backward and
optimizer. All take turns, and ratios are medians over the rounds. The limit is the encoder's
product alone, 2 B D F operations, at the best fp32 product measured in the same rounds; beside it
stands what a copy of 64 MB reached, since a busy machine has little of its memory's bandwidth.
`--busy` measures all twice, the second time beside a process that streams through memory on another
core. `slowest_tenth` is how long the slowest tenth of our steps take, over the median;
`one_thread`, where there are several, our step with one.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Sequence

import torch

from benchmarks import machine, peers

SIZES = {"S": (1_024, 128, 1_024), "M": (2_048, 512, 4_096), "L": (4_096, 768, 8_192)}  # B, D, F
SECONDS = 0.15  # of a turn, at least one step
CALLS = 100  # single steps of which the slowest are looked at


def measure(size: str, l0: float, *, with_peers: bool, rounds: int, kind: str = "l1") -> dict:
    """Samples a second of each, ours over theirs, and the share of the limit."""
    B, D, F = SIZES[size]
    problem = peers.Problem.make(B, D, F, l0)
    if kind == "topk":
        problem, packages = problem.unbiased(), peers.TOPK
        steps = {"saelearn": peers.saelearn_topk, "textbook": peers.textbook_topk}
    else:
        packages, steps = peers.PACKAGES, {"saelearn": peers.saelearn, "textbook": peers.textbook}
    if with_peers:
        steps |= {make.__name__: make for make, name in packages.items() if machine.version(name)}
    ways, left_out = {}, {}
    for name, make in steps.items():
        try:
            ways[name] = make(problem)
            ways[name]()
        except (RuntimeError, MemoryError) as error:  # one peer needs 48 GB for a step of size L
            left_out[name] = str(error).splitlines()[0]
            ways.pop(name, None)
    if torch.get_num_threads() > 1:
        ways["one_thread"] = in_one_thread(ways["saelearn"])
    beside = machine.products(B, D, F) | {"copy": machine.copy()}
    times = machine.interleaved(ways | beside, rounds=rounds, seconds=SECONDS)
    slowest = machine.slowest_tenth(ways["saelearn"], calls=CALLS)
    copy = statistics.median(times.pop("copy"))
    limits = [min(r) for r in zip(*(t for n, t in times.items() if n not in ways), strict=True)]
    ratios = {n: round(machine.ratio(times[n], times["saelearn"]), 2) for n in list(ways)[1:]}
    return {
        "kind": kind,
        "size": size,
        "l0": l0,
        "threads": torch.get_num_threads(),
        "samples_per_s": {n: round(B / statistics.median(times[n])) for n in ways},
        "ratio": ratios,
        "slowest_tenth": round(slowest, 2),
        "left_out": left_out,
        "share_of_limit": float(f"{machine.ratio(limits, times['saelearn']):.3g}"),
        "product_gflops": {
            n.removeprefix("product_"): round(2e-9 * B * D * F / statistics.median(t))
            for n, t in times.items()
            if n not in ways
        },
        "copy_gb_per_s": round(1e-9 * machine.COPIED / copy, 1),
    }


def in_one_thread(step: Callable[[], object]) -> Callable[[], None]:
    n_threads = torch.get_num_threads()

    def alone() -> None:
        torch.set_num_threads(1)
        try:
            step()
        finally:
            torch.set_num_threads(n_threads)

    return alone


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument("--size", choices=SIZES, action="append", help="default: M")
    parser.add_argument("--kind", choices=("l1", "topk"), action="append", help="default: l1")
    parser.add_argument("--l0", type=float, action="append", help="share active; default: 0.01")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--busy", action="store_true", help="and beside one that streams memory")
    parser.add_argument("--peers", choices=("none", "installed"), default="installed")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    results = []
    wanted = itertools.product(
        arguments.kind or ["l1"], arguments.size or ["M"], arguments.l0 or [0.01],
        [False, True][: 1 + arguments.busy],
    )  # fmt: skip
    how = {"with_peers": arguments.peers == "installed", "rounds": arguments.rounds}
    for kind, size, l0, busy in wanted:
        beside = machine.neighbour() if busy else contextlib.nullcontext()
        with contextlib.redirect_stdout(sys.stderr), beside:  # some peers talk
            results.append({"busy": busy} | measure(size, l0, kind=kind, **how))
        if not arguments.json:
            print(json.dumps(results[-1]), file=sys.stderr)
    print(json.dumps({"machine": machine.describe(), "results": results}))


if __name__ == "__main__":
    main()
