"""One palette, one meaning per colour; and how text gets into HTML and into figures.

The hues are Okabe and Ito's (2008), told apart by colour-blind readers; each reaches a contrast
of 3:1 on white. Figures have an opaque white ground, so that they read on dark themes too.
"""

from __future__ import annotations

import html
import re

DATA = "#333333"  # what is given: inputs, true features
RECONSTRUCTION = "#0072B2"  # what a model gives back
FEATURE = "#00825F"  # what was learned: SAE features, their activations
STEERED = "#D55E00"  # what we changed
CONTROL = "#767676"  # baselines: neurons, PCA, random directions, untrained models
ACCENT = "#A8538A"  # a second series of the same kind, when one is not enough

DIVERGING = "RdBu_r"  # centred on zero: blue negative, red positive
SEQUENTIAL = "viridis"

# control codes, what turns the direction of writing, halves of characters; not line feed and tab
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

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


def as_html(text: object) -> str:
    """Any text as HTML that shows it as it stands: nothing in it is markup, control codes are seen.

    The only way in which text gets into HTML; for figures see `plots.literal`.
    """
    return html.escape(as_text(text)).replace("\n", "<br>")


def as_text(text: object) -> str:
    """Any text with its control codes made visible (not line feed, tab): terminals obey them."""
    return _UNSEEN.sub(lambda sign: f"\\u{ord(sign[0]):04x}", str(text))


def use() -> None:
    """Apply the course's look to matplotlib. The first cell of every lesson calls it."""
    import matplotlib as mpl

    mpl.rcParams.update(RC)
