"""What may stand in an SAE's file: one description, held against every file before it is used.

Whatever a file calls things, its reader says them in SAELens' present terms: settings as in
`cfg.json`, weights as in `sae_weights.safetensors`.
Shapes: D = d_in activation width, F = d_sae features, O = d_out output width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saelearn.artifacts import check_room
from saelearn.errors import Refusal, check_finite

WRONG = "reading it as if it were would give wrong features without an error"
LARGEST = 2**31
"""No width and no number of features comes near; what does is not one."""


@dataclass
class Published:
    """An SAE as its file has it: settings and weights, in SAELens' present terms."""

    settings: dict[str, Any]
    weights: dict[str, Tensor] = field(default_factory=dict)


class _Kind(NamedTuple):
    """What a setting has to be, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def whole(value: Any) -> bool:
    """A whole number that can be a size; `true` is none, 2.5 and 1e12 neither."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < LARGEST


def number(value: Any) -> bool:
    """A finite number above 0."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value) and value > 0


_SIZE = _Kind("a whole number of at least 1", whole)
_TEXT = _Kind("a text", lambda value: isinstance(value, str))
_FLAG = _Kind("true or false", lambda value: isinstance(value, bool))
_OBJECT = _Kind("an object", lambda value: isinstance(value, dict))

SETTINGS = {
    "architecture": _TEXT,
    "d_in": _SIZE,
    "d_sae": _SIZE,
    "d_out": _SIZE,
    "k": _SIZE,
    "dtype": _TEXT,
    "device": _TEXT,
    "activation_fn": _TEXT,
    "activation_fn_kwargs": _OBJECT,
    "apply_b_dec_to_input": _FLAG,
    "rescale_acts_by_decoder_norm": _FLAG,
    "finetuning_scaling_factor": _FLAG,
    "normalize_activations": _TEXT,
    "reshape_activations": _TEXT,
    "metadata": _OBJECT,
}
"""Settings that mean something to everybody. An architecture's own ones are its own to check."""
NEEDED = ("architecture", "d_in", "d_sae")


def check_settings(settings: dict[str, Any], where: str) -> None:
    """Refuse settings that are missing, or of another kind than their description says.

    Args:
        settings: as JSON gave them.
        where: the file's name, for messages.

    Raises:
        Refusal: "false" in place of false, 2.5 in place of a whole number, and the like.
    """
    for name in NEEDED:
        if name not in settings:
            known = ", ".join(sorted(map(str, settings))[:20])
            raise Refusal(f"{name} in {where}", f"only {known}" if known else "nothing")
    for name, kind in SETTINGS.items():
        if name in settings and not kind.fits(settings[name]):
            raise Refusal(
                f"{name} in {where} as {kind.words}", short(settings[name]), "mend the file"
            )


def check_weights(weights: dict[str, Tensor], settings: dict[str, Any], where: str) -> None:
    """Refuse weights that are no ordinary tensors, not finite, or do not fit their settings.

    Sizes are compared with the weights that are there, before memory is taken by them.

    Args:
        weights: by SAELens' names.
        settings: checked ones.
        where: the file's name, for messages.
    """
    size = sum(t.numel() * t.element_size() for t in weights.values() if isinstance(t, Tensor))
    check_room(size)  # a tensor can be said to be large with few numbers behind it
    for name, tensor in weights.items():
        check_tensor(tensor, f"{name} in {where}")
    d_in, d_sae = settings["d_in"], settings["d_sae"]
    d_out = settings.get("d_out", d_in)
    sizes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_enc": (d_sae,), "b_dec": (d_out,)}
    for name, expected in sizes.items():
        needed = name == "W_dec"  # gated ones have no b_enc, pursuing ones no encoder
        found = tuple(weights[name].shape) if name in weights else None
        if found != expected and (needed or found is not None):
            raise Refusal(
                f"weights with {name} {expected} in {where}",
                f"none among {', '.join(sorted(weights))}" if found is None else str(found),
                "the file does not fit its settings, or holds another kind of SAE",
            )
    for name, tensor in weights.items():
        check_finite(tensor, name=f"{name} in {where}")


def check_tensor(tensor: Any, name: str) -> Tensor:
    """Return what is an ordinary tensor of real numbers on the CPU; else refuse."""
    plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided
    plain = plain and not tensor.is_quantized and tensor.device.type != "meta"
    if not plain or not tensor.is_floating_point() or tensor.element_size() < 2:
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        got = f"{got}, {tensor.layout}" if isinstance(tensor, Tensor) and not plain else got
        raise Refusal(f"{name} as real numbers in 16 bits or more", str(got).replace("torch.", ""))
    return tensor


def short(value: Any) -> str:
    """A value in a message, however long it is."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
