"""Pictures of steering: what a push does, and what it costs. Lesson 09.

Arrays in, figure out; colours as `style` says: steered in vermillion, controls in grey.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from saelearn.errors import Refusal, brief, check_named, check_series
from saelearn.plots.literal import literal
from saelearn.plots.training import label_ends
from saelearn.style import (
    ACCENT,
    CONTROL,
    DATA,
    FEATURE,
    RECONSTRUCTION,
    STEERED,
    as_html,
    as_text,
)

STRENGTH = "strength (typical norms of the site)"
_LINES = (  # colour, line style: the first is what we try, the others are compared with it
    (STEERED, "-"), (ACCENT, "-"), (RECONSTRUCTION, "--"), (CONTROL, "-"), (DATA, ":"),
)  # fmt: skip


@literal
def reads_and_writes(f1_F: ArrayLike, effect_F: ArrayLike, chosen: Sequence[int]) -> Figure:
    """How well each feature tells that a thing is there, against how far it makes it likelier.

    Args:
        f1_F: F1 of "it fires" with the concept.
        effect_F: change of the word's log-probability, in nats.
        chosen: the candidates, drawn larger.
    """
    f1_F, effect_F = np.asarray(f1_F), np.asarray(effect_F)
    fig, ax = plt.subplots(figsize=(7.0, 3.6))
    ax.axhline(0, color=CONTROL, lw=0.8)
    ax.plot(f1_F, effect_F, ".", ms=4, color=CONTROL)
    ax.plot(f1_F[chosen], effect_F[chosen], "o", ms=7, color=FEATURE)
    top = chosen[int(np.argmax(effect_F[chosen]))]
    left = f1_F[top] > 0.6 * f1_F.max()
    ax.annotate("candidates", (f1_F[top], effect_F[top]), (-10 if left else 10, 0),
                textcoords="offset points", va="center", ha="right" if left else "left",
                color=FEATURE)  # fmt: skip
    ax.set(xlabel="reading: F1 of “it fires” with the concept (0 to 1)")
    ax.set_ylabel("writing: change of the word's\nlog-probability (nats)")
    return fig


@literal
def candidates(
    strengths: Sequence[float], rate_FS: ArrayLike, validity_FS: ArrayLike, best: int
) -> Figure:
    """Rate times validity of each candidate over strengths, and where its texts lie on the plane.

    Args:
        rate_FS: share of texts that speak of the thing, candidates by strengths.
        validity_FS: share of their runs of four words that the corpus has.
        best: the row that was chosen.
    """
    rate_FS, validity_FS = np.asarray(rate_FS), np.asarray(validity_FS)
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.3))
    for i in [j for j in range(len(rate_FS)) if j != best] + [best]:
        colour, width = (STEERED, 2.5) if i == best else (CONTROL, 1.0)
        left.plot(strengths, rate_FS[i] * validity_FS[i], "o-", ms=4, color=colour, lw=width)
        right.plot(rate_FS[i], validity_FS[i], "o-", ms=4, color=colour, lw=width)
    left.set(xlabel=STRENGTH, ylabel="rate × validity", ylim=(-0.03, 1.03))
    right.set(xlabel="rate (share of texts)", ylabel="validity (share of 4-grams)")
    right.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    right.text(rate_FS[best, -1] - 0.03, validity_FS[best, -1] - 0.05, "chosen", color=STEERED,
               ha="right", va="top")  # fmt: skip
    return fig


@literal
def dose_response(
    strengths: Sequence[float],
    measured: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    base: Mapping[str, float],
    default: float | None = None,
) -> Figure:
    """Quantities against strength, one panel each; the first direction is the steered one.

    Args:
        measured: direction -> quantity -> one value for each strength (`steer.DoseResponse`).
        base: quantity -> its value without steering, drawn as a dotted line.
        default: a strength to mark.
    """
    fig, axes = plt.subplots(1, len(base), figsize=(7.8, 3.4))
    for ax, (quantity, value) in zip(axes, base.items(), strict=True):
        _doses(ax, strengths, {name: m[quantity] for name, m in measured.items()}, default)
        ax.axhline(value, color=DATA, lw=1, ls=":")
        ax.set(title=quantity, xlabel=STRENGTH, ylim=(-0.04, 1.06))
    axes[0].set_ylabel("share (0 to 1)")
    handles = axes[0].get_lines()[: len(measured)]
    fig.legend(handles, list(measured), loc="outside lower center", ncols=len(measured), fontsize=9)
    return fig


def _doses(
    ax: Axes,
    strengths: Sequence[float],
    named: Mapping[str, Sequence[float]],
    default: float | None,
) -> None:
    for (name, values), (colour, dashes) in zip(named.items(), _LINES, strict=False):
        ax.plot(strengths, values, "o", ls=dashes, ms=4, color=colour, label=name)
    if default is not None:
        ax.axvline(default, color="#BBBBBB", lw=1, zorder=0)


@literal
def plane(paths: Mapping[str, tuple[ArrayLike, ArrayLike]], *, goal: tuple[float, float]) -> Figure:
    """Rate against validity as strength, and the dots, grow: name -> (rates, validities).

    The goal, from (rate, validity) on, is shaded.
    """
    fig, ax = plt.subplots(figsize=(6.4, 3.8))
    ax.axvspan(goal[0], 1.04, ymin=(goal[1] + 0.03) / 1.07, color="#E8F3EF", zorder=0)
    for (name, (rate, valid)), (colour, dashes) in zip(paths.items(), _LINES, strict=False):
        ax.plot(rate, valid, ls=dashes, color=colour, label=name)
        ax.scatter(rate, valid, s=np.linspace(6, 50, len(rate)), color=colour, zorder=3)
    ax.text(goal[0] + 0.01, 1.0, "the goal", color=FEATURE, va="top", fontsize=9)
    ax.set(xlabel="rate (share of texts)", ylabel="validity (share of 4-grams)")
    ax.set(xlim=(-0.03, 1.04), ylim=(-0.03, 1.04))
    ax.legend(loc="center left", fontsize=9)
    return fig


@literal
def lines(
    x: Sequence[float],
    named: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    controls: Sequence[str] = (),
) -> Figure:
    """Curves over one axis, each labelled at its end; `controls` are drawn in grey."""
    fig, ax = plt.subplots(figsize=(7.0, 3.3))
    colours = {name: CONTROL if name in controls else STEERED for name in named}
    for name, values in named.items():
        ax.plot(x, values, "o-", ms=4, color=colours[name])
    label_ends(ax, {name: (x[-1], v[-1], colours[name]) for name, v in named.items()})
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return fig


@literal
def bars(
    named: Mapping[str, float], *, xlabel: str, controls: Sequence[str] = (), digits: int = 2
) -> Figure:
    """Horizontal bars with their numbers; `controls` are drawn in the control's grey."""
    fig, ax = plt.subplots(figsize=(7.0, 0.9 + 0.36 * len(named)))
    colours = [CONTROL if name in controls else STEERED for name in named]
    values = [round(value, digits) + 0.0 for value in named.values()]  # no "-0.00"
    drawn = ax.barh(list(named), values, color=colours)
    ax.bar_label(drawn, fmt=f"%.{digits}f", padding=4)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set_xlabel(xlabel)
    return fig


@dataclass(frozen=True)
class SideBySide:
    """Texts in columns, phrases marked: shown as an HTML table, printed as plain text.

    Args:
        columns: title -> texts; all columns of one length.
        phrases: what is marked, wherever it stands; of two that overlap the longer one.

    Raises:
        Refusal: no columns by name, columns of different lengths, an empty phrase.
    """

    columns: Mapping[str, Sequence[str]]
    phrases: Sequence[str] = ()

    def __post_init__(self):
        columns = {
            title: check_series(texts, f"texts of the column {title!r}")
            for title, texts in check_named(self.columns, "columns of texts", least=1).items()
        }
        lengths = {title: len(texts) for title, texts in columns.items()}
        if len(set(lengths.values())) > 1:
            raise Refusal("columns of one length", str(lengths), "show as many of each")
        phrases = check_series(self.phrases, "phrases")
        if not all(isinstance(phrase, str) and phrase for phrase in phrases):
            raise Refusal("phrases of at least one character", brief(phrases))
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "phrases", phrases)

    def __repr__(self) -> str:
        return "\n\n".join(
            as_text(f"{title}\n" + "\n".join(f"  {text}" for text in texts))
            for title, texts in self.columns.items()
        )

    def _repr_html_(self) -> str:
        cell = "text-align:left;vertical-align:top;padding:6px 10px;max-width:26em"
        heads = "".join(f'<th style="{cell}">{as_html(title)}</th>' for title in self.columns)
        rows = "".join(
            "<tr>"
            + "".join(f'<td style="{cell}">{self._marked(str(text))}</td>' for text in row)
            + "</tr>"
            for row in zip(*self.columns.values(), strict=True)
        )
        return f'<table style="border-collapse:collapse"><tr>{heads}</tr>{rows}</table>'

    def _marked(self, text: str) -> str:
        if not self.phrases:
            return as_html(text)
        longest_first = sorted(self.phrases, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        return "".join(  # every other part is a phrase
            f'<b style="color:{STEERED}">{as_html(part)}</b>' if i % 2 else as_html(part)
            for i, part in enumerate(parts)
        )
