"""Any causal language model of Hugging Face, and the places in it."""

from saelearn.lm.belonging import made_for, warn_if_others
from saelearn.lm.documents import Batch, align, checked_mask
from saelearn.lm.hooks import Edit
from saelearn.lm.loading import OURS, TINY
from saelearn.lm.model import LM

__all__ = [
    "LM", "OURS", "TINY", "Batch", "Edit", "align", "checked_mask", "made_for", "warn_if_others",
]  # fmt: skip
