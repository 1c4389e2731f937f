"""Pictures of the toy models' geometry: where features point, and what they cost. Lesson 02.

Shapes: K models, G features, D hidden dimensions, P settings of a dial. Arrays in, figure out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from saelearn.plots.literal import literal
from saelearn.plots.panel import Flipbook, flipbook
from saelearn.plots.sparsity import KEPT, REACH, Sparsity
from saelearn.style import ACCENT, CONTROL, DATA, FEATURE, RECONSTRUCTION


@literal
def samples(panels: Mapping[str, ArrayLike]) -> Figure:
    """Feature vectors `[B, G]` as rows of a grey raster, one panel for each title."""
    fig, axes = plt.subplots(1, len(panels), figsize=(7.0, 4.0), sharey=True)
    for ax, (title, f_BG) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        f_BG = np.asarray(f_BG)
        image = ax.imshow(f_BG, cmap="Greys", vmin=0, vmax=1, aspect="auto")
        ax.set(title=title, xlabel="feature", xticks=range(f_BG.shape[1]))
    np.atleast_1d(axes)[0].set_ylabel("sample")
    fig.colorbar(image, ax=axes, label="amplitude (0: absent)")
    return fig


@literal
def planes(
    W_KGD: ArrayLike, titles: Sequence[str], *, columns: int = 4, pairs: bool = False
) -> Figure:
    """Each model's features as lines from the origin of its two hidden dimensions.

    A feature whose direction is at most 0.5 long is grey: it is not represented.

    Args:
        W_KGD: directions `[K, G, 2]`.
        titles: one for each model.
        columns: panels in a row.
        pairs: features (0, 1), (2, 3), ... share a colour in turn.
    """
    W_KGD = np.asarray(W_KGD)
    rows = -(-len(W_KGD) // columns)
    size = (1.85 * columns, 2.05 * rows + 0.3)
    fig, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax, W_GD, title in zip(axes.flat, W_KGD, titles, strict=True):
        _arrows(ax, W_GD, [ACCENT if pairs and g // 2 % 2 else FEATURE for g in range(len(W_GD))])
        ax.set_title(title, fontsize=9, loc="center")
    fig.supxlabel("activation of hidden neuron 0", fontsize=10)
    fig.supylabel("activation of hidden neuron 1", fontsize=10)
    return fig


def _arrows(ax: Axes, W_GD: np.ndarray, colours: Sequence[str]) -> None:
    ax.add_patch(plt.Circle((0, 0), 1, fill=False, ls=":", ec=CONTROL, lw=1))
    for g, (x, y) in enumerate(W_GD):
        norm = np.hypot(x, y)
        colour = colours[g] if norm > 0.5 else CONTROL
        above = 2 if norm > 0.5 else 3  # matplotlib's own for lines, and one more
        ax.plot([0, x], [0, y], color=colour, lw=2, zorder=above)
        ax.plot(x, y, "o", color=colour, ms=4, zorder=above)
        away = 0.22 * np.array([x, y]) / max(norm, 1e-9)
        if norm <= 0.5:  # a forgotten feature lies along another: its label stands beside it
            away = np.array([-away[1], away[0]])
        if norm > 0.2:  # shorter still, labels would pile up in the middle
            ax.text(x + away[0], y + away[1], g, ha="center", va="center", color=colour)
    ax.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal")
    ax.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1])


@literal
def responses(
    panels: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], curve: tuple[ArrayLike, ArrayLike]
) -> Figure:
    """What goes in, what interference makes of it, and what comes out, for each feature.

    Args:
        panels: title -> (input `[G]`, W W^T f + b `[G]`, output after ReLU `[G]`).
        curve: amplitudes of one feature alone, and what comes out of it; the last panel.
    """
    fig, axes = plt.subplots(1, len(panels) + 1, figsize=(7.4, 3.2), sharey=True)
    for ax, (title, (f_G, before_G, after_G)) in zip(axes, panels.items(), strict=False):
        x_G = np.arange(len(np.asarray(f_G)))
        ax.bar(x_G - 0.2, before_G, 0.4, color="#BBBBBB", label="before ReLU")
        ax.bar(x_G + 0.2, after_G, 0.4, color=RECONSTRUCTION, label="output")
        ax.plot(x_G, f_G, "_", color=DATA, ms=24, mew=2, label="input")
        ax.axhline(0, color=DATA, lw=0.8)
        for x in x_G[np.abs(np.asarray(before_G)) < 0.04]:  # a bar too flat to be seen
            ax.text(x, 0.03, "≈ 0", ha="center", va="bottom", fontsize=8)
        ax.set(title=title, xlabel="feature", xticks=x_G)
    axes[-1].plot([0, 1], [0, 1], color=CONTROL, lw=1, ls=":")
    axes[-1].plot(*curve, color=RECONSTRUCTION, lw=2)
    axes[-1].set(title="from faint to full", xlabel="input, one feature on", xticks=[0, 0.5, 1])
    axes[0].set_ylabel("amplitude")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def sparsity_dial(
    p_P: Sequence[float], W_PGD: ArrayLike, dim_PG: ArrayLike, *, start: int = 0
) -> Flipbook:
    """A slider through trained models: arrows in the plane, dimensionality beside them.

    Args:
        p_P: the probability that each model was trained with.
        W_PGD: directions `[P, G, 2]`; turned here so that feature 0 stays in its place.
        dim_PG: their dimensionalities.
        start: which of the models is shown first.
    """
    W_PGD, dim_PG = np.asarray(W_PGD, dtype=float), np.asarray(dim_PG, dtype=float)
    picture = Sparsity(W_PGD.shape[1])
    kept_P = (np.linalg.norm(W_PGD, axis=-1) > KEPT).sum(-1)
    said = [
        f"{kept} features kept; their shares of a dimension: {', '.join(f'{d:.2f}' for d in dim_G)}"
        for kept, dim_G in zip(kept_P, dim_PG, strict=True)
    ]
    return flipbook(
        "Sparsity and geometry", "probability p to be on", [f"{p:g}" for p in p_P],
        lambda at: picture.show(W_PGD[at], dim_PG[at]), said, picture, start=start,
    )  # fmt: skip


@literal
def losses(values: Mapping[str, float], controls: Sequence[str]) -> Figure:
    """Losses as horizontal bars with their numbers; `controls` are drawn in the control's grey."""
    fig, ax = plt.subplots(figsize=(7.0, 2.6))
    names = list(values)
    colours = [CONTROL if name in controls else RECONSTRUCTION for name in names]
    bars = ax.barh(names, list(values.values()), color=colours)
    ax.bar_label(bars, fmt="%.4f", padding=4)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.set_xlabel("weighted loss (mean over samples and features)")
    return fig


@literal
def staircase(p_P: Sequence[float], dim_PG: ArrayLike, random_G: ArrayLike) -> Figure:
    """Dimensionalities of all features, sorted, one curve for each sparsity.

    Args:
        p_P: the probability that each model was trained with.
        dim_PG: dimensionalities `[P, G]`.
        random_G: those of random directions, as the control.
    """
    dim_PG = np.asarray(dim_PG)
    fig, axes = plt.subplots(1, len(p_P) + 1, figsize=(7.6, 2.9), sharey=True)
    random = np.asarray(random_G)
    titles = [f"p = {p:g}" for p in p_P] + ["untrained"]
    for ax, title, dim_G in zip(axes, titles, [*dim_PG, random], strict=True):
        for share in (1 / 2, 2 / 5):
            ax.axhline(share, color="#BBBBBB", lw=0.8, zorder=0)
        colour = CONTROL if dim_G is random else FEATURE
        ax.plot(np.sort(dim_G)[::-1], ".", ms=4, color=colour)
        ax.set_title(f"{title}\nsum {dim_G.sum():.0f}", fontsize=9)
        ax.set_xticks([0, len(dim_G)])
        for share, name in ((1 / 2, "1/2"), (2 / 5, "2/5")):
            ax.text(len(random), share, name, fontsize=8, va="bottom", ha="right")
    axes[0].set(ylabel="share of a dimension", ylim=(-0.03, 0.75))
    fig.supxlabel("feature, sorted by its share", fontsize=10)
    return fig


@literal
def neurons(W: Mapping[str, ArrayLike]) -> Figure:
    """How strongly each feature drives each hidden neuron: one column of panels for each model.

    Args:
        W: title -> directions `[G, 2]`.
    """
    fig, axes = plt.subplots(2, len(W), figsize=(7.4, 3.8), sharey=True, squeeze=False)
    for column, (title, W_GD) in enumerate(W.items()):
        W_GD = np.asarray(W_GD)
        for d, ax in enumerate(axes[:, column]):
            ax.bar(range(len(W_GD)), W_GD[:, d], color=FEATURE, width=0.6)
            ax.axhline(0, color=DATA, lw=0.8)
            ax.set(xticks=range(len(W_GD)), xlim=(-0.6, len(W_GD) - 0.4), ylim=(-1.4, 1.4))
        axes[0, column].set_title(title, fontsize=10)
        axes[1, column].set_xlabel("feature")
    for d, ax in enumerate(axes[:, 0]):
        ax.set_ylabel(f"weight into\nneuron {d}")
    return fig


@literal
def norm_by_frequency(p_G: ArrayLike, norms: Mapping[str, ArrayLike]) -> Figure:
    """Length of each feature's direction against how often the feature occurs.

    Args:
        p_G: probability of each feature.
        norms: two, label -> `[G]`; labelled where the curve drops.
    """
    p_G = np.asarray(p_G)
    fig, ax = plt.subplots(figsize=(7.0, 3.4))
    sides = ((ACCENT, 1.15, "right"), (FEATURE, 0.85, "left"))
    for (label, norm_G), (colour, shift, side) in zip(norms.items(), sides, strict=True):
        norm_G = np.asarray(norm_G)
        ax.plot(p_G, norm_G, "o-", ms=4, color=colour)
        last = np.flatnonzero(norm_G > 0.5).max()
        ax.text(p_G[last] * shift, 0.7, label, color=colour, ha=side)
    ax.axhline(0.5, color=CONTROL, lw=1, ls=":")
    ax.set(xscale="log", ylim=(-0.05, 1.45), xlabel="frequency: probability to be on, p")
    ax.set_ylabel("length of direction")
    ax.invert_xaxis()
    return fig


@literal
def readings(W_GD: ArrayLike, h_BD: ArrayLike, errors: Mapping[str, ArrayLike]) -> Figure:
    """Points of the plane, coloured by how far off their reading is; one panel for each reader.

    Args:
        W_GD: directions `[G, 2]`.
        h_BD: points `[B, 2]`.
        errors: reader -> the length of each point's error `[B]`.
    """
    h_BD, W_GD = np.asarray(h_BD), np.asarray(W_GD)
    fig, axes = plt.subplots(1, len(errors), figsize=(7.4, 3.5), sharex=True, sharey=True)
    top = max(float(np.asarray(error_B).max()) for error_B in errors.values())
    for ax, (title, error_B) in zip(np.atleast_1d(axes), errors.items(), strict=True):
        by_size = np.argsort(error_B)  # the worst on top
        dots = ax.scatter(*h_BD[by_size].T, s=6, c=np.asarray(error_B)[by_size], cmap="cividis_r",
                          vmin=0, vmax=top)  # fmt: skip
        for g, (x, y) in enumerate(W_GD):
            ax.plot([0, x], [0, y], color=DATA, lw=0.6, zorder=0)
            ax.text(1.18 * x, 1.18 * y, g, ha="center", va="center", color=FEATURE)
        ax.set(title=f"read by {title}", xlabel="activation of hidden neuron 0", aspect="equal")
    np.atleast_1d(axes)[0].set_ylabel("activation of hidden neuron 1")
    fig.colorbar(dots, ax=axes, label="length of the error")
    return fig
