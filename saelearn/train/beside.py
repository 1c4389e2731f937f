"""Data that fit into a GPU beside their training go there: it gathers a batch in no time.

From the CPU's memory a step's rows have to be gathered by its cores, and these are slower than the
step: 25 MB for 8,192 rows of GPT-2's width, of which a GPU has done all in a millisecond or two.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from saelearn.train import memory
from saelearn.train.settings import Settings

SHARE = 0.5  # of what the training leaves: others may use the GPU, too


class Placed(NamedTuple):
    """Data and target of a training, and how many bytes of the GPU's memory were taken for them."""

    data: Tensor | Iterable[Tensor]
    target: Tensor | None
    taken: int = 0


def placed(
    data: Tensor | Iterable[Tensor], target: Tensor | None, settings: Settings, *, saes: int = 1
) -> Placed:
    """Data on the GPU that trains, where they fit; else, and on other devices, as they are.

    Activations go as a whole, with their target. A store (anything with `on_device`, `d_in` and
    `batch_size`) is told how much memory its rows may take, of which it uses what `taken` says.
    Neither the order of the rows nor their bits change.

    Args:
        data, target: as for `train`.
        settings: of the training, or of each of several.
        saes: how many are trained at once.
    """
    as_they_are, device = Placed(data, target), torch.device(settings.device)
    if device.type != "cuda" or settings.objective.reads_tokens:
        return as_they_are
    if not isinstance(data, Tensor):
        if not hasattr(data, "on_device"):
            return as_they_are
        there = data.on_device(device, _left(data.d_in, None, data.batch_size, settings, saes))
        return Placed(there, target, there.taken)
    both = [data] if target is None else [data, target]
    if any(not isinstance(t, Tensor) or t.ndim != 2 or t.device.type != "cpu" for t in both):
        return as_they_are
    d_out = None if target is None else target.shape[1]
    size = sum(t.nbytes for t in both)
    if size > _left(data.shape[1], d_out, settings.batch_size, settings, saes):
        return as_they_are
    return Placed(*(t if t is None else t.to(device) for t in (data, target)), size)


def _left(d_in: int, d_out: int | None, batch_size: int, settings: Settings, saes: int) -> int:
    """Bytes of the GPU's memory that data may take."""
    kind = memory.of_kind(settings.small_sae(d_in, d_out), settings)
    needed = memory.needed(d_in, saes * settings.d_sae, batch_size, **kind)
    return int(SHARE * max(0, (memory.free(settings.device) or 0) - sum(needed.values())))
