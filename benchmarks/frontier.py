"""Architectures on the tiny language model: each at several L0, sizes and seeds, judged by truth.

    python -m benchmarks.frontier --json [--kind TopK] [--d-sae 256] [--seeds 3] [--log FILE]

All is as in lesson 11 (`saelearn.tiny.beyond`, whose trainings and measures these are): the same
tokens in the same order, the defaults of `train`. For each architecture, size and strength:
reconstruction, loss recovered from three bottoms, best-feature F1, absorption, dead features and
seconds, as mean and standard deviation over seeds; and the same read off at an L0 of `beyond.AT`.
Where SAELens is installed its trainers run too, from the same start on the same rows; k, target and
coefficients are the same. With `--log` each finished training is a line of a file, and a second
call goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import architectures, machine
from saelearn.sae import SAE
from saelearn.tiny import beyond, shipped
from saelearn.train import mean_norm_scale

PEERS = {
    "L1": "l1",
    "Gated": "gated",
    "TopK": "topk",
    "BatchTopK": "batchtopk",
    "JumpReLU": "jumprelu_target",
    "Matryoshka": "matryoshka",
}
FIGURES = (*beyond.FIGURES, "seconds")
Run = dict[str, Any]


def sae_lens(
    bench: beyond.Bench, kind: str, strength: float, seed: int, d_sae: int, steps: int
) -> SAE:
    """SAELens' SAE of the site's activations as they are."""
    scale = mean_norm_scale(bench.x_ND)
    data = architectures.Data(
        "tiny", bench.x_ND * scale, bench.x_held_ND * scale, d_sae, int(beyond.AT), steps
    )
    peer = architectures.KINDS[PEERS[kind]]
    return architectures.sae_lens(peer, data, strength, seed).fold_scale_(scale)


def one(
    bench: beyond.Bench, tool: str, kind: str, strength: float, seed: int, d_sae: int, steps: int
) -> Run:
    """Train one, and measure it."""
    with contextlib.redirect_stdout(sys.stderr):
        if tool == "saelearn":
            run, _ = bench.run(kind, strength, seed, d_sae=d_sae, steps=steps)
        else:
            started = time.perf_counter()
            sae = sae_lens(bench, kind, strength, seed, d_sae, steps)
            run = {"kind": kind, "strength": strength, "seed": seed}
            run["seconds"] = round(time.perf_counter() - started, 1)
            run |= bench.score(sae)._asdict()
    return {"tool": tool, "d_sae": d_sae, "steps": steps} | run


def trainings(
    tools: Sequence[str], kinds: Sequence[str], sizes: Sequence[int], l0: Sequence[int], seeds: int
) -> Iterator[tuple]:
    """Tool, kind, strength, seed and size of all that has to be trained."""
    for seed in range(seeds):
        for size in sizes:
            for kind in kinds:
                for strength in beyond.STRENGTHS[kind] if kind in beyond.TUNED else l0:
                    yield from ((tool, kind, strength, seed, size) for tool in tools)


def summary(runs: Sequence[Run]) -> list[Run]:
    """A row for each tool, kind, size and strength; and one, of `strength` None, at equal L0."""
    rows = []
    for tool, d_sae, steps in dict.fromkeys((r["tool"], r["d_sae"], r["steps"]) for r in runs):
        mine = [r for r in runs if (r["tool"], r["d_sae"], r["steps"]) == (tool, d_sae, steps)]
        named = {"tool": tool, "d_sae": d_sae, "steps": steps}
        for kind, strength in dict.fromkeys((r["kind"], r["strength"]) for r in mine):
            same = [r for r in mine if (r["kind"], r["strength"]) == (kind, strength)]
            rows.append(named | _row(kind, strength, same, FIGURES))
        for kind, same in beyond.at_equal_l0(mine).items():
            rows.append(named | _row(kind, None, same, beyond.FIGURES))
    return rows


def _row(kind: str, strength: float | None, runs: Sequence[Run], figures: Sequence[str]) -> Run:
    spread = {name: architectures.spread([run[name] for run in runs]) for name in figures}
    return {"kind": kind, "strength": strength, "seeds": len(runs)} | spread


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frontier", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--kind", choices=beyond.KINDS, action="append", help="default: all")
    parser.add_argument("--tool", choices=("saelearn", "sae_lens"), action="append",
                        help="default: installed")  # fmt: skip
    parser.add_argument("--d-sae", type=int, action="append", help=f"default: {beyond.D_SAE}")
    parser.add_argument("--l0", type=int, action="append",
                        help=f"of those that are told theirs; default: {beyond.AT}")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=len(beyond.SEEDS))
    parser.add_argument("--steps", type=int, default=beyond.STEPS)
    parser.add_argument("--quick", action="store_true", help="20 steps, one seed: does it run?")
    parser.add_argument("--log", type=Path, help="a line for each training; goes on from there")
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    quick = arguments.quick
    tools = arguments.tool or ["saelearn", *["sae_lens"] * bool(machine.version("sae-lens"))]
    size = {"documents": 60, "held_out": 40} if quick else {}
    bench = beyond.Bench(shipped.load_lm(), **size)
    train = functools.partial(one, bench)
    steps, log, runs = 20 if quick else arguments.steps, arguments.log, []
    if log and log.exists():
        runs = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    key = ("tool", "kind", "strength", "seed", "d_sae", "steps")
    done = {tuple(run[name] for name in key) for run in runs}
    wanted = trainings(
        tools, arguments.kind or list(beyond.KINDS), arguments.d_sae or [beyond.D_SAE],
        arguments.l0 or [beyond.AT], 1 if quick else arguments.seeds,
    )  # fmt: skip
    for which in wanted:
        if (*which, steps) in done:
            continue
        runs.append(train(*which, steps))
        if not arguments.json:
            print(json.dumps(runs[-1]), file=sys.stderr)
        if log:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(runs[-1]) + "\n")
    print(json.dumps({"machine": machine.describe(), "results": summary(runs)}))


if __name__ == "__main__":
    main()
