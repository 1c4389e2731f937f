"""The sparsity dial: toy models of superposition that retrain as it moves. Lesson 02."""

from __future__ import annotations

import time
from collections.abc import Callable

import ipywidgets as ipw
import plotly.graph_objects as go
import torch

from saelearn import toy
from saelearn.plots import sparsity
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


class ToyDial(ipw.VBox):
    """A slider over sparsity: wherever it stands, toy models of superposition are trained anew.

    Five features, two dimensions, the best of twelve copies. Training runs in the background; if
    the reader has moved on meanwhile, the latest setting is next and those between are left out.

    Args:
        start: the probability p that is shown first (the nearest there is).
        train: how to train; `toy.train_toy` by default.
    """

    def __init__(self, *, start: float = 1.0, train: Callable[..., toy.ToyRun] = toy.train_toy):
        self._train = train
        self._latest = Latest(self._show, self._tell)
        self.slider = value_slider(P, start, "probability p to be on", "480px")
        self.ratio = value_slider(RATIOS, 0.8, "importance, each next ×", "360px")
        self.table, self.message = ipw.HTML(), ipw.HTML()
        self.figure = go.FigureWidget(sparsity.picture(N_FEATURES))
        controls = ipw.HBox([self.slider, self.ratio], layout={"flex_flow": "row wrap"})
        super().__init__([controls, self.table, self.message, self.figure])
        for slider in (self.slider, self.ratio):
            slider.observe(lambda _: self.turn(), names="value")
        self.turn()
        self.wait()

    def turn(self) -> None:
        """Train at what the sliders show, now or as soon as a training has ended."""
        self._latest(self.slider.value, self.ratio.value)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until what is shown is what was asked for."""
        self._latest.wait(seconds)

    def _tell(self, error: Exception | None) -> None:
        self.message.value = failure(error) if error else ""

    def _show(self, p: float, ratio: float) -> None:
        importance_G = ratio ** torch.arange(float(N_FEATURES))
        start = time.perf_counter()
        run = self._train(N_FEATURES, D_HIDDEN, p=p, importance_G=importance_G, **TRAINING)
        seconds = time.perf_counter() - start
        W_GD, dim_G = run.W[run.best()], toy.dimensionality(run.W[run.best()])
        nothing = float(importance_G.mean()) * p / 3  # E[f^2] of what is on is 1/3
        with self.figure.batch_update():
            for name, new in sparsity.values(W_GD, dim_G, run.loss / nothing).items():
                next(t for t in self.figure.data if t.name == name).update(new)
        kept = int((W_GD.norm(dim=1) > sparsity.KEPT).sum())
        crowd = 1 - (1 - p) ** 5 - 5 * p * (1 - p) ** 4
        row = {
            "crowd": f"{crowd:.1%}",
            "kept": f"{kept} of {N_FEATURES}",
            "sum": f"{dim_G.sum():.2f}",
            "loss": f"{run.loss.min() / nothing:.3f}",
            "seconds": f"{seconds:.2f} s",
        }
        self.table.value = html_table("toy-dial", HEAD, {f"p = {p:g}, × {ratio:g}": row})
