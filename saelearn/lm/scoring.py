"""What a model predicts, in pieces that fit into memory. Shapes: B documents, T positions, N
predicted tokens, V vocabulary.

The logits of 128 documents of 128 tokens are 3.3 GB for GPT-2, of one document of 100,000 tokens 50
GB for a newer model, and all that is asked for is a mean. So documents are taken a few at a time,
and a document that is too long by itself is read in pieces, the cache carrying what came before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saelearn.errors import Refusal
from saelearn.lm.documents import Alignment
from saelearn.lm.hooks import Edit
from saelearn.lm.passes import carries_all, logits_of

LOGITS = 2**25
"""Numbers that are computed at once: 128 MiB of them, and three times that while they are used."""

Edits = Mapping[str, Edit] | None
Run = Callable[..., Any]
"""(documents, edits, **what the model is given) -> the model's output."""


class Compared(NamedTuple):
    """Cross-entropy of a model, `clean`, and of the same with edits, `edited`; and `kl`.

    kl is the mean of KL(clean || edited), which sees what the losses cannot: an edit that makes the
    right token no less likely, and others more or less so. All in nats per predicted token.
    """

    clean: float
    edited: float
    kl: float


class Predicted(NamedTuple):
    """Some predicted tokens `target_N`, and their logits `[N, V]` under each of the edits."""

    target_N: Tensor
    logits: list[Tensor]


def documents_at_once(length: int, words: int, n_edits: int) -> int:
    """How many documents of this length fit."""
    return max(1, LOGITS // (length * words * n_edits))


def predictions(
    run: Run, documents: Alignment, edits: Sequence[Edits], words: int
) -> Iterator[Predicted]:
    """All tokens but the first of each document, with the logits that predict them."""
    tokens_BT, mask_BT = documents.tokens_BT, documents.mask_BT
    for start, logits in _columns(run, documents, edits, words):
        stop = min(start + logits[0].shape[1], tokens_BT.shape[1] - 1)
        if stop == start:  # the last token predicts nothing
            continue
        logits = [each_BTV[:, : stop - start] for each_BTV in logits]
        target_BT = tokens_BT[:, start + 1 : stop + 1]
        if mask_BT is None:
            yield Predicted(target_BT.flatten(), [each.flatten(0, 1).float() for each in logits])
        else:
            here_BT = mask_BT[:, start + 1 : stop + 1]
            yield Predicted(target_BT[here_BT], [each[here_BT].float() for each in logits])


def _columns(
    run: Run, documents: Alignment, edits: Sequence[Edits], words: int
) -> Iterator[tuple[int, list[Tensor]]]:
    """Logits of some columns and where they start; of all at once if they fit."""
    n, length = documents.tokens_BT.shape
    width = max(1, LOGITS // (n * words * len(edits)))
    if width >= length:
        yield 0, [_logits(run, documents, each) for each in edits]
        return
    caches: list[Any] = [None] * len(edits)
    for start in range(0, length, width):
        part, logits = documents.columns(start, start + width), []
        for i, each in enumerate(edits):
            given = {"past_key_values": caches[i]} if start else {}
            out = run(part, each, use_cache=True, **given)
            caches[i] = getattr(out, "past_key_values", None)
            logits.append(logits_of(out, part.tokens_BT))
        if start == 0 and not all(map(carries_all, caches)):
            yield 0, [_logits(run, documents, each) for each in edits]
            return  # a model that cannot go on from a cache: all at once after all
        yield start, logits


def _logits(run: Run, documents: Alignment, edits: Edits) -> Tensor:
    return logits_of(run(documents, edits, use_cache=False), documents.tokens_BT)


def mean_loss(pieces: Iterator[Predicted]) -> float:
    """Mean cross-entropy in nats."""
    total, count = 0.0, 0
    for target_N, (logits_NV,) in pieces:
        total += _nats(logits_NV, target_N)
        count += len(target_N)
    return total / _some(count)


def compare(pieces: Iterator[Predicted]) -> Compared:
    """Cross-entropy without and with edits, and the divergence between both."""
    clean, edited, kl, count = 0.0, 0.0, 0.0, 0
    for target_N, (clean_NV, edited_NV) in pieces:
        clean += _nats(clean_NV, target_N)
        edited += _nats(edited_NV, target_N)
        log_q_NV, log_p_NV = edited_NV.log_softmax(-1), clean_NV.log_softmax(-1)
        kl_N = nn.functional.kl_div(log_q_NV, log_p_NV, reduction="none", log_target=True).sum(-1)
        kl += kl_N.sum(dtype=torch.float64 if kl_N.device.type != "mps" else None).item()
        count += len(target_N)
    return Compared(clean / _some(count), edited / _some(count), kl / _some(count))


def _nats(logits_NV: Tensor, target_N: Tensor) -> float:
    return nn.functional.cross_entropy(logits_NV, target_N, reduction="sum").item()


def _some(count: int) -> int:
    if count == 0:
        raise Refusal("documents of at least two tokens", "nothing to predict")
    return count
