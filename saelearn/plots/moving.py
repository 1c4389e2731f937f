"""A matplotlib figure of which some artists move, as SVG: the rest is drawn once.

Drawing a whole figure takes a quarter of a second; drawing the artists that move takes a hundredth.
Both layers are SVG documents of one size, to be laid over each other.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from saelearn import style
from saelearn.plots.literal import take_literally

INK = "#222222"  # text and axes; in SVG it becomes the colour of the page's own text
RC = style.RC | {
    "figure.dpi": 72,  # a point is a unit of the SVG
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.edgecolor": INK,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "svg.fonttype": "none",  # words stay words
}
_NAMELESS = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # nothing about who drew it

_BLUE, _RED = (0.13, 0.44, 0.71), (0.84, 0.19, 0.15)
SIGNED = LinearSegmentedColormap.from_list(
    "signed", [(0, (*_BLUE, 1)), (0.5, (*_BLUE, 0)), (0.5, (*_RED, 0)), (1, (*_RED, 1))]
)
"""Blue to red by way of nothing: zero is the page, whether it is light or dark."""


class Moving:
    """A figure in two layers: `still` is drawn once, `frame()` gives what moves as it is now.

    Args:
        figure: drawn under `RC` (see `canvas`).
        moving: the artists that change; each is found in the SVG by its `gid`.
    """

    def __init__(self, figure: Figure, moving: Sequence[Artist]):
        self.figure, self._moving = figure, list(moving)
        self._lock = threading.RLock()
        for artist in self._moving:
            artist.set_visible(False)
        out = io.StringIO()
        with mpl.rc_context(RC):
            take_literally(figure)
            for _ in range(2):  # the second time with the labels' real places
                figure.draw_without_rendering()
            figure.set_layout_engine("none")  # from here on everything keeps its place
            figure.savefig(out, format="svg", metadata=_NAMELESS)
        self.still = _bare(out.getvalue())
        for artist in self._moving:
            artist.set_visible(True)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Change artists and take the frame in here: no other thread comes in between."""
        with self._lock:
            yield

    def frame(self) -> str:
        """The artists that move, as SVG."""
        with self._lock:
            out = io.StringIO()
            width, height = self.figure.get_size_inches() * 72
            renderer = RendererSVG(width, height, out, metadata=_NAMELESS)
            for artist in sorted(self._moving, key=lambda artist: artist.get_zorder()):
                artist.draw(renderer)
            renderer.finalize()
        return _bare(out.getvalue())

    def png(self) -> bytes:
        """Both layers as one picture on white, for where nothing moves."""
        out = io.BytesIO()
        with self._lock:
            self.figure.savefig(out, format="png", dpi=110, facecolor="white")
        return out.getvalue()


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of so many inches in the look of moving pictures; draw on it in here."""
    with mpl.rc_context(RC):
        yield Figure((width, height), layout="constrained")


def _bare(document: str) -> str:
    """The SVG element alone, in the page's own colour of text."""
    document = document[document.index("<svg") :]
    document = re.sub(r"\s*<metadata>.*?</metadata>", "", document, flags=re.DOTALL)
    return document.replace(INK, "currentColor")
