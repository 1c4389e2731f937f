"""Architectures side by side, and which features cause which. Lesson 11.

Numbers in, figure out; colours as `style` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from saelearn import style
from saelearn.plots.literal import literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

LINES = (
    (style.CONTROL, "-", "o"),
    (style.ACCENT, "-", "o"),
    (style.RECONSTRUCTION, "-", "s"),
    (style.RECONSTRUCTION, "--", "^"),
    (style.FEATURE, "-", "D"),
    (style.DATA, "-", "v"),
)


@literal
def frontiers(
    curves: Mapping[str, Mapping[str, ArrayLike]],
    *,
    at: float,
    logarithmic: Sequence[str] = (),
    ticks: Sequence[float] = (3, 6, 12),
) -> Figure:
    """Panels over L0: a line through the mean over seeds, each seed a mark.

    Args:
        curves: label of the vertical axis -> name -> `[S, K, 2]`, L0 and value for each seed and
            strength.
        at: the L0 that is marked.
        logarithmic: panels with a logarithmic vertical axis.
        ticks: of L0.
    """
    rows = -(-len(curves) // 2)
    columns = len(curves) if rows == 1 else 2
    size = (4.0 * columns + 1.4 * (rows == 1), 3.3 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    for axis, (title, shown) in zip(axes.flat, curves.items(), strict=False):
        for (name, points), (colour, line, dot) in zip(shown.items(), LINES, strict=False):
            points_SK2 = np.asarray(points)
            mean_K2 = points_SK2.mean(0)
            mean_K2 = mean_K2[mean_K2[:, 0].argsort()]
            axis.plot(*mean_K2.T, line, color=colour, lw=1.6)
            axis.plot(*points_SK2.reshape(-1, 2).T, dot, color=colour, ms=4, alpha=0.7, label=name)
        axis.axvline(at, color="#bbbbbb", lw=1, zorder=0)
        axis.set(xscale="log", xlabel="L0 (active features a token)", ylabel=title)
        axis.xaxis.set_major_locator(FixedLocator(list(ticks)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if title in logarithmic:
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_locator(NullLocator())
    handles, names = axes[0, 0].get_legend_handles_labels()
    if len(names) == 1:  # there is nothing to tell apart
        return figure
    free = axes.flat[-1] if len(curves) < axes.size else None
    place = {"loc": "center"} if free else {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    (free or axes.flat[-1]).legend(handles, names, **place, fontsize=10)
    return figure


@literal
def compared(
    attribution: ArrayLike, ablation: ArrayLike, controls: tuple[ArrayLike, ArrayLike]
) -> Figure:
    """Edges as attributed and as ablation finds them; right, with the slopes of another prompt."""
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.9), sharex=True, sharey=True)
    pairs = ((attribution, ablation, style.FEATURE), (*controls, style.CONTROL))
    titles = ("slopes of the same prompt", "control: slopes of another prompt")
    for axis, (x, y, colour), title in zip(axes, pairs, titles, strict=True):
        _scatter(axis, np.asarray(x), np.asarray(y), colour)
        axis.set(xlabel="attributed (activation × slope)", title=title)
    axes[0].set_ylabel("lost when ablated")
    return figure


def _scatter(axis: Axes, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    reach = float(max(np.abs(x).max(), np.abs(y).max())) * 1.05
    axis.plot([-reach, reach], [-reach, reach], color="#bbbbbb", lw=1, zorder=0)
    axis.plot(x, y, "o", color=colour, ms=3, alpha=0.4, mew=0)


@literal
def circuit(
    sources: Sequence[str],
    targets: Sequence[str],
    outputs: Sequence[str],
    source_edges: ArrayLike,
    output_edges: ArrayLike,
    *,
    titles: tuple[str, str, str],
) -> Figure:
    """Three columns and the edges between them: green adds, grey dashes take away.

    Args:
        sources, targets, outputs: labels `[S]`, `[T]`, `[O]`, from top to bottom.
        source_edges: `[S, T]`; output_edges: `[T, O]`; line widths follow their size, column pair
            by column pair.
        titles: of the columns.
    """
    figure, axis = plt.subplots(figsize=(9.6, 0.9 + 0.52 * max(len(sources), len(targets))))
    columns, heights = (sources, targets, outputs), []
    for x, (labels, title) in enumerate(zip(columns, titles, strict=True)):
        y = np.linspace(1, 0, len(labels) + 2)[1:-1] if len(labels) > 1 else np.array([0.5])
        heights.append(y)
        axis.text(x, 1.04, title, ha="center", va="bottom", fontsize=10, weight="bold")
        for label, height in zip(labels, y, strict=True):
            axis.text(x, height, label, ha="center", va="center", fontsize=9, zorder=3,
                      bbox={"boxstyle": "round,pad=0.3", "fc": "white", "ec": style.FEATURE
                            if x < 2 else style.RECONSTRUCTION})  # fmt: skip
    for x, edges in enumerate((np.asarray(source_edges), np.asarray(output_edges))):
        most = np.abs(edges).max()
        for (i, j), value in np.ndenumerate(edges):
            if abs(value) > 0.08 * most:
                line = {"color": style.FEATURE} if value > 0 else {
                    "color": style.CONTROL, "ls": "--"}  # fmt: skip
                axis.plot([x + 0.02, x + 0.98], [heights[x][i], heights[x + 1][j]],
                          lw=0.5 + 4 * abs(value) / most, alpha=0.6, zorder=1, **line)  # fmt: skip
    axis.set(xlim=(-0.45, 2.35), ylim=(-0.02, 1.12))
    axis.axis("off")
    return figure


@literal
def leaderboard(
    others: Mapping[str, tuple[float, float]], mine: tuple[str, float, float]
) -> Figure:
    """Unexplained variance against F1, one named point for each architecture, one's own orange."""
    figure, axis = plt.subplots(figsize=(7.2, 3.6))
    name, x, y = mine
    for label, (a, b) in others.items():
        axis.plot(a, b, "o", color=style.CONTROL, ms=7)
        axis.annotate(label, (a, b), (6, 4), textcoords="offset points", fontsize=9,
                      color=style.DATA)  # fmt: skip
    axis.plot(x, y, "D", color=style.STEERED, ms=9)
    axis.annotate(name, (x, y), (8, -12), textcoords="offset points", fontsize=10, weight="bold",
                  color=style.DATA)  # fmt: skip
    axis.set(xlabel="unexplained variance (share)", ylabel="mean best-feature F1")
    axis.margins(x=0.18, y=0.15)
    return figure
