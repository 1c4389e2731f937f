"""Pictures of bottlenecks and of wide codes. Lesson 01.

Arrays in, figure out; colours as `style` says. Shapes: N points, D width of the data, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from saelearn.plots.literal import literal
from saelearn.plots.moving import INK, Moving, canvas
from saelearn.plots.panel import Flipbook, flipbook
from saelearn.style import ACCENT, CONTROL, DATA, DIVERGING, FEATURE, RECONSTRUCTION


@literal
def shapes(panels: Mapping[str, Sequence[tuple[int, str, int]]]) -> Figure:
    """Autoencoders as rows of bars, one panel each, drawn to scale.

    Args:
        panels: title -> layers (width, name, how many of them are on in one row).
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 3.4), sharey=True)
    for ax, (title, layers) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for i, (width, name, n_on) in enumerate(layers):
            colour = FEATURE if 0 < i < len(layers) - 1 else (DATA, RECONSTRUCTION)[i > 0]
            low = -width / 2
            ax.bar(i, width, 0.34, bottom=low, color=colour, alpha=1 if n_on == width else 0.22)
            if n_on < width:
                on = np.random.default_rng(0).choice(width, n_on, replace=False)
                ax.hlines(low + on + 0.5, i - 0.17, i + 0.17, color=colour, linewidth=1.4)
            label = f"{width}" if n_on == width else f"{width}\n({n_on} on)"
            ax.text(i, low - 6, f"{name}\n{label}", ha="center", va="top", fontsize=9)
        for i in range(len(layers) - 1):
            arrow = {"arrowstyle": "->", "color": CONTROL}
            ax.annotate("", (i + 0.74, 0), (i + 0.26, 0), arrowprops=arrow)
            matrix = ("W_enc", "W_dec")[i]
            ax.text(i + 0.5, 5, matrix, ha="center", fontsize=8, color=CONTROL)
        ax.set(title=title, xlim=(-0.5, len(layers) - 0.5), ylim=(-150, 104))
        ax.axis("off")
    return fig


def line_dial(x_ND: ArrayLike, degrees: Sequence[int], *, start: int = 0) -> Flipbook:
    """A slider that turns a line through a cloud; each point is replaced by its foot on the line.

    Args:
        x_ND: points `[N, 2]` with mean 0.
        degrees: the angles to offer.
        start: which of them is shown first.
    """
    x_N2 = np.asarray(x_ND, dtype=float)
    lost = [_lost(x_N2, angle) for angle in degrees]
    reach = float(np.abs(x_N2).max()) * 1.08
    with canvas(8.0, 3.7) as figure:
        cloud, curve = figure.subplots(1, 2)
        (line,) = cloud.plot([], [], color=FEATURE, gid="line")
        (gaps,) = cloud.plot([], [], color=CONTROL, lw=0.8)
        cloud.plot(*x_N2.T, "o", color=INK, ms=3)
        (feet,) = cloud.plot([], [], "o", color=RECONSTRUCTION, ms=3, gid="feet")
        cloud.set(title="one number for each point", xlabel="first number", ylabel="second number")
        cloud.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        curve.plot(list(degrees), lost, color=RECONSTRUCTION)
        (here,) = curve.plot([], [], "o", color=FEATURE, ms=9, gid="here")
        curve.set(title="what is lost", xlabel="angle of the line, degrees")
        curve.set(ylabel="share of variance lost", ylim=(0, 1.02), xticks=range(0, 181, 45))
    picture = Moving(figure, [line, gaps, feet, here])

    def draw(at: int) -> str:
        feet_N2 = _feet(x_N2, degrees[at])
        end = 10 * np.array([np.cos(np.deg2rad(degrees[at])), np.sin(np.deg2rad(degrees[at]))])
        line.set_data(*np.stack([-end, end]).T)
        between = np.stack([x_N2, feet_N2, np.full_like(x_N2, np.nan)], axis=1).reshape(-1, 2)
        gaps.set_data(*between.T)
        feet.set_data(*feet_N2.T)
        here.set_data([degrees[at]], [lost[at]])
        return picture.frame()

    said = [
        f"A line at {a}° through a cloud: {v:.0%} lost" for a, v in zip(degrees, lost, strict=True)
    ]
    names = [f"{angle}°" for angle in degrees]
    return flipbook(
        "A line through a cloud", "angle", names, draw, said, picture,
        start=start, still=int(np.argmin(lost)),
    )  # fmt: skip


def _feet(x_N2: np.ndarray, angle: float) -> np.ndarray:
    along = np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    return (x_N2 @ along)[:, None] * along


def _lost(x_N2: np.ndarray, angle: float) -> float:
    return float(((x_N2 - _feet(x_N2, angle)) ** 2).sum() / (x_N2**2).sum())


@literal
def training_and_width(
    losses: ArrayLike, floor: float, missed_D: ArrayLike, trained: Mapping[int, float]
) -> Figure:
    """Left the loss over time with PCA's as the floor, right what each width of the code loses.

    Args:
        losses: before each step.
        floor: PCA's loss at the same width.
        missed_D: share of variance that PCA misses with 0, 1, ... components.
        trained: width of the code -> share that a trained autoencoder misses.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.3))
    losses, missed_D = np.asarray(losses), np.asarray(missed_D)
    left.axhline(floor, color=CONTROL, linestyle="--", linewidth=1.5)
    left.plot(np.arange(1, len(losses) + 1), losses, color=RECONSTRUCTION)
    left.set(xscale="log", ylim=(0, None), xlabel="training step (log scale)", ylabel="loss")
    left.text(1, floor * 0.9, "PCA's loss", color=CONTROL, va="top")
    left.text(3.5, losses[2] * 0.98, "autoencoder", color=RECONSTRUCTION, va="bottom")
    right.plot(missed_D, color=CONTROL, linestyle="--", linewidth=1.5)
    right.plot(list(trained), list(trained.values()), "o", color=RECONSTRUCTION)
    right.text(14, missed_D[10] + 0.02, "PCA (line)", color=CONTROL)
    right.text(28, missed_D[25] + 0.02, "trained autoencoders (dots)", color=RECONSTRUCTION)
    right.set(xlabel="numbers in the code", ylabel="share of variance lost", ylim=(-0.03, 1.03))
    return fig


@literal
def subspaces(cosines: Mapping[str, tuple[ArrayLike, str]], cosine_HC: ArrayLike) -> Figure:
    """Left the principal angles' cosines, right |cosines| of decoder rows and components.

    Args:
        cosines: label -> (cosines, largest first; colour).
        cosine_HC: of each decoder row with each component.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), width_ratios=[1.15, 1])
    for label, (values, colour) in cosines.items():
        values = np.asarray(values)
        left.plot(np.arange(1, len(values) + 1), values, color=colour)
        middle = len(values) // 2
        height = 0.94 if values.min() > 0.9 else values[middle] + 0.05
        left.text(middle, height, label, color=colour, va="top" if height == 0.94 else "bottom")
    left.set(xlabel="principal angle, by size", ylabel="its cosine", ylim=(0, 1.05))
    left.set_title("the planes")
    image = right.imshow(np.abs(np.asarray(cosine_HC)), vmin=0, vmax=1, cmap="Greys")
    right.set(xlabel="principal component", ylabel="decoder row", title="the rows")
    fig.colorbar(image, ax=right, label="|cosine|", shrink=0.9)
    return fig


@literal
def maps(panels: Mapping[str, ArrayLike]) -> Figure:
    """Matrices input -> output as images, centred on zero, with one colour bar."""
    return _images(panels, "number going in", "number coming out", "weight of the whole map")


@literal
def cosines(panels: Mapping[str, ArrayLike]) -> Figure:
    """Square matrices of cosines side by side, with one colour bar."""
    return _images(panels, "happening", "decoder row, best match", "cosine")


def _images(panels: Mapping[str, ArrayLike], across: str, down: str, what: str) -> Figure:
    fig, axes = plt.subplots(1, len(panels), figsize=(3.0 * len(panels) + 0.9, 3.2), sharey=True)
    for ax, (title, matrix) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        image = ax.imshow(np.asarray(matrix), cmap=DIVERGING, vmin=-1, vmax=1)
        ax.set(title=title, xlabel=across)
    np.atleast_1d(axes)[0].set_ylabel(down)
    fig.colorbar(image, ax=axes, label=what, shrink=0.9)
    return fig


@literal
def best_cosines(ways: Mapping[str, ArrayLike], *, accent: str, threshold: float) -> Figure:
    """For each way of finding directions, the best cosine of each truth, largest first.

    Args:
        ways: name -> one cosine for each true direction.
        accent: the way drawn in the features' colour; others are controls.
        threshold: from where on a direction counts as found.
    """
    fig, ax = plt.subplots(figsize=(7.2, 3.3))
    ax.axhline(threshold, color=DATA, lw=1, linestyle="--")
    falling = {name: np.sort(np.asarray(cosine_G))[::-1] for name, cosine_G in ways.items()}
    labels = _apart({name: float(cosine_G[-1]) for name, cosine_G in falling.items()}, 0.07)
    for name, cosine_G in falling.items():
        colour = FEATURE if name == accent else CONTROL
        ax.plot(np.arange(1, len(cosine_G) + 1), cosine_G, color=colour)
        ax.text(len(cosine_G) + 0.6, labels[name], name, color=colour, va="center")
    longest = max(map(len, falling.values()))
    ax.set(xlabel="happening, best found first", ylabel="cosine of the nearest row")
    ax.set(xlim=(0, 1.14 * longest), ylim=(0, 1.05))
    return fig


def _apart(heights: dict[str, float], least: float) -> dict[str, float]:
    """The same heights, from above, each moved down to be `least` below the one before it."""
    placed: dict[str, float] = {}
    for name, y in sorted(heights.items(), key=lambda item: -item[1]):
        placed[name] = min([y, *(above - least for above in placed.values())])
    return placed


@literal
def codes(panels: Mapping[str, tuple[ArrayLike, str]]) -> Figure:
    """One row's code in each autoencoder, as bars: title -> (values, colour)."""
    fig, axes = plt.subplots(len(panels), 1, figsize=(7.4, 1.35 * len(panels) + 0.3))
    for ax, (title, (values, colour)) in zip(axes, panels.items(), strict=True):
        values = np.asarray(values)
        ax.bar(np.arange(len(values)), values, color=colour, width=0.9)
        ax.axhline(0, color=DATA, linewidth=0.6)
        ax.set(xlim=(-2, 201), ylabel="value")
        if values.min() >= 0:  # strengths: one scale, so that they can be compared
            ax.set_ylim(0, 1.05)
        ax.set_title(title, fontsize=10)
    axes[-1].set_xlabel("position in the code")
    return fig


@literal
def bent(panels: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """Points and their reconstructions in the plane: title -> (`[N, 2]`, `[N, 2]`)."""
    fig, axes = plt.subplots(1, len(panels), figsize=(7.2, 3.0), sharex=True, sharey=True)
    for ax, (title, (x_ND, x_hat_ND)) in zip(axes, panels.items(), strict=True):
        _points(ax, np.asarray(x_ND), DATA, "data", 4)
        _points(ax, np.asarray(x_hat_ND), RECONSTRUCTION, "reconstruction", 4)
        ax.set(title=title, xlabel="first number", aspect="equal")
    axes[0].set_ylabel("second number")
    axes[0].text(-1.05, 1.3, "data", color=DATA)
    axes[0].text(-0.62, 1.3, "what comes back", color=RECONSTRUCTION)
    axes[0].set_ylim(None, 1.5)
    return fig


def _points(ax: Axes, x_ND: np.ndarray, colour: str, label: str, size: float) -> None:
    ax.plot(x_ND[:, 0], x_ND[:, 1], ".", color=colour, markersize=size, label=label)


@literal
def pixel_rows(rows: Mapping[str, ArrayLike], *, columns: int = 12) -> Figure:
    """Rows of 8 x 8 pictures: label -> `[n, 64]`; each picture is scaled by itself, 0 is white."""
    fig, axes = plt.subplots(len(rows), columns, figsize=(8.4, 0.82 * len(rows) + 0.1))
    for row, (label, pictures) in zip(axes, rows.items(), strict=True):
        for ax, picture in zip(row, np.asarray(pictures), strict=False):
            reach = np.abs(picture).max()
            ax.imshow(picture.reshape(8, 8), cmap=DIVERGING, vmin=-reach, vmax=reach)
        for ax in row:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    return fig


@literal
def accuracies(
    n_labels: Sequence[int], shares: Mapping[str, ArrayLike], *, accent: Sequence[str]
) -> Figure:
    """Accuracy of a classifier on each representation; a dot for each split, a bar at the mean.

    Args:
        n_labels: how many labelled rows it learned from, one panel each.
        shares: representation -> accuracies `[panels, splits]`.
        accent: the representations drawn in the features' colour; others are controls.
    """
    fig, axes = plt.subplots(1, len(n_labels), figsize=(8.6, 3.0), sharey=True)
    names = list(shares)
    for i, (ax, n) in enumerate(zip(axes, n_labels, strict=True)):
        for y, name in enumerate(names):
            values = np.asarray(shares[name])[i]
            colour = FEATURE if name in accent else CONTROL
            ax.plot(values, np.full(len(values), y), ".", color=colour, markersize=6, alpha=0.7)
            ax.plot(values.mean(), y, "|", color=ACCENT if name in accent else DATA, markersize=18)
        ax.set(title=f"{n:,} labels", xlabel="accuracy on unseen digits")
        ax.set_yticks(range(len(names)), names)
        ax.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    return fig
