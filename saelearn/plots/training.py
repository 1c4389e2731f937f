"""Training and its choices: the dial's four pictures, sweep curves, history curves. Lessons 05, 07.

Arrays in, figure out; colours as `style` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from saelearn import style

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSINES = {"cmap": style.DIVERGING, "vmin": -1, "vmax": 1, "interpolation": "nearest"}
LAMBDA = "L1 coefficient λ"


def cosine_matrices(named: Mapping[str, np.ndarray], *, expected: int = 64) -> Figure:
    """Matrices of cosines `[G, F]` side by side, titles from the names, one colour bar."""
    figure, axes = plt.subplots(
        1, len(named), figsize=(3.1 * len(named) + 0.8, 2.6), sharey=True, squeeze=False
    )
    for axis, (name, cosine_GF) in zip(axes[0], named.items(), strict=True):
        image = axis.imshow(cosine_GF, aspect="auto", **COSINES)
        axis.set(title=name, xlabel="dictionary row, matched first")
        if cosine_GF.shape[1] > expected:
            axis.axvline(expected - 0.5, color=style.CONTROL, linewidth=1, linestyle=":")
    axes[0, 0].set_ylabel("planted feature")
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.9)
    return figure


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


def dial(numbers: Mapping[str, Sequence[float]]) -> go.Figure:
    """The four pictures of the L1 dial with all curves drawn and nothing chosen yet.

    Args:
        numbers: columns over the settings: l1_coefficient, l0, unexplained, dead, gamma,
            recovered (as a share), all 0 to 1 except the first two.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    titles = ("cosine: planted × SAE feature", "what was planted, what the SAE says")
    titles += ("everything moves together", "the price of sparsity")
    figure = make_subplots(
        2, 2, subplot_titles=titles, vertical_spacing=0.24, horizontal_spacing=0.17
    )
    figure.add_trace(_heatmap(go), 1, 1)
    figure.add_trace(_line(go, [0, 1], [0, 1], style.CONTROL, dash="dot"), 1, 2)
    figure.add_trace(_points(go, "says", style.FEATURE, 4), 1, 2)
    l1_K = numbers["l1_coefficient"]
    for name, label, colour in (
        ("recovered", "planted found", style.FEATURE),
        ("gamma", "length γ (1: no shrinkage)", style.ACCENT),
        ("unexplained", "variance missed", style.RECONSTRUCTION),
        ("dead", "dead", style.CONTROL),
    ):
        figure.add_trace(_line(go, l1_K, numbers[name], colour, name=label), 2, 1)
        figure.add_trace(_points(go, f"{name} now", colour, 10), 2, 1)
    figure.add_trace(
        _line(go, numbers["l0"], numbers["unexplained"], style.RECONSTRUCTION, name="frontier"),
        2, 2,
    )  # fmt: skip
    figure.add_trace(_points(go, "frontier now", style.RECONSTRUCTION, 12), 2, 2)
    figure.add_trace(_points(go, "frontier anew", style.STEERED, 12, symbol="x"), 2, 2)
    _axes(figure)
    return figure


def _axes(figure: go.Figure) -> None:
    figure.update_xaxes(title_text="SAE feature, matched first", row=1, col=1)
    figure.update_yaxes(title_text="planted feature", autorange="reversed", row=1, col=1)
    figure.update_xaxes(title_text="planted amplitude", range=[0, 1.02], row=1, col=2)
    figure.update_yaxes(title_text="activation", range=[-0.03, 1.1], row=1, col=2)
    figure.update_xaxes(title_text=LAMBDA, type="log", row=2, col=1)
    figure.update_yaxes(title_text="share", range=[-0.05, 1.08], row=2, col=1)
    figure.update_xaxes(title_text="L0, active features (log)", type="log", row=2, col=2)
    figure.update_xaxes(range=[-1, 2], row=2, col=2)
    figure.update_yaxes(title_text="variance missed", range=[-0.05, 1.08], row=2, col=2)
    figure.update_layout(
        height=560,
        width=920,
        template=style.plotly_template(),
        legend={"orientation": "h", "x": 0, "y": -0.15},
        margin={"t": 40, "b": 40},
        transition_duration=0,
    )


def _heatmap(go):
    return go.Heatmap(
        name="cosines",
        colorscale=style.DIVERGING,
        zmin=-1,
        zmax=1,
        colorbar={"len": 0.42, "y": 0.81, "x": 0.415, "thickness": 8, "tickvals": [-1, 0, 1]},
    )


def _line(go, x, y, colour, *, name=None, dash=None):
    line = {"color": colour, "dash": dash, "width": 2}
    shown = name is not None and name != "frontier"
    return go.Scatter(x=x, y=y, mode="lines", line=line, name=name, showlegend=shown)


def _points(go, name, colour, size, *, symbol="circle"):
    marker = {"color": colour, "size": size, "symbol": symbol}
    return go.Scatter(x=[], y=[], mode="markers", marker=marker, name=name, showlegend=False)


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
