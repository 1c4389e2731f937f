"""A training in a process of its own, for tests that kill it: `python killed_run.py FOLDER JSON`.

It says `at STEP` after each step, and leaves its weights in FOLDER/out.safetensors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from meddling import meddling
from own_architecture import LogSparsity, Loud
from torch import Tensor

from saelearn import artifacts
from saelearn.activations import ActivationStore
from saelearn.sae import (
    L1,
    SAE,
    BatchTopK,
    Gated,
    GatedL1,
    JumpL0,
    JumpReLU,
    Matryoshka,
    SkipTranscoder,
    Squared,
    TopK,
)
from saelearn.toy import PlantedFeatures
from saelearn.train import Trained, train
from saelearn.train.fast import Plan

SHAPES = {"small": (8, 16, 64), "sparse": (48, 512, 128)}  # D, F, B
PLANS = {
    "dense": Plan("plain", 0.0),
    "plain": Plan("plain", 1.1),
    "onednn": Plan("onednn", 1.1),
    "screen": Plan("screen", 1.1),
    "bytes": Plan("bytes", 1.1),
    "shorts": Plan("shorts", 1.1),
    "mixed": Plan("plain", 0.2),  # dense at first, sparse later
}


KINDS = {
    "standard": {"objective": L1(0.5)},
    "topk": {"kind": TopK, "k": 4, "objective": Squared(aux_k=3, dead_after=5)},
    "batchtopk": {"kind": BatchTopK, "k": 4, "objective": Squared(aux_k=3, dead_after=5)},
    "matryoshka": {"kind": BatchTopK, "k": 4, "objective": Matryoshka(widths=(4, 9))},
    "jumprelu": {"kind": JumpReLU, "objective": JumpL0(0.1, pre_act=0.01)},
    "jumprelu_target": {"kind": JumpReLU, "objective": JumpL0(target_l0=4.0)},
    "jumprelu_tanh": {"kind": JumpReLU, "objective": JumpL0(0.1, sparsity="tanh")},
    "gated": {"kind": Gated, "objective": GatedL1(0.3)},
    "skip_transcoder": {"kind": SkipTranscoder, "objective": L1(0.3)},
    "own": {"kind": Loud, "objective": LogSparsity(0.1)},
}


@dataclass
class Again(Iterable[Tensor]):
    """A stream that can only be read from its beginning."""

    toy: PlantedFeatures
    size: int

    def __iter__(self) -> Iterator[Tensor]:
        return self.toy.batches(self.size, seed=3)


def data(kind: str, shape: str) -> Tensor | Iterable[Tensor]:
    d_in, _, size = SHAPES[shape]
    toy = PlantedFeatures.make(2 * d_in, d_in, 3 / d_in)
    if kind == "stream":
        return Again(toy, size)
    x_ND = toy.sample(5 * size + size // 2, generator=torch.Generator().manual_seed(0))[0]
    return x_ND if kind == "tensor" else ActivationStore(x_ND, batch_size=size, drop_last=True)


def run(
    kind: str = "tensor",
    shape: str = "small",
    plan: str = "dense",
    of: str | None = None,
    callback: Callable[[dict, SAE], None] = lambda *_: None,
    **arguments,
) -> Trained:
    """The same training each time it is called; some features die, and are resampled.

    `of` names one of KINDS; a standard SAE by `l1_coefficient` without.
    """
    _, d_sae, size = SHAPES[shape]
    given = {"l1_coefficient": 0.5, "steps": 60, "batch_size": size, "log_every": 1, "seed": 3}
    if of is not None:
        given |= KINDS[of]
        del given["l1_coefficient"]
    given |= {"lr": 3e-3, "resample_at": (0.3, 0.6), "progress": False, "plan": PLANS[plan]}

    def poison(record: dict, sae: SAE) -> None:
        if record["step"] in (2, 20):
            bias_F = sae.b_gate if of == "gated" else sae.b_enc
            bias_F.data[record["step"] % 4 :: 4] = -100.0

    rows = data(kind, shape)
    if of == "skip_transcoder":
        mix = torch.randn(rows.shape[1], 5, generator=torch.Generator().manual_seed(1))
        given["target"] = torch.tanh(rows @ mix)
    with meddling(poison):
        return train(rows, d_sae, callback=callback, **given | arguments)


def bits(trained: Trained) -> dict[str, Tensor]:
    """Everything that has to be equal to the bit."""
    history = [[float(v) for v in record.values()] for record in trained.history]
    weights = {name: t.detach().clone() for name, t in trained.sae.state_dict().items()}
    return weights | {"history": torch.tensor(history, dtype=torch.float64)}


if __name__ == "__main__":
    folder, arguments = Path(sys.argv[1]), json.loads(sys.argv[2])

    def say(record: dict, sae: object) -> None:
        print("at", int(record["step"]), flush=True)

    trained = run(checkpoint=folder / "checkpoint", callback=say, **arguments)
    artifacts.write_tensors(folder / "out.safetensors", bits(trained))
