"""Training: one loop for every kind of SAE, and what it stands on."""

from saelearn.train.autograd import Autograd, Seen
from saelearn.train.batches import mean_norm_scale, shuffled
from saelearn.train.engines import engine_for
from saelearn.train.frame import principal_basis
from saelearn.train.loop import train
from saelearn.train.resampling import resample
from saelearn.train.settings import PRECISIONS, Settings
from saelearn.train.stacked import sweep
from saelearn.train.state import Record, Trained
from saelearn.train.update import Adam, l1_factor, lr_factor, step, usual_lr

__all__ = [
    "PRECISIONS",
    "Adam",
    "Autograd",
    "Record",
    "Seen",
    "Settings",
    "Trained",
    "engine_for",
    "l1_factor",
    "lr_factor",
    "mean_norm_scale",
    "principal_basis",
    "resample",
    "shuffled",
    "step",
    "sweep",
    "train",
    "usual_lr",
]
