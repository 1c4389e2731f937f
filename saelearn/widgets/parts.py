"""What widgets are made of: work in the background, notices, sliders, tables."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Mapping, Sequence

import ipywidgets as ipw

from saelearn import style

CELL = "padding:2px 10px;text-align:right;white-space:nowrap"


class Latest:
    """Runs `work` in a thread, once at a time; of all calls made meanwhile only the last follows.

    So a slider that is dragged over ten settings costs at most two: the one under way and the one
    at which the reader has stopped.

    Args:
        work: what is done with the arguments of a call.
        done: called after each piece of work, with the error that ended it or None.
    """

    def __init__(self, work: Callable[..., None], done: Callable[[Exception | None], None]):
        self._work, self._done = work, done
        self._lock = threading.Lock()  # guards the two below
        self._wanted: tuple | None = None
        self._thread: threading.Thread | None = None

    def __call__(self, *wanted: object) -> None:
        """Work on this, now or as soon as what is under way has ended."""
        with self._lock:
            self._wanted = wanted
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until what was asked for last is done."""
        thread = self._thread
        if thread:
            thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._lock:
                wanted, self._wanted = self._wanted, None
                if wanted is None:
                    self._thread = None
                    return
            try:
                self._work(*wanted)
                self._done(None)
            except Exception as error:  # in a thread nobody else would see it
                self._done(error)


def notice(text: str, colour: str = "inherit") -> str:
    """A line of HTML that a screen reader announces."""
    escaped = html.escape(text).replace("\n", "<br>")
    return f'<div role="status" style="color:{colour}">{escaped}</div>'


def failure(error: Exception, work: str = "training") -> str:
    """The same for what went wrong in some work."""
    return notice(f"{work} failed: {type(error).__name__}: {error}", style.STEERED)


def value_slider(
    values: Sequence[float], start: float, description: str, width: str
) -> ipw.SelectionSlider:
    """A slider over numbers that shows the number itself as text."""
    return ipw.SelectionSlider(
        options=[(f"{value:g}", value) for value in values],
        value=min(values, key=lambda value: abs(value - start)),
        description=description,
        tooltip=f"{description}: arrow keys or mouse",
        style={"description_width": "initial"},
        layout={"width": width},
    )


def html_table(name: str, head: Mapping[str, str], rows: Mapping[str, Mapping[str, str]]) -> str:
    """A table of the class `name`, announced by a screen reader when it changes.

    Args:
        head: field -> what stands above its column.
        rows: title -> field -> text.
    """
    cells = "".join(f'<th scope="col" style="{CELL}">{text}</th>' for text in ["", *head.values()])
    lines = [f'<tr style="text-align:right">{cells}</tr>']
    for title, row in rows.items():
        cells = "".join(
            f'<td data-number="{field}" style="{CELL}">{row[field]}</td>' for field in head
        )
        lines.append(f'<tr><th scope="row" style="{CELL};min-width:9em">{title}</th>{cells}</tr>')
    style_ = "border-collapse:collapse;font-variant-numeric:tabular-nums"
    return f'<table class="{name}" aria-live="polite" style="{style_}">{"".join(lines)}</table>'
