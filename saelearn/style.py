"""One palette, one meaning per colour, for matplotlib and plotly alike.

The hues are Okabe and Ito's (2008), told apart by colour-blind readers; each reaches a contrast
of 3:1 on white. Figures have an opaque white ground, so that they read on dark themes too.
"""

from __future__ import annotations

from typing import Any

DATA = "#333333"  # what is given: inputs, true features
RECONSTRUCTION = "#0072B2"  # what a model gives back
FEATURE = "#00825F"  # what was learned: SAE features, their activations
STEERED = "#D55E00"  # what we changed
CONTROL = "#767676"  # baselines: neurons, PCA, random directions, untrained models
ACCENT = "#A8538A"  # a second series of the same kind, when one is not enough

DIVERGING = "RdBu_r"  # centred on zero: blue negative, red positive
SEQUENTIAL = "viridis"

# JupyterLab's dark theme paints every other row of a table dark, under our dark words
TABLE_ROW = "<tr style='background:#ffffff'>"

RC = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 96,
    "figure.figsize": (7.0, 3.6),
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.edgecolor": "#555555",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "image.interpolation": "nearest",
}


def use() -> None:
    """Apply the course's look to matplotlib and plotly. The first cell of every lesson calls it."""
    import matplotlib as mpl
    import plotly.io as pio

    mpl.rcParams.update(RC)
    pio.templates["saelearn"] = plotly_template()
    pio.templates.default = "saelearn"


def plotly_template() -> Any:
    """The same look as a plotly template."""
    import plotly.graph_objects as go

    axis = {"showline": True, "linecolor": "#555555", "ticks": "outside", "zeroline": False}
    return go.layout.Template(
        layout={
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "font": {"color": "#222222", "size": 12},
            "colorway": [RECONSTRUCTION, FEATURE, STEERED, ACCENT, DATA, CONTROL],
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        }
    )
