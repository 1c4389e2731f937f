"""Names for places in a model.

A site is the path PyTorch gives a module, with `:in` or `:out`: `transformer.h.1:out` is the
residual stream after block 1 (without either, `:out`). The names that TransformerLens and SAELens
use (`blocks.1.hook_resid_post`) are understood too, for any model made of a list of blocks; those
of what attention and MLP write are measured, not guessed (`saelearn.lm.writes`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from saelearn.errors import Refusal


class Place(NamedTuple):
    """A module, and which side of it: "in" or "out".

    `reads_only` is a reason if what passes here is a copy of what the site names, so that an edit
    would reach only a part of it; else it is empty.
    """

    module: nn.Module
    side: str
    reads_only: str = ""


def split(site: str) -> tuple[str, str]:
    """A site's path and its side, which is "out" if none is given."""
    path, _, side = site.partition(":")
    return path, side or "out"


def at(model: nn.Module, path: str, side: str) -> nn.Module | None:
    """The module of a path, if something passes through it."""
    try:
        module = model.get_submodule(path) if path and side in ("in", "out") else None
    except AttributeError:
        module = None
    return None if isinstance(module, nn.ModuleList | nn.ModuleDict) else module


def residual(model: nn.Module) -> list[str]:
    """The residual stream after each block, as site names."""
    path = blocks_path(model)
    return [f"{path}.{i}:out" for i in range(len(model.get_submodule(path)))]


def blocks_path(model: nn.Module) -> str:
    """Where the blocks of the text model are: one list of as many as the settings say.

    Experts within a block and the blocks of an image encoder are lists too; those are not it.

    Raises:
        Refusal: there is no such list, or it holds only a part of each block.
    """
    config = getattr(model, "config", None)
    config = config.get_text_config(decoder=True) if config is not None else None
    n_blocks = getattr(config, "num_hidden_layers", None)
    text = model.get_decoder() if hasattr(model, "get_decoder") else model
    inside = {id(module) for module in text.modules()}
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and id(module) in inside and len(module) > 0
    }
    outer = [p for p in lists if not any(p.startswith(f"{other}.") for other in lists)]
    fitting = [p for p in outer if n_blocks in (None, len(lists[p]))]
    size = {p: sum(x.numel() for x in lists[p].parameters()) for p in fitting}
    path = max(size, key=size.__getitem__, default=None)
    if path is None or 2 * size[path] < sum(size.values()) + 1:
        raise Refusal("a model made of one list of blocks", type(model).__name__)
    return path


def refusal(model: nn.Module, site: str, known: Iterable[str]) -> Refusal:
    """An unknown site, told with some that exist and with those whose names are near."""
    usual = residual(model)
    near = difflib.get_close_matches(str(site), [*known, *usual], n=3, cutoff=0.6)
    mlps = [path for path, _ in model.named_modules() if path.split(".")[-1] == "mlp"]
    shown = ", ".join(dict.fromkeys([*near, *usual[:2], *mlps[:1]]))
    return Refusal(
        f"a site of this model, such as {shown}",
        repr(site),
        "lm.residual_sites() lists the usual ones; any module path with :in or :out works",
    )


def lens_name(site: str) -> tuple[int, str] | None:
    """`blocks.1.hook_resid_post` as 1 and `hook_resid_post`; None for another kind of name."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", site)
    return match and (int(match[1]), match[2])
