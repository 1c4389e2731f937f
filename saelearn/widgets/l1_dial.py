"""The L1 dial: one coefficient, and all that follows from it. Lesson 05."""

from __future__ import annotations

import threading
from collections.abc import Callable
from numbers import Real

import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go

from saelearn.errors import Refusal
from saelearn.plots import training
from saelearn.tiny import dial
from saelearn.tiny.dial import DialPoint, Numbers
from saelearn.widgets.parts import failure, html_table, notice


class L1Dial(ipw.VBox):
    """A slider over the L1 coefficient that moves all that follows from it, together and at once.

    Shown are the precomputed settings; the button trains one anew at the chosen value, in the
    background, and puts its numbers beside the others.

    Args:
        points: the settings, by rising coefficient; those shipped in data/ by default.
        start: the coefficient that is shown first (the nearest there is).
        train_point: how to train anew; `dial.train_point` by default.

    Raises:
        Refusal: `start` is no number above 0.
    """

    def __init__(
        self,
        points: list[DialPoint] | None = None,
        *,
        start: float = 0.3,
        train_point: Callable[..., DialPoint] = dial.train_point,
    ):
        self.points = dial.load_sweep() if points is None else points
        self.anew: dict[float, DialPoint] = {}  # coefficient -> what training anew gave
        self._train_point = train_point
        self._thread: threading.Thread | None = None
        self.slider = coefficient_slider(self.points, start)
        self.seed = ipw.BoundedIntText(
            value=0, description="seed", tooltip="0 is the seed of the stored ones"
        )
        self.seed.layout.width, self.seed.style.description_width = "130px", "initial"
        self.button = ipw.Button(description="train anew", tooltip="train at the chosen λ, now")
        self.progress = ipw.FloatProgress(value=0.0, min=0.0, max=1.0)
        self.progress.layout = {"width": "160px", "visibility": "hidden"}
        self.table, self.message = ipw.HTML(), ipw.HTML()
        self.figure = go.FigureWidget(training.dial(columns(self.points)))
        controls = ipw.HBox([self.slider, self.button, self.seed, self.progress])
        super().__init__([controls, self.table, self.message, self.figure])
        self.button.on_click(lambda _: self.train_anew())
        self.slider.observe(lambda _: self.show(), names="value")
        self.show()

    @property
    def point(self) -> DialPoint:
        """The precomputed setting that the slider stands at."""
        return self.points[self.slider.value]

    def show(self) -> None:
        """Draw the chosen setting, and beside it what training anew gave, if it was."""
        point = self.point
        anew = self.anew.get(point.numbers.l1_coefficient)
        drawn = anew or point
        with self.figure.batch_update():
            trace = {t.name: t for t in self.figure.data if t.name}
            trace["cosines"].z = np.asarray(drawn.cosine_GF, dtype=np.float32).round(2)
            trace["says"].x = np.asarray(drawn.planted_A).round(3)
            trace["says"].y = np.asarray(drawn.active_A).round(3)
            for name in ("unexplained", "dead", "gamma"):
                self._mark(
                    f"{name} now", point.numbers.l1_coefficient, getattr(point.numbers, name)
                )
            self._mark("recovered now", point.numbers.l1_coefficient, recovered(point))
            self._mark("frontier now", point.numbers.l0, point.numbers.unexplained)
            if anew:
                self._mark("frontier anew", anew.numbers.l0, anew.numbers.unexplained)
            else:
                trace["frontier anew"].update(x=[], y=[])
        self.table.value = table(point.numbers, anew.numbers if anew else None)

    def _mark(self, name: str, x: float, y: float) -> None:
        next(t for t in self.figure.data if t.name == name).update(x=[x], y=[y])

    def train_anew(self) -> None:
        """Train at the chosen coefficient in the background; a second call waits for its turn."""
        if self._thread and self._thread.is_alive():
            return
        coefficient, seed = self.point.numbers.l1_coefficient, self.seed.value
        self.button.disabled, self.progress.value = True, 0
        self.progress.layout.visibility = "visible"
        self._say(f"training at λ = {coefficient:g} with seed {seed} …")
        work = (coefficient, seed)
        self._thread = threading.Thread(target=self._train, args=work, daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until a training that is under way has ended."""
        if self._thread:
            self._thread.join(seconds)

    def _train(self, coefficient: float, seed: int) -> None:
        steps = dial.TRAINING["steps"]

        def tell(record: dict, _) -> None:
            self.progress.value = record["step"] / steps

        try:
            self.anew[coefficient] = self._train_point(coefficient, seed=seed, callback=tell)
            self._say(f"trained at λ = {coefficient:g} with seed {seed}, in the last row")
            self.show()
        except Exception as error:  # in a thread nobody else would see it
            self.message.value = failure(error)
        finally:
            self.button.disabled = False
            self.progress.layout.visibility = "hidden"

    def _say(self, text: str) -> None:
        self.message.value = notice(text)


def coefficient_slider(points: list[DialPoint], start: float) -> ipw.SelectionSlider:
    """A slider over the settings that shows the coefficient itself, not its exponent or index."""
    values = [p.numbers.l1_coefficient for p in points]
    if not isinstance(start, Real) or isinstance(start, bool) or not 0 < start < np.inf:
        raise Refusal(
            "start as an L1 coefficient above 0",
            repr(start),
            f"a number from {min(values):g} to {max(values):g}; the nearest setting is shown",
        )
    return ipw.SelectionSlider(
        options=[(f"{value:g}", i) for i, value in enumerate(values)],
        index=int(np.abs(np.log(values) - np.log(start)).argmin()),
        description="L1 coefficient λ",
        tooltip="L1 coefficient lambda: arrow keys or mouse",
        style={"description_width": "initial"},
        layout={"width": "480px"},
    )


def columns(points: list[DialPoint]) -> dict[str, list[float]]:
    """The settings' numbers by name, what was found as a share of what was planted."""
    names = ("l1_coefficient", "l0", "unexplained", "dead", "gamma")
    found = {name: [getattr(p.numbers, name) for p in points] for name in names}
    return found | {"recovered": [recovered(p) for p in points]}


def recovered(point: DialPoint) -> float:
    """Share of the planted features that were found."""
    return point.numbers.n_recovered / len(point.cosine_GF)


def table(chosen: Numbers, anew: Numbers | None = None) -> str:
    """The numbers of a setting, and beside them what training anew gave."""
    rows = {
        "L0": ("l0", "{:.2f}"),
        "variance missed": ("unexplained", "{:.3f}"),
        "length γ": ("gamma", "{:.3f}"),
        "dead": ("dead", "{:.1%}"),
        "planted found": ("n_recovered", "{}"),
        "mean max cosine": ("mean_max_cosine", "{:.3f}"),
    }
    shown = {f"λ = {chosen.l1_coefficient:g}": chosen} | ({"trained anew": anew} if anew else {})
    written = {
        name: {field: form.format(getattr(numbers, field)) for field, form in rows.values()}
        for name, numbers in shown.items()
    }
    return html_table("l1-dial", {field: head for head, (field, _) in rows.items()}, written)
