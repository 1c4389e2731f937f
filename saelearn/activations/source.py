"""From documents to rows of activations, and onto the disk with them. Lesson 07.

Shapes: N documents or rows, B documents in one pass, T positions, D activation width.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from saelearn.activations.shards import ShardWriter, Tokens, part_folder, to_dtype
from saelearn.errors import Refusal, check_pieces, check_range, check_whole, checked, number, whole
from saelearn.lm import LM, Batch, checked_mask


class Rows(NamedTuple):
    """Activations `x_ND` of one pass at one site, and where they stood, `kept_BT`."""

    x_ND: Tensor
    kept_BT: Tensor


@dataclass(frozen=True)
class Leave:
    """Which rows are left out.

    Args:
        first: so many first positions of each document; position 0 is enormous in many models.
        tokens: rows of these token ids, wherever they stand, such as BOS between packed texts.
        max_norm: rows longer than so many times the median row of their pass; None: none. A few
            tokens a hundred times as long as all others ("attention sinks") would carry the scale.
    """

    first: int = 1
    tokens: tuple[int, ...] = ()
    max_norm: float | None = None

    def __post_init__(self) -> None:
        check_whole(self.first, "skip", 0)
        for token in self.tokens:
            check_whole(token, "a token to leave out", 0)
        if self.max_norm is not None:
            check_range(self.max_norm, "max_norm", 1.0)


@dataclass(frozen=True)
class Source:
    """Documents, a model and a site: batches of tokens, and which of their rows to keep.

    Of a tensor every document must be longer than what is skipped; batches of a stream may be
    shorter, and then give no rows: nobody wants to hear of the last document after a night of work.

    Args:
        lm: the model.
        documents: token ids `tokens_NT`; a `Batch` of them with a mask; or an iterable of either.
        sites: where to look.
        leave: which rows to leave out.
        padding: the token id that fills documents up, for documents without a mask.
        pass_size: documents in one pass, if they come as a tensor.
        progress: show a progress bar.
    """

    lm: LM
    documents: Tensor | Batch | Iterable[Tensor | Batch]
    sites: tuple[str, ...]
    leave: Leave
    padding: int | None = None
    pass_size: int = 128
    progress: bool = False

    def __post_init__(self) -> None:
        check_whole(self.pass_size, "pass_size", 1)
        check_pieces(self.documents, "documents")
        if isinstance(self.documents, Tensor | Batch):
            self._masked(self.documents, 1 + self.leave.first)

    def __iter__(self) -> Iterator[Batch]:
        batches = self.documents
        if isinstance(batches, Tensor | Batch):
            pairs = (each.split(self.pass_size) for each in self.whole())
            batches = itertools.starmap(Batch, zip(*pairs, strict=True))
        bar = {"desc": ", ".join(self.sites), "disable": not self.progress}
        for documents in tqdm(batches, **bar):
            yield self._masked(documents, 1)

    def whole(self) -> Batch:
        """All documents, which came as a tensor."""
        return self._masked(self.documents, 1)

    def _masked(self, documents: Tensor | Batch, length: int) -> Batch:
        tokens_BT, mask_BT = documents if isinstance(documents, Batch) else (documents, None)
        if not isinstance(tokens_BT, Tensor) or tokens_BT.ndim != 2:
            shape = tuple(tokens_BT.shape) if isinstance(tokens_BT, Tensor) else type(tokens_BT)
        elif tokens_BT.shape[0] == 0 or tokens_BT.shape[1] < length:
            shape = tuple(tokens_BT.shape)
        elif mask_BT is None:
            return Batch(tokens_BT, ~filling(tokens_BT, self.padding, self._bos()))
        else:
            return Batch(tokens_BT, checked_mask(mask_BT, tokens_BT))
        raise Refusal(
            f"documents [N, T] with N > 0, T >= {length}",
            f"shape {shape}",
            "tokenize some text first",
        )

    def _bos(self) -> int | None:
        return getattr(self.lm.tokenizer, "bos_token_id", self.padding)

    def kept(self, documents: Batch) -> Tensor:
        """Which places give a row, so far as the tokens tell."""
        tokens_BT, mask_BT = documents
        kept_BT = mask_BT & (mask_BT.cumsum(1) > self.leave.first)
        if self.leave.tokens:
            kept_BT &= ~torch.isin(tokens_BT, torch.tensor(self.leave.tokens).to(tokens_BT))
        return kept_BT

    def account(self, documents: Batch, stored: int) -> Tokens:
        """Where the tokens went if so many gave a row."""
        padding = int((~documents.mask_BT).sum())
        n = documents.tokens_BT.numel()
        return Tokens(n, stored, n - stored - padding, padding)

    def rows(self, documents: Batch, sites: Sequence[str] | None = None) -> dict[str, Rows]:
        """The rows of each site, or of some, in one pass.

        Raises:
            Refusal: one that is kept is not finite.
        """
        tokens_BT, mask_BT = documents
        mask_BT = None if mask_BT.all() else mask_BT
        found = self.lm.capture(tokens_BT, sites or self.sites, mask_BT=mask_BT)
        return {site: self._kept_rows(x_BTD, documents, site) for site, x_BTD in found.items()}

    def only_rows(self, documents: Batch) -> Tensor:
        """The rows of the only site."""
        (rows,) = self.rows(documents).values()
        return rows.x_ND

    def _kept_rows(self, x_BTD: Tensor, documents: Batch, site: str) -> Rows:
        kept_BT = self.kept(documents).to(x_BTD.device)
        x_ND = x_BTD[kept_BT]
        finite_N = x_ND.isfinite().all(1)
        if not finite_N.all():
            d, t = kept_BT.nonzero()[int((~finite_N).int().argmax())].tolist()
            raise Refusal(
                f"finite activations at {site}",
                f"{int((~finite_N).sum())} rows of {len(x_ND)} with NaN or infinity, the first at "
                f"document {d} of its pass, position {t}, from a model in {x_BTD.dtype}",
                'LM.load(..., dtype="bfloat16") or "float32": float16 ends at 65,504'
                if x_BTD.dtype == torch.float16
                else "look at lm.logits there: the model itself gives them, or an edit does",
            )
        if self.leave.max_norm is not None and len(x_ND):
            norm_N = x_ND.float().norm(dim=1)
            short_N = norm_N <= self.leave.max_norm * norm_N.median()
            kept_BT = kept_BT.masked_scatter(kept_BT, short_N)
            x_ND = x_ND[short_N]
        return Rows(x_ND, kept_BT.cpu())

    def widths(self) -> dict[str, int]:
        """D at each site."""
        any_BT = torch.zeros(1, 2, dtype=torch.long)
        return {s: x_BTD.shape[-1] for s, x_BTD in self.lm.capture(any_BT, self.sites).items()}

    def about(self, site: str, documents: Batch) -> dict[str, Any]:
        """What an SAE of the rows has to remember."""
        return self.lm.about(site, context_size=documents.tokens_BT.shape[1])

    def fill(self, x_ND: Tensor, dtype: str) -> Tensor:
        """The rows in memory that was reserved; what is left over is cut off."""
        at = 0
        for documents in self:
            part_ND = to_dtype(self.only_rows(documents), dtype)
            x_ND[at : at + len(part_ND)] = part_ND
            at += len(part_ND)
        return x_ND[:at]


def filling(tokens_BT: Tensor, padding: int | None, bos: int | None) -> Tensor:
    """Where documents are filled up with an id, before or behind them; the same id inside is none.

    Raises:
        Refusal: the id opens documents too, and some begin with several of it: how many of those
            belong to the document cannot be told.
    """
    if padding is None:
        return torch.zeros_like(tokens_BT, dtype=torch.bool)
    other_BT = tokens_BT != padding
    behind_BT = other_BT.flip(-1).cumsum(-1).flip(-1) == 0
    before_BT = (other_BT.cumsum(-1) == 0) & ~behind_BT
    if bos != padding:
        return behind_BT | before_BT
    if (before_BT.sum(1) > 1).any():
        raise Refusal(
            "documents filled up behind their end, or a mask",
            f"some that begin with {padding} more than once, which is BOS too",
            "Batch(tokens_NT, mask_NT) says where tokens stand; lm.tokenize_all gives both",
        )
    return behind_BT


def write(
    lm: LM,
    documents: Tensor | Batch | Iterable[Tensor | Batch],
    site: str,
    folder: str | os.PathLike,
    *,
    dtype: str = "float16",
    skip: int = 1,
    leave_tokens: Sequence[int] = (),
    max_norm: float | None = None,
    padding: int | None = None,
    pass_size: int = 128,
    shard_rows: int | None = None,
    seed: int = 0,
    part: tuple[int, int] | None = None,
    progress: bool = False,
) -> Tokens:
    """Put a site's activations on disk, for `ActivationStore`; interrupted, it goes on.

    Called again with the same arguments it passes over the documents whose rows are stored,
    without running the model on them; a kill costs one shard at most. One process at a time may
    write into a folder; several, each with its `part`, make one store together.

    Args:
        lm: the model.
        documents: token ids `tokens_NT`, or batches `tokens_BT` of any shapes; or `Batch`es, whose
            masks say where tokens stand. What only fills up gives no rows.
        site: where to look.
        folder: new, empty, or of an earlier call.
        dtype: "float16", "bfloat16" (coarser, for large activations) or "float32".
        skip: first positions to leave out; position 0 is enormous in many models.
        leave_tokens: token ids whose rows to leave out, such as BOS within packed texts.
        max_norm: leave out rows longer than so many times the median row of their pass; None:
            none. 10 leaves out "attention sinks" a hundred times as long as all others.
        padding: the token id that fills documents up, if they come without a mask.
        pass_size: documents in one pass, if `documents` is a tensor.
        shard_rows: rows of one file; 256 MiB of them by default.
        seed: of the order within the files.
        part: (i, n): only the batches i, i + n, i + 2n, ..., into a folder of their own within
            `folder`, for the i-th of n processes, 0 being the first. On several machines these
            folders are brought together afterwards, or given to `ActivationStore` as a list.
        progress: show a progress bar.

    Returns:
        the account of all tokens.

    Raises:
        Refusal: activations that are not finite in this dtype, other documents than before.
        ArtifactError: too little space, a folder made from something else.
    """
    (account,) = write_all(
        lm, documents, {site: folder}, dtype=dtype, skip=skip, leave_tokens=leave_tokens,
        max_norm=max_norm, padding=padding, pass_size=pass_size, shard_rows=shard_rows, seed=seed,
        part=part, progress=progress,
    ).values()  # fmt: skip
    return account


@checked(
    pass_size=whole(1),
    shard_rows=whole(1),
    padding=whole(0),
    skip=whole(0),
    max_norm=number(1),
    seed=whole(0),
)
def write_all(
    lm: LM,
    documents: Tensor | Batch | Iterable[Tensor | Batch],
    folders: Mapping[str, str | os.PathLike],
    *,
    dtype: str = "float16",
    skip: int = 1,
    leave_tokens: Sequence[int] = (),
    max_norm: float | None = None,
    padding: int | None = None,
    pass_size: int = 128,
    shard_rows: int | None = None,
    seed: int = 0,
    part: tuple[int, int] | None = None,
    progress: bool = False,
) -> dict[str, Tokens]:
    """As `write`, for several sites, `folders` of site -> folder: the model runs once for all."""
    leave, (i, n) = Leave(skip, tuple(leave_tokens), max_norm), _checked_part(part)
    source = Source(lm, documents, tuple(folders), leave, padding, pass_size, progress)
    batches = itertools.islice(source, i, None, n)
    if (first := next(batches, None)) is None:
        raise Refusal("documents", "none", "tokenize some text first; or fewer parts")
    settings = {"model": fingerprint(lm), "skip": skip, "padding": padding}
    if leave.tokens or max_norm is not None:  # else as in the folders of before
        settings |= {"leave_tokens": list(leave.tokens), "max_norm": max_norm}
    settings |= {} if part is None else {"part": [i, n]}
    books = []
    for site, d_in in source.widths().items():
        folder = Path(folders[site]) if part is None else part_folder(Path(folders[site]), (i, n))
        writer = ShardWriter(
            folder, settings | {"site": site}, d_in=d_in, dtype=dtype, shard_rows=shard_rows,
            seed=seed, about=source.about(site, first),
        )  # fmt: skip
        books.append(_Book(source, site, writer))
        if isinstance(documents, Tensor | Batch):
            writer.reserve(int(source.kept(source.whole()).sum()) // n - writer.rows)
    digest, mark = hashlib.sha256(), {}
    for n_batches, batch in enumerate(itertools.chain([first], batches), 1):
        read_into(digest, batch, masked=padding is None)
        mark = {"batches": n_batches, "tokens_sha256": digest.hexdigest()}
        wanted = [book.site for book in books if book.wants(batch, n_batches)]
        rows = source.rows(batch, wanted) if wanted else {}
        for book in books:
            book.take(batch, mark, rows.get(book.site))
    for book in books:
        book.close()
    return {book.site: book.account for book in books}


def _checked_part(part: tuple[int, int] | None) -> tuple[int, int]:
    if part is None:
        return 0, 1
    if not isinstance(part, tuple | list) or len(part) != 2:
        raise Refusal("part as (i, n): the i-th of n", repr(part), "part=(0, 2) and part=(1, 2)")
    n = check_whole(part[1], "n of part", 1)
    check_range(check_whole(part[0], "i of part", 0), "i of part", 0, n - 1)
    return part[0], n


class _Book:
    """One site's writer, and what became of the tokens so far."""

    def __init__(self, source: Source, site: str, writer: ShardWriter):
        self.source, self.site, self.writer = source, site, writer
        self.account, self._mark = Tokens(0, 0, 0, 0), {}
        self._stored: int | None = None  # rows that the batch gives; None: only the model can tell

    def wants(self, batch: Batch, number: int) -> bool:
        """Whether the rows of this batch are still to be made."""
        self._stored = self._known(batch, number)
        return self._stored is None or self.account.stored + self._stored > self.writer.rows

    def _known(self, batch: Batch, number: int) -> int | None:
        """How many rows a batch gives, if that can be told.

        Which rows are too long only the model can tell. Of batches that were stored by an earlier
        call the last mark knows the sum, so they count nothing until its own, which counts for all.
        """
        last = self.writer.last
        if self.source.leave.max_norm is None:
            return int(self.source.kept(batch).sum())
        if last and number <= last["batches"]:
            return last["stored"] - self.account.stored if number == last["batches"] else 0
        return None

    def take(self, batch: Batch, mark: dict, rows: Rows | None) -> None:
        """Count a batch, and store what is new of its rows."""
        stored = len(rows.x_ND) if self._stored is None else self._stored
        self.account += self.source.account(batch, stored)
        if self.source.leave.max_norm is not None:
            mark = mark | {"stored": self.account.stored}
        self._mark = mark
        self.writer.agree(mark, self.account.stored)
        if (new := self.account.stored - self.writer.rows) > 0:
            self.writer.add(rows.x_ND[-new:], mark)

    def close(self) -> None:
        self.writer.close(self.account, self._mark)


def read_into(digest: Any, batch: Batch, *, masked: bool = True) -> None:
    """Take a batch into a checksum, and its mask, unless it follows from the tokens."""
    tokens_BT, mask_BT = batch
    digest.update(f"{tuple(tokens_BT.shape)}".encode())
    digest.update(tokens_BT.cpu().long().contiguous().numpy().tobytes())
    if masked and not mask_BT.all():
        digest.update(mask_BT.cpu().contiguous().numpy().tobytes())


def fingerprint(lm: LM) -> str:
    """Tells models apart by some weights of each parameter: reading all of them takes long."""
    digest = hashlib.sha256()
    for name, parameter in lm.model.named_parameters():
        some_N = parameter.detach().flatten()[:: max(1, parameter.numel() // 64)].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(some_N.contiguous().numpy().tobytes())
    return digest.hexdigest()
