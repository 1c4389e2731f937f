"""What an activation does to one at a later site: by its slope, and by trying. Lesson 11.

Shapes: T positions, D width at the source, O width at the reader, J directions, S changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saelearn.errors import Refusal, check_whole, check_width, checked, whole
from saelearn.lm import LM


@checked(position=whole(0))
def slopes(
    lm: LM, tokens_T: Tensor, source: str, reader: str, directions_JO: Tensor, position: int
) -> Tensor:
    """How fast readings rise with the source's activations, `[J, T, D]`: one gradient each.

    A reading is x_reader[position] . direction; the model is differentiated as it stands, its
    attention and norms included. (Marks et al., 2024, "Sparse Feature Circuits", take such slopes
    times activations for effects.)

    Args:
        lm: the model.
        tokens_T: one document's token ids.
        source, reader: sites, the reader behind the source.
        directions_JO: what is read.
        position: where it is read.
    """
    check_whole(position, "position", 0, len(tokens_T) - 1)
    seen = {}

    def begin(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        seen["source"] = x_BTD.detach().requires_grad_()
        return seen["source"]

    def end(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        check_width(directions_JO, x_BTD.shape[-1], name="directions_JO")
        seen["reader"] = x_BTD
        return x_BTD

    with lm.editing({source: begin, reader: end}), torch.enable_grad():
        lm.model(tokens_T[None], use_cache=False)
        read_J = directions_JO @ seen["reader"][0, position]
        how = {"retain_graph": True, "allow_unused": True}
        if not read_J.requires_grad or None in torch.autograd.grad(
            read_J[0], seen["source"], **how
        ):
            raise Refusal("a reader behind the source", f"{reader} before {source}")
        gradients = [torch.autograd.grad(read, seen["source"], **how)[0][0] for read in read_J]
    return torch.stack(gradients).detach()


@checked(position=whole(0))
@torch.no_grad()
def readings(
    lm: LM,
    tokens_T: Tensor,
    source: str,
    reader: str,
    changes_SD: Tensor,
    at_S: Tensor,
    position: int,
) -> Tensor:
    """The reader's activation `[S, O]` at `position`, with one change to the source at a time.

    Args:
        lm, tokens_T, source, reader, position: as for `slopes`.
        changes_SD: what is added to the source's activation.
        at_S: at which position.
    """
    check_whole(position, "position", 0, len(tokens_T) - 1)
    if at_S.dtype != torch.long or not 0 <= int(at_S.min()) <= int(at_S.max()) < len(tokens_T):
        raise Refusal(f"positions at_S from 0 to {len(tokens_T) - 1}", str(at_S.tolist()))
    seen = {}

    def change(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        check_width(changes_SD, x_BTD.shape[-1], name="changes_SD")
        return x_BTD.index_put((torch.arange(len(at_S)), at_S), changes_SD, accumulate=True)

    def end(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        seen["reader"] = x_BTD[:, position]
        return x_BTD

    with lm.editing({source: change, reader: end}):
        lm.model(tokens_T.expand(len(at_S), -1), use_cache=False)
    return seen["reader"]
