"""Monitors, groups and edits beside their baselines. Lesson 12.

Numbers in, figure out; colours as `style` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from saelearn import style
from saelearn.plots.literal import literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@literal
def grid(table: Mapping[str, Mapping[str, float]], *, label: str, middle: float = 0.5) -> Figure:
    """A table as coloured fields with their numbers: row -> column -> value from 0 to 1.

    Args:
        table: values; all rows have the same columns.
        label: what the numbers are.
        middle: the value without colour, such as that of a coin.
    """
    columns = list(next(iter(table.values())))
    values = np.array([[row[c] for c in columns] for row in table.values()])
    size = (2.6 + 1.05 * len(columns), 1.2 + 0.38 * len(table))
    figure, axis = plt.subplots(figsize=size)
    axis.imshow(values - middle, cmap=style.DIVERGING.removesuffix("_r"), vmin=-1, vmax=1,
                aspect="auto")  # fmt: skip
    for (i, j), value in np.ndenumerate(values):
        axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9)
    axis.set_xticks(range(len(columns)), [c.replace(" ", "\n", 1) for c in columns])
    axis.set_yticks(range(len(table)), list(table))
    axis.tick_params(length=0)
    axis.set_xlabel(label)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return figure


@literal
def rows(
    values: Mapping[str, Sequence[float]], *, xlabel: str, ours: Sequence[str] = (), mark: float = 0
) -> Figure:
    """One row of dots for each name, a dot for each seed; what is not `ours` is grey.

    Args:
        values: name -> a value for each seed.
        ours: names in the colour of features.
        mark: where a vertical line stands.
    """
    figure, axis = plt.subplots(figsize=(7.2, 0.9 + 0.36 * len(values)))
    for row, (name, each) in enumerate(values.items()):
        apart = 0.14 * (np.arange(len(each)) % 3 - 1)  # equal values stay countable
        axis.axhline(row, color="#dddddd", lw=1, zorder=0)
        colour = style.FEATURE if name in ours else style.CONTROL
        axis.plot(np.asarray(each), row + apart, "o", color=colour, ms=5, alpha=0.8)
    axis.axvline(mark, color=style.CONTROL, lw=1)
    axis.set_yticks(range(len(values)), list(values))
    axis.set(xlabel=xlabel)
    axis.invert_yaxis()
    return figure


@literal
def found(scores: Mapping[str, tuple[int, int]]) -> Figure:
    """Flaws found, name -> (found, tried), as bars with their counts."""
    figure, axis = plt.subplots(figsize=(6.4, 0.9 + 0.42 * len(scores)))
    for row, (hits, n) in enumerate(scores.values()):
        axis.barh(row, hits / n, height=0.6, color=style.FEATURE if row == 0 else style.CONTROL)
        axis.text(hits / n + 0.01, row, f"{hits} of {n}", va="center", fontsize=9)
    axis.set_yticks(range(len(scores)), list(scores))
    axis.set(xlabel="share of planted flaws found", xlim=(0, 1.15))
    axis.invert_yaxis()
    return figure
