"""Text on figures as it stands: nothing that somebody wrote is read as mathematics."""

from __future__ import annotations

import functools
from collections.abc import Callable

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, ScalarFormatter

from saelearn.style import as_text

COMPUTED = (LogFormatter, ScalarFormatter)  # matplotlib's own tick labels: powers of ten, offsets


def literal(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """The same function; on the figure that it returns `$` begins no mathematics."""

    @functools.wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        figure = draw(*args, **kwargs)
        take_literally(figure)
        return figure

    return drawn


def take_literally(figure: Figure) -> None:
    """Show all text that is on a figure by now as it stands, control codes made visible."""
    computed = set()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        written = axis.get_major_formatter()
        if isinstance(written, COMPUTED):
            labels = axis.get_majorticklabels() + axis.get_minorticklabels()
            computed |= {id(label) for label in labels}
        else:  # labels by hand are written again whenever the figure is drawn
            axis.set_major_formatter(lambda x, at, written=written: _plain(written(x, at)))
            axis.get_majorticklabels()
    for text in figure.findobj(Text):
        if id(text) not in computed:
            text.set_parse_math(False)
            text.set_text(_plain(text.get_text()))


def _plain(text: str) -> str:
    return as_text(text).expandtabs(4)  # fonts have no sign for a tab
