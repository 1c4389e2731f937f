"""The sparsity dial: toy models of superposition that retrain as it moves. Lesson 02."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from saelearn import toy
from saelearn.plots.panel import Panel
from saelearn.plots.sparsity import KEPT, Sparsity
from saelearn.widgets.parts import Latest, failure, html_table, value_slider

P = (1, 0.85, 0.7, 0.6, 0.55, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
RATIOS = (1, 0.9, 0.8, 0.7, 0.6, 0.5)  # importance of a feature over that of the one before
N_FEATURES, D_HIDDEN = 5, 2
TRAINING = {"n_instances": 12, "steps": 600, "batch_size": 512}
HEAD = {
    "crowd": "of all samples, with two or more on",
    "kept": "features kept",
    "sum": "shares add up to",
    "loss": "loss ÷ storing nothing",
    "seconds": "trained in",
}


class ToyDial(Panel):
    """A slider over sparsity: wherever it stands, toy models of superposition are trained anew.

    Five features, two dimensions, the best of twelve copies. Training runs in the background; if
    the reader has moved on meanwhile, the latest setting is next and those between are left out.

    Args:
        start: the probability p that is shown first (the nearest there is).
        train: how to train; `toy.train_toy` by default.

    Raises:
        Refusal: `start` is no finite number.
    """

    def __init__(self, *, start: float = 1.0, train: Callable[..., toy.ToyRun] = toy.train_toy):
        self._train = train
        self._latest = Latest(self._show, self._tell)
        controls = [
            value_slider("p", "probability p to be on", P, start),
            value_slider("ratio", "importance, each next ×", RATIOS, 0.8),
        ]
        picture = Sparsity(N_FEATURES, TRAINING["n_instances"])
        super().__init__("The sparsity dial", controls, picture=picture)
        self.moved()
        self.wait()

    def moved(self) -> None:
        """Train at what the sliders show, now or as soon as a training has ended."""
        self._latest(dict(self.values))

    def wait(self, seconds: float | None = None) -> None:
        """Wait until what is shown is what was asked for."""
        self._latest.wait(seconds)

    def _tell(self, asked: dict[str, int], error: Exception | None) -> None:
        with self.hold_sync():
            self.shown = asked  # also what failed is answered
            self.message = failure(error) if error else ""

    def _show(self, asked: dict[str, int]) -> None:
        p, ratio = P[asked["p"]], RATIOS[asked["ratio"]]
        importance_G = ratio ** torch.arange(float(N_FEATURES))
        start = time.perf_counter()
        run = self._train(N_FEATURES, D_HIDDEN, p=p, importance_G=importance_G, **TRAINING)
        seconds = time.perf_counter() - start
        W_GD, dim_G = run.W[run.best()], toy.dimensionality(run.W[run.best()])
        nothing = float(importance_G.mean()) * p / 3  # E[f^2] of what is on is 1/3
        kept = int((W_GD.norm(dim=1) > KEPT).sum())
        crowd = 1 - (1 - p) ** 5 - 5 * p * (1 - p) ** 4
        row = {
            "crowd": f"{crowd:.1%}",
            "kept": f"{kept} of {N_FEATURES}",
            "sum": f"{dim_G.sum():.2f}",
            "loss": f"{run.loss.min() / nothing:.3f}",
            "seconds": f"{seconds:.2f} s",
        }
        lengths = ", ".join(f"{length:.2f}" for length in W_GD.norm(dim=1).tolist())
        with self.hold_sync():
            self.frame = self.picture.show(W_GD, dim_G, run.loss / nothing)
            self.table = html_table("toy-dial", HEAD, {f"p = {p:g}, × {ratio:g}": row})
            self.alt = (
                f"Directions of {N_FEATURES} features in a plane, {kept} of them kept; "
                f"their lengths, most important first: {lengths}."
            )
