"""Pictures of lesson 00: a push and its price, looking in and asking from outside, the map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from numpy.typing import ArrayLike

from saelearn import progress
from saelearn.plots.literal import literal
from saelearn.style import CONTROL, DATA, DIVERGING, FEATURE, RECONSTRUCTION, STEERED

_GROUND, _PATH_GROUND, _ARROW = "#F4F4F4", "#FBE9DC", {"arrowstyle": "-|>", "lw": 1.6}
_BEHIND = 0.6  # how far a sheet is shifted against the one before it


@literal
def dose(
    strengths: Sequence[float], measured: Mapping[str, Mapping[str, Sequence[float]]]
) -> Figure:
    """What a push does and what it costs, against its strength; the first direction is the thing's.

    Args:
        strengths: in typical norms of the site.
        measured: direction -> "rate" and "validity" -> one value for each strength.
    """
    fig, axes = plt.subplots(1, 2, figsize=(8.2, 3.2), sharey=True)
    titles = {"rate": "texts that speak of it", "validity": "four-word runs that are well formed"}
    for ax, (quantity, title) in zip(axes, titles.items(), strict=True):
        for (name, found), colour in zip(measured.items(), (STEERED, CONTROL), strict=True):
            ax.plot(strengths, found[quantity], "o-", ms=4, color=colour, label=name)
        ax.set(title=title, xlabel="strength of the push (typical lengths)", ylim=(-0.04, 1.06))
    axes[0].set_ylabel("share (0 to 1)")
    ends = {name: (strengths[-1], found["rate"][-1]) for name, found in measured.items()}
    for (name, (x, y)), colour in zip(ends.items(), (DATA, CONTROL), strict=True):
        where = {"xytext": (0, -8 if y > 0.5 else 7), "textcoords": "offset points"}
        level = "top" if y > 0.5 else "bottom"
        axes[0].annotate(name, (x, y), ha="right", va=level, color=colour, **where)
    return fig


@literal
def two_roads() -> Figure:
    """Explaining a model from outside, and looking inside it, drawn side by side."""
    fig, axes = plt.subplots(1, 2, figsize=(8.0, 2.3))
    for ax, title, dark in zip(
        axes, ("explain from outside", "interpret the inside"), (True, False), strict=True
    ):
        _box(ax, 0.33, 0.18, 0.34, 0.62, DATA if dark else "white")
        for x0, x1 in ((0.08, 0.32), (0.69, 0.93)):
            ax.annotate("", (x1, 0.5), (x0, 0.5), arrowprops={**_ARROW, "color": DATA})
        ax.text(0.06, 0.5, "input", ha="right", va="center")
        ax.text(0.95, 0.5, "output", ha="left", va="center")
        ax.set(title=title, xlim=(-0.12, 1.15), ylim=(0, 1))
        ax.axis("off")
    left, right = axes
    left.text(0.5, 0.49, "?", color="white", fontsize=26, ha="center", va="center")
    left.text(0.06, 0.3, "nudge it", color=DATA, ha="right", va="center", fontsize=9)
    left.text(0.95, 0.3, "what moves?", color=DATA, ha="left", va="center", fontsize=9)
    rows = (("a dog", 0.68), ("a quote begins", 0.5), ("Korean", 0.32))
    for text, y in rows:
        right.text(0.5, y, text, color=FEATURE, ha="center", va="center", fontsize=9)
    return fig


@literal
def weights(
    names: Sequence[str], linear_D: ArrayLike, planted_D: ArrayLike, net_HD: ArrayLike
) -> Figure:
    """A linear model's weights beside what was planted, and a network's first layer.

    Args:
        linear_D: one weight for each input, in units of the output per unit of the input.
        planted_D: the truth, drawn as a line on each bar.
        net_HD: weights of the hidden units, one row each.
    """
    linear_D, planted_D, net_HD = map(np.asarray, (linear_D, planted_D, net_HD))
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.3), width_ratios=(1, 1.25))
    place = np.arange(len(names))
    left.barh(place, linear_D, color=RECONSTRUCTION, height=0.6)
    left.plot(planted_D, place, "|", color=DATA, ms=22, mew=2)
    for y, (value, planted) in enumerate(zip(linear_D, planted_D, strict=True)):
        text = f"{value:.1f}".replace("-0.0", "0.0")
        left.text(max(value, planted, 0) + 0.4, y, text, va="center")
    left.set(yticks=place, yticklabels=names, xlim=(-0.5, 1.2 * linear_D.max()))
    left.set(title="linear model: 4 weights", xlabel="minutes per unit")
    left.invert_yaxis()
    limit = np.abs(net_HD).max()
    image = right.imshow(net_HD.T, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
    right.set(yticks=place, yticklabels=names, xlabel=f"hidden unit (first layer, {len(net_HD)})")
    right.set_title("network: a part of its weights")
    right.spines[:].set_visible(False)
    fig.colorbar(image, ax=right, label="weight", fraction=0.06)
    return fig


@literal
def longer_walks(
    km_N: ArrayLike, rule_N: ArrayLike, minutes_MN: ArrayLike, *, seen: tuple[float, float]
) -> Figure:
    """What several models say of longer and longer walks, beside the rule.

    Args:
        km_N: lengths of the walks.
        rule_N: minutes by the rule.
        minutes_MN: minutes that each model says.
        seen: from where to where the lengths went that the models learned from.
    """
    km_N, rule_N, minutes_MN = map(np.asarray, (km_N, rule_N, minutes_MN))
    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    ax.axvspan(*seen, color="0.92", lw=0)
    ax.plot(km_N, rule_N, "--", color=DATA)
    ax.plot(km_N, minutes_MN.T, color=RECONSTRUCTION, lw=1)
    ax.text(sum(seen) / 2, rule_N[-1], "learned from", ha="center", va="top", color=DATA)
    middle = len(km_N) // 2
    ax.text(km_N[middle], rule_N[middle] + 20, "the rule", ha="right", color=DATA)
    below = minutes_MN[:, middle].min() - 25
    ax.text(km_N[middle], below, f"{len(minutes_MN)} networks", va="top", color=RECONSTRUCTION)
    ax.set(xlabel="length of the walk (km)", ylabel="minutes")
    return fig


@literal
def tensor(sizes: Mapping[str, int]) -> Figure:
    """A tensor with three named dimensions as sheets of squares, a slice of it in colour."""
    (b, n_b), (t, n_t), (d, n_d) = sizes.items()
    fig, ax = plt.subplots(figsize=(6.4, 2.9))
    for sheet in reversed(range(n_b)):
        for row in range(n_t):
            for column in range(n_d):
                colour = STEERED if sheet == 0 and row == n_t - 1 else "white"
                place = (_BEHIND * sheet + column, _BEHIND * sheet + n_t - 1 - row)
                ax.add_patch(Rectangle(place, 1, 1, fc=colour, ec=CONTROL, zorder=n_b - sheet))
    ax.text(n_d / 2, -0.35, f"{d} = {n_d} numbers", ha="center", va="top")
    ax.text(-0.3, n_t / 2, f"{t} = {n_t} words", ha="right", va="center")
    right = n_d + _BEHIND * (n_b - 1) + 0.4
    ax.text(right, n_t, f"{b} = {n_b} texts, one behind the other", ha="left", va="center")
    ax.text(right, 0.5, f"x_{b}{t}{d}[0, -1]", color=DATA, va="center")
    ax.plot([n_d + 0.05, right - 0.1], [0.5, 0.5], color=STEERED, lw=1, zorder=n_b + 1)
    ax.set(xlim=(-3.4, n_d + 8.6), ylim=(-1.1, n_t + 0.9), aspect="equal")
    ax.axis("off")
    return fig


@literal
def course_map(
    parts: Mapping[str, Mapping[str, str]],
    *,
    short_path: Sequence[str],
    to_come: Sequence[str] = (),
    solved: Mapping[str, progress.Solved] | None = None,
) -> Figure:
    """The lessons as boxes, a part of the course in each row; a short path through them.

    Args:
        parts: title of a row -> number of a lesson -> its question.
        short_path: numbers in the order of reading, joined by a line.
        to_come: numbers of lessons that are announced.
        solved: how far the reader is, by numbers (default: as the folder of the lesson says).
    """
    solved = progress.of_folder() if solved is None else solved
    fig, ax = plt.subplots(figsize=(9.6, 1.0 + 1.2 * len(parts)))
    wide, high, place = 1.72, 0.78, {}
    for row, (title, lessons) in enumerate(parts.items()):
        ax.text(-0.12, -row, fill(title, 12), ha="right", va="center", fontweight="bold")
        for column, (number, question) in enumerate(lessons.items()):
            x, y = 1.9 * column, -row - high / 2
            place[number] = (x + wide / 2, -row)
            short, later = number in short_path, number in to_come
            box = _box(ax, x, y, wide, high, _PATH_GROUND if short else _GROUND)
            box.set(ec=STEERED if short else CONTROL, lw=2 if short else 1, zorder=2)
            box.set_linestyle("--" if later else "-")
            colour = CONTROL if later else DATA
            ax.text(x + 0.06, -row + 0.22, number, fontweight="bold", color=colour, va="center")
            if number in solved:
                so_far = "✓" if solved[number].done else str(solved[number])
                ax.text(x + wide - 0.06, -row + 0.22, so_far, fontsize=8, color=FEATURE,
                        ha="right", va="center")  # fmt: skip
            text = fill(question, 20)
            ax.text(x + 0.06, -row - 0.1, text, fontsize=8, color=colour, va="center")
    for start, end in pairwise(short_path):
        _path(ax, place[start], place[end], high / 2)
    longest = max(map(len, parts.values()))
    ax.set(xlim=(-1.4, 1.9 * longest), ylim=(-len(parts) + 0.5, 0.5))
    ax.axis("off")
    return fig


def _path(ax: Axes, start: tuple[float, float], end: tuple[float, float], half: float) -> None:
    """From box to box: straight on within a row, else through the gap under it."""
    (x0, y0), (x1, y1) = start, end
    corners = [(x0, y0), (x1, y1)]
    if y0 != y1:
        gap = y0 - 0.5
        corners = [(x0, y0), (x0, gap), (x1, gap), (x1, y1 + half)]
    style = {"color": STEERED, "lw": 5, "alpha": 0.4, "zorder": 1, "solid_joinstyle": "round"}
    ax.plot(*zip(*corners, strict=True), **style)


def _box(ax: Axes, x: float, y: float, wide: float, high: float, colour: str) -> FancyBboxPatch:
    box = FancyBboxPatch((x, y), wide, high, boxstyle="round,pad=0.02", fc=colour, ec=DATA, lw=1.5)
    ax.add_patch(box)
    return box
