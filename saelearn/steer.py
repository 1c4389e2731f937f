"""Change what a model says by changing one direction. Lesson 09.

Three edits (add, clamp, ablate), the directions to compare, and dose against response with
controls. Strengths are in units of the site's mean centred activation norm (`typical_norm`), so
that they mean the same at every site and in every model. Shapes: B batch, T positions, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from saelearn.errors import (
    ABOVE_0,
    Refusal,
    brief,
    check_finite,
    check_named,
    check_range,
    check_series,
    check_whole,
    check_width,
    checked,
    number,
    whole,
)
from saelearn.lm import LM, Edit, made_for
from saelearn.sae import SAE

EVERYWHERE = range(1, 2**31)  # all positions but the first, which is `<doc>`


@checked()
def typical_norm(x_ND: Tensor) -> float:
    """Mean length of the activations after their mean is subtracted: the unit of strength."""
    return float((x_ND - x_ND.mean(0)).norm(dim=1).mean())


def _at(positions: range, positions_T: Tensor) -> Tensor:
    inside_T = (positions_T >= positions.start) & (positions_T < positions.stop)
    return inside_T[:, None]


@checked(amount=number())
def add(direction_D: Tensor, amount: float, *, positions: range = EVERYWHERE) -> Edit:
    """x + amount * direction / ||direction||, at the given positions of the document.

    Args:
        direction_D: any length; only where it points counts.
        amount: how far, in the activations' own units: strength * `typical_norm`.
        positions: where; `range(1, 9)` is the first eight tokens after `<doc>`.
    """
    if not isinstance(direction_D, Tensor) or direction_D.ndim != 1:
        got = tuple(direction_D.shape) if isinstance(direction_D, Tensor) else type(direction_D)
        raise Refusal("a direction as a vector [D]", str(got), "one row: sae.W_dec[317]")
    check_finite(direction_D, name="direction")
    _check_number(amount, "amount")
    _check_positions(positions)
    if direction_D.norm() == 0:
        raise Refusal("a direction", "a vector of zeros", "take a decoder row of a living feature")
    push_D = amount * direction_D / direction_D.norm()

    def edit(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        check_width(x_BTD, len(push_D), name="activations at the site")
        return x_BTD + _at(positions, positions_T) * push_D.to(x_BTD)

    return edit


@checked(value=number())
def clamp(sae: SAE, feature: int, value: float, *, positions: range = EVERYWHERE) -> Edit:
    """Set one feature to `value`: x + (value - f_i(x)) W_dec_i.

    What the SAE does not explain stays as it is (the error term is kept), so this differs from
    putting the reconstruction in x's place. Not the same as adding: how far x moves depends on
    how active the feature already is. (Templeton et al., 2024.)
    """
    _check_feature(sae, [feature])
    _check_number(value, "value")
    _check_positions(positions)

    def edit(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        in_BTD = x_BTD.to(sae.W_dec.dtype)
        f_BT1 = sae.encode(in_BTD)[..., feature, None]
        moved_BTD = (value - f_BT1) * sae.W_dec[feature] * sae.units(in_BTD).scale
        return x_BTD + _at(positions, positions_T) * moved_BTD

    return made_for(edit, sae.metadata)


@checked()
def ablate(
    sae: SAE,
    features: Sequence[int],
    *,
    positions: range = EVERYWHERE,
    along_KD: Tensor | None = None,
) -> Edit:
    """Take features out: x - sum_i f_i(x) W_dec_i, the rest of x as it is.

    Args:
        along_KD: as a control, take as much of each of the K features away along another direction.
    """
    _check_feature(sae, features)
    _check_positions(positions)
    index = torch.as_tensor(list(features))
    if along_KD is not None and along_KD.shape != (len(index), sae.d_in):
        raise Refusal(
            f"a direction for each feature, {(len(index), sae.d_in)}",
            str(tuple(along_KD.shape)),
            "saelearn.features.random_directions(len(features), sae.d_in)",
        )

    def edit(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        in_BTD, row_KD = x_BTD.to(sae.W_dec.dtype), sae.W_dec[index]
        if along_KD is not None:
            row_KD = nn.functional.normalize(along_KD.to(row_KD)) * row_KD.norm(dim=1)[:, None]
        written_BTD = sae.encode(in_BTD)[..., index] @ row_KD
        return x_BTD - _at(positions, positions_T) * written_BTD * sae.units(in_BTD).scale

    return made_for(edit, sae.metadata)


def _check_feature(sae: SAE, features: Sequence[int]) -> None:
    for i in features:
        try:
            check_whole(i, "a feature", 0, sae.d_sae - 1)
        except Refusal:
            raise Refusal(f"features from 0 to {sae.d_sae - 1}", brief(i)) from None


def _check_number(value: float, name: str) -> None:
    try:
        finite = math.isfinite(value)
    except (TypeError, ValueError):
        finite = False
    if not finite:
        raise Refusal(f"a finite {name}", repr(value))


def _check_positions(positions: range) -> None:
    if not isinstance(positions, range) or positions.step != 1:
        raise Refusal("positions as a range in steps of 1", brief(positions), "range(1, 9)")


@checked()
def difference_of_means(x_ND: Tensor, labels_N: Tensor) -> Tensor:
    """Mean of the rows where a concept holds, less the mean of the others, `[D]`.

    The simplest direction there is, made with labels, which an SAE never saw. A feature that
    steers no better has earned nothing by being found without them.
    """
    if labels_N.all() or not labels_N.any():
        raise Refusal("rows with and rows without the concept", "only one kind", "use more text")
    return x_ND[labels_N].mean(0) - x_ND[~labels_N].mean(0)


@dataclass(frozen=True)
class DoseResponse:
    """What steering does: `measured[direction][quantity]` lists one value for each strength."""

    strengths: list[float]
    measured: dict[str, dict[str, list[float]]]


@checked(unit=number(ABOVE_0), n=whole(1), max_new_tokens=whole(1), seed=whole(0))
def dose_response(
    lm: LM,
    site: str,
    directions: Mapping[str, Tensor],
    strengths: Sequence[float],
    measure: Callable[[Tensor], Mapping[str, float]],
    *,
    unit: float,
    prompt: str | Tensor,
    n: int = 200,
    max_new_tokens: int = 40,
    positions: range = EVERYWHERE,
    seed: int = 0,
    progress: bool = False,
) -> DoseResponse:
    """Generate with each direction at each strength, and measure the texts.

    Args:
        directions: name -> vector [D]; put controls beside the feature.
        strengths: in units of `unit`.
        measure: generated `tokens_NT` -> quantities by name, such as rate and validity.
        unit: `typical_norm` of the site.
        prompt: what every text begins with.
        n: texts for each point.
        positions: which positions are steered.

    Raises:
        Refusal: no directions by name, strengths that are no list of finite numbers, a `unit` that
            is none above 0, or a `measure` that does not give numbers by name.
    """
    check_named(directions, "directions", least=1)
    strengths = check_series(strengths, "strengths", least=1)
    for strength in strengths:
        _check_number(strength, "strength")
    _check_number(unit, "unit")
    check_range(float(unit), "unit", ABOVE_0)
    if not callable(measure):
        raise Refusal("measure as a function of generated tokens", brief(measure))
    measured: dict[str, dict[str, list[float]]] = {name: {} for name in directions}
    points = [(name, s) for name in directions for s in strengths]
    for name, strength in tqdm(points, desc="dose and response", disable=not progress):
        edit = add(directions[name], strength * unit, positions=positions)
        tokens_NT = lm.generate(
            prompt, max_new_tokens=max_new_tokens, n=n, seed=seed, edits={site: edit}
        )
        for quantity, value in check_named(measure(tokens_NT), "measured quantities").items():
            try:
                measured[name].setdefault(quantity, []).append(float(value))
            except (TypeError, ValueError):
                got = f"{quantity}: {brief(value)}"
                raise Refusal("a number for each measured quantity", got) from None
    return DoseResponse(list(strengths), measured)
