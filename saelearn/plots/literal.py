"""Text on figures as it stands: nothing that somebody wrote is read as mathematics.

And what cannot be drawn is refused in words, for all figures in one place.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, ScalarFormatter

from saelearn.errors import Refusal
from saelearn.style import as_text

COMPUTED = (LogFormatter, ScalarFormatter)  # matplotlib's own tick labels: powers of ten, offsets

UNDRAWN = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)


def literal(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """The same function; on the figure that it returns `$` begins no mathematics.

    What it cannot draw, of whatever type or size, it refuses.
    """

    signature = inspect.signature(draw)

    @functools.wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        signature.bind(*args, **kwargs)  # a call without what it needs is Python's to complain of
        open_before = set(plt.get_fignums())
        try:
            figure = draw(*args, **kwargs)
        except UNDRAWN as error:
            for number in set(plt.get_fignums()) - open_before:
                plt.close(number)  # half a figure would be shown under the cell
            if isinstance(error, Refusal):
                raise
            said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise Refusal(
                f"what {draw.__name__} can draw: {draw.__name__}{signature}", said
            ) from error
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
