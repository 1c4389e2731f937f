"""Where an SAE belongs: the model and the site that it was made for, in names that others know.

An SAE at another place gives numbers that look like features and mean nothing, so a use there
warns. What an SAE remembers are SAELens' `model_name` and `hook_name`, and our `site`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from saelearn.errors import Misplaced, Refusal
from saelearn.lm import sites, writes
from saelearn.lm.hooks import Edit

ALIASES = {"gpt2-small": "gpt2"}
"""TransformerLens' names for models that have another on the hub."""


def made_for(edit: Edit, about: Mapping[str, Any]) -> Edit:
    """The edit, which from now on knows where what it was made of belongs."""
    edit.belongs = about
    return edit


def warn_if_misplaced(model: nn.Module, name: str, site: str, about: Mapping[str, Any]) -> None:
    """Warn if something made for one place (`about`) is used at another.

    Args:
        model: the language model in use.
        name: what it was loaded as; "" if it was not loaded by name.
        site: the place of use, as the user names it.
        about: what is remembered of the place that it was made for; nothing known, no warning.
    """
    made = about.get("model_name")
    if name and isinstance(made, str) and made and _short(made) != _short(name):
        _warn(f"made for the model {made!r}, used in {name!r}")
    known = [about.get(key) for key in ("site", "hook_name", "hook_name_out")]
    known = [each for each in known if isinstance(each, str) and each]
    if known and site not in known and not any(_same(model, each, site) for each in known):
        _warn(f"made for the site {known[0]!r}, used at {site!r}")


def warn_if_others(about: Mapping[str, Any], place: Mapping[str, Any]) -> None:
    """Warn if what was made for one place (`about`) is used on rows of another.

    The names alone are compared: there is no model to ask what they mean.
    """
    model, here = (str(each.get("model_name") or "") for each in (about, place))
    if model and here and _short(model) != _short(here):
        _warn(f"made for the model {model!r}, used on rows of {here!r}")
    names, others = _names(about), _names(place)
    if names and others and not {*map(_stream, names)} & {*map(_stream, others)}:
        _warn(f"made for the site {names[0]!r}, used on rows of {others[0]!r}")


def _names(about: Mapping[str, Any]) -> list[str]:
    return [name for key in ("site", "hook_name") if isinstance(name := about.get(key), str)]


def _stream(name: str) -> str:
    """The stream enters a block as it left the one before."""
    if entered := re.fullmatch(r"blocks\.([1-9]\d*)\.hook_resid_pre", name):
        return f"blocks.{int(entered[1]) - 1}.hook_resid_post"
    if entered := re.fullmatch(r"(.+\.)([1-9]\d*):in", name):
        return f"{entered[1]}{int(entered[2]) - 1}:out"
    return name if ":" in name or "hook_" in name else f"{name}:out"


def _warn(said: str) -> None:
    words = f"this SAE was {said}: its features mean something there alone"
    warnings.warn(words, Misplaced, stacklevel=3)


def _short(name: str) -> str:
    last = name.rstrip("/").split("/")[-1].lower()
    return ALIASES.get(last, last)


def _same(model: nn.Module, one: str, other: str) -> bool:
    """Whether two names mean one place; the stream enters a block as it left the one before."""
    try:
        return _place(model, one) == _place(model, other)
    except Refusal:  # a name of another model
        return False


def _place(model: nn.Module, site: str) -> tuple[nn.Module, str]:
    place, blocks = writes.find(model, site), _blocks(model)
    for i, block in enumerate(blocks):
        if place.module is block and place.side == "in" and i > 0:
            return blocks[i - 1], "out"
    return place.module, place.side


def hook_name(model: nn.Module, site: str) -> str | None:
    """SAELens' name for a site; None if it has none."""
    place = writes.find(model, site)
    for i, block in enumerate(_blocks(model)):
        if place.module is block:
            return f"blocks.{i}.hook_resid_{'pre' if place.side == 'in' else 'post'}"
        if any(place.module is module for module in block.modules()):
            names = [f"blocks.{i}.{name}" for name in writes.IN_BLOCK]
            return next((name for name in names if _is(model, name, place)), None)
    return "hook_embed" if _is(model, "hook_embed", place) else None


def _blocks(model: nn.Module) -> list[nn.Module]:
    try:
        return list(model.get_submodule(sites.blocks_path(model)))
    except Refusal:  # it is made otherwise, and SAELens has no names for its places
        return []


def _is(model: nn.Module, name: str, place: sites.Place) -> bool:
    try:
        found = writes.find(model, name)
    except Exception:  # no such place, or the model cannot run the few tokens that would tell
        return False
    return found.module is place.module and found.side == place.side
