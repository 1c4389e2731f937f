"""Training and its choices: the dial's four pictures, sweep curves, history curves. Lessons 05, 07.

Arrays in, figure out; colours as `style` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from saelearn import style
from saelearn.plots.literal import literal
from saelearn.plots.moving import SIGNED, Moving, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

COSINES = {"cmap": style.DIVERGING, "vmin": -1, "vmax": 1, "interpolation": "nearest"}
LAMBDA = "L1 coefficient λ"


@literal
def cosine_matrices(named: Mapping[str, np.ndarray], *, expected: int = 64) -> Figure:
    """Matrices of cosines `[G, F]` side by side, titles from the names, one colour bar."""
    figure, axes = plt.subplots(
        1, len(named), figsize=(2.2 * len(named) + 0.8, 2.4), sharey=True, squeeze=False
    )
    for axis, (name, cosine_GF) in zip(axes[0], named.items(), strict=True):
        image = axis.imshow(cosine_GF, aspect="auto", **COSINES)
        axis.set(title=name, xlabel="row, matched first")
        if cosine_GF.shape[1] > expected:
            axis.axvline(expected - 0.5, color=style.CONTROL, linewidth=1, linestyle=":")
    axes[0, 0].set_ylabel("planted feature")
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.9)
    return figure


@literal
def sweep_curves(
    l1_K: Sequence[float],
    columns: Mapping[str, tuple[Sequence[float], str]],
    l0_K: Sequence[float],
    *,
    true_l0: float,
) -> Figure:
    """What follows from lambda: shares and the like in one panel, L0 in a panel of its own.

    Args:
        l1_K: the coefficients.
        columns: label -> (values near 0 to 1, colour), each labelled at its end.
        l0_K: features that are on in a row.
        true_l0: planted features that are on in a row, drawn as a dotted line.
    """
    layout = {"width_ratios": (1.7, 1)}
    figure, (axis, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), gridspec_kw=layout)
    for values, colour in columns.values():
        axis.semilogx(l1_K, values, "o-", color=colour, markersize=4)
    label_ends(axis, {k: (l1_K[-1], v[0][-1], v[1]) for k, v in columns.items()})
    axis.set(ylabel="share, or γ", ylim=(-0.04, 1.08))
    right.loglog(l1_K, l0_K, "o-", color=style.FEATURE, markersize=4)
    right.axhline(true_l0, color=style.DATA, linestyle=":", linewidth=1)
    right.text(l1_K[0], 0.93 * true_l0, f"planted: {true_l0:g}", va="top", color=style.DATA)
    ticks = [0.001, 0.01, 0.1, 1, 10]
    right.set(ylabel="L0, features on in a row (log scale)", yticks=ticks, yticklabels=ticks)
    for each in (axis, right):
        ticks = [0.01, 0.03, 0.1, 0.3, 1, 3]
        each.set(xlabel=f"{LAMBDA} (log scale)", xticks=ticks, xticklabels=ticks)
        each.minorticks_off()
    return figure


@literal
def histories(
    named: Mapping[str, tuple[Sequence[float], Sequence[float], str]], *, ylabel: str
) -> Figure:
    """Curves over training steps, each labelled at its end: name -> (steps, values, colour)."""
    figure, axis = plt.subplots()
    for steps, values, colour in named.values():
        axis.plot(steps, values, color=colour)
    label_ends(axis, {k: (v[0][-1], v[1][-1], v[2]) for k, v in named.items()})
    axis.set(xlabel="training step", ylabel=ylabel)
    return figure


def label_ends(
    axis: Axes, ends: Mapping[str, tuple[float, float, str]], *, gap: float = 0.07
) -> None:
    """Write each name beside its curve's last point, moved apart where they would overlap."""
    low, high = axis.get_ylim()
    placed = -np.inf
    for name, (x, y, colour) in sorted(ends.items(), key=lambda item: item[1][1]):
        placed = max((y - low) / (high - low), placed + gap)
        axis.annotate(
            name,
            xy=(x, low + placed * (high - low)),
            xytext=(7, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
        )
    axis.margins(x=0.03)


class Dial(Moving):
    """The four pictures of the L1 dial: all curves stand, the chosen setting moves along them.

    Args:
        numbers: columns over the settings: l1_coefficient, l0, unexplained, dead, gamma,
            recovered (as a share), all 0 to 1 except the first two.
        shape: of the matrices of cosines, (G, F).
    """

    def __init__(self, numbers: Mapping[str, Sequence[float]], shape: tuple[int, int]):
        with canvas(8.6, 4.5) as figure:
            (matrix, says), (together, price) = figure.subplots(2, 2)
            self._matrix = matrix.imshow(
                np.zeros(shape), cmap=SIGNED, vmin=-1, vmax=1, aspect="auto", interpolation="none"
            )
            self._matrix.set_gid("cosines")
            figure.colorbar(self._matrix, ax=matrix, ticks=[-1, 0, 1], aspect=12)
            matrix.set(xlabel="SAE feature, matched first", ylabel="planted feature")
            says.plot([0, 1], [0, 1], ":", color=style.CONTROL)
            says.set(xlabel="planted amplitude", ylabel="activation")
            says.set(xlim=(0, 1.02), ylim=(-0.03, 1.1))
            marks = self._curves(together, price, numbers)
            (self._says,) = says.plot([], [], "o", color=style.FEATURE, ms=2.5, gid="says")
            titles = ("cosine: planted × SAE feature", "what was planted, what the SAE says")
            titles += ("everything moves together", "the price of sparsity")
            for axis, title in zip((matrix, says, together, price), titles, strict=True):
                axis.set_title(title)
        self._marks = marks
        super().__init__(figure, [self._matrix, self._says, *marks.values()])

    @staticmethod
    def _curves(together: Axes, price: Axes, numbers: Mapping[str, Sequence[float]]) -> dict:
        """The curves that stand; returns the marks that move along them, by name."""
        l1_K, marks = numbers["l1_coefficient"], {}
        for name, label, colour in (
            ("recovered", "planted found", style.FEATURE),
            ("gamma", "length γ (1: no shrinkage)", style.ACCENT),
            ("unexplained", "variance missed", style.RECONSTRUCTION),
            ("dead", "dead", style.CONTROL),
        ):
            together.plot(l1_K, numbers[name], color=colour, label=label)
            (marks[name],) = together.plot([], [], "o", color=colour, ms=8, gid=name)
        together.set(xscale="log", xlabel=LAMBDA, ylabel="share", ylim=(-0.05, 1.08))
        together.figure.legend(loc="outside lower left", ncols=4, fontsize=9)
        frontier = (numbers["l0"], numbers["unexplained"])
        price.plot(*frontier, color=style.RECONSTRUCTION, gid="curve")
        for name, look in (
            ("frontier", {"color": style.RECONSTRUCTION, "marker": "o"}),
            ("anew", {"color": style.STEERED, "marker": "X"}),
        ):
            (marks[name],) = price.plot([], [], ms=9, ls="", gid=name, **look)
        price.set(xscale="log", xlim=(0.1, 100), ylim=(-0.05, 1.08))
        price.set(xlabel="L0, active features (log)", ylabel="variance missed")
        for axis in (together, price):
            axis.xaxis.set_major_formatter("{x:g}")
        return marks

    def choose(
        self,
        now: Mapping[str, float],
        cosine_GF: ArrayLike,
        planted_A: ArrayLike,
        active_A: ArrayLike,
        anew: Mapping[str, float] | None = None,
    ) -> str:
        """Show one setting, and what training anew gave; returns the frame as SVG.

        Args:
            now, anew: the names of `numbers` -> value.
            cosine_GF, planted_A, active_A: as in `tiny.dial.DialPoint`.
        """
        with self.changing():
            self._matrix.set_data(np.asarray(cosine_GF))
            self._says.set_data(np.asarray(planted_A), np.asarray(active_A))
            for name in ("recovered", "gamma", "unexplained", "dead"):
                self._marks[name].set_data([now["l1_coefficient"]], [now[name]])
            self._marks["frontier"].set_data([now["l0"]], [now["unexplained"]])
            at = ([anew["l0"]], [anew["unexplained"]]) if anew else ([], [])
            self._marks["anew"].set_data(*at)
            return self.frame()


@literal
def proxy_chain() -> Figure:
    """What we want, what we can count, what we can train: a chain, and what each link loses."""
    boxes = (
        ("we want", "features that\na person understands"),
        ("we hope for", "few causes at a time,\neach of them real"),
        ("we count", "L0 and the error"),
        ("we train", "squared error\n+ λ · L1"),
    )
    losses = ("sparse is not\nyet meaningful", "few is not\nyet right", "L1 also shrinks")
    figure, axis = plt.subplots(figsize=(9, 1.7))
    for i, (title, text) in enumerate(boxes):
        colour = style.STEERED if i == 3 else style.DATA
        frame = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": colour}
        axis.text(3 * i, 0, text, ha="center", va="center", bbox=frame, fontsize=9)
        axis.text(3 * i, 0.55, title, ha="center", color=colour, fontweight="bold", fontsize=10)
    arrow = {"arrowstyle": "->", "color": style.CONTROL}
    for i, text in enumerate(losses):
        axis.annotate("", (3 * i + 1.95, 0), (3 * i + 1.05, 0), arrowprops=arrow)
        axis.text(3 * i + 1.5, -0.55, text, ha="center", va="top", color=style.CONTROL, fontsize=9)
    axis.set(xlim=(-1.3, 10.3), ylim=(-1.0, 0.9))
    axis.axis("off")
    return figure
