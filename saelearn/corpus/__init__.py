"""The world: generated text in which every token's concepts are known."""

from saelearn.corpus.dataset import (
    BOS,
    HELD_OUT,
    LENGTH,
    MIX,
    UNKNOWN,
    Document,
    concept_names,
    document,
    documents,
    encode,
    entropy_bound,
    fourgrams,
    labels,
    validity,
    vocabulary,
)

__all__ = [
    "BOS",
    "HELD_OUT",
    "LENGTH",
    "MIX",
    "UNKNOWN",
    "Document",
    "concept_names",
    "document",
    "documents",
    "encode",
    "entropy_bound",
    "fourgrams",
    "labels",
    "validity",
    "vocabulary",
]
