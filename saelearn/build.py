"""Rebuild what lies in data/, one artefact at a time: `saelearn data [NAME ...]`. Layer 4.

Each step starts from seeds (and from earlier steps), and replaces its artefact only when done.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from saelearn import artifacts, corpus, dial, features, metrics, pretrain, tiny
from saelearn.activations import collect
from saelearn.errors import Refusal
from saelearn.lm import LM
from saelearn.train import train

HELD_OUT_DOCUMENTS = 4_000
FOURGRAM_DOCUMENTS = 120_000
SAE_DOCUMENTS = 16_000  # one million tokens, each seen eight times
SAE_TRAINING = {"steps": 4_000, "batch_size": 2_048, "lr": 2e-3, "log_every": 250}
PROBE_DOCUMENTS = 2_000


@dataclass(frozen=True)
class Step:
    """One artefact: the function that writes it under a folder, its minutes, what it is."""

    run: Callable[[Path], None]
    minutes: float
    what: str


def build_lm(root: Path) -> None:
    """The tokenizer and the model, the untrained model, and how training went."""
    tokenizer = pretrain.make_tokenizer()
    vocabulary = tokenizer.get_vocab()
    model, history = pretrain.train_model(vocabulary)
    docs = list(corpus.documents(HELD_OUT_DOCUMENTS, seed=corpus.HELD_OUT))
    record = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "history": history,
        "held_out": pretrain.held_out_loss(model, corpus.encode(docs, vocabulary)),
        "entropy_bound": corpus.entropy_bound(len(docs)),
    }
    untrained = pretrain.make_model(len(vocabulary), seed=1)
    for name, each in (("lm", model), ("lm_random", untrained)):
        with artifacts.replacing(root / name) as folder:
            pretrain.save(folder, each, tokenizer)
    artifacts.write_json(root / "lm_training.json", record)


def build_fourgrams(root: Path) -> None:
    """Every run of four words in many documents: the judge of well-formed text."""
    lm = LM.load(root / "lm")
    vocabulary = lm.tokenizer.get_vocab()
    found, piece = [], min(20_000, FOURGRAM_DOCUMENTS)
    for start in range(0, FOURGRAM_DOCUMENTS, piece):
        tokens_NT = corpus.encode(corpus.documents(piece, start=start), vocabulary)
        found.append(corpus.fourgrams(tokens_NT, len(vocabulary)).unique())
    artifacts.write_tensors(root / "fourgrams.safetensors", {"codes": torch.cat(found).unique()})


def build_saes(root: Path) -> None:
    """One SAE for each coefficient of the sweep, and one on the untrained model."""
    lm = LM.load(root / "lm")
    x_ND = _activations(lm)
    for coefficient in tiny.L1_COEFFICIENTS:
        name = tiny.name_of(coefficient)
        _train_sae(root, name, x_ND, coefficient, {"model_name": "saelearn/tiny"})
    x_ND = _activations(LM.load(root / "lm_random"))
    name = {"model_name": "saelearn/tiny, untrained"}
    _train_sae(root, "random_lm", x_ND, tiny.L1_DEFAULT, name)


def _activations(lm: LM) -> Tensor:
    tokens_NT = corpus.encode(corpus.documents(SAE_DOCUMENTS), lm.tokenizer.get_vocab())
    return collect(lm, tokens_NT, tiny.SITE, progress=True).x_ND


def _train_sae(root: Path, name: str, x_ND: Tensor, coefficient: float, metadata: dict) -> None:
    print(f"SAE {name}")
    trained = train(x_ND, tiny.D_SAE, l1_coefficient=coefficient, **SAE_TRAINING)
    trained.sae.metadata |= metadata | {
        "hook_name": tiny.SITE,
        "context_size": corpus.LENGTH,
        "prepend_bos": False,
        "l1_coefficient": coefficient,
        "scale": trained.scale,
        **SAE_TRAINING,
    }
    trained.sae.save(root / "saes" / name)
    artifacts.write_json(root / "saes" / f"{name}.history.json", trained.history)


def build_probes(root: Path) -> None:
    """What a linear probe reads off the site: held-out F1 for each concept."""
    held = tiny.held_out(PROBE_DOCUMENTS)
    labels_NC, _ = held.flat()
    x_ND = collect(LM.load(root / "lm"), held.tokens_NT, tiny.SITE).x_ND
    scores_NC = features.linear_probe(x_ND, labels_NC)
    f1 = [
        float(metrics.best_f1(scores_NC[:, [c]], labels_NC[:, [c]], n_thresholds=40).f1_C)
        for c in range(labels_NC.shape[1])
    ]
    rounded = {name: round(value, 4) for name, value in zip(held.names, f1, strict=True)}
    artifacts.write_json(root / "probes.json", rounded)


def build_dial(root: Path) -> None:
    """The toy sweep behind the L1 dial."""
    dial.build_sweep(root / "dial")


STEPS = {
    "lm": Step(build_lm, 12, "tokenizer, tiny language model, the same untrained"),
    "fourgrams": Step(build_fourgrams, 0.5, "every run of four words that the corpus writes"),
    "saes": Step(build_saes, 20, "SAEs over six L1 coefficients, and one on the untrained model"),
    "probes": Step(build_probes, 1, "what a linear probe reads off the site"),
    "dial": Step(build_dial, 2, "the toy sweep behind the L1 dial"),
}


def build(names: Sequence[str] = (), root: Path | None = None) -> None:
    """Run steps in order (all if none is named), each with the time it will take said first.

    Args:
        names: of `STEPS`.
        root: where to write; data/ if None.
    """
    unknown = sorted(set(names) - set(STEPS))
    if unknown:
        raise Refusal(f"steps among {', '.join(STEPS)}", ", ".join(unknown))
    root = root or artifacts.data_dir()
    chosen = [name for name in STEPS if name in names or not names]
    total = sum(STEPS[name].minutes for name in chosen)
    print(f"{len(chosen)} of {len(STEPS)} steps, about {total:g} minutes on two cores")
    for name in chosen:
        step = STEPS[name]
        free = shutil.disk_usage(root).free / 2**30
        print(f"\n{name}: {step.what} (about {step.minutes:g} min, {free:.0f} GB free)")
        started = time.monotonic()
        step.run(root)
        artifacts.write_manifest(root)
        print(f"{name}: done in {(time.monotonic() - started) / 60:.1f} min")
