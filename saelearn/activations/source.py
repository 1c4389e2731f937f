"""From documents to rows of activations, and onto the disk with them. Lesson 07.

Shapes: N documents or rows, B documents in one pass, T positions, D activation width.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from saelearn.activations.shards import Tokens, Writer, to_dtype
from saelearn.errors import Refusal, check_range
from saelearn.lm import LM


@dataclass(frozen=True)
class Source:
    """Documents, a model and a site: batches of tokens, and which of their rows to keep.

    Of a tensor every document must be longer than `skip`; batches of a stream may be shorter,
    and then give no rows: nobody wants to hear of the last document after a night of work.
    """

    lm: LM
    documents: Tensor | Iterable[Tensor]
    site: str
    skip: int
    padding: int | None = None
    pass_size: int = 128
    progress: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.documents, Tensor):
            self._check(self.documents, 1 + self.skip)

    def __iter__(self) -> Iterator[Tensor]:
        batches = self.documents
        if isinstance(batches, Tensor):
            batches = batches.split(check_range(self.pass_size, "pass_size", 1))
        for tokens_BT in tqdm(batches, desc=self.site, disable=not self.progress):
            yield self._check(tokens_BT, 1)

    def _check(self, tokens_BT: Tensor, length: int) -> Tensor:
        if tokens_BT.ndim != 2 or tokens_BT.shape[0] == 0 or tokens_BT.shape[1] < length:
            raise Refusal(
                f"documents [N, T] with N > 0, T >= {length}",
                f"shape {tuple(tokens_BT.shape)}",
                "tokenize some text first",
            )
        return tokens_BT

    def filler(self, tokens_BT: Tensor) -> Tensor:
        """Where a document is filled up: the same id inside of it, such as BOS, is none."""
        other_BT = torch.ones_like(tokens_BT) if self.padding is None else tokens_BT != self.padding
        return other_BT.flip(-1).cumsum(-1).flip(-1) == 0

    def kept(self, tokens_BT: Tensor) -> Tensor:
        late_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device) >= self.skip
        return late_T & ~self.filler(tokens_BT)

    def account(self, tokens_BT: Tensor) -> Tokens:
        stored, padding = int(self.kept(tokens_BT).sum()), int(self.filler(tokens_BT).sum())
        return Tokens(tokens_BT.numel(), stored, tokens_BT.numel() - stored - padding, padding)

    def rows(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.lm.capture(tokens_BT, [self.site])[self.site]
        return x_BTD[self.kept(tokens_BT).to(x_BTD.device)]

    def d_in(self, tokens_BT: Tensor) -> int:
        return self.lm.capture(tokens_BT[:1], [self.site])[self.site].shape[-1]

    def fill(self, x_ND: Tensor, dtype: str) -> Tensor:
        at = 0
        for tokens_BT in self:
            part_ND = to_dtype(self.rows(tokens_BT), dtype)
            x_ND[at : at + len(part_ND)] = part_ND
            at += len(part_ND)
        return x_ND


def write(
    lm: LM,
    documents: Tensor | Iterable[Tensor],
    site: str,
    folder: str | os.PathLike,
    *,
    dtype: str = "float16",
    skip: int = 1,
    padding: int | None = None,
    pass_size: int = 128,
    shard_rows: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tokens:
    """Put a site's activations on disk, for `ActivationStore`; interrupted, it goes on.

    Called again with the same arguments it passes over the documents whose rows are stored,
    without running the model on them; a kill costs one shard at most. One process at a time may
    write into a folder.

    Args:
        lm: the model.
        documents: token ids `tokens_NT`, or batches `tokens_BT` of any shapes.
        site: where to look.
        folder: new, empty, or of an earlier call.
        dtype: "float16", "bfloat16" (coarser, for large activations) or "float32".
        skip: first positions to leave out; position 0 is enormous in many models.
        padding: the token id that fills documents up at their end; such positions are left out.
        pass_size: documents in one pass, if `documents` is a tensor.
        shard_rows: rows of one file; 256 MiB of them by default.
        seed: of the order within the files.
        progress: show a progress bar.

    Returns:
        the account of all tokens.

    Raises:
        Refusal: activations that are not finite in this dtype, other documents than before.
        ArtifactError: too little space, a folder made from something else.
    """
    source = Source(lm, documents, site, skip, padding, pass_size, progress)
    batches = iter(source)
    if (first := next(batches, None)) is None:
        raise Refusal("documents", "none", "tokenize some text first")
    settings = {"model": _fingerprint(lm), "site": site, "skip": skip, "padding": padding}
    writer = Writer(
        folder, settings, d_in=source.d_in(first), dtype=dtype, shard_rows=shard_rows, seed=seed
    )
    if isinstance(documents, Tensor):
        writer.reserve(int(source.kept(documents).sum()) - writer.rows)
    digest, account, mark = hashlib.sha256(), Tokens(0, 0, 0, 0), {}
    for number, tokens_BT in enumerate(itertools.chain([first], batches), 1):
        digest.update(f"{tuple(tokens_BT.shape)}".encode())
        digest.update(tokens_BT.cpu().long().contiguous().numpy().tobytes())
        account += source.account(tokens_BT)
        mark = {"batches": number, "tokens_sha256": digest.hexdigest()}
        writer.agree(mark, account.stored)
        if (new := account.stored - writer.rows) > 0:
            writer.add(source.rows(tokens_BT)[-new:], mark)
    writer.close(account, mark)
    return account


def _fingerprint(lm: LM) -> str:
    """Tells models apart by some weights of each parameter: reading all of them takes long."""
    digest = hashlib.sha256()
    for name, parameter in lm.model.named_parameters():
        some_N = parameter.detach().flatten()[:: max(1, parameter.numel() // 64)].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(some_N.contiguous().numpy().tobytes())
    return digest.hexdigest()
