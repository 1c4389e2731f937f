"""The picture of the live sparsity dial: directions, shares, losses of all copies. Lesson 02.

Shapes: K copies, G features; the hidden space is a plane. Arrays in, figure out.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from saelearn.plots.geometry import REACH, upright
from saelearn.style import CONTROL, FEATURE, RECONSTRUCTION, plotly_template

KEPT = 0.5  # a feature with a longer direction is represented (lesson 02)


def picture(n_features: int) -> go.Figure:
    """The live dial's three panels, empty: the hidden plane, shares, losses of all copies.

    Traces to fill by name: `spokes`, `tips`, `shares`, `copies`, `best` (see `values`).
    """
    panels = ["the hidden plane", "share of a dimension", "losses of all copies"]
    fig = make_subplots(
        1, 3, column_widths=[0.43, 0.3, 0.27], horizontal_spacing=0.09, subplot_titles=panels
    )
    line = {"color": FEATURE, "width": 4}
    label = {"color": "white", "size": 12}
    tips = {"mode": "markers+text", "textfont": label, "marker": {"color": FEATURE, "opacity": 1}}
    blue = {"color": RECONSTRUCTION}
    hover = {"hovertemplate": "%{y:.3f}<extra></extra>"}
    fig.add_trace(go.Scatter(name="spokes", mode="lines", line=line, hoverinfo="skip"), 1, 1)
    fig.add_trace(go.Scatter(name="tips", hoverinfo="skip", **tips), 1, 1)
    fig.add_trace(go.Bar(name="shares", marker={"color": FEATURE}, width=0.62, **hover), 1, 2)
    pale = blue | {"color": "white", "line": {"color": RECONSTRUCTION, "width": 1.5}}
    fig.add_trace(go.Scatter(name="copies", mode="markers", marker=pale, **hover), 1, 3)
    fig.add_trace(go.Scatter(name="best", mode="markers", marker=blue, **hover), 1, 3)
    for share in (1, 1 / 2, 2 / 5):  # alone, in a pair, in a pentagon
        dotted = {"color": CONTROL, "dash": "dot", "width": 1}
        fig.add_hline(share, line=dotted, layer="below", row=1, col=2)
    circle = {"type": "circle", "x0": -1, "x1": 1, "y0": -1, "y1": 1, "layer": "below"}
    fig.add_shape(**circle, line={"color": CONTROL, "dash": "dot", "width": 1}, row=1, col=1)
    return _axes(fig, n_features)


def _axes(fig: go.Figure, n_features: int) -> go.Figure:
    plane = {"range": [-REACH, REACH], "tickvals": [-1, 0, 1]}
    fig.update_xaxes(title="hidden neuron 0 (turned)", **plane, row=1, col=1)
    fig.update_yaxes(
        title="hidden neuron 1", scaleanchor="x", constrain="domain", **plane, row=1, col=1
    )
    fig.update_xaxes(
        title="feature, most important first", range=[-0.6, n_features - 0.4], row=1, col=2
    )
    fig.update_xaxes(tickvals=list(range(n_features)), row=1, col=2)
    fig.update_yaxes(range=[0, 1.1], showgrid=False, row=1, col=2)
    fig.update_yaxes(tickvals=[0, 2 / 5, 1 / 2, 1], ticktext=["0", "2/5", "1/2", "1"], row=1, col=2)
    fig.update_xaxes(title="copy, best first", tickvals=[], row=1, col=3)
    fig.update_yaxes(title="loss ÷ loss of storing nothing", rangemode="tozero", row=1, col=3)
    fig.update_yaxes(range=[0, 0.5], row=1, col=3)
    return fig.update_layout(
        template=plotly_template(),
        showlegend=False,
        height=390,
        width=940,
        margin={"l": 55, "r": 15, "t": 45, "b": 55},
    )


def values(W_GD: ArrayLike, dim_G: ArrayLike, losses_K: ArrayLike) -> dict[str, dict]:
    """What `picture`'s traces show of one setting: trace name -> its new properties.

    Args:
        W_GD: the best copy's directions.
        dim_G: their dimensionalities.
        losses_K: of all copies, in shares of the loss of storing nothing.
    """
    W_GD = upright(W_GD).round(3)
    kept_G = np.hypot(*W_GD.T) > KEPT
    ends = {axis: [v for w in W_GD[:, d] for v in (0, w, None)] for d, axis in enumerate("xy")}
    losses_K = np.sort(np.asarray(losses_K)).round(4)
    return {
        "spokes": ends,
        "tips": {
            "marker": {"size": np.where(kept_G, 22, 9)},
            **dict(zip("xy", W_GD.T, strict=True)),
            # a space, not nothing: plotly takes empty texts out for good
            "text": [str(g) if kept else "\u00a0" for g, kept in enumerate(kept_G)],
        },
        "shares": {"x": np.arange(len(W_GD)), "y": np.asarray(dim_G, dtype=float).round(3)},
        # sizes here, too: plotly's update of many traces resets what only one of them is given
        "copies": {"x": np.arange(1, len(losses_K)), "y": losses_K[1:], "marker": {"size": 8}},
        "best": {"x": [0], "y": losses_K[:1], "marker": {"size": 14}},
    }
