"""What a forward pass is given, and which rows of a tensor in it belong to which token.

Shapes: B documents, T positions in this pass, D activation width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saelearn.errors import Refusal

_CACHES = ("past_key_values", "cache_params", "state")  # the last two: of recurrent models


class Left(NamedTuple):
    """What a pass leaves for the next: a cache, and how many tokens have gone into it."""

    cache: Any
    length: int


@dataclass(frozen=True)
class Pass:
    """One call of a model.

    Attributes:
        positions_BT: of its tokens in their documents, from 0.
        mask_BT: true where a token stands; None: everywhere.
        alike: whether positions are the same in all documents.
    """

    positions_BT: Tensor
    mask_BT: Tensor | None
    alike: bool

    @classmethod
    def of(cls, model: nn.Module, args: tuple, kwargs: dict, before: Left | None = None) -> Pass:
        """Read the positions from what the model itself is given, whoever calls it.

        In this order: `position_ids`; an attention mask over all tokens so far; the length of the
        cache, or what the pass `before` has `Left`, if a recurrent model goes on from there. So an
        edit knows its place under any loop, also under `model.generate`.

        Raises:
            Refusal: a cache that does not know its length, and nothing else to go by.
        """
        given = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
        given = given | given.pop("kwargs", {})
        ids = given.get("input_ids")
        ids = given.get("inputs_embeds") if ids is None else ids
        if not isinstance(ids, Tensor):
            raise Refusal("a pass over token ids", "a call without input_ids or inputs_embeds")
        n, length = ids.shape[:2]
        mask_BT = given.get("attention_mask")
        if not isinstance(mask_BT, Tensor) or mask_BT.ndim != 2 or mask_BT.shape[1] < length:
            mask_BT = None
        positions_BT = given.get("position_ids")
        if not isinstance(positions_BT, Tensor) or positions_BT.shape[-1:] != (length,):
            positions_BT = None
        if positions_BT is not None and positions_BT.ndim == 2:
            alike = len(positions_BT) == 1
            positions_BT = positions_BT.expand(n, length)
        elif mask_BT is not None:
            alike = False
            positions_BT = (mask_BT.long().cumsum(1) - 1)[:, -length:]
        else:
            alike, start = True, _cached(given, before)
            positions_BT = torch.arange(start, start + length, device=ids.device).expand(n, length)
        alike = alike or bool((positions_BT == positions_BT[0]).all())
        mask_BT = None if mask_BT is None else mask_BT[:, -length:].bool()
        return cls(positions_BT, None if mask_BT is None or mask_BT.all() else mask_BT, alike)

    def leaves(self, output: Any) -> Left | None:
        """What the next pass can go on from."""
        caches = [getattr(output, name, None) for name in _CACHES]
        cache = next((cache for cache in caches if cache is not None), None)
        return None if cache is None else Left(cache, int(self.positions_BT[0, -1]) + 1)

    def rows(self, x: Tensor, site: str) -> Tensor:
        """A tensor of this pass as `x_BTD`: also one of experts or gates, which is [B * T, D].

        Raises:
            Refusal: its rows are not one for each token, or it holds no real numbers.
        """
        n, length = self.positions_BT.shape
        if x.is_floating_point() and x.ndim == 3 and x.shape[:2] == (n, length):
            return x
        if x.is_floating_point() and x.ndim == 2 and x.shape[0] == n * length:
            return x.reshape(n, length, -1)
        raise Refusal(
            f"one row of real numbers for each of {n} x {length} tokens at {site}",
            f"shape {tuple(x.shape)} of {x.dtype}".replace("torch.", ""),
            "take a site whose activations are [B, T, D], such as those of lm.residual_sites()",
        )


def _cached(given: Mapping[str, Any], before: Left | None) -> int:
    """How many tokens a cache holds."""
    cache = next((given[name] for name in _CACHES if given.get(name) is not None), None)
    if cache is None:
        return 0
    if before is not None and before.cache is cache:
        return before.length
    if (length := length_of(cache)) is not None:
        return length
    if hasattr(cache, "has_previous_state") and not cache.has_previous_state():
        return 0
    raise Refusal(
        "to know the position of the tokens in this pass",
        f"a cache that does not tell its length ({type(cache).__name__})",
        "give the model an attention_mask over all tokens, or begin within `lm.editing`",
    )


def length_of(cache: Any) -> int | None:
    """How many tokens a cache holds; None for no cache, and for recurrent states, which forget."""
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError, TypeError):
        return None


def carries_all(cache: Any) -> bool:
    """Whether several tokens at once can go on from a cache: recurrent layers take one only."""
    if length_of(cache) is None:
        return False
    try:
        cache.has_previous_state()
    except (AttributeError, ValueError):  # it has no recurrent layers
        return True
    return False


def logits_of(output: Any, tokens_BT: Tensor) -> Tensor:
    """The logits `[B, T, V]` in a model's output.

    Raises:
        Refusal: it has none (a model without its head), or not one row for each token (RWKV in
            some versions of transformers mixes the documents of a batch).
    """
    logits_BTV = getattr(output, "logits", None)
    if isinstance(logits_BTV, Tensor) and logits_BTV.shape[:-1] == tokens_BT.shape:
        return logits_BTV
    got = tuple(logits_BTV.shape) if isinstance(logits_BTV, Tensor) else type(output).__name__
    raise Refusal(
        f"logits [B, T, V] for tokens {tuple(tokens_BT.shape)}",
        str(got),
        "load it with its head, as AutoModelForCausalLM does; or another version of the model",
    )


def with_first(output: Any, change: Callable[[Tensor], Tensor], site: str) -> Any:
    """What a module gives, with its first tensor changed: bare, in a tuple, or in named fields."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, Mapping) and output:  # transformers' outputs are such
        name = next(iter(output))
        if isinstance(output[name], Tensor):
            return type(output)(**{**output, name: change(output[name])})
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        fields = [change(output[0]), *output[1:]]
        return output._make(fields) if hasattr(output, "_make") else type(output)(fields)
    raise Refusal(
        f"a tensor, or something that begins with one, at {site}",
        type(output).__name__,
        "take a site inside of this module, or of the block that it belongs to",
    )
