"""Any causal language model of Hugging Face, and the places in it."""

from saelearn.lm.documents import Batch, align, checked_mask
from saelearn.lm.hooks import Edit
from saelearn.lm.loading import TINY
from saelearn.lm.model import LM

__all__ = ["LM", "TINY", "Batch", "Edit", "align", "checked_mask"]
