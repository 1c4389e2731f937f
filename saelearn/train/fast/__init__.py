"""What makes a training step fast; the results are those of the plain way."""

from saelearn.train.fast.kernels import Case, Kernel, Plan, SparseL1, SparseTopK, Stack
from saelearn.train.fast.machine import processor
from saelearn.train.fast.search import ENCODERS
from saelearn.train.fast.tuning import measured_plan

__all__ = [
    "ENCODERS",
    "Case",
    "Kernel",
    "Plan",
    "SparseL1",
    "SparseTopK",
    "Stack",
    "measured_plan",
    "processor",
]
