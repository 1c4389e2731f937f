"""The steering console: a slider that pushes, beside what the model writes. Lesson 00."""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets as ipw

from saelearn import tiny
from saelearn.plots.steering import SideBySide
from saelearn.tiny.console import Console, Written
from saelearn.widgets.parts import Latest, failure, html_table, value_slider

STRENGTHS = tuple(i / 10 for i in range(17))
SHOWN = 4  # texts in a column: always the first ones, never the best ones
HEAD = {"mentions": "texts that speak of it", "validity": "four-word runs that are well formed"}


class SteeringConsole(ipw.VBox):
    """A slider over the strength of a push; two columns of texts are written anew as it moves.

    On the left the push goes along the direction of a thing, on the right along a random one of
    the same length. Writing runs in the background; if the reader has moved on meanwhile, the
    latest setting is next and those between are left out.

    Args:
        console: what writes; `Console.load()` by default.
        start: the strength that is shown first (the nearest there is).
    """

    def __init__(self, console: Console | None = None, *, start: float = 0.0):
        self.console = console or Console.load()
        self._latest = Latest(self._show, self._tell)
        self._known: dict[tuple[float, int], dict[str, Written]] = {}
        self.slider = value_slider(STRENGTHS, start, "strength of the push", "480px")
        self.seed = 1
        self.button = ipw.Button(
            description="other texts", tooltip="draw anew, at the same strength"
        )
        self.table, self.texts, self.message = ipw.HTML(), ipw.HTML(), ipw.HTML()
        controls = ipw.HBox([self.slider, self.button], layout={"flex_flow": "row wrap"})
        super().__init__([controls, self.table, self.message, self.texts])
        self.slider.observe(lambda _: self.turn(), names="value")
        self.button.on_click(lambda _: self.draw_anew())
        self.turn()
        self.wait()

    def draw_anew(self) -> None:
        """Write other texts at the same strength."""
        self.seed += 1
        self.turn()

    def turn(self) -> None:
        """Write at what the slider shows, now or as soon as what is being written is done."""
        self._latest(self.slider.value, self.seed)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until what is shown is what was asked for."""
        self._latest.wait(seconds)

    def _tell(self, error: Exception | None) -> None:
        self.message.value = failure(error, "writing") if error else ""

    def _show(self, strength: float, seed: int) -> None:
        if (strength, seed) not in self._known:
            self._known[strength, seed] = {
                title: self.console.write(title, strength, seed=seed)
                for title in self.console.directions
            }
        written = self._known[strength, seed]
        self.table.value = table(strength, written)
        columns = {heading(title): w.texts[:SHOWN] for title, w in written.items()}
        phrases = tiny.MENTIONS[self.console.name]
        self.texts.value = SideBySide(columns, phrases)._repr_html_()


def heading(title: str) -> str:
    """What stands above a column of texts."""
    return f"pushed toward: {title}" if not title.startswith("random") else f"control: {title}"


def table(strength: float, written: Mapping[str, Written]) -> str:
    """The numbers of a setting, one row for each direction."""
    rows = {
        f"{title}, strength {strength:g}": {
            "mentions": f"{sum(w.mentions)} of {len(w.mentions)}",
            "validity": f"{w.validity:.0%}",
        }
        for title, w in written.items()
    }
    return html_table("steering-console", HEAD, rows)
