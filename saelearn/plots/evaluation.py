"""What scores say and what they hide: curves, seeds, bands, rankings. Lesson 10.

Numbers in, figure out; colours as `style` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from saelearn import style
from saelearn.plots.literal import literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (style.FEATURE, style.RECONSTRUCTION, style.ACCENT, style.DATA)
Curves = Mapping[str, Sequence[float]]


@literal
def curves(
    x: Sequence[float],
    panels: Mapping[str, Curves],
    *,
    xlabel: str,
    controls: Sequence[str] = (),
    mark: tuple[float, str] | None = None,
    level: tuple[float, str] | None = None,
) -> Figure:
    """Panels of curves over the same values, each labelled at its end.

    Args:
        x: positions, drawn logarithmically.
        panels: label of the vertical axis -> name -> a value for each x.
        controls: names that are drawn grey.
        mark: a value of x that gets a vertical line, and what it is.
        level: a height that gets a horizontal line in the last panel, and what it is.
    """
    figure, axes = _grid(len(panels), width=4.6 if len(panels) > 1 else 6.0, height=3.2)
    names = list(dict.fromkeys(name for shown in panels.values() for name in shown))
    coloured = [name for name in names if name not in controls]
    for axis, (title, shown) in zip(axes, panels.items(), strict=True):
        for name, values in shown.items():
            grey = name in controls
            colour = style.CONTROL if grey else COLOURS[coloured.index(name) % len(COLOURS)]
            axis.plot(x, values, "--o" if grey else "-o", color=colour, ms=4)
        _labels(axis, x[-1], {n: (v[-1], axis.lines[i].get_color())
                              for i, (n, v) in enumerate(shown.items())})  # fmt: skip
        axis.set(xlabel=xlabel, ylabel=title, xscale="log")
        axis.xaxis.set_major_locator(FixedLocator(list(x)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_xlim(x[0] * 0.8, x[-1] * (x[-1] / x[0]) ** 0.55)
        if mark:
            axis.axvline(mark[0], color=style.CONTROL, lw=1)
            axis.text(mark[0], 1.0, f" {mark[1]}", color=style.CONTROL, va="bottom", fontsize=9,
                      transform=axis.get_xaxis_transform())  # fmt: skip
    if level:
        axes[-1].axhline(level[0], color=style.CONTROL, lw=1)
        axes[-1].text(0.99, level[0], level[1], color=style.CONTROL, ha="right", va="bottom",
                      fontsize=9, transform=axes[-1].get_yaxis_transform())  # fmt: skip
    return figure


def _grid(n: int, *, width: float, height: float, **more) -> tuple[Figure, list[Axes]]:
    """As many panels, two in a row, so that their letters stay readable."""
    columns = min(n, 2)
    rows = -(-n // columns)
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **more)
    for axis in axes.flat[n:]:
        axis.axis("off")
    return figure, list(axes.flat[:n])


def _labels(axis: Axes, x: float, ends: Mapping[str, tuple[float, str]]) -> None:
    """Names at the ends of curves, pushed apart where they would overlap."""
    low, high = axis.get_ylim()
    gap, at = 0.075 * (high - low), -np.inf
    for name, (y, colour) in sorted(ends.items(), key=lambda item: item[1][0]):
        at = max(y, at + gap)
        axis.annotate(name, (x, at), (6, 0), textcoords="offset points", color=colour,
                      va="center", fontsize=9, annotation_clip=False)  # fmt: skip


@literal
def seeds(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    controls: Sequence[str] = (),
    close: bool = False,
) -> Figure:
    """One dot for each seed.

    Args:
        panels: title of a panel -> name -> values.
        controls: names that are drawn grey.
        close: axes span the values alone, so that seeds can be told apart; else shares are seen
            against 0 and 1.
    """
    names = list(next(iter(panels.values())))
    width = 4.5 if len(panels) > 1 else 6.3
    figure, axes = _grid(
        len(panels), width=width, height=0.8 + 0.34 * len(names), sharey=True, layout="constrained"
    )
    for axis, (title, shown) in zip(axes, panels.items(), strict=True):
        for row, name in enumerate(names):
            colour = style.CONTROL if name in controls else style.FEATURE
            values = np.array([value for value in shown[name] if value == value])
            apart = 0.12 * (np.arange(len(values)) % 3 - 1)  # equal values stay countable
            axis.axhline(row, color="#dddddd", lw=1, zorder=0)
            axis.plot(values, row + apart, "o", color=colour, ms=5, alpha=0.8)
            if not len(values):
                axis.text(0.5, row, "does not write", color=colour, ha="center", va="bottom",
                          fontsize=9, transform=axis.get_yaxis_transform())  # fmt: skip
        axis.set(xlabel=title, yticks=range(len(names)), yticklabels=names)
        low, high = axis.get_xlim()
        if close:
            axis.locator_params(axis="x", nbins=5)  # long numbers
        else:
            axis.set_xlim(min(0.0, low), 1.02 if high > 0.3 else high)
    axes[0].invert_yaxis()
    return figure


@literal
def band(values: Mapping[str, float], centre: float, noise: float, *, ylabel: str) -> Figure:
    """Values in a row, and the band in which two runs that differ by their seed alone may lie."""
    figure, axis = plt.subplots(figsize=(7.6, 3.4))
    axis.axhspan(centre - noise, centre + noise, color=style.CONTROL, alpha=0.25, lw=0)
    axis.text(len(values) - 0.45, centre, "seed\nnoise", color=style.CONTROL, va="center")
    for i, value in enumerate(values.values()):
        inside = abs(value - centre) <= noise
        axis.plot(i, value, "o", color=style.CONTROL if inside else style.FEATURE, ms=8)
    axis.set(ylabel=ylabel, xlim=(-0.5, len(values) + 0.2))
    axis.set_xticks(range(len(values)), list(values), rotation=20)
    return figure


@literal
def precision(by_tenth: Curves, base: float, controls: Curves) -> Figure:
    """Precision in each tenth of a feature's firings, weakest first; the base rate as a line."""
    figure, axis = plt.subplots(figsize=(6.8, 3.4))
    coloured = zip(by_tenth.items(), COLOURS, strict=False)
    for (name, values), colour in [
        *coloured,
        *((each, style.CONTROL) for each in controls.items()),
    ]:
        axis.plot(range(1, len(values) + 1), values, "-o", color=colour, ms=5)
        axis.text(len(values) + 0.2, values[-1], name, color=colour, va="center", fontsize=9)
    axis.axhline(base, color=style.CONTROL, lw=1)
    axis.text(
        13, base + 0.015, "the concept's base rate", color=style.CONTROL, fontsize=9, ha="right"
    )
    axis.set(xlabel="tenth of the firings, weakest to strongest", ylabel="precision (share)",
             ylim=(0, 1.02), xlim=(0.6, 13.2), xticks=range(1, 11))  # fmt: skip
    return figure


@literal
def labels(seen: Sequence[float], kept: Sequence[float], control: Sequence[float]) -> Figure:
    """What a label promised on the strongest texts, and its F1 on all text, as two histograms."""
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2), sharey=True)
    edges = np.linspace(0, 1, 21)
    axes[0].hist(seen, edges, color=style.RECONSTRUCTION)
    axes[1].hist(kept, edges, color=style.FEATURE)
    axes[1].hist(control, edges, histtype="step", color=style.CONTROL, lw=2)
    axes[1].text(0.3, 0.9, "outline: labels dealt at random", color=style.CONTROL,
                 transform=axes[1].transAxes, fontsize=9)  # fmt: skip
    axes[0].set(xlabel="share of the ten strongest texts with the label", ylabel="features")
    axes[1].set(xlabel="F1 of the label on other text")
    return figure


@literal
def ranking(points: Mapping[str, tuple[float, float]], *, xlabel: str, ylabel: str) -> Figure:
    """A measure without truth against the truth, one named point for each SAE."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    for name, (x, y) in points.items():
        axis.plot(x, y, "o", color=style.FEATURE, ms=8)
        axis.annotate(name, (x, y), (7, 4), textcoords="offset points", fontsize=9)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.margins(x=0.25, y=0.15)
    return figure
