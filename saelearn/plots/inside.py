"""Pictures of the inside of a language model: tokens, stream, neurons. Lesson 06.

Shapes: T positions, L sites, S neurons, C concepts. Arrays in, figure (or a table
in HTML) out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch
from numpy.typing import ArrayLike

from saelearn.errors import Refusal, brief, check_series, check_whole
from saelearn.plots.literal import literal
from saelearn.style import (
    ACCENT,
    CONTROL,
    DATA,
    DIVERGING,
    FEATURE,
    RECONSTRUCTION,
    SEQUENTIAL,
    STEERED,
    as_html,
    as_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Tol's "muted" hues (2021) and three more, in the order of the registers; a name stands beside each
HUES = ["#332288", "#88CCEE", "#44AA99", "#117733", "#999933"]
HUES += ["#DDCC77", "#CC6677", "#882255", "#AA4499", "#888888", "#BBCCEE", "#661100"]


@literal
def next_words(guesses: Mapping[str, Sequence[tuple[str, float]]]) -> Figure:
    """A panel for each text: the likeliest next words and their probabilities."""
    fig, axes = plt.subplots(1, len(guesses), figsize=(8.2, 2.6))
    for ax, (text, pairs) in zip(axes, guesses.items(), strict=True):
        words, p = zip(*pairs, strict=True)
        ax.barh(range(len(p)), p, color=RECONSTRUCTION)
        for row, value in enumerate(p):
            ax.text(value, row, f" {value:.2f}", va="center", fontsize=9)
        ax.set_yticks(range(len(p)), words)
        ax.set(title=f"… {text} …", xlabel="probability of the next word", xlim=(0, 1.15))
        ax.set_ylim(max(map(len, guesses.values())) - 0.4, -0.6)
    return fig


@literal
def surprises(words: Sequence[str], model_T: ArrayLike, rules_T: ArrayLike) -> Figure:
    """Nats of each word: bars for the model, ticks for somebody who knows the rules."""
    fig, ax = plt.subplots(figsize=(9.6, 4.0))
    at = np.arange(len(words))
    ax.bar(at, np.asarray(model_T), color=RECONSTRUCTION, width=0.8, label="the model")
    ax.plot(at, np.asarray(rules_T), "_", color=STEERED, ms=9, mew=2.5, label="who knows the rules")
    ax.set_xticks(at, words, rotation=90, fontsize=10)
    ax.set(ylabel="surprise (nats)", xlim=(-0.8, len(words) - 0.2))
    ax.legend(loc="upper left", ncol=2, bbox_to_anchor=(0, 1.14))
    return fig


@literal
def stream(n_words: int, d: int, d_mlp: int, n_blocks: int) -> Figure:
    """The residual stream from left to right: what reads it, what adds to it, how wide all is."""
    fig, ax = plt.subplots(figsize=(9.6, 4.2))
    end = 2.8 * n_blocks + 1.5
    ax.annotate("", (end, 0), (0.9, 0), arrowprops={"arrowstyle": "-|>", "lw": 7, "color": DATA})
    _box(ax, 0.1, 0, f"embedding\n{n_words} → {d}", CONTROL, width=1.5)
    _box(ax, end + 0.75, 0, f"logits\n{d} → {n_words}", CONTROL, width=1.5)
    for block in range(n_blocks):
        left = 1.5 + 2.8 * block
        ax.text(left + 0.98, -0.95, f"block {block}", ha="center", color="#555555")
        ax.text(left + 2.3, -0.42, f"{d} wide", ha="center", color=DATA, fontsize=9)
        attention, mlp = f"attention\n{d} → {d}", f"MLP\n{d} → {d_mlp}\n→ {d}"
        for x, label, colour in ((left, attention, ACCENT), (left + 1.3, mlp, FEATURE)):
            _branch(ax, x, label, colour)
    ax.text(1.3, 2.0, "attention: from earlier positions, too", color=ACCENT)
    ax.text(end - 0.3, 2.0, "MLP: each position by itself", color=FEATURE, ha="right")
    ax.set(xlim=(-0.75, end + 1.6), ylim=(-1.15, 2.3))
    ax.axis("off")
    return fig


def _branch(ax: Axes, x: float, label: str, colour: str) -> None:
    arrow = {"arrowstyle": "-|>", "lw": 1.4, "color": colour, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (x, 0.95), (x, 0.05), arrowprops=arrow)
    ax.annotate("", (x + 0.6, 0.14), (x + 0.6, 0.95), arrowprops=arrow)
    ax.plot(x + 0.6, 0, "o", color="white", mec=colour, ms=11, mew=1.6, zorder=5)
    ax.text(x + 0.6, -0.02, "+", color=colour, ha="center", va="center", zorder=6)
    _box(ax, x + 0.3, 1.3, label, colour, width=1.2)


def _box(ax: Axes, x: float, y: float, label: str, colour: str, *, width: float) -> None:
    shape = FancyBboxPatch(
        (x - width / 2, y - 0.36), width, 0.72, boxstyle="round,pad=0.02", fc="white", ec=colour,
        lw=1.6, zorder=4,
    )  # fmt: skip
    ax.add_patch(shape)
    size = 9.5 if width > 1.3 else 8.5
    ax.text(x, y, label, ha="center", va="center", color=colour, zorder=6, fontsize=size)


@literal
def travels(words: Sequence[str], change_LT: ArrayLike, sites: Sequence[str]) -> Figure:
    """How much of the stream changes, site by site and word by word, as shares of its length."""
    change_LT = np.asarray(change_LT)
    fig, ax = plt.subplots(figsize=(9.6, 3.0))
    image = ax.imshow(change_LT, cmap=SEQUENTIAL, vmin=0, aspect="auto")
    dark = 0.6 * change_LT.max()
    shades = np.where(change_LT > dark, "black", "white")
    _grid(ax, words, sites, change_LT, shades, shown=change_LT >= 0.005)
    fig.colorbar(image, label="change (share of length)")
    return fig


@literal
def patches(words: Sequence[str], measured_LT: ArrayLike, sites: Sequence[str]) -> Figure:
    """A difference of two logits after a patch at each site and word; the colours' middle is 0."""
    measured_LT = np.asarray(measured_LT)
    top = np.abs(measured_LT).max()
    fig, ax = plt.subplots(figsize=(9.6, 3.0))
    image = ax.imshow(measured_LT, cmap=DIVERGING, vmin=-top, vmax=top, aspect="auto")
    shades = np.where(np.abs(measured_LT) > 0.6 * top, "white", "black")
    _grid(ax, words, sites, measured_LT, shades, shown=np.ones_like(measured_LT, bool))
    fig.colorbar(image, label="logit happy − logit sad")
    return fig


def _grid(ax: Axes, words, sites, values_LT, shades_LT, *, shown) -> None:
    ax.set_xticks(range(len(words)), words, rotation=45, ha="right", fontsize=10)
    ax.set_yticks(range(len(sites)), sites, fontsize=10)
    ax.invert_yaxis()
    for row, column in zip(*np.nonzero(shown), strict=True):
        text, shade = f"{values_LT[row, column]:.1f}", shades_LT[row, column]
        text = f"{values_LT[row, column]:.2f}" if np.abs(values_LT).max() < 2 else text
        ax.text(column, row, text, ha="center", va="center", color=shade, fontsize=9)


@literal
def attention(
    words: Sequence[str], looks_TT: ArrayLike, left: Mapping[str, float], *, whole: float
) -> Figure:
    """Left, where one head looks from each word; right, what is left of an effect without a head.

    Args:
        words: `[T]`.
        looks_TT: share of attention that a word (row) gives to an earlier one (column).
        left: head -> the effect with this head silent.
        whole: the effect with all of them, drawn as a line.
    """
    fig, axes = plt.subplots(1, 2, figsize=(9.6, 4.3), gridspec_kw={"width_ratios": (1.35, 1)})
    image = axes[0].imshow(np.asarray(looks_TT), cmap="Greys", vmin=0, vmax=1)
    axes[0].set_xticks(range(len(words)), words, rotation=90, fontsize=9)
    axes[0].set_yticks(range(len(words)), words, fontsize=9)
    axes[0].set(xlabel="looks at", ylabel="from")
    axes[0].spines[["top", "right"]].set_visible(True)
    fig.colorbar(image, ax=axes[0], label="share of attention", shrink=0.8)
    rows = range(len(left))
    axes[1].barh(rows, left.values(), color=RECONSTRUCTION)
    axes[1].set_yticks(rows, left, fontsize=9)
    axes[1].axvline(whole, color=CONTROL, ls=":")
    axes[1].text(whole, -0.9, "no head silent", color=CONTROL, ha="right", fontsize=9)
    axes[1].set(xlabel="effect of the weather (logits)", ylabel="silent head (block.head)")
    axes[1].invert_yaxis()
    return fig


class Texts:
    """Places where a neuron fires, with the register of each as a coloured mark and in words.

    Args:
        places: (register's index, activation, words before, the word, words after).
        registers: their names.
    """

    def __init__(
        self, places: Sequence[tuple[int, float, str, str, str]], registers: Sequence[str]
    ):
        self._registers = [str(name) for name in check_series(registers, "registers", least=1)]
        self._places = [self._place(place) for place in check_series(places, "places")]

    def _place(self, place: tuple) -> tuple:
        try:
            register, value, *text = place
            before, word, after = map(str, text)
            value = float(value)
        except (TypeError, ValueError):
            form = "a place as (register, activation, before, word, after)"
            raise Refusal(form, brief(place)) from None
        check_whole(register, "the register's index", 0, len(self._registers) - 1)
        if not math.isfinite(value):
            raise Refusal("a finite activation", repr(value))
        return register, value, before, word, after

    def _repr_html_(self) -> str:
        rows = ""
        for register, value, *text in self._places:
            before, word, after = map(as_html, text)
            hue = HUES[register % len(HUES)]
            rows += (
                f"<tr><td style='border-left:12px solid {hue};padding:2px 10px;"
                f"text-align:left'>{as_html(self._registers[register])}</td>"
                f"<td style='padding:2px 8px'>{value:.1f}</td>"
                f"<td style='text-align:right;padding:2px'>{before}</td><td style='text-align:left;"
                f"padding:2px'><b style='background:{hue}44;padding:1px 3px'>{word}</b> {after}"
                "</td></tr>"
            )
        head = "<th style='text-align:left'>register</th><th>peak</th><th></th><th></th>"
        return f"<table><tr>{head}</tr>{rows}</table>"

    def __repr__(self) -> str:
        return "\n".join(
            as_text(f"{self._registers[register]:<12}{value:5.1f}  {before} [{word}] {after}")
            for register, value, before, word, after in self._places
        )


@literal
def silences(nats_S: ArrayLike, one: float, everything: float) -> Figure:
    """What the silence of each neuron costs, on a log axis, with one of them and all together.

    Args:
        nats_S: mean divergence without each of some neurons.
        one: without the neuron that the lesson found.
        everything: without any neuron of the block.
    """
    nats_S = np.asarray(nats_S)
    fig, ax = plt.subplots(figsize=(8.6, 3.0))
    edges = np.logspace(np.log10(max(nats_S.min(), 1e-9)) - 0.1, np.log10(everything) + 0.3, 60)
    ax.hist(nats_S, bins=edges, color=CONTROL)
    high = ax.get_ylim()[1]
    for value, label, side in ((one, "ours", "left"), (everything, "all of them silent", "right")):
        ax.axvline(value, color=STEERED if side == "left" else DATA, lw=2)
        ax.text(value, 1.02 * high, label, ha=side, color=DATA)
    ax.set(xscale="log", xlabel="divergence without it (nats per token, log scale)")
    ax.set(ylabel="neurons", ylim=(0, 1.15 * high))
    return fig


@literal
def detectors(f1: Mapping[str, ArrayLike]) -> Figure:
    """Each family's F1 on the same concepts: a dot a concept, the mean as a bar with its number."""
    fig, ax = plt.subplots(figsize=(8.8, 3.6))
    colours = {"SAE features": FEATURE, "neurons": ACCENT}
    draw = np.random.default_rng(0)
    for row, (name, f1_C) in enumerate(f1.items()):
        f1_C, colour = np.asarray(f1_C), colours.get(name, CONTROL)
        ax.scatter(f1_C, row + draw.uniform(-0.28, 0.28, len(f1_C)), s=11, color=colour, alpha=0.6)
        ax.plot([f1_C.mean()] * 2, [row - 0.38, row + 0.38], color=DATA, lw=2.5)
        ax.text(1.03, row, f"mean {f1_C.mean():.2f}", va="center", color=colour)
    ax.set_yticks(range(len(f1)), f1)
    ax.set(xlabel="F1 of the best one for each concept (1: it fires just there)", xlim=(-0.02, 1.0))
    ax.invert_yaxis()
    return fig
