"""The arguments of a training, and which of their values make sense."""

from __future__ import annotations

import torch

from saelearn.errors import Refusal, check_range
from saelearn.sae import DECODER_NORMS

PRECISIONS = ("fp32", "bf16")
DEVICES = ("cpu", "cuda", "mps")


def check_arguments(
    l1_coefficient: float, steps: int, lr: float, decoder_norm: str, precision: str, log_every: int
) -> None:
    """Refuse what cannot be trained with, before any work is done."""
    check_range(l1_coefficient, "l1_coefficient", 0.0)
    check_range(steps, "steps", 1)
    check_range(lr, "lr", 0.0)
    check_range(log_every, "log_every", 1)
    for value, name, known in (
        (decoder_norm, "decoder_norm", DECODER_NORMS),
        (precision, "precision", PRECISIONS),
    ):
        if value not in known:
            raise Refusal(f"{name} as one of {', '.join(known)}", repr(value))


def check_device(device: str | torch.device) -> None:
    """Refuse a device that PyTorch does not know, or that this machine does not have."""
    kind = str(device).split(":")[0]
    if kind not in DEVICES:
        raise Refusal(f"device as one of {', '.join(DEVICES)}", repr(str(device)))
    here = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not here[kind]:
        able = ", ".join(name for name, there in here.items() if there)
        raise Refusal(f"a device that there is: {able}", repr(str(device)), "saelearn doctor")
