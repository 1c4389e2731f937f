"""From model and text to activations, in memory or on disk, and back into the model.

`harvest` is where to begin: it asks a model (`LM.capture`, a hook) for what passes a site.
"""

from saelearn.activations.harvest import (
    Activations,
    ablation,
    collect,
    collect_all,
    gather,
    measure_loss_recovered,
    splice,
)
from saelearn.activations.influence import readings, slopes
from saelearn.activations.patching import patch_map, swap
from saelearn.activations.shards import verify
from saelearn.activations.source import write, write_all
from saelearn.activations.store import MEMORY_LIMIT, ActivationStore
from saelearn.activations.streaming import stream
from saelearn.activations.texts import chunk, chunks

__all__ = [
    "MEMORY_LIMIT",
    "ActivationStore",
    "Activations",
    "ablation",
    "chunk",
    "chunks",
    "collect",
    "collect_all",
    "gather",
    "measure_loss_recovered",
    "patch_map",
    "readings",
    "slopes",
    "splice",
    "stream",
    "swap",
    "verify",
    "write",
    "write_all",
]
