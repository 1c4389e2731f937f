"""The picture of the sparsity dials: directions, shares, losses of all copies. Lesson 02.

Shapes: K copies, G features; the hidden space is a plane. Arrays in, figure out.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from numpy.typing import ArrayLike

from saelearn.plots.moving import Moving, canvas
from saelearn.style import CONTROL, FEATURE, RECONSTRUCTION

REACH = 1.5  # of the axes in pictures of the plane: norms of trained features stay below
KEPT = 0.5  # a feature with a longer direction is represented (lesson 02)


class Sparsity(Moving):
    """Two panels or three: the hidden plane, shares of a dimension, losses of all copies.

    Args:
        n_features: G.
        n_copies: K; without it there is no panel of losses.
    """

    def __init__(self, n_features: int, n_copies: int = 0):
        with canvas(8.6 if n_copies else 7.0, 3.2) as figure:
            ratios = [0.43, 0.33, 0.3] if n_copies else [0.5, 0.4]
            plane, share, *losses = figure.subplots(1, len(ratios), width_ratios=ratios)
            _plane(plane)
            (self._spokes,) = plane.plot([], [], color=FEATURE, lw=3)
            marks = {"color": FEATURE, "ls": "", "marker": "o"}
            (self._kept,) = plane.plot([], [], ms=15, gid="kept", **marks)
            (self._lost,) = plane.plot([], [], ms=6, gid="lost", **marks)
            middle = {"ha": "center", "va": "center", "color": "white", "fontsize": 9}
            self._names = [plane.text(0, 0, str(g), **middle) for g in range(n_features)]
            for value in (1, 1 / 2, 2 / 5):  # alone, in a pair, in a pentagon
                share.axhline(value, color=CONTROL, ls=":", lw=1)
            self._shares = share.bar(range(n_features), [0] * n_features, 0.62, color=FEATURE)
            share.set(title="share of a dimension", xlabel="feature, most important first")
            share.set(ylim=(0, 1.1), xticks=range(n_features))
            share.set_yticks([0, 2 / 5, 1 / 2, 1], ["0", "2/5", "1/2", "1"])
            self._losses = [line for axis in losses for line in _losses(axis, n_copies)]
        lines = [self._spokes, self._kept, self._lost, *self._losses]
        super().__init__(figure, [*lines, *self._names, *self._shares])

    def show(self, W_GD: ArrayLike, dim_G: ArrayLike, losses_K: ArrayLike = ()) -> str:
        """Show one setting; returns the frame as SVG.

        Args:
            W_GD: the best copy's directions; feature 0 is turned to the right.
            dim_G: their dimensionalities.
            losses_K: of all copies, in shares of the loss of storing nothing.
        """
        W_GD = upright(W_GD)
        kept_G = np.hypot(*W_GD.T) > KEPT
        losses_K = np.sort(np.asarray(losses_K, dtype=float))
        with self.changing():
            ends = [[v for w in W_GD[:, d] for v in (0, w, np.nan)] for d in (0, 1)]
            self._spokes.set_data(*ends)
            self._kept.set_data(*W_GD[kept_G].T)
            self._lost.set_data(*W_GD[~kept_G].T)
            for name, place, kept in zip(self._names, W_GD, kept_G, strict=True):
                name.set(position=place, visible=bool(kept))
            for bar, value in zip(self._shares, np.asarray(dim_G, dtype=float), strict=True):
                bar.set_height(value)
            if self._losses:
                best, copies = self._losses
                best.set_data([0], losses_K[:1])
                copies.set_data(np.arange(1, len(losses_K)), losses_K[1:])
            return self.frame()


def upright(W_GD: ArrayLike) -> np.ndarray:
    """The same geometry turned so that feature 0 points right and feature 1 up, `[G, 2]`."""
    W_GD = np.asarray(W_GD, dtype=float)
    cos, sin = W_GD[0] / max(np.linalg.norm(W_GD[0]), 1e-12)
    turned_GD = W_GD @ np.array([[cos, -sin], [sin, cos]])
    return turned_GD * np.array([1, -1 if turned_GD[1, 1] < 0 else 1])


def _plane(axis: Axes) -> None:
    axis.add_patch(Circle((0, 0), 1, fill=False, ls=":", ec=CONTROL))
    axis.set(title="the hidden plane", xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal")
    axis.set(xlabel="hidden neuron 0 (turned)", ylabel="hidden neuron 1")
    axis.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1])


def _losses(axis: Axes, n_copies: int) -> list[Line2D]:
    blue = {"color": RECONSTRUCTION, "marker": "o", "ls": ""}
    (best,) = axis.plot([], [], ms=9, gid="best", **blue)
    (copies,) = axis.plot([], [], ms=6, mfc="none", gid="copies", **blue)
    axis.set(title="losses of all copies", xlabel="copy, best first", xticks=[])
    axis.set(ylabel="loss ÷ loss of storing nothing", ylim=(0, 0.5), xlim=(-0.7, n_copies - 0.3))
    return [best, copies]
