"""Pictures of the inside of a language model: tokens, stream, neurons. Lesson 06.

Shapes: T positions, L sites, S neurons or other units, R registers. Arrays in, figure (or a table
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

from saelearn.errors import Refusal, brief, check_named, check_range, check_series, check_whole
from saelearn.plots.literal import literal
from saelearn.style import (
    ACCENT,
    CONTROL,
    DATA,
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
    fig, ax = plt.subplots(figsize=(9.2, 3.4))
    at = np.arange(len(words))
    ax.bar(at, np.asarray(model_T), color=RECONSTRUCTION, width=0.8, label="the model")
    ax.plot(at, np.asarray(rules_T), "_", color=STEERED, ms=9, mew=2.5, label="who knows the rules")
    ax.set_xticks(at, words, rotation=90, fontsize=8)
    ax.set(ylabel="surprise (nats)", xlim=(-0.8, len(words) - 0.2))
    ax.legend(loc="upper left", ncol=2, bbox_to_anchor=(0, 1.14))
    return fig


@literal
def stream(n_words: int, d: int, d_mlp: int, n_blocks: int) -> Figure:
    """The residual stream from left to right: what reads it, what adds to it, how wide all is."""
    fig, ax = plt.subplots(figsize=(9.4, 3.5))
    end = 2.8 * n_blocks + 1.5
    ax.annotate("", (end, 0), (0.9, 0), arrowprops={"arrowstyle": "-|>", "lw": 7, "color": DATA})
    _box(ax, 0.1, 0, f"embedding\n{n_words} → {d}", CONTROL, width=1.5)
    _box(ax, end + 0.75, 0, f"logits\n{d} → {n_words}", CONTROL, width=1.5)
    for block in range(n_blocks):
        left = 1.5 + 2.8 * block
        ax.text(left + 0.98, -0.95, f"block {block}", ha="center", color="#555555")
        ax.text(left + 2.3, -0.42, f"{d} wide", ha="center", color=DATA, fontsize=8)
        attention, mlp = f"attention\n{d} → {d}", f"MLP\n{d} → {d_mlp} → {d}"
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
    size = 8.5 if width > 1.3 else 7
    ax.text(x, y, label, ha="center", va="center", color=colour, zorder=6, fontsize=size)


@literal
def travels(words: Sequence[str], change_LT: ArrayLike, sites: Sequence[str]) -> Figure:
    """How much of the stream changes, site by site and word by word, as shares of its length."""
    change_LT = np.asarray(change_LT)
    fig, ax = plt.subplots(figsize=(9.0, 2.7))
    image = ax.imshow(change_LT, cmap=SEQUENTIAL, vmin=0, aspect="auto")
    ax.set_xticks(range(len(words)), words, rotation=45, ha="right")
    ax.set_yticks(range(len(sites)), sites)
    ax.invert_yaxis()
    for row, column in zip(*np.nonzero(change_LT >= 0.005), strict=True):
        value = change_LT[row, column]
        shade = "black" if value > 0.6 * change_LT.max() else "white"
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=shade, fontsize=8)
    fig.colorbar(image, label="change (share of length)")
    return fig


@literal
def pieces(length: Mapping[str, float], cost: Mapping[str, Mapping[str, float]]) -> Figure:
    """Left, the mean length of each piece of the stream; right, what the loss gains without it.

    Args:
        length: piece -> mean length.
        cost: name of the ablation -> piece -> added loss; the first is drawn as bars.
    """
    fig, axes = plt.subplots(1, 2, figsize=(8.8, 3.0), sharey=True)
    rows = range(len(length))
    axes[0].barh(rows, length.values(), color=CONTROL)
    axes[0].set_yticks(rows, length)
    axes[0].set(xlabel="mean length of what it writes", title="how much it writes")
    (bars, bar), (dots, dot) = cost.items()
    axes[1].barh(rows, bar.values(), color=STEERED, label=bars)
    for row, name in enumerate(bar):
        beyond = max(bar[name], dot[name])
        axes[1].annotate(f"{bar[name]:.2f}", (beyond, row), (8, 0), textcoords="offset points",
                         va="center", color=STEERED, fontsize=9)  # fmt: skip
    axes[1].margins(x=0.12)
    axes[1].plot(dot.values(), rows, "D", color=DATA, label=dots, clip_on=False)
    axes[1].set(xlabel="added loss (nats per token)", title="what is lost without it")
    axes[1].legend(loc="lower right")
    axes[0].invert_yaxis()
    return fig


class Lens:
    """The likeliest next word, were the model to stop at each site; shaded by the right word's p.

    Args:
        words: of the text, `[T]`.
        rows: site -> for each position (likeliest next word, probability of the right one).
    """

    def __init__(self, words: Sequence[str], rows: Mapping[str, Sequence[tuple[str, float]]]):
        self._words = check_series(words, "words")
        self._rows = {
            site: [_guess(site, pair) for pair in check_series(pairs, f"guesses at {site!r}")]
            for site, pairs in check_named(rows, "rows of guesses").items()
        }
        for site, pairs in self._rows.items():
            if len(pairs) != len(self._words):
                got = f"{len(pairs)} at {site!r}"
                raise Refusal(f"a guess for each of {len(self._words)} words", got)

    def _repr_html_(self) -> str:
        cell = "<td style='text-align:center;padding:2px 4px;background:rgba(0,114,178,{:.2f})'>{}"
        head = "".join(f"<th style='text-align:center'>{as_html(w)}</th>" for w in self._words)
        body = ""
        for name, pairs in reversed(self._rows.items()):
            cells = (cell.format(0.5 * round(4 * p) / 4, as_html(w)) for w, p in pairs)
            body += f"<tr><th style='text-align:right'>{as_html(name)}</th>{''.join(cells)}</tr>"
        return (
            "<table style='font-size:85%'>"
            f"{body}<tr><th style='text-align:right'>it has just read</th>{head}</tr>"
            "</table>"
        )

    def __repr__(self) -> str:
        rows = [f"{name}: {' '.join(w for w, _ in pairs)}" for name, pairs in self._rows.items()]
        lines = [f"it has just read: {' '.join(map(str, self._words))}", *rows]
        return "\n".join(map(as_text, lines))


def _guess(site: str, pair: tuple[str, float]) -> tuple[str, float]:
    try:
        word, p = pair
        share = float(p)
    except (TypeError, ValueError):
        raise Refusal("a guess as (word, probability)", f"{brief(pair)} at {site!r}") from None
    return str(word), check_range(share, f"the probability at {site!r}", 0.0, 1.001)


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
def by_register(registers: Sequence[str], panels: Mapping[str, ArrayLike]) -> Figure:
    """Panels of bars, one bar a register, in the registers' hues."""
    fig, axes = plt.subplots(
        1, len(panels), figsize=(4.1 * len(panels), 3.2), sharey=True, squeeze=False
    )
    rows = range(len(registers))
    for ax, (label, values) in zip(axes[0], panels.items(), strict=True):
        ax.barh(rows, np.asarray(values), color=[HUES[r % len(HUES)] for r in rows])
        ax.set_yticks(rows, registers)
        ax.set_xlabel(label)
        ax.locator_params(axis="x", nbins=5)
    axes[0][0].invert_yaxis()
    return fig


@literal
def spreads(spread: Mapping[str, ArrayLike], n_registers: int) -> Figure:
    """Histograms of effective registers, one panel for each family."""
    fig, axes = plt.subplots(len(spread), 1, figsize=(7.4, 1.1 * len(spread) + 0.7), sharex=True)
    colours = {"SAE features": FEATURE, "neurons": ACCENT}
    for ax, (name, each) in zip(axes, spread.items(), strict=True):
        colour = colours.get(name, CONTROL)
        each = np.asarray(each)
        ax.hist(each, bins=np.linspace(1, n_registers, 46), color=colour)
        ax.axvline(np.median(each), color=STEERED)
        ax.set_title(f"{name}: median {np.median(each):.1f}", color=colour, fontsize=10)
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
    axes[-1].set_xlabel(f"effective number of registers (of {n_registers}); orange: median")
    return fig


@literal
def one_or_all(one_C: ArrayLike, all_C: ArrayLike, names: Sequence[str]) -> Figure:
    """Each concept's F1 by the best single neuron, and by a probe that may use all of them."""
    one_C, all_C = np.asarray(one_C), np.asarray(all_C)
    fig, ax = plt.subplots(figsize=(5.6, 4.6))
    ax.plot([0, 1], [0, 1], ":", color=CONTROL, lw=1)
    ax.scatter(one_C, all_C, color=ACCENT, s=24, alpha=0.8)
    for i in np.argsort(one_C)[[0, len(one_C) // 2, -1]]:
        left = one_C[i] > 0.6
        ax.annotate(names[i], (one_C[i], all_C[i]), (0 if left else 12, -70), fontsize=8,
                    textcoords="offset points", ha="right" if left else "left",
                    arrowprops={"arrowstyle": "-", "color": CONTROL, "lw": 0.8})  # fmt: skip
    ax.text(0.03, 0.06, "on this line one neuron is enough", rotation=40, color=CONTROL, fontsize=8)
    ax.set(xlabel="F1 of the best single neuron", ylabel="F1 of a probe on all neurons")
    ax.set(xlim=(0, 1.03), ylim=(0, 1.03))
    return fig
