"""What widgets are made of: work in the background, notices, sliders, tables."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from saelearn import style
from saelearn.errors import Refusal
from saelearn.plots.panel import choice
from saelearn.style import as_html

CELL = "padding:2px 8px;text-align:right;vertical-align:bottom"


class Latest:
    """Runs `work` in a thread, once at a time; of all calls made meanwhile only the last follows.

    So a slider that is dragged over ten settings costs at most two: the one under way and the one
    at which the reader has stopped.

    Args:
        work: what is done with the arguments of a call.
        done: called after each piece of work with the same arguments, and the error that ended it
            or None.
    """

    def __init__(self, work: Callable[..., None], done: Callable[..., None]):
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
                self._done(*wanted, None)
            except Exception as error:  # in a thread nobody else would see it
                self._done(*wanted, error)


def notice(text: str, colour: str = "inherit") -> str:
    """A line of HTML that a screen reader announces."""
    return f'<div role="status" style="color:{colour}">{as_html(text)}</div>'


def failure(error: Exception, work: str = "training") -> str:
    """The same for what went wrong in some work."""
    return notice(f"{work} failed: {type(error).__name__}: {error}", style.STEERED)


def value_slider(name: str, label: str, values: Sequence[float], start: float) -> dict[str, Any]:
    """A slider over numbers that shows the number itself as text, at the one nearest to `start`."""
    if not isinstance(start, Real) or isinstance(start, bool) or not math.isfinite(start):
        span = f"a number from {min(values):g} to {max(values):g}; the nearest is shown"
        raise Refusal(f"start as a finite number for the slider '{label}'", repr(start), span)
    at = min(range(len(values)), key=lambda i: abs(values[i] - start))
    return choice(name, label, [f"{value:g}" for value in values], at)


def html_table(name: str, head: Mapping[str, str], rows: Mapping[str, Mapping[str, str]]) -> str:
    """A table of the class `name`, announced by a screen reader when it changes.

    Args:
        head: field -> what stands above its column.
        rows: title -> field -> text.
    """
    cells = "".join(
        f'<th scope="col" style="{CELL}">{as_html(text)}</th>' for text in ["", *head.values()]
    )
    lines = [f'<tr style="text-align:right">{cells}</tr>']
    for title, row in rows.items():
        cells = "".join(
            f'<td data-number="{field}" style="{CELL}">{as_html(row[field])}</td>' for field in head
        )
        first = f'<th scope="row" style="{CELL};white-space:nowrap">{as_html(title)}</th>'
        lines.append(f"<tr>{first}{cells}</tr>")
    style_ = "border-collapse:collapse;font-variant-numeric:tabular-nums"
    return f'<table class="{name}" aria-live="polite" style="{style_}">{"".join(lines)}</table>'
