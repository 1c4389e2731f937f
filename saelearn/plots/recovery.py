"""Pictures of the first SAE: its parts, what it found, and what seeds agree on. Lesson 04.

Shapes: D activation width, F features, G planted features, S moments of training, K seeds.
Arrays in, figure out; colours as `style` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import ArrayLike

from saelearn import style
from saelearn.plots.literal import literal
from saelearn.plots.moving import SIGNED, Moving, canvas
from saelearn.plots.panel import Flipbook, flipbook

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMS = {  # form -> (what happens on the way in, the matrix in, the matrix out, on the way out)
    "tied": ("", "M   [F, D]\nthen + b", "Mᵀ   [D, F]\nthe same M", ""),
    "two linear layers": (
        "",
        "encoder.weight\n[F, D],  + bias",
        "decoder.weight\n[D, F]",
        "+ bias",
    ),
    "pre-bias": ("- b_dec", "W_enc   [D, F]\nthen + b_enc", "W_dec   [F, D]", "+ b_dec"),
}


@literal
def forms(*names: str) -> Figure:
    """Ways of writing an SAE: x goes up into a wider code and comes down again."""
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.15 * len(names) + 0.4, 2.9), squeeze=False
    )
    for axis, name in zip(axes[0], names, strict=True):
        before, encoder, decoder, after = FORMS[name]
        code = "c" if name == "tied" else "f"
        layers = ((0, 1.0, style.DATA, "x"), (1, 2.0, style.FEATURE, code))
        layers += ((2, 1.0, style.RECONSTRUCTION, "x̂"),)
        for x, half, colour, label in layers:
            axis.plot([x, x], [-half, half], color=colour, linewidth=9, solid_capstyle="butt")
            axis.text(x, half + 0.15, label, color=colour, ha="center", fontsize=13)
        for x, (left, right) in ((0, (1.0, 2.0)), (1, (2.0, 1.0))):
            corners = [x + 0.07, x + 0.93, x + 0.93, x + 0.07], [-left, -right, right, left]
            axis.fill(*corners, color="#EFEFEF")
        axis.text(0.5, 0, encoder, ha="center", va="center", fontsize=9)
        axis.text(1.5, 0, decoder, ha="center", va="center", fontsize=9)
        axis.text(1, -2.35, "ReLU", ha="center", color=style.FEATURE, fontsize=9)
        axis.text(0, -1.4, before, ha="center", color=style.DATA, fontsize=9)
        axis.text(2, -1.4, after, ha="center", color=style.RECONSTRUCTION, fontsize=9)
        axis.set(title=name, xlim=(-0.35, 2.35), ylim=(-2.5, 2.6))
        axis.title.set_horizontalalignment("center")
        axis.title.set_x(0.5)
        axis.axis("off")
    return figure


@literal
def sum_of_rows(rows: Mapping[str, ArrayLike], *, result: str, above: str = "") -> Figure:
    """Vectors as coloured strips that add up: label -> `[D]`; `result` is the sum's label.

    Args:
        rows: in the order in which they are drawn.
        result: the one below the line.
        above: another one below the line, to compare with.
    """
    figure, axis = plt.subplots(figsize=(7.6, 0.42 * len(rows) + 0.9))
    image = np.stack([np.asarray(row, dtype=float) for row in rows.values()])
    reach = np.abs(image).max()
    picture = axis.imshow(image, cmap=style.DIVERGING, vmin=-reach, vmax=reach, aspect="auto")
    names = list(rows)
    line = min(names.index(name) for name in (result, above) if name in names)
    axis.axhline(line - 0.5, color=style.DATA, linewidth=2)
    for i in range(1, len(names)):
        if i != line:
            axis.axhline(i - 0.5, color="white", linewidth=3)
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="dimension of x")
    axis.tick_params(left=False)
    axis.spines[:].set_visible(False)
    figure.colorbar(picture, ax=axis, label="value", shrink=0.95)
    return figure


@literal
def permutations(panels: Mapping[str, ArrayLike]) -> Figure:
    """Matrices of cosines `[F, G]` side by side: SAE features down, planted features across."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.1 * len(panels) + 0.7, 3.5), sharey=True, squeeze=False
    )
    for axis, (title, cosine_FG) in zip(axes[0], panels.items(), strict=True):
        image = axis.imshow(cosine_FG, cmap=style.DIVERGING, vmin=-1, vmax=1)
        axis.set(title=title, xlabel="planted feature")
    axes[0, 0].set_ylabel("SAE feature (row of the decoder)")
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)
    return figure


def permutation_slider(
    steps_S: Sequence[int], cosine_SFG: ArrayLike, *, start: int = 0
) -> Flipbook:
    """A slider through training: the matrix of cosines `[F, G]` at each step."""
    cosine_SFG = np.asarray(cosine_SFG)
    found_S = (cosine_SFG > 0.9).any(1).sum(1)
    with canvas(6.2, 5.2) as figure:
        axis = figure.subplots()
        looks = {"cmap": SIGNED, "vmin": -1, "vmax": 1, "interpolation": "none"}
        matrix = axis.imshow(np.zeros_like(cosine_SFG[0]), **looks)
        figure.colorbar(matrix, ax=axis, label="cosine", ticks=[-1, 0, 1], shrink=0.8)
        axis.set(xlabel="planted feature", ylabel="SAE feature")
        title = axis.text(0, 1.02, "", transform=axis.transAxes, gid="found")
        axis.set_title(" ")  # room for it
    picture = Moving(figure, [matrix, title])
    said = [f"{found} of {cosine_SFG.shape[2]} planted features found" for found in found_S]

    def draw(at: int) -> str:
        matrix.set_data(cosine_SFG[at].round(2))
        title.set_text(said[at])
        return picture.frame()

    names = [f"{step:,}" for step in steps_S]
    return flipbook(
        "Cosines during training", "training step", names, draw, said, picture, start=start
    )


@literal
def dictionaries(found: Mapping[str, tuple[float, int]], *, ours: Sequence[str]) -> Figure:
    """Mean best cosine of several dictionaries with how many they find: name -> (cosine, n)."""
    figure, axis = plt.subplots(figsize=(7.4, 0.36 * len(found) + 0.8))
    for i, (name, (cosine, n)) in enumerate(found.items()):
        colour = style.FEATURE if name in ours else style.CONTROL
        axis.barh(i, cosine, color=colour, height=0.68)
        axis.text(cosine + 0.01, i, f"{cosine:.2f}, finds {n}", va="center", color=colour)
    axis.set(yticks=range(len(found)), yticklabels=list(found), xlim=(0, 1.2))
    axis.set(xticks=[0, 0.25, 0.5, 0.75, 1], xlabel="mean over planted features of the best cosine")
    axis.invert_yaxis()
    return figure


@literal
def reading(cosine_F: ArrayLike, noise: Mapping[str, ArrayLike]) -> Figure:
    """Why encoder and decoder differ: a sketch, their cosines, and what each reads by mistake.

    Args:
        cosine_F: between what a feature reads and what it writes.
        noise: two, label -> spread of the reading when the feature itself is accounted for; the
            first across, the second up.
    """
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.3))
    _sketch(axes[0])
    axes[1].hist(np.asarray(cosine_F), bins=np.linspace(0, 1, 26), color=style.FEATURE)
    axes[1].set(title="trained SAE", xlabel="cosine, encoder and decoder")
    axes[1].set(ylabel="number of features", xlim=(0, 1.02))
    (x_name, x_F), (y_name, y_F) = ((k, np.asarray(v)) for k, v in noise.items())
    low, high = 0.95 * min(x_F.min(), y_F.min()), 1.05 * max(x_F.max(), y_F.max())
    axes[2].plot([low, high], [low, high], ":", color=style.CONTROL)
    axes[2].plot(x_F, y_F, "o", markersize=4, color=style.FEATURE)
    axes[2].text(high - 0.016, high, "equal", ha="right", va="top", color=style.CONTROL)
    axes[2].set(title="interference, feature by feature", aspect="equal")
    axes[2].set(xlabel=f"read by the {x_name}", ylabel=f"read by the {y_name}")
    return figure


def _sketch(axis: Axes) -> None:
    """Two directions that are written, and the one to read the first by: deaf to the second."""
    angle = np.radians(50)
    arrows = (
        ((1.0, 0.0), style.RECONSTRUCTION, "decoder row 1\n(writes)", (0.62, 0.12)),
        ((np.cos(angle), np.sin(angle)), style.CONTROL, "decoder row 2", (0.3, 0.88)),
        (
            (np.sin(angle), -np.cos(angle)),
            style.FEATURE,
            "encoder 1 (reads):\nat 90° to row 2",
            None,
        ),
    )
    for (x, y), colour, label, place in arrows:
        axis.annotate(
            "", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2}
        )
        axis.text(*(place or (0.02, -0.98)), label, color=colour, fontsize=9)
    axis.set(title="two features in the plane", xlim=(-0.15, 1.35), ylim=(-1.1, 1.05))
    axis.set(aspect="equal", xticks=[], yticks=[])
    axis.axis("off")


@literal
def seed_study(
    sizes: Sequence[int], found: Mapping[int, Sequence[int]], shared: Mapping[int, Sequence[float]]
) -> Figure:
    """How many planted features each seed finds, and what share of rows two seeds have in common.

    Args:
        sizes: of the dictionary, F.
        found: F -> planted features found, one number for each seed.
        shared: F -> share of rows matched at a cosine above 0.9, one for each pair of seeds.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.2))
    for axis, values in ((left, found), (right, shared)):
        for place, size in enumerate(sizes):
            spread = np.linspace(-0.16, 0.16, len(values[size]))
            axis.plot(place + spread, values[size], "o", markersize=5, color=style.FEATURE)
        axis.set(xticks=range(len(sizes)), xticklabels=sizes, xlabel="rows in the dictionary, F")
    left.axhline(64, color=style.DATA, linestyle=":")
    left.text(-0.3, 65, "all that were planted", color=style.DATA, va="bottom")
    left.set(title="one dot: one seed", ylabel="planted features found", ylim=(0, 73))
    right.set(title="one dot: two seeds", ylabel="share of rows in common", ylim=(0, 1.03))
    return figure


@literal
def scores(sizes: Sequence[int], named: Mapping[str, Sequence[float]]) -> Figure:
    """F1 of ways to tell real rows, over the dictionary's size: name -> one value for each size."""
    figure, axis = plt.subplots(figsize=(6.4, 3.0))
    colours = (style.FEATURE, style.CONTROL)
    for (name, values), colour in zip(named.items(), colours, strict=True):
        axis.plot(range(len(sizes)), values, "o-", color=colour)
        axis.text(len(sizes) - 0.9, values[-1], name, color=colour, va="center")
    axis.set(xticks=range(len(sizes)), xticklabels=sizes, xlabel="rows in the dictionary, F")
    axis.set(ylabel="F1 of rows taken for real", xlim=(-0.2, len(sizes) + 0.6), ylim=(0, 1.05))
    return figure


@literal
def good_and_bad(panels: Mapping[str, Mapping[str, float]], *, wrong: str) -> Figure:
    """Several measures, each with an axis of its own: measure -> loss -> value."""
    figure, axes = plt.subplots(1, len(panels), figsize=(9.4, 1.6), sharey=True, squeeze=False)
    for axis, (title, values) in zip(axes[0], panels.items(), strict=True):
        for i, (name, value) in enumerate(values.items()):
            colour = style.STEERED if name == wrong else style.FEATURE
            axis.barh(i, value, color=colour, height=0.6)
            axis.text(value, i, f" {value:.2g}", va="center", color=style.DATA)
        axis.set(yticks=range(len(values)), yticklabels=list(values), xlabel=title, xticks=[])
        axis.set(xlim=(0, 1.4 * max(values.values()) + 1e-9))
    axes[0, 0].invert_yaxis()
    return figure
