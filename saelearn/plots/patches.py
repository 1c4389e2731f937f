"""Patches of photographs, and atoms that were learned from them, as pictures. Lesson 03.

Shapes: F atoms, D = size * size pixels. Arrays in, figure out. Grey is centred: mid-grey is 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from saelearn.plots.literal import literal


def mosaic(W_FD: ArrayLike, columns: int) -> np.ndarray:
    """Square patches in a grid with a line between them, each scaled to its largest pixel.

    Args:
        W_FD: one patch in each row, its pixels row by row.
        columns: patches beside each other.

    Returns:
        an image with values from -1 to 1; NaN where there is no patch.
    """
    W_FD = np.asarray(W_FD, dtype=float)
    size, rows = math.isqrt(W_FD.shape[1]), -(-len(W_FD) // columns)
    image = np.full((rows * (size + 1) + 1, columns * (size + 1) + 1), np.nan)
    for i, w_D in enumerate(W_FD):
        top, left = (k * (size + 1) + 1 for k in divmod(i, columns))
        peak = max(np.abs(w_D).max(), 1e-12)
        image[top : top + size, left : left + size] = w_D.reshape(size, size) / peak
    return image


@literal
def mosaics(named: Mapping[str, ArrayLike], *, columns: int, width: float = 2.5) -> Figure:
    """Several sets of patches side by side, titles from the names.

    Args:
        columns: patches beside each other in each panel.
        width: of one panel, in inches.
    """
    images = [mosaic(W_FD, columns) for W_FD in named.values()]
    height = width * max(image.shape[0] / image.shape[1] for image in images) + 0.35
    figure, axes = plt.subplots(1, len(named), figsize=(width * len(named), height), squeeze=False)
    for axis, name, image in zip(axes[0], named, images, strict=True):
        axis.imshow(image, cmap="gray", vmin=-1, vmax=1)
        axis.set_title(name, fontsize=10)
        axis.set_anchor("N")
        axis.axis("off")
    return figure


@literal
def growing(named: Mapping[str, ArrayLike], *, columns: int) -> Figure:
    """The same atoms at three times: two small panels, the last one large."""
    figure, axes = plt.subplot_mosaic(
        [["first", "last"], ["second", "last"]], figsize=(7.8, 5.4), width_ratios=[1, 2.05]
    )
    for place, (name, W_FD) in zip(("first", "second", "last"), named.items(), strict=True):
        axes[place].imshow(mosaic(W_FD, columns), cmap="gray", vmin=-1, vmax=1)
        axes[place].set_title(name, fontsize=10)
        axes[place].axis("off")
    return figure


@literal
def sums(x_ND: ArrayLike, f_NF: ArrayLike, W_FD: ArrayLike, *, shown: int = 5) -> Figure:
    """Patches as sums: in each row a patch, its strongest atoms, the sum of all that are on.

    The patch, the sum and what is left over share one scale of grey; each atom has its own, as
    in a mosaic, and its strength above it.

    Args:
        x_ND: patches.
        f_NF: their codes.
        W_FD: the dictionary.
        shown: how many atoms of each.
    """
    x_ND, f_NF, W_FD = (np.asarray(each, dtype=float) for each in (x_ND, f_NF, W_FD))
    size = math.isqrt(x_ND.shape[1])
    shape = (len(x_ND), shown + 3)
    figure, axes = plt.subplots(*shape, figsize=(8.8, 1.27 * len(x_ND)), squeeze=False)
    for row, x_D, f_F in zip(axes, x_ND, f_NF, strict=True):
        strongest = np.argsort(-np.abs(f_F))[:shown]
        sum_D, peak = f_F @ W_FD, np.abs(x_D).max()
        images = [x_D / peak, *(W_FD[i] / np.abs(W_FD[i]).max() for i in strongest)]
        images += [sum_D / peak, (x_D - sum_D) / peak]
        titles = ["patch", *(f"{f_F[i]:+.2f} ×" for i in strongest)]
        titles += [f"all {(f_F != 0).sum()} added up", "left over"]
        for axis, title, image in zip(row, titles, images, strict=True):
            axis.imshow(image.reshape(size, size), cmap="gray", vmin=-1, vmax=1)
            axis.set_title(title.replace("-", "\N{MINUS SIGN}"), fontsize=9, loc="center")
            axis.axis("off")
    return figure


@literal
def controls(photos: Mapping[str, ArrayLike], named: Mapping[str, ArrayLike]) -> Figure:
    """Two photographs `[H, W]`, one above the other; beside each, two sets of patches.

    Args:
        photos: title -> grey image.
        named: title -> patches `[F, D]`, the upper two first.
    """
    figure, axes = plt.subplots(2, 3, figsize=(8.8, 6.0), width_ratios=[1.1, 1, 1])
    for axis, (name, photo) in zip(axes[:, 0], photos.items(), strict=True):
        axis.imshow(photo, cmap="gray")
        axis.set_title(name, fontsize=10)
    for axis, (name, W_FD) in zip(axes[:, 1:].flat, named.items(), strict=True):
        axis.imshow(mosaic(W_FD, 12), cmap="gray", vmin=-1, vmax=1)
        axis.set_title(name, fontsize=10)
    for axis in axes.flat:
        axis.axis("off")
        axis.set_anchor("N")
    return figure


@literal
def before_and_after(photo: ArrayLike, named: Mapping[str, ArrayLike], *, columns: int) -> Figure:
    """A photograph, and beside it patches in several states.

    Args:
        photo: grey image `[H, W]`.
        named: title -> patches `[F, D]`.
    """
    panels = 1 + len(named)
    widths = [1.55] + [1.0] * len(named)
    figure, axes = plt.subplots(1, panels, figsize=(8.6, 2.6), width_ratios=widths)
    axes[0].imshow(photo, cmap="gray")
    axes[0].set_title("one of the photographs", fontsize=10)
    for axis, (name, W_FD) in zip(axes[1:], named.items(), strict=True):
        axis.imshow(mosaic(W_FD, columns), cmap="gray", vmin=-1, vmax=1)
        axis.set_title(name, fontsize=10)
    for axis in axes:
        axis.axis("off")
    return figure
