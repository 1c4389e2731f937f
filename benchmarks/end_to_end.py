"""A training from a fresh start: ours against SAELens, same start, same batches, equal result.

    python -m benchmarks.end_to_end --json

Size S: 128 dimensions, 1,024 features, batches of 1,024 rows made of planted features; L0 falls
from half of all features to about one in a hundred. Both take turns; loss and L0 at the end are
given beside the seconds. `follow` compares the losses of 200 steps, one by one, at SAELens'
own learning rate: at higher ones rounding decides more often what is active.
Without sae-lens only our side runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks import machine
from saelearn.sae import SAE
from saelearn.toy import PlantedFeatures
from saelearn.train import train

D, F, B = 128, 1_024, 1_024
L1, LR, SLOW_LR = 2.0, 2e-3, 3e-4
PLAIN = {
    "lr_warmup": 0.0, "lr_decay": 0.0, "l1_warmup": 0.0, "normalize": False, "bias_lr": 1.0,
    "basis": "given", "center": "zero", "progress": False,
}  # fmt: skip


def rows(n: int) -> Tensor:
    """Rows of the kind that models have: 1,024 directions, eight of them on, in 128 dimensions."""
    planted = PlantedFeatures.make(F, D, 8 / F)
    return 3 * planted.sample(n, generator=torch.Generator().manual_seed(0))[0]


def batches(x_ND: Tensor) -> Iterator[Tensor]:
    while True:
        yield from x_ND.split(B)


def ours(x_ND: Tensor, steps: int, *, log_every: int, lr: float = LR) -> list[dict]:
    """The history of a training by `train`."""
    arguments = {"l1_coefficient": L1, "lr": lr, "steps": steps, "log_every": log_every}
    return train(batches(x_ND), F, **arguments, **PLAIN).history


def sae_lens(x_ND: Tensor, steps: int, *, log_every: int, lr: float = LR) -> list[dict]:
    """The same by SAELens' trainer."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=D, d_sae=F, l1_coefficient=L1))
    start = SAE(D, F, seed=0).state_dict()
    sae.load_state_dict({name: value.contiguous() for name, value in start.items()})
    config = SAETrainerConfig(
        total_training_samples=steps * B, train_batch_size_samples=B, lr=lr, lr_end=lr
    )
    stream = batches(x_ND)
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=stream)
    history = []
    for i in range(steps):
        output = trainer.step(next(stream))
        trainer.n_training_steps += 1
        if (i + 1) % log_every == 0:
            l0 = float((output.feature_acts > 0).sum(1).float().mean())
            history.append({"step": i + 1, "loss": float(output.loss.detach()), "l0": l0})
    return history


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    x_ND = rows(64 * B)
    ways = {"saelearn": ours} | ({"sae_lens": sae_lens} if machine.version("sae-lens") else {})
    first = {name: way(x_ND, 200, log_every=1, lr=SLOW_LR) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    last = {}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            last[name] = way(x_ND, arguments.steps, log_every=arguments.steps)[-1]
            times[name].append(time.perf_counter() - started)
    report = {
        "machine": machine.describe(),
        "steps": arguments.steps,
        "seconds": {name: round(min(t), 2) for name, t in times.items()},
        "loss": {name: record["loss"] for name, record in last.items()},
        "l0": {name: record["l0"] for name, record in last.items()},
        "l0_at_start": first["saelearn"][0]["l0"],
    }
    if "sae_lens" in ways:
        report["ratio"] = round(machine.ratio(times["sae_lens"], times["saelearn"]), 2)
        pairs = zip(first["saelearn"], first["sae_lens"], strict=True)
        report["follow"] = max(abs(a["loss"] / b["loss"] - 1) for a, b in pairs)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
