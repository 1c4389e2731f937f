"""Data that fit into a GPU beside their training go there: it gathers a batch in no time.

From the CPU's memory a step's rows have to be gathered by its cores, and these are slower than the
step: 25 MB for 8,192 rows of GPT-2's width, of which a GPU has done all in a millisecond or two.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from saelearn.train import memory, parallel
from saelearn.train.batches import SAMPLE_ROWS, check_rows
from saelearn.train.settings import Settings

SHARE = 0.5  # of what the training leaves: others may use the GPU, too
ORDERS = 16  # bytes a row: its place in this epoch's order and in the last one's


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
    taken = sum(t.nbytes for t in both) + ORDERS * len(data)
    if target is not None:  # a sample of both side by side
        taken += min(SAMPLE_ROWS, len(data)) * (data.shape[1] + d_out) * data.itemsize
    if taken > _left(data.shape[1], d_out, settings.batch_size, settings, saes):
        return as_they_are
    try:
        return Placed(*(t if t is None else _copied(t, device) for t in (data, target)), taken)
    except torch.OutOfMemoryError:  # in pieces there was enough
        return as_they_are


def _copied(x_ND: Tensor, device: torch.device) -> Tensor:
    """Rows in a GPU's memory, looked at before; on the way a part at a time is made contiguous."""
    check_rows(x_ND)
    there_ND = torch.empty(x_ND.shape, dtype=x_ND.dtype, device=device)
    for part_ND, to_ND in zip(x_ND.detach().split(2**14), there_ND.split(2**14), strict=True):
        to_ND.copy_(part_ND)
    return there_ND


def _left(d_in: int, d_out: int | None, batch_size: int, settings: Settings, saes: int) -> int:
    """Bytes of the GPU's memory that data may take."""
    kind = memory.of_kind(settings.small_sae(d_in, d_out), settings)
    kind["processes"] = parallel.size()
    needed = memory.needed(d_in, saes * settings.d_sae, batch_size, **kind)
    return int(SHARE * max(0, (memory.free(settings.device) or 0) - sum(needed.values())))
