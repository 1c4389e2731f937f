"""What decides how a training comes out: checked once, and remembered by its checkpoints."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from saelearn.errors import (
    ABOVE_0,
    Refusal,
    brief,
    check_choice,
    check_flag,
    check_range,
    check_series,
    check_whole,
)
from saelearn.sae import CENTERS, L1, SAE, Objective, Squared
from saelearn.train.resampling import resampling_steps
from saelearn.train.update import l1_factor, lr_factor

BASES = ("principal", "given")
PRECISIONS = ("fp32", "tf32", "bf16")
DEVICES = ("cpu", "cuda", "mps")
FROZEN = {"decoder": "W_dec", "encoder": "W_enc"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `train` that decide what comes out; their defaults stand here alone."""

    d_sae: int
    objective: Objective
    steps: int
    kind: Callable[..., SAE] = SAE
    k: int | None = None
    batch_size: int = 512
    lr: float | None = None
    bias_lr: float | None = None
    lr_warmup: float = 0.0
    lr_decay: float = 0.4
    l1_warmup: float = 0.3
    center: str = "mean"
    basis: str = "principal"
    normalize: bool = True
    clip_norm: float = 1.0
    resample_at: Sequence[float] = ()
    frozen: str | None = None
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    log_every: int = 50

    def __post_init__(self):
        for name in ("d_sae", "steps", "batch_size", "log_every"):
            object.__setattr__(self, name, check_whole(getattr(self, name), name, 1))
        check_whole(self.seed, "seed", 0, 2**63 - 1)
        if self.k is not None:
            check_whole(self.k, "k", 1, self.d_sae)
        for name in ("lr", "bias_lr"):
            if getattr(self, name) is not None:
                check_range(getattr(self, name), name, 0.0)
        for name in ("lr_warmup", "lr_decay", "l1_warmup"):
            check_range(getattr(self, name), name, 0.0, 1.0)
        for name in ("normalize", "compile"):
            check_flag(getattr(self, name), name)
        if not (isinstance(self.clip_norm, float) and self.clip_norm == math.inf):
            check_range(self.clip_norm, "clip_norm", ABOVE_0)
        for share in check_series(self.resample_at, "resample_at"):
            if not 0 < check_range(share, "each of resample_at", 0.0, 1.0) < 1:
                raise Refusal("shares of the steps between 0 and 1 in resample_at", repr(share))
        named = (("center", CENTERS), ("basis", BASES), ("precision", PRECISIONS))
        for name, known in named:
            check_choice(getattr(self, name), name, known)
        if self.frozen is not None:
            check_choice(self.frozen, "frozen", FROZEN)
        if not isinstance(self.objective, Objective):
            raise Refusal("an objective, such as L1(5.0) or Squared()", brief(self.objective))
        check_device(self.device)
        if self.precision == "tf32" and str(self.device).split(":")[0] != "cuda":
            raise Refusal(f"precision fp32 or bf16 on {self.device}", "'tf32'", "CUDA alone has it")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """Those that are among a function's arguments, its objective made if it has none."""
        given = dict(given)
        given["objective"] = objective_of(**{
            name: given.get(name) for name in ("objective", "l1_coefficient", "decoder_norm", "k")
        })  # fmt: skip
        return cls(**{field.name: given[field.name] for field in fields(cls)})

    def identity(self) -> dict[str, Any]:
        """What a checkpoint compares: every field, as JSON can hold it."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        named |= {"device": torch.device(self.device).type, "resample_at": list(self.resample_at)}
        return named | self.objective.identity() | {"kind": kind_name(self.kind)}

    def new_sae(self, sample_ND: Tensor, target_ND: Tensor | None = None) -> SAE:
        """The SAE that training starts with, on its device.

        Args:
            sample_ND: activations to take the centre from, scaled as in training.
            target_ND: what is to be reconstructed, if it is not the same.
        """
        sae = self.untrained(sample_ND.shape[1], None if target_ND is None else target_ND.shape[1])
        self.objective.check(sae)
        check_axes(sae)
        sae.center_(sample_ND if target_ND is None else target_ND, self.center)
        if self.frozen:
            getattr(sae, FROZEN[self.frozen]).requires_grad_(False)
        return sae.to(self.device)

    def untrained(self, d_in: int, d_out: int | None = None, d_sae: int | None = None) -> SAE:
        """One of the kind, on the CPU, not yet centred; with `d_sae` features if given."""
        given = {"seed": self.seed}
        given["decoder_init_norm"] = 1.0 if self.objective.decoder_norm == "unit_norm" else 0.1
        given |= {"k": self.k} if self.k is not None else {}
        given |= {"d_out": d_out} if d_out is not None else {}
        try:
            return self.kind(d_in, d_sae or self.d_sae, **given)
        except TypeError as error:
            name = kind_name(self.kind)
            raise Refusal(
                f"a kind that takes {', '.join(given)} and needs nothing else",
                f"{name}: {error}",
                "functools.partial(kind, ...) gives it arguments of its own",
            ) from error

    def small_sae(self, d_in: int, d_out: int | None = None) -> SAE:
        """One of the kind with as few features as it can have, to count with."""
        return self.untrained(d_in, d_out, min(self.d_sae, self.k or 1))

    def lr_share_at(self, i: int) -> float:
        """The share of its peak that the learning rate has in step `i`."""
        return lr_factor(i, self.steps, warmup=self.lr_warmup, decay=self.lr_decay)

    def fall_at(self, i: int) -> float:
        """The share that the rate's fall has left of it in step `i`, whatever its warm-up."""
        return lr_factor(i, self.steps, warmup=0.0, decay=self.lr_decay)

    def warmup_at(self, i: int) -> float:
        """The share of its final strength that a penalty has in step `i`."""
        return l1_factor(i, self.steps, warmup=self.l1_warmup)

    @functools.cached_property
    def resampling(self) -> tuple[set[int], set[int]]:
        """After which steps dead features start anew, and from which on it counts who is silent."""
        return resampling_steps(self.resample_at, self.steps)


def objective_of(
    objective: Objective | None,
    l1_coefficient: float | None,
    decoder_norm: str | None,
    k: int | None,
) -> Objective:
    """The objective that is given, or `L1` of a coefficient, or `Squared` where k decides."""
    if objective is not None:
        if l1_coefficient is not None or decoder_norm is not None:
            raise Refusal(
                "an objective, or l1_coefficient and decoder_norm",
                "both",
                "the objective has these by itself: L1(5.0, decoder_norm=...)",
            )
        return objective
    norm = {} if decoder_norm is None else {"decoder_norm": decoder_norm}
    if l1_coefficient is not None:
        return L1(l1_coefficient, **norm)
    if k is not None:
        return Squared(**norm)
    raise Refusal(
        "what to minimise", "no l1_coefficient, no objective and no k",
        "l1_coefficient=5.0, or objective=JumpL0(target_l0=20), or kind=BatchTopK with k=20",
    )  # fmt: skip


def check_axes(sae: SAE) -> None:
    """Refuse an architecture that does not say what belongs to a feature: it would not restart."""
    others = (sae.d_in, sae.d_out, 1)
    forgotten = [
        name
        for name, value in sae.state_dict().items()
        if name not in sae.feature_axis and sae.d_sae in value.shape and sae.d_sae not in others
    ]
    if forgotten:
        raise Refusal(
            f"feature_axis of {type(sae).__name__} for every parameter with an entry a feature",
            f"none for {', '.join(forgotten)}",
            f"feature_axis = SAE.feature_axis | {{{forgotten[0]!r}: 0}}",
        )


def kind_name(kind: Callable[..., SAE]) -> str:
    """An architecture in words, with what a partial adds to it."""
    if isinstance(kind, functools.partial):
        return f"{kind_name(kind.func)} {kind.args} {kind.keywords}"
    return getattr(kind, "__name__", repr(kind))


def check_device(device: str | torch.device) -> None:
    """Refuse a device that PyTorch does not know, or that this machine does not have."""
    if not isinstance(device, str | torch.device):
        raise Refusal(f"device as one of {', '.join(DEVICES)}", brief(device))
    kind = str(device).split(":")[0]
    check_choice(kind, "device", DEVICES)
    here = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not here[kind]:
        able = ", ".join(name for name, there in here.items() if there)
        raise Refusal(f"a device that there is: {able}", repr(str(device)), "saelearn doctor")


def check_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """What an SAE is to remember, if a file can hold it; else refuse, before any work is done."""
    try:
        found = json.loads(json.dumps(dict(metadata or {}), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise Refusal("metadata as JSON can hold them", str(error), "texts and numbers") from error
    return found
