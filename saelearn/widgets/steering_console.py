"""The steering console: a slider that pushes, beside what the model writes. Lesson 00."""

from __future__ import annotations

from collections.abc import Mapping

from saelearn import tiny
from saelearn.plots.panel import Panel, button
from saelearn.plots.steering import SideBySide
from saelearn.tiny.console import Console, Written
from saelearn.widgets.parts import Latest, failure, html_table, value_slider

STRENGTHS = tuple(i / 10 for i in range(17))
SHOWN = 4  # texts in a column: always the first ones, never the best ones
HEAD = {"mentions": "texts that speak of it", "validity": "four-word runs that are well formed"}


class SteeringConsole(Panel):
    """A slider over the strength of a push; two columns of texts are written anew as it moves.

    On the left the push goes along the direction of a thing, on the right along a random one of
    the same length. Writing runs in the background; if the reader has moved on meanwhile, the
    latest setting is next and those between are left out.

    Args:
        console: what writes; `Console.load()` by default.
        start: the strength that is shown first (the nearest there is).

    Raises:
        Refusal: `start` is no finite number.
    """

    def __init__(self, console: Console | None = None, *, start: float = 0.0):
        slider = value_slider("strength", "strength of the push", STRENGTHS, start)
        self.console = console or Console.load()
        self._latest = Latest(self._show, self._tell)
        self._known: dict[tuple[float, int], dict[str, Written]] = {}
        self.seed = 1
        other = button("other", "other texts", "draw anew, at the same strength")
        super().__init__("The steering console", [slider, other])
        self.moved()
        self.wait()

    def pressed(self, name: str) -> None:
        """Write other texts at the same strength."""
        self.seed += 1
        self.moved()

    def moved(self) -> None:
        """Write at what the slider shows, now or as soon as what is being written is done."""
        self._latest(dict(self.values), self.seed)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until what is shown is what was asked for."""
        self._latest.wait(seconds)

    def _tell(self, asked: dict[str, int], _: int, error: Exception | None) -> None:
        with self.hold_sync():
            self.shown = asked  # also what failed is answered
            self.message = failure(error, "writing") if error else ""

    def _show(self, asked: dict[str, int], seed: int) -> None:
        strength = STRENGTHS[asked["strength"]]
        if (strength, seed) not in self._known:
            self._known[strength, seed] = {
                title: self.console.write(title, strength, seed=seed)
                for title in self.console.directions
            }
        written = self._known[strength, seed]
        texts = {heading(title): w.texts[:SHOWN] for title, w in written.items()}
        phrases = tiny.MENTIONS[self.console.name]
        with self.hold_sync():
            self.table = table(strength, written)
            self.words = SideBySide(texts, phrases)._repr_html_()


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
