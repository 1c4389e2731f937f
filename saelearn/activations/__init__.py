"""From model and text to activations, in memory or on disk, and back into the model.

`harvest` is where to begin: it asks a model (`LM.capture`, a hook) for what passes a site.
"""

from saelearn.activations.harvest import (
    Activations,
    ablation,
    chunk,
    collect,
    collect_all,
    gather,
    measure_loss_recovered,
    splice,
    stream,
)
from saelearn.activations.patching import patch_map, swap
from saelearn.activations.shards import verify
from saelearn.activations.source import write
from saelearn.activations.store import MEMORY_LIMIT, ActivationStore

__all__ = [
    "MEMORY_LIMIT",
    "ActivationStore",
    "Activations",
    "ablation",
    "chunk",
    "collect",
    "collect_all",
    "gather",
    "measure_loss_recovered",
    "patch_map",
    "splice",
    "stream",
    "swap",
    "verify",
    "write",
]
