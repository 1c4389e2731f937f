"""Is the model good: loss against the bound, well-formed text, sums, verdicts."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.world.sample import Sample, mean_sd
from saelearn import corpus, tiny


def measure(seeds: int, n_documents: int, n_texts: int) -> dict[str, float]:
    """Each figure over `seeds` sets of fresh documents and of generated texts."""
    lm, rows = tiny.load_lm(), []
    for seed in range(seeds):
        sample = Sample(n_documents, start=20_000 + seed * n_documents)
        docs = corpus.documents(n_documents, seed=corpus.HELD_OUT, start=sample.start)
        nats = torch.tensor([doc.nats[1:] for doc in docs], dtype=torch.double)
        texts_NT = lm.generate("<doc>", max_new_tokens=63, n=n_texts, seed=1_000 + seed)
        right_NT = _right(lm, sample.held.tokens_NT)
        rows.append({
            "ce": lm.loss(sample.held.tokens_NT),
            "ce_bound": float(nats.mean()),
            "validity": tiny.validity(texts_NT),
            "validity_of_corpus": tiny.validity(sample.held.tokens_NT),
            "arithmetic": _share(right_NT, _where(sample, "result:")),
            "lie_accuracy": _share(right_NT, untyped_verdicts(sample)),
        })  # fmt: skip
    found = {}
    for name in rows[0]:
        found |= mean_sd(name, [row[name] for row in rows])
    return found | mean_sd("ce_over_bound", [row["ce"] / row["ce_bound"] - 1 for row in rows])


def _right(lm, tokens_NT: Tensor) -> Tensor:
    """Whether the likeliest next word is the one that comes, `[N, T - 1]`."""
    found = [lm.logits(batch)[:, :-1].argmax(-1) == batch[:, 1:] for batch in tokens_NT.split(250)]
    return torch.cat(found)


def _where(sample: Sample, prefix: str) -> Tensor:
    columns = [c for c, name in enumerate(sample.held.names) if name.startswith(prefix)]
    return sample.held.labels_NTC[:, :-1, columns].any(-1)


def untyped_verdicts(sample: Sample) -> Tensor:
    """The colons before a verdict on somebody of whom nothing is known, `[N, T - 1]`."""
    here_NT = _where(sample, "statement:")
    vocabulary = sample.lm.tokenizer.get_vocab()
    typed_NT = torch.isin(
        sample.held.tokens_NT, torch.tensor([vocabulary["honest"], vocabulary["liar"]])
    )
    for n, t in here_NT.nonzero().tolist():
        here_NT[n, t] = not typed_NT[n, max(0, t - 11) : t].any()  # the words since its speaker
    return here_NT


def _share(right_NT: Tensor, where_NT: Tensor) -> float:
    return float(right_NT[where_NT].double().mean())
