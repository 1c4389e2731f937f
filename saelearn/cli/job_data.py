"""What `saelearn train` trains on: a file, a folder, or a model and a text.

Shapes: N rows, D activation width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelearn import artifacts, corpus, tiny
from saelearn.activations import ActivationStore, chunks, collect, gather
from saelearn.errors import ArtifactError, Refusal
from saelearn.lm import LM, OURS, TINY
from saelearn.train import memory, parallel
from saelearn.train.batches import check_rows, fingerprint

HELD_OUT = 16_384  # rows at most, and at most one in twenty


class Data(NamedTuple):
    """What to train on.

    source: activations `x_ND`, or a store; rows, d_in: N and D; test_ND: rows to report on;
    held_out: whether training does not see these; about: what goes into the SAE's metadata.
    """

    source: Tensor | ActivationStore
    rows: int
    d_in: int
    test_ND: Tensor
    held_out: bool
    about: dict[str, Any]


def from_file(path: Path, batch_size: int, seed: int) -> Data:
    """Activations `x_ND` from .npy (mapped) or .safetensors, or the folder of a store."""
    about = {"activations": path.name}
    if path.is_dir():
        store = ActivationStore(path, batch_size=batch_size, seed=seed)
        return _of_store(store, about)
    if path.suffix == ".npy":
        x_ND = _read_npy(path)
    elif path.suffix == ".safetensors":
        tensors = artifacts.read_tensors(path)
        if len(tensors) != 1:
            raise Refusal(f"one tensor in {path.name}", ", ".join(sorted(tensors)) or "none")
        (x_ND,) = tensors.values()
    else:
        raise Refusal(".npy, .safetensors, or a folder of activations", str(path))
    return _of_tensor(check_rows(x_ND), about | fingerprint(x_ND))


def _read_npy(path: Path) -> Tensor:
    """Mapped, so that only what is used is read."""
    try:
        return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"a readable array in {path}", str(error)) from error


def from_model(
    out: Path, model: str, site: str | None, text: Path | None, documents: int, length: int,
    batch_size: int, seed: int, progress: bool, *, max_norm: float | None = None,
    leave_tokens: Sequence[int] = (), device: str = "cpu", bos: bool | None = None,
) -> Data:  # fmt: skip
    """A model's activations over a text; in memory if they fit, else in a folder beside `out`.

    Args:
        out, model, site, text, documents, length: as for `jobs.run`.
        batch_size, seed: of the batches that a store gives.
        progress: show progress bars.
        max_norm, leave_tokens: rows to leave out, as for `activations.collect`.
        device, bos: as for `LM.load`.
    """
    progress = progress and parallel.rank() == 0
    lm, (site,) = model_at(model, [site] if site else [], device=device, bos=bos)
    tokens_NT = torch.cat(list(batches(lm, text, documents, length, 128)))
    source = f"corpus {documents}"
    if text is not None:
        source = hashlib.sha256(tokens_NT.numpy().tobytes()).hexdigest()
    about = {"model_name": model} | lm.about(site, context_size=tokens_NT.shape[1])
    about |= {"text": source}
    leave = {"max_norm": max_norm, "leave_tokens": list(leave_tokens)}
    about |= {name: value for name, value in leave.items() if value}
    width = lm.capture(tokens_NT[:1], [site])[site].shape[-1]
    room = memory.free()
    if room is None or 4 * tokens_NT.numel() * width * parallel.neighbours() < room / 2:
        return _of_tensor(collect(lm, tokens_NT, site, progress=progress, **leave).x_ND, about)
    if parallel.size() > 1:
        raise Refusal(
            "activations that fit in the memory of each process",
            memory.in_units(4 * tokens_NT.numel() * width),
            "write them with one process (activations.write), then train on the folder",
        )
    folder = out.with_name(f"{out.name}.activations")
    store = gather(lm, tokens_NT, site, folder=folder, batch_size=batch_size, seed=seed,
                   progress=progress, **leave)  # fmt: skip
    return _of_store(store, about)


def model_at(
    model: str, sites: Sequence[str], *, device: str, bos: bool | None
) -> tuple[LM, Sequence[str]]:
    """The model, and the sites if it has them: the course's model has one by default."""
    lm = LM.load(model, device=device, bos=bos)
    sites = sites or [tiny.SITE if model == TINY else ""]
    for site in sites:
        lm.find_site(site)  # refuses before any work is done
    return lm, sites


def batches(
    lm: LM, text: Path | None, documents: int, length: int, batch_size: int
) -> Iterator[Tensor]:
    """Documents of a text, or of the course's corpus for the course's model."""
    if text is not None:
        length = min(length, lm.context_length or length)
        found = chunks(lm, text, length=length, batch_size=batch_size)
        if (first := next(found, None)) is None:
            raise Refusal(f"a text of at least {length} tokens", f"a shorter one: {text}")
        yield first
        yield from found
    elif lm.name != OURS:
        raise Refusal("a text for this model", "none", "--text FILE")
    else:
        tokens_NT = corpus.encode(corpus.documents(documents), lm.tokenizer.get_vocab())
        yield from tokens_NT.split(batch_size)


def _of_tensor(x_ND: Tensor, about: dict[str, Any]) -> Data:
    n_test = min(HELD_OUT, len(x_ND) // 20)
    if n_test < 100:  # too few to tell anything: report on what was trained on, and say so
        return Data(x_ND, len(x_ND), x_ND.shape[1], x_ND[:HELD_OUT], False, about)
    x_ND, test_ND = x_ND[:-n_test], x_ND[-n_test:]
    return Data(x_ND, len(x_ND), x_ND.shape[1], test_ND, True, about)


def _of_store(store: ActivationStore, about: dict[str, Any]) -> Data:
    batches, rows = iter(store), []
    while sum(map(len, rows)) < min(HELD_OUT, store.rows):
        rows.append(next(batches))
    batches.close()
    about = about | {"store": store.state_dict(0)}
    return Data(store, store.rows, store.d_in, torch.cat(rows), False, about)
