"""Training on a language model: pipelines, live curves, frontiers, memory. Lesson 07.

Arrays in, figure out; colours as `style` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from saelearn import style
from saelearn.plots.literal import literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


CURVES = {
    "loss": ("loss, in training units", style.RECONSTRUCTION),
    "l0": ("L0, active features", style.FEATURE),
    "dead": ("share of features silent", style.STEERED),
}


@literal
def pipelines() -> Figure:
    """How an SAE is trained and how it is used: two columns of boxes, flowing down."""
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 5.4))
    shared = [
        ("text", style.DATA),
        ("blocks 0 and 1", style.CONTROL),
        ("x at the site", style.DATA),
    ]
    training = [
        ("buffer: shuffle, scale", style.DATA),
        ("SAE: features f, then x̂", style.FEATURE),
        ("loss = error + λ · L1", style.STEERED),
    ]
    use = [
        ("encode: features f", style.FEATURE),
        ("decode: x̂ in the place of x", style.RECONSTRUCTION),
        ("block 2: next token", style.CONTROL),
    ]
    _column(axes[0], "Training: the SAE learns, the model only reads", shared + training)
    _column(axes[1], "Use: both are frozen", shared + use)
    _arrow(axes[0], (0.8, -5.0), (0.8, -4.0), style.STEERED, rad=0.9)
    axes[0].text(0.99, -4.5, "Adam\nturns W, b", color=style.DATA, va="center", ha="left")
    axes[1].annotate(
        "read it, or edit it",
        (0.8, -3),
        (0.88, -3),
        color=style.FEATURE,
        va="center",
    )
    return figure


def _column(axis: Axes, title: str, boxes: Sequence[tuple[str, str]]) -> None:
    for i, (label, colour) in enumerate(boxes):
        axis.text(
            0.5, -i, label, color=colour, ha="center", va="center",
            bbox={"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": colour},
        )  # fmt: skip
        if i:
            _arrow(axis, (0.5, 0.3 - i), (0.5, 0.7 - i), style.CONTROL, reverse=True)
    axis.set(title=title, xlim=(0.05, 1.25), ylim=(-len(boxes) + 0.5, 0.5))
    axis.axis("off")


def _arrow(axis: Axes, start, end, colour: str, *, rad: float = 0.0, reverse: bool = False) -> None:
    start, end = (end, start) if reverse else (start, end)
    arrow = {"arrowstyle": "-|>", "color": colour, "connectionstyle": f"arc3,rad={rad}"}
    axis.annotate("", end, start, arrowprops=arrow)


@literal
def reading_orders(named: Mapping[str, np.ndarray], *, width: int = 128) -> Figure:
    """Which document each row of a batch comes from: title -> document numbers `[B]`."""
    figure, axes = plt.subplots(len(named), 1, figsize=(7.4, 1.5 * len(named)), squeeze=False)
    top = max(int(np.max(np.asarray(document_B))) for document_B in named.values())
    for axis, (title, document_B) in zip(axes[:, 0], named.items(), strict=True):
        image = axis.imshow(
            np.asarray(document_B).reshape(-1, width), cmap=style.SEQUENTIAL, vmin=0, vmax=top,
            aspect="auto",
        )  # fmt: skip
        axis.set(title=title, yticks=[], xticks=[])
    axes[-1, 0].set_xlabel(f"rows of one batch, {width} to a line")
    figure.colorbar(image, ax=axes[:, 0], label="document (number)")
    return figure


class Live:
    """A callback for `train` that redraws loss, L0 and dead features as they come.

    Args:
        steps: how long the training will be, for the axis.
        reference: column -> value of another SAE, drawn as a dotted line.
        reference_name: what that line is.
    """

    def __init__(self, steps: int, reference: Mapping[str, float], reference_name: str = "shipped"):
        from IPython.display import display

        self.steps, self.reference, self.reference_name = steps, reference, reference_name
        self.history: list[Mapping[str, float]] = []
        self.figure, self.axes = plt.subplots(1, len(CURVES), figsize=(9.4, 2.9))
        self._draw()
        self._handle = display(self.figure, display_id=True)
        plt.close(self.figure)  # shown once, by the handle

    def __call__(self, record: Mapping[str, float], so_far: Callable) -> None:
        self.history.append(record)
        self._draw()
        if self._handle:  # None outside a notebook
            self._handle.update(self.figure)

    def _draw(self) -> None:
        steps = [record["step"] for record in self.history]
        for axis, (name, (label, colour)) in zip(self.axes, CURVES.items(), strict=True):
            axis.clear()
            values = [record[name] for record in self.history]
            axis.plot(steps, values, "o-", color=colour, markersize=3)
            axis.axhline(self.reference[name], color=style.CONTROL, linestyle=":")
            axis.annotate(
                self.reference_name, (0.02 * self.steps, self.reference[name]), (0, 3),
                textcoords="offset points", color=style.CONTROL,
            )  # fmt: skip
            top = 1.15 * max([*values, self.reference[name], 0.1])
            axis.set(title=label, xlabel="training step", xlim=(0, self.steps), ylim=(0, top))


@literal
def bars(
    panels: Mapping[str, Mapping[str, float]], *, controls: Sequence[str], decimals: int = 2
) -> Figure:
    """Shares as horizontal bars: panel title -> name -> value; controls are grey.

    Values below 0 are drawn as 0 and labelled with what they are.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(8.6, 2.8), sharey=True, squeeze=False)
    for axis, (title, value_of) in zip(axes[0], panels.items(), strict=True):
        for i, (name, value) in enumerate(value_of.items()):
            colour = style.CONTROL if name in controls else style.RECONSTRUCTION
            axis.barh(i, max(0.0, value), color=colour, height=0.62)
            axis.text(max(0.0, value) + 0.02, i, f"{value:.{decimals}f}", va="center", color=colour)
        axis.set(xlabel=f"{title} (1 is perfect)", xlim=(0, 1.18), yticks=range(len(value_of)))
        axis.set_yticklabels(list(value_of))
        axis.invert_yaxis() if axis is axes[0, 0] else None
    return figure


@literal
def frontier(
    l0_K: Sequence[float],
    explained_K: Sequence[float],
    missing: Mapping[str, Sequence[float]],
    *,
    pca: tuple[Sequence[float], Sequence[float]],
    others: Mapping[str, tuple[float, float]],
) -> Figure:
    """Sparsity against quality over a sweep.

    Args:
        l0_K, explained_K: of each SAE.
        missing: name of the bottom -> 1 - loss recovered `[K]`, drawn on a log axis.
        pca: number of components and the variance they explain.
        others: name -> (L0, explained variance) of single SAEs, as controls.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.8))
    left.plot(*pca, color=style.CONTROL)
    near = int(np.argmin(np.abs(np.asarray(pca[0]) - l0_K[len(l0_K) // 2])))
    _label(left, "PCA, as many components", (pca[0][near], pca[1][near]), (6, -14), style.CONTROL)
    left.plot(l0_K, explained_K, "o-", color=style.RECONSTRUCTION)
    steep = int(np.argmin(np.abs(np.asarray(explained_K) - 0.9)))
    _label(left, "SAEs", (l0_K[steep], explained_K[steep]), (-40, 0), style.RECONSTRUCTION)
    for name, place in others.items():
        left.plot(*place, "X", color=style.CONTROL, mec="white", markersize=12, zorder=3)
        _label(left, name, place, (8, -32), style.CONTROL)
    left.set(ylabel="explained variance (0 to 1)", ylim=(min(0.0, *explained_K), 1.08))
    for (name, share_K), colour in zip(
        missing.items(), (style.RECONSTRUCTION, style.ACCENT, style.DATA), strict=True
    ):
        right.plot(l0_K, share_K, "o-", color=colour, label=name)
    right.set(ylabel="1 − loss recovered (log scale)", yscale="log")
    right.legend(title="bottom")
    for axis in (left, right):
        axis.set(xscale="log", xlabel="L0, active features (log scale)")
        axis.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50]))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
    return figure


def _label(axis: Axes, text: str, place, offset: tuple[float, float], colour: str) -> None:
    axis.annotate(text, place, offset, textcoords="offset points", color=colour)


@literal
def memory(bytes_of: Mapping[str, float], limits: Mapping[str, float]) -> Figure:
    """Memory for training on a log scale: name -> bytes, beside what two machines have."""
    figure, axis = plt.subplots(figsize=(8.6, 3.0))
    for i, value in enumerate(bytes_of.values()):
        axis.barh(i, value / 1e9, color=style.RECONSTRUCTION, height=0.6)
        axis.text(
            value / 1e9 * 1.15, i, _gigabytes(value), va="center", color=style.DATA,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}, zorder=3,
        )  # fmt: skip
    for (name, value), side in zip(limits.items(), ("right", "left"), strict=True):
        axis.axvline(value / 1e9, color=style.STEERED, linestyle=":")
        axis.text(value / 1e9, -0.62, f" {name}", color=style.STEERED, ha=side, va="bottom")
    axis.set(xscale="log", xlabel="memory for training, GB (log scale)")
    axis.set(yticks=range(len(bytes_of)), xlim=(3e-3, 4e4), ylim=(len(bytes_of) - 0.5, -1.1))
    axis.set_yticklabels(list(bytes_of))
    return figure


@literal
def gpu_steps(record: Mapping) -> Figure:
    """Milliseconds a step by how much is active (`tiny.gpu_record`), beside the dense limit."""
    figure, axis = plt.subplots(figsize=(6.8, 3.4))
    l0s = [step["l0"] for step in record["steps"]]
    looks = {
        "sparse": ("saelearn, sparse", style.FEATURE, "-", "top"),
        "dense": ("saelearn, dense", style.RECONSTRUCTION, "-", "bottom"),
        "sae_lens": ("SAELens", style.CONTROL, "--", "center"),
    }
    for name, (label, colour, line, side) in looks.items():
        ms = [step["ms"][name] for step in record["steps"]]
        axis.plot(l0s, ms, line, color=colour, marker="o", markersize=4)
        axis.text(l0s[-1] * 1.03, ms[-1], label, color=colour, va=side)
    axis.axhline(record["limit_ms"], color=style.CONTROL, linestyle=":")
    axis.text(l0s[0], record["limit_ms"] * 1.03, "five products on a perfect machine",
              color=style.CONTROL, va="bottom")  # fmt: skip
    axis.set(xlabel="active features a row", ylabel="milliseconds a step")
    axis.set(ylim=(0, None), xlim=(0, l0s[-1] * 1.35))
    return figure


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:,.0f} GB" if value >= 1e9 else f"{value / 1e6:,.0f} MB"
