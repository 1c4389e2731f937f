"""Trainings for tests/test_parallel.py: `torchrun --nproc-per-node 2 shared_run.py FOLDER JSON`.

Each entry of the JSON list is one training; each process leaves what came out of it.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from killed_run import bits, run

from saelearn import artifacts
from saelearn.errors import Refusal
from saelearn.train import parallel


def one(folder: Path, number: int, arguments: dict[str, Any]) -> None:
    name = f"{number}.{parallel.rank()}"
    stop_at = arguments.pop("stop_at", None)
    if arguments.pop("differ", False):
        arguments["lr"] = 1e-3 * (1 + parallel.rank())

    def press(record: dict, sae: object) -> None:
        if record["step"] == stop_at and parallel.rank() == 1:
            signal.raise_signal(signal.SIGINT)

    if "checkpoint" in arguments:
        arguments["checkpoint"] = folder / arguments["checkpoint"]
    try:
        trained = run(callback=press, **arguments)
    except Refusal as refusal:
        artifacts.write_json(folder / f"{name}.json", {"refusal": str(refusal)})
        return
    artifacts.write_tensors(folder / f"{name}.safetensors", bits(trained))
    artifacts.write_json(folder / f"{name}.json", {"steps": trained.steps})


if __name__ == "__main__":
    folder, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    with parallel.started(timeout=60):
        for number, arguments in enumerate(jobs):
            one(folder, number, arguments)
