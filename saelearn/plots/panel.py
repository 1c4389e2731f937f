"""What a reader moves: sliders and buttons over a table, a picture and words, in one widget.

All that is shown is the widget's state, so a page that is reloaded, a second view or a reopened
tab shows it again; the front end (panel.js) draws nothing by itself, but it knows which setting
the reader asked for and which one is shown, and says so while they differ. What moves without the
kernel's help is a `Flipbook`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from IPython import get_ipython

from saelearn.errors import check_whole
from saelearn.plots.moving import Moving

HERE = Path(__file__).parent


class Panel(anywidget.AnyWidget):
    """Controls, and what they bring about. Subclasses answer `moved` and `pressed`.

    Args:
        title: what it is, for a screen reader and where widgets cannot be shown.
        controls: in the order in which they are shown, see `choice`, `number`, `button`.
        picture: figure and moving artists, if there is a picture.
    """

    _esm = HERE / "panel.js"
    _css = HERE / "panel.css"
    title = traitlets.Unicode().tag(sync=True)
    controls = traitlets.List().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)  # control -> what the reader chose
    shown = traitlets.Dict().tag(sync=True)  # control -> what is shown belongs to
    disabled = traitlets.List().tag(sync=True)  # controls that cannot be used now
    progress = traitlets.Float(None, allow_none=True).tag(sync=True)  # 0 to 1 while work goes on
    table = traitlets.Unicode().tag(sync=True)  # HTML, as are the next two
    message = traitlets.Unicode().tag(sync=True)
    words = traitlets.Unicode().tag(sync=True)
    still = traitlets.Unicode().tag(sync=True)  # SVG, as are the next two
    frame = traitlets.Unicode().tag(sync=True)
    frames = traitlets.List().tag(sync=True)  # of a `Flipbook`: one for each place of its slider
    alt = traitlets.Unicode().tag(sync=True)  # what the picture shows, in words

    def __init__(
        self,
        title: str,
        controls: Sequence[Mapping[str, Any]],
        *,
        picture: Moving | None = None,
        **state: Any,
    ):
        self.picture = picture
        super().__init__(
            title=title,
            controls=[{k: v for k, v in c.items() if k != "value"} for c in controls],
            values={c["name"]: c["value"] for c in controls if "value" in c},
            still=picture.still if picture else "",
            **state,
        )
        self.observe(lambda change: self._ask(change["old"], change["new"]), names="values")
        self.on_msg(lambda _, content, __: self.press(content.get("press")))
        _close_earlier(self)

    def move(self, **to: int) -> None:
        """Do as if the reader had moved controls: name -> place on the slider, or number."""
        self.values = {**self.values, **to}

    def press(self, name: str) -> None:
        """Do as if the reader had pressed a button; nothing if it is disabled or there is none."""
        if name not in self.disabled and name in [c["name"] for c in self.controls]:
            self.pressed(name)

    def label(self, name: str) -> str:
        """What the slider shows of its place."""
        control = next(c for c in self.controls if c["name"] == name)
        return control["options"][self.values[name]]

    def moved(self) -> None:
        """The reader moved a control: bring about what is shown, and `shown` with it."""

    def pressed(self, name: str) -> None:
        """The reader pressed a button."""

    def _ask(self, before: dict, now: dict) -> None:
        for control in self.controls:
            value, name = now.get(control["name"]), control["name"]
            if "options" in control and value not in range(len(control["options"])):
                self.values = {**now, name: before[name]}
                return
        self.moved()

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict, dict]:
        data, metadata = super()._repr_mimebundle_() or ({}, {})
        data["text/plain"] = f"{self.title}: run this cell in JupyterLab to move it"
        if self.picture:
            data["image/png"] = base64.b64encode(self.picture.png()).decode()
        elif self.words:
            data["text/html"] = self.table + self.words
        return data, metadata


class Flipbook(Panel):
    """A picture with a slider through frames that are all drawn before: it needs no kernel.

    Made by `flipbook`; `frames` holds the SVG of each place of the slider, and what it shows.
    """

    def moved(self) -> None:
        self.shown = self.values


def flipbook(
    title: str,
    label: str,
    options: Sequence[str],
    draw: Callable[[int], str],
    said: Sequence[str],
    picture: Moving,
    *,
    start: int = 0,
    still: int = -1,
) -> Flipbook:
    """A slider through the frames that `draw` gives.

    Args:
        title: what it is.
        label: what the slider turns.
        options: what the slider shows at each place.
        draw: place -> the frame, see `Moving.frame`.
        said: what each frame shows, in words.
        picture: the figure that `draw` changes.
        start: the place that is shown first.
        still: the place whose picture stands where no widget can.

    Raises:
        Refusal: there are no frames, or none at `start`.
    """
    check_whole(len(options), "number of frames", 1)
    start = check_whole(start, "start", 0, len(options) - 1)
    frames = [
        {"svg": draw(at), "alt": alt} for at, alt in zip(range(len(options)), said, strict=True)
    ]
    draw(range(len(options))[still])
    slider = choice("place", label, options, start)
    return Flipbook(title, [slider], picture=picture, frames=frames)


def choice(name: str, label: str, options: Sequence[str], at: int) -> dict[str, Any]:
    """A slider over settings that shows each as text."""
    return {"name": name, "kind": "choice", "label": label, "options": list(options), "value": at}


def number(name: str, label: str, hint: str, value: int = 0, most: int = 9999) -> dict[str, Any]:
    """A field for a whole number from 0 on."""
    return {"name": name, "kind": "number", "label": label, "hint": hint, "most": most, "value": value}  # noqa: E501  # fmt: skip


def button(name: str, label: str, hint: str) -> dict[str, Any]:
    """A button."""
    return {"name": name, "kind": "button", "label": label, "hint": hint}


_OF_CELL: dict[str, tuple[str, list[Panel]]] = {}  # cell -> its last run, and what that made


def _close_earlier(panel: Panel) -> None:
    """A cell that is run again makes its panels anew; the page would keep the old ones."""
    shell = get_ipython()
    parent = getattr(shell, "get_parent", dict)() or {}
    cell = parent.get("metadata", {}).get("cellId")
    if cell is None:
        return
    run = parent["header"]["msg_id"]
    before, panels = _OF_CELL.get(cell, (run, []))
    if before != run:
        for old in panels:
            layout = old.layout  # a widget, too
            old.close()
            layout.close()
        panels = []
    _OF_CELL[cell] = run, [*panels, panel]
