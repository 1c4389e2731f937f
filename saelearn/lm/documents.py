"""Documents of unequal length in one tensor, and where in it each of them stands.

A causal model cannot see what comes later, so whatever fills a document up at its *end* changes
nothing before it. Here every pass therefore begins each document at the left edge, wherever its
filling stood: no attention mask is needed, positions are the same in all rows, and that holds for
every architecture, whether it knows masks or not. Shapes: B documents, T positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saelearn.errors import Refusal


class Batch(NamedTuple):
    """Documents filled up to one length: ids `tokens_BT`, and `mask_BT`, true at their tokens."""

    tokens_BT: Tensor
    mask_BT: Tensor


def fill_up(documents: list[list[int]], filling: int) -> Batch:
    """Lists of ids as one batch, each at the left edge."""
    length_B = torch.tensor([len(ids) for ids in documents])
    rows = [ids + [filling] * (int(length_B.max()) - len(ids)) for ids in documents]
    return Batch(torch.tensor(rows), torch.arange(len(rows[0])) < length_B[:, None])


@dataclass(frozen=True)
class Alignment:
    """Documents moved to the left edge, and the way back.

    Attributes:
        tokens_BT: what the model gets; 0 where no token stands.
        mask_BT: where in `tokens_BT` a token stands; None: everywhere.
        back_BT: for each place of the caller's layout, the place here.
        given_BT: the caller's mask.
    """

    tokens_BT: Tensor
    mask_BT: Tensor | None = None
    back_BT: Tensor | None = None
    given_BT: Tensor | None = None

    def columns(self, start: int, stop: int) -> Alignment:
        """Some positions of all documents, for a model that goes on from a cache."""
        mask_BT = None if self.mask_BT is None else self.mask_BT[:, start:stop]
        return Alignment(self.tokens_BT[:, start:stop], mask_BT)

    def restored(self, x_BTD: Tensor) -> Tensor:
        """In the caller's layout, NaN where no token stands: who uses those by mistake sees it."""
        if self.mask_BT is None:
            return x_BTD
        index_BTD = self.back_BT[..., None].to(x_BTD.device).expand(-1, -1, x_BTD.shape[-1])
        here_BTD = x_BTD.gather(1, index_BTD)
        return here_BTD.masked_fill(~self.given_BT[..., None].to(x_BTD.device), float("nan"))


def align(tokens_BT: Tensor, mask_BT: Tensor | None) -> Alignment:
    """Move documents to the left edge.

    Args:
        tokens_BT: token ids.
        mask_BT: true (or 1) where a token stands; what fills up may stand before or behind a
            document. None: tokens everywhere.

    Raises:
        Refusal: a mask of another shape, or with a hole inside of a document.
    """
    if mask_BT is None:
        return Alignment(tokens_BT)
    mask_BT = checked_mask(mask_BT, tokens_BT)
    if mask_BT.all():
        return Alignment(tokens_BT)
    length_B, start_B = mask_BT.sum(1), mask_BT.int().argmax(1)
    T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    here_BT = length_B[:, None] > T
    moved_BT = tokens_BT.gather(1, (T + start_B[:, None]).clamp(max=len(T) - 1))
    back_BT = (T - start_B[:, None]).clamp(min=0)
    return Alignment(moved_BT.masked_fill(~here_BT, 0), here_BT, back_BT, mask_BT)


def checked_mask(mask_BT: Tensor, tokens_BT: Tensor) -> Tensor:
    """The mask as truth values, if each document's tokens stand in one piece."""
    if not isinstance(mask_BT, Tensor) or mask_BT.shape != tokens_BT.shape:
        got = tuple(mask_BT.shape) if isinstance(mask_BT, Tensor) else type(mask_BT).__name__
        raise Refusal(f"a mask of the tokens' shape {tuple(tokens_BT.shape)}", str(got))
    mask_BT = mask_BT.to(tokens_BT.device).bool()
    begins_BT = mask_BT[:, 1:] & ~mask_BT[:, :-1]
    holes_B = begins_BT.sum(1) + mask_BT[:, 0] > 1
    if holes_B.any():
        raise Refusal(
            "documents in one piece: filling before or behind them",
            f"a mask with a hole in document {int(holes_B.int().argmax())}",
            "move each document's tokens together; two documents are two rows",
        )
    return mask_BT
