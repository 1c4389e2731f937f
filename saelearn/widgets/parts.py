"""What widgets are made of: notices, sliders and tables as text. Layer 4."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import ipywidgets as ipw

from saelearn import style

CELL = "padding:2px 10px;text-align:right;white-space:nowrap"


def notice(text: str, colour: str = "inherit") -> str:
    """A line of HTML that a screen reader announces."""
    escaped = html.escape(text).replace("\n", "<br>")
    return f'<div role="status" style="color:{colour}">{escaped}</div>'


def failure(error: Exception) -> str:
    """The same for what went wrong in a training."""
    return notice(f"training failed: {type(error).__name__}: {error}", style.STEERED)


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
