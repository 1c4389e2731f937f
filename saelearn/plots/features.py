"""Pictures of what features mean: where they fire, what they write, how well they fit. Lesson 08.

Shapes: N rows (tokens), F features, C concepts. Arrays in, figure (or a table in HTML) out.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from saelearn.errors import Refusal, brief, check_series
from saelearn.plots.literal import literal
from saelearn.style import CONTROL, FEATURE, RECONSTRUCTION, STEERED, as_html, as_text

SHADES = 8  # steps of a token's background: few, so that machines agree


class Contexts:
    """Texts with a feature's activation as the shade of each word; plain text marks the peak."""

    def __init__(self, contexts: Sequence[Any]):
        self._contexts = check_series(contexts, "contexts")
        for context in self._contexts:
            _check_context(context)
        self._top = max((max(c.activations) for c in self._contexts), default=1.0)
        self._top = self._top if self._top > 0 else 1.0

    def _repr_html_(self) -> str:
        rows = "".join(
            "<tr><td style='text-align:right;padding:2px 10px;opacity:0.8'>"
            f"{c.activations[c.center]:.1f}</td>"
            f"<td style='text-align:left;padding:2px'>{self._words(c)}</td></tr>"
            for c in self._contexts
        )
        return (
            "<table style='border-collapse:collapse'>"
            f"<tr><th>peak</th><th style='text-align:left'>text</th></tr>{rows}</table>"
        )

    def _words(self, context: Any) -> str:
        spans = []
        for word, value in zip(context.words, context.activations, strict=True):
            shade = round(SHADES * max(value, 0.0) / self._top) / SHADES
            style = f"background:rgba(0,130,95,{0.75 * shade:.2f});padding:1px 3px"
            spans.append(f"<span style='{style}'>{as_html(word)}</span>")
        return as_html(context.separator).join(spans)

    def __repr__(self) -> str:
        lines = []
        for c in self._contexts:
            words = [f"[{w}]" if i == c.center else w for i, w in enumerate(c.words)]
            lines.append(f"{c.activations[c.center]:5.1f}  {c.separator.join(words)}")
        return "\n".join(map(as_text, lines))


def _check_context(context: Any) -> None:
    try:
        words, values = list(context.words), [float(value) for value in context.activations]
        center, separator = operator.index(context.center), context.separator
    except (AttributeError, TypeError, ValueError):
        kind = "contexts with words, activations, center and separator"
        raise Refusal(kind, brief(context), "`features.contexts` finds them") from None
    right = len(words) == len(values) and 0 <= center < len(words) and isinstance(separator, str)
    if not right or not all(isinstance(word, str) for word in words):
        found = f"{len(words)} words, {len(values)} activations, center {center}"
        raise Refusal("an activation for each word, and the center among them", found)
    if not all(map(math.isfinite, values)):
        raise Refusal("finite activations", brief(values))


@literal
def density(frequency_F: ArrayLike) -> Figure:
    """How often features fire: a histogram over powers of ten, dead ones counted apart."""
    frequency_F = np.asarray(frequency_F)
    alive = frequency_F[frequency_F > 0]
    fig, ax = plt.subplots()
    ax.hist(np.log10(alive), bins=np.arange(-5, 0.01, 0.2), color=FEATURE)
    middle = float(np.median(alive))
    ax.axvline(np.log10(middle), color=STEERED)
    ax.text(np.log10(middle), ax.get_ylim()[1], "median", color=STEERED, ha="center", va="bottom")
    ax.set(xlabel="share of tokens at which it fires", ylabel="features")
    ax.set_xticks(range(-5, 1), ["10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "1"])
    return fig


@literal
def activation_histogram(f_N: ArrayLike, holds_N: ArrayLike, name: str) -> Figure:
    """A feature's activations where it fires, split by whether a concept holds."""
    f_N, holds_N = np.asarray(f_N), np.asarray(holds_N)
    fires = f_N > 0
    parts = [f_N[fires & holds_N], f_N[fires & ~holds_N]]
    fig, ax = plt.subplots()
    labels = [f"{name} holds", "it does not"]
    ax.hist(parts, bins=30, stacked=True, color=[FEATURE, "#BBBBBB"], label=labels)
    ax.set(xlabel="activation, where it is above 0", ylabel="tokens")
    ax.legend()
    return fig


@literal
def encoder_and_decoder(
    cosine_F: ArrayLike, readouts: Mapping[str, tuple[ArrayLike, ArrayLike]]
) -> Figure:
    """Left, cosines of encoder and decoder; right, tokens read off with each of the two.

    Args:
        cosine_F: of living features.
        readouts: name -> (values where the feature's concept holds, values elsewhere).
    """
    fig, axes = plt.subplots(1, 1 + len(readouts), figsize=(8.4, 3.2))
    cosine_F = np.asarray(cosine_F)
    axes[0].hist(cosine_F, bins=np.linspace(min(0.0, cosine_F.min()), 1, 30), color=FEATURE)
    axes[0].axvline(np.median(cosine_F), color=STEERED)
    axes[0].text(np.median(cosine_F), axes[0].get_ylim()[1], " median", color=STEERED, va="top")
    axes[0].set(xlabel="cosine of encoder and decoder", ylabel="features")
    for ax, (name, (held, rest)) in zip(axes[1:], readouts.items(), strict=True):
        bins = np.linspace(-1.5, 2.0, 50)
        for values, colour, label in ((rest, "#9A9A9A", "elsewhere"), (held, FEATURE, "holds")):
            ax.hist(values, bins=bins, density=True, color=colour, alpha=0.75, label=label)
        ax.set(
            title=name,
            xlabel="readout (1: mean where it holds)",
            ylabel="share of tokens, per unit",
            yscale="log",
        )
        ax.set_ylim(top=30 * ax.get_ylim()[1])  # room for the legend
        ax.legend(loc="upper right", fontsize=8)
    return fig


@literal
def sweep(l1: Sequence[float], f1: Sequence[float], l0: Sequence[float]) -> Figure:
    """Mean best F1 against the L1 coefficient, each point with its L0."""
    fig, ax = plt.subplots(figsize=(6.4, 3.2))
    ax.plot(l1, f1, "o-", color=FEATURE)
    for x, y, n in zip(l1, f1, l0, strict=True):
        ax.annotate(f"L0 {n:.0f}", (x, y), (0, 8), textcoords="offset points", ha="center")
    ax.set(xscale="log", xlabel="L1 coefficient", ylabel="mean best F1")
    ax.set_xticks(l1, [f"{x:g}" for x in l1])
    ax.minorticks_off()
    ax.set_ylim(0, 1)
    return fig


@literal
def detectors(f1: Mapping[str, ArrayLike]) -> Figure:
    """One row a family of detectors: a dot for each concept's best F1, a bar for the mean."""
    fig, ax = plt.subplots(figsize=(7.4, 0.5 * len(f1) + 1.0))
    noise = np.random.default_rng(0)
    for row, (name, f1_C) in enumerate(f1.items()):
        f1_C = np.asarray(f1_C)
        colour = FEATURE if row == 0 else RECONSTRUCTION if "token" in name else CONTROL
        ax.plot(f1_C, row + noise.uniform(-0.3, 0.3, len(f1_C)), ".", color=colour, ms=3, alpha=0.5)
        ax.plot([f1_C.mean()] * 2, [row - 0.4, row + 0.4], color=STEERED, lw=3)
        ax.text(1.03, row, f"{f1_C.mean():.2f}", va="center", color=STEERED)
    ax.text(1.03, -0.75, "mean", va="center", color=STEERED)
    ax.set_yticks(range(len(f1)), f1)
    ax.set(xlabel="best F1 of each concept, on documents that had no say", xlim=(-0.02, 1.12))
    ax.invert_yaxis()
    return fig


@literal
def by_category(categories: Sequence[str], f1: Mapping[str, ArrayLike]) -> Figure:
    """Concepts in rows by category: a dot for each, and each family's mean in the category.

    Args:
        categories: of each concept, `[C]`.
        f1: family -> F1 `[C]`; the first is drawn dot by dot.
    """
    categories = np.asarray(categories)
    first = np.asarray(next(iter(f1.values())))
    kinds = sorted(set(categories), key=lambda kind: -first[categories == kind].mean())
    rows = -(-len(kinds) // 2)  # in two columns: one would be taller than a screen
    fig, axes = plt.subplots(1, 2, figsize=(9.6, 0.21 * rows + 1.2))
    marks = dict(zip(f1, (("D", FEATURE), ("|", STEERED), ("x", RECONSTRUCTION)), strict=False))
    for ax, column in zip(axes, (kinds[:rows], kinds[rows:]), strict=True):
        for row, kind in enumerate(column):
            here = categories == kind
            ax.plot([0, 1], [row, row], color="#EEEEEE", lw=1, zorder=0)
            ax.plot(first[here], [row] * here.sum(), ".", color=FEATURE, ms=4, alpha=0.35)
            for name, f1_C in f1.items():
                mark, colour = marks[name]
                mean = np.asarray(f1_C)[here].mean()
                ax.plot(mean, row, mark, color=colour, ms=7, mew=2, label="" if row else name)
        ax.set_yticks(range(len(column)), [f"{k} ({(categories == k).sum()})" for k in column])
        ax.tick_params(axis="y", labelsize=9)
        ax.set(xlabel="best F1", xlim=(-0.02, 1.02), ylim=(rows - 0.3, -0.7))
    axes[0].legend(title="mean of category", loc="lower left", bbox_to_anchor=(0, 1), ncol=3)
    return fig


@literal
def against_frequency(frequency_C: ArrayLike, f1_C: ArrayLike) -> Figure:
    """Each concept's F1 against how often it holds, with the means of fifths by frequency."""
    frequency_C, f1_C = np.asarray(frequency_C), np.asarray(f1_C)
    fig, ax = plt.subplots()
    ax.scatter(frequency_C, f1_C, s=18, color=FEATURE, alpha=0.7)
    for low, high in pairwise(np.quantile(frequency_C, np.linspace(0, 1, 6))):
        here = (frequency_C >= low) & (frequency_C <= high)
        ax.plot([low, high], [f1_C[here].mean()] * 2, color=STEERED, lw=3)
    ax.set(xscale="log", xlabel="share of tokens at which the concept holds", ylabel="best F1")
    ax.set_ylim(0, 1.02)
    return fig


@literal
def two_languages(english: ArrayLike, korean: ArrayLike, names: Sequence[str]) -> Figure:
    """How often one feature fires at a thing's English words and at its Korean words."""
    fig, ax = plt.subplots(figsize=(5.6, 4.6))
    english, korean = np.asarray(english), np.asarray(korean)
    ax.plot([0, 1], [0, 1], ":", color=CONTROL, lw=1)
    ax.scatter(english, korean, color=FEATURE, s=24)
    taken: list[tuple[float, float]] = []
    for x, y, name in zip(english, korean, names, strict=True):
        if all(abs(x - a) > 0.45 or abs(y - b) > 0.05 for a, b in taken):
            left = x > 0.6
            ax.annotate(name, (x, y), (-5 if left else 5, 3), textcoords="offset points",
                        fontsize=8, ha="right" if left else "left")  # fmt: skip
            taken.append((x, y))
    ax.set(xlabel="fires at English words (share)", ylabel="fires at Korean words (share)")
    ax.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.08))
    return fig


@literal
def use(f1_F: ArrayLike, harm_F: ArrayLike, names: Sequence[str]) -> Figure:
    """What taking features out costs per firing, against how well each fits its label."""
    f1_F, harm_F = np.asarray(f1_F), np.asarray(harm_F)
    fig, ax = plt.subplots(figsize=(7.0, 4.0))
    ax.axhline(0, color=CONTROL, lw=1)
    ax.scatter(f1_F, harm_F, color=FEATURE, s=22)
    for i in harm_F.argsort()[::-1][:3]:
        left = f1_F[i] > (f1_F.min() + f1_F.max()) / 2
        ax.annotate(names[i], (f1_F[i], harm_F[i]), (-6 if left else 6, 2), fontsize=8,
                    textcoords="offset points", ha="right" if left else "left")  # fmt: skip
    ax.set(xlabel="F1 of the feature with its label")
    ax.set_ylabel("added loss (nats per firing)")
    return fig
