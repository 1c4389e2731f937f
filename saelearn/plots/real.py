"""A real model's pictures: how long its activations are, what labels are worth. Lesson 13.

Arrays in, figure out; colours as `style` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from saelearn.plots.literal import literal
from saelearn.style import CONTROL, DATA, FEATURE, STEERED


@literal
def norms(norm_LT: Mapping[str, ArrayLike], marked: Sequence[int]) -> Figure:
    """Lengths of activations along one text, a line for each depth, log scale.

    Args:
        norm_LT: depth -> one length a token.
        marked: positions to mark, such as separators.
    """
    fig, ax = plt.subplots(figsize=(7.4, 3.4))
    shades = np.linspace(0.25, 1.0, len(norm_LT))
    at = 0.0  # labels apart by a quarter at least
    ends = sorted(norm_LT, key=lambda name: float(np.asarray(norm_LT[name])[-1]))
    for norm_T, shade in zip(norm_LT.values(), shades, strict=True):
        ax.plot(np.asarray(norm_T), color=DATA, alpha=shade, lw=1.2)
    for name in ends:
        norm_T = np.asarray(norm_LT[name])
        at = max(float(norm_T[-1]), 1.35 * at)
        ax.text(len(norm_T), at, f" {name}", va="center", fontsize=9, color=DATA)
    top = max(float(np.asarray(v).max()) for v in norm_LT.values())
    for position in marked:
        ax.plot(position, top * 1.5, "v", color=STEERED, ms=6)
    ax.set(yscale="log", xlabel="position in the text (tokens)", ylabel="length of the activation")
    ax.margins(x=0.02)
    return fig


@literal
def seen_and_fresh(f1: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """F1 of labels on the text that chose them against F1 on fresh text, a panel a family."""
    fig, axes = plt.subplots(1, len(f1), figsize=(8.4, 3.2), sharey=True, sharex=True)
    for ax, (name, (seen, fresh)) in zip(axes, f1.items(), strict=True):
        seen, fresh = np.asarray(seen), np.asarray(fresh)
        colour = FEATURE if name == "features" else CONTROL
        ax.plot([0, 1], [0, 1], ":", color="#BBBBBB", lw=1)
        ax.plot(seen, fresh, "o", ms=4, color=colour, alpha=0.7)
        ax.axhline(fresh.mean(), color=colour, lw=1.5)
        ax.text(0.02, fresh.mean() + 0.02, f"mean {fresh.mean():.2f}", color=colour, fontsize=9)
        ax.set(title=f"{name} (n = {len(seen)})", xlabel="F1 where it was chosen")
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes[0].set_ylabel("F1 on fresh text")
    return fig


@literal
def intervals(rates: Sequence[tuple[float, float, float]]) -> Figure:
    """Rates with their intervals `(low, rate, high)`, sorted by rate."""
    fig, ax = plt.subplots(figsize=(7.4, 3.0))
    for x, (low, rate, high) in enumerate(sorted(rates, key=lambda r: r[1])):
        ax.plot([x, x], [low, high], color=FEATURE, lw=1.5, alpha=0.6)
        ax.plot(x, rate, "o", color=FEATURE, ms=4)
    ax.set(xlabel="features, sorted", ylabel="precision on fresh text", ylim=(-0.02, 1.02))
    return fig


@literal
def doses(
    strengths: Sequence[float],
    measured: Mapping[str, Mapping[str, Sequence[float]]],
    levels: Mapping[str, Mapping[str, float]],
) -> Figure:
    """Quantities over strength, one panel each, and dotted levels of what needs no push.

    Args:
        measured: direction -> quantity -> one value for each strength; the first is the feature.
        levels: name -> quantity -> value.
    """
    quantities = list(next(iter(measured.values())))
    fig, axes = plt.subplots(1, len(quantities), figsize=(8.4, 3.4))
    for ax, quantity in zip(axes, quantities, strict=True):
        for (name, values), colour in zip(measured.items(), (STEERED, CONTROL), strict=True):
            ax.plot(strengths, values[quantity], "o-", color=colour, ms=4)
            if ax is axes[0]:
                ax.text(strengths[-1], values[quantity][-1], f" {name}", fontsize=9, va="center")
        for x, (name, level) in zip(strengths, levels.items(), strict=False):
            ax.axhline(level[quantity], color=DATA, lw=1, ls=":")
            ax.text(x, level[quantity], name, fontsize=8, va="bottom", color=DATA)
        ax.set(xlabel="strength (typical norms of the site)", ylabel=quantity)
        ax.margins(x=0.28)
    return fig
