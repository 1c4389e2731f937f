"""The L1 dial: one coefficient, and all that follows from it. Lesson 05."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict
from numbers import Real

import numpy as np

from saelearn.errors import Refusal
from saelearn.plots import training
from saelearn.plots.panel import Panel, button, choice, number
from saelearn.tiny import dial
from saelearn.tiny.dial import DialPoint, Numbers
from saelearn.widgets.parts import failure, html_table, notice


class L1Dial(Panel):
    """A slider over the L1 coefficient that moves all that follows from it, together and at once.

    Shown are the precomputed settings; the button trains one anew at the chosen value, in the
    background, and puts its numbers beside the others.

    Args:
        points: the settings, by rising coefficient; those shipped in data/ by default.
        start: the coefficient that is shown first (the nearest there is).
        train_point: how to train anew; `dial.train_point` by default.

    Raises:
        Refusal: `start` is no number above 0, or there are no points.
    """

    def __init__(
        self,
        points: list[DialPoint] | None = None,
        *,
        start: float = 0.3,
        train_point: Callable[..., DialPoint] = dial.train_point,
    ):
        self.points = dial.load_sweep() if points is None else list(points)
        self.anew: dict[float, tuple[int, DialPoint]] = {}  # coefficient -> seed, what it gave
        self._train_point = train_point
        self._thread: threading.Thread | None = None
        self._showing = threading.RLock()  # the reader's moves and the training's end
        controls = [
            coefficient_slider(self.points, start),
            button("train", "train anew", "train at the chosen λ, now"),
            number("seed", "seed", "0 is the seed of the stored ones"),
        ]
        picture = training.Dial(columns(self.points), tuple(self.points[0].cosine_GF.shape))
        super().__init__("The L1 dial", controls, picture=picture)
        self.moved()

    @property
    def point(self) -> DialPoint:
        """The precomputed setting that the slider stands at."""
        return self.points[self.values["l1"]]

    def moved(self) -> None:
        """Draw the chosen setting, and beside it what training anew gave, if it was."""
        with self._showing, self.hold_sync():
            asked, numbers = self.values, self.point.numbers
            seed, anew = self.anew.get(numbers.l1_coefficient, (None, None))
            drawn = anew or self.point
            self.frame = self.picture.choose(
                named(self.point),
                drawn.cosine_GF,
                drawn.planted_A,
                drawn.active_A,
                named(anew) if anew else None,
            )
            self.table = table(numbers, anew.numbers if anew else None, seed)
            self.alt = (
                f"Four pictures at λ = {numbers.l1_coefficient:g}: {numbers.n_recovered} of "
                f"{len(drawn.cosine_GF)} planted features found, L0 {numbers.l0:.2f}, variance "
                f"missed {numbers.unexplained:.3f}, length γ {numbers.gamma:.3f}."
            )
            self.shown = asked

    def pressed(self, name: str) -> None:
        """Train at the chosen coefficient in the background; one training at a time."""
        if self._thread and self._thread.is_alive():
            return
        work = (self.point.numbers.l1_coefficient, self.values["seed"])
        self.disabled, self.progress = ["train"], 0.0
        self.message = notice("training at λ = {:g} with seed {} …".format(*work))
        self._thread = threading.Thread(target=self._train, args=work, daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until a training that is under way has ended."""
        if self._thread:
            self._thread.join(seconds)

    def _train(self, coefficient: float, seed: int) -> None:
        steps = dial.TRAINING["steps"]

        def tell(record: dict, _) -> None:
            self.progress = record["step"] / steps

        try:
            trained = self._train_point(coefficient, seed=seed, callback=tell)
            self.anew[coefficient] = seed, trained
            self.message = notice(
                f"trained at λ = {coefficient:g} with seed {seed}: "
                f"the second row, wherever the slider stands at {coefficient:g}"
            )
            self.moved()
        except Exception as error:  # in a thread nobody else would see it
            self.message = failure(error)
        finally:
            self.disabled, self.progress = [], None


def coefficient_slider(points: list[DialPoint], start: float) -> dict:
    """A slider over the settings that shows the coefficient itself, not its exponent or index."""
    if not points:
        raise Refusal("at least one setting for the dial", "an empty list", "dial.load_sweep()")
    values = [p.numbers.l1_coefficient for p in points]
    if not isinstance(start, Real) or isinstance(start, bool) or not 0 < start < np.inf:
        raise Refusal(
            "start as an L1 coefficient above 0",
            repr(start),
            f"a number from {min(values):g} to {max(values):g}; the nearest setting is shown",
        )
    at = int(np.abs(np.log(values) - np.log(start)).argmin())
    return choice("l1", "L1 coefficient λ", [f"{value:g}" for value in values], at)


def named(point: DialPoint) -> dict[str, float]:
    """A setting's numbers by name, what was found as a share of what was planted."""
    return asdict(point.numbers) | {"recovered": point.numbers.n_recovered / len(point.cosine_GF)}


def columns(points: list[DialPoint]) -> dict[str, list[float]]:
    """The settings' numbers, as columns."""
    rows = [named(point) for point in points]
    return {name: [row[name] for row in rows] for name in rows[0]}


def table(chosen: Numbers, anew: Numbers | None = None, seed: int | None = None) -> str:
    """The numbers of a setting, and beside them what training anew gave."""
    rows = {
        "L0": ("l0", "{:.2f}"),
        "variance missed": ("unexplained", "{:.3f}"),
        "length γ": ("gamma", "{:.3f}"),
        "dead": ("dead", "{:.1%}"),
        "planted found": ("n_recovered", "{}"),
        "mean max cosine": ("mean_max_cosine", "{:.3f}"),
    }
    shown = {f"λ = {chosen.l1_coefficient:g}": chosen}
    shown |= {f"trained anew, seed {seed}": anew} if anew else {}
    written = {
        name: {field: form.format(getattr(numbers, field)) for field, form in rows.values()}
        for name, numbers in shown.items()
    }
    return html_table("l1-dial", {field: head for head, (field, _) in rows.items()}, written)
