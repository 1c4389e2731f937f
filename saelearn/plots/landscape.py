"""Paths of a code over the landscape of its cost, and where undoing fails. Lesson 03.

Shapes: S steps, two atoms. Arrays in, figure out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from saelearn.plots.literal import literal
from saelearn.style import ACCENT, CONTROL, DATA, FEATURE


@literal
def landscapes(
    named: Mapping[str, tuple[Callable[[np.ndarray], ArrayLike], *tuple[ArrayLike, ...]]],
) -> Figure:
    """Contours of the cost of a code of two numbers, and the ways down.

    Args:
        named: title -> (cost of codes `[N, 2]`, ISTA's path `[S, 2]`, FISTA's, and where the
            lowest point goes as the price falls to 0, and the lowest point `[2]`).
    """
    figure, axes = plt.subplots(1, len(named), figsize=(8.6, 3.2), sharey=True)
    line = np.linspace(-0.15, 1.15, 90)
    grid_N2 = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    for axis, (title, (cost, slow_S2, fast_S2, trail_S2, low_2)) in zip(
        axes, named.items(), strict=True
    ):
        height = np.sqrt(np.asarray(cost(grid_N2))).reshape(90, 90)
        axis.contour(line, line, height, levels=12, colors="#BBBBBB", linewidths=0.6)
        axis.plot(*np.asarray(trail_S2).T, color=DATA, lw=1, ls="--")
        axis.plot(*np.asarray(slow_S2).T, "o-", color=FEATURE, ms=5, lw=1.5)
        axis.plot(*np.asarray(fast_S2).T, ".-", color=ACCENT, ms=3, lw=0.8)
        axis.plot(*np.asarray(low_2), "*", color=DATA, ms=9, zorder=4)
        axis.set(title=title, xlabel="strength of atom 1", aspect="equal")
    axes[0].set_ylabel("strength of atom 2")
    handles = [
        plt.Line2D([], [], color=colour, ls=style, label=label)
        for label, colour, style in (
            ("ISTA", FEATURE, "-"),
            ("FISTA", ACCENT, "-"),
            ("lowest point as λ falls", DATA, "--"),
        )
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@literal
def failures(panels: Mapping[str, tuple[Sequence[float], Mapping[str, ArrayLike], str]]) -> Figure:
    """F1 of the support against what makes undoing hard, one panel for each.

    Args:
        panels: label of the x axis -> (its values, name -> F1 at each of them, a control's label).
            Names: "sparse code", "one look", "control", "everything on".
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(8.6, 3.1), sharey=True)
    looks = {
        "sparse code": (FEATURE, "o-"),
        "one look": (CONTROL, "s-"),
        "control": (ACCENT, "^--"),
        "everything on": (DATA, ":"),
    }
    for axis, (label, (x_P, curves, control)) in zip(axes, panels.items(), strict=True):
        places = np.arange(len(x_P))
        for name, f1_P in curves.items():
            colour, style = looks[name]
            axis.plot(places, f1_P, style, color=colour, ms=4, lw=1.2, label=name)
        axis.set(xlabel=label, xticks=places, xticklabels=[f"{x:g}" for x in x_P], ylim=(0, 1.05))
        axis.set_title(f"control: {control}", fontsize=9, color=ACCENT)
    axes[0].set_ylabel("F1 of the support, best threshold")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
