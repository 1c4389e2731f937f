"""Any causal language model of Hugging Face, and the places in it."""

from saelearn.lm.model import LM, TINY, Edit

__all__ = ["LM", "TINY", "Edit"]
