"""Rebuild what lies in data/, one artefact at a time: `saelearn data [NAME ...]`.

Each step starts from seeds (and from earlier steps), and replaces its artefact only when done.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from saelearn import artifacts, corpus, features, metrics, steer
from saelearn.activations import collect
from saelearn.errors import Refusal
from saelearn.lm import LM, OURS
from saelearn.sae import Squared, TopK
from saelearn.tiny import beyond, controls, dial, monitors, pretrain, shipped
from saelearn.train import train, usual_lr

# pairs that only differ in what was said before: whoever tells them apart looked back
MEMORIES = (
    ("about:golden_retriever", "about:tiger"),
    ("about:castle", "about:Golden_Gate_Bridge"),
)
MEMORY_AFTER = 500  # steps, when a model looks back or does not yet
MEMORY_APART = 0.5  # of the typical norm; models were seen with 0.1 and with 0.6 to 1, not between
THREADS = 1  # a sum is rounded as it is split: with two, the same seed gives another model
HELD_OUT_DOCUMENTS = 4_000
FOURGRAM_DOCUMENTS = 200_000
SAE_DOCUMENTS = 24_000  # 1.5 million tokens
SAE_TRAINING = {"steps": 24_000, "batch_size": 512, "log_every": 500}
# TopK's dead features work on the error: without it 5 to 8 % were silent (the recipe before)
REVIVING = Squared(aux_k=64, aux_coefficient=1 / 8, dead_after=200)
# and who needs it even slower, found by trying: what is left silent is at most 4 %
SLOWER = {"block2_l1": 2, "block2_topk": 2, "mlp1_topk": 2, "l1_10": 1.25}
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
    model, history, seed = train_until_remembered(tokenizer)
    docs = list(corpus.documents(HELD_OUT_DOCUMENTS, seed=corpus.HELD_OUT))
    record = {
        "seed": seed,
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


class _Forgetful(Exception):
    """A model in training does not hold at the default site what was said."""


def train_until_remembered(tokenizer: PreTrainedTokenizerFast) -> tuple[nn.Module, list, int]:
    """Train with seed 1, 2, ... until a model looks back for what was said before the site.

    Which block learns to look back for what was said is a matter of chance: in a later block it
    would come after the default site, whose SAEs would have no concept that text carries along. It
    shows after `MEMORY_AFTER` steps, when another seed is tried.

    Returns:
        the model, `(step, loss)` of its training, its seed.
    """
    docs = list(corpus.documents(1_000, seed=corpus.HELD_OUT))
    tokens_NT = corpus.encode(docs, tokenizer.get_vocab())
    names = [name for pair in MEMORIES for name in pair]
    # at "the" alone: at any other word (some hold in Korean) that word would tell them apart
    the_N = (tokens_NT[:, 1:] == tokenizer.get_vocab()["the"]).flatten()
    holds_NC = corpus.labels(docs, names)[:, 1:].flatten(0, 1).bool() & the_N[:, None]

    def look(step: int, model: nn.Module) -> None:
        if step == MEMORY_AFTER:
            x_ND = collect(LM(model, tokenizer), tokens_NT, shipped.SITE).x_ND
            mean_CD = torch.stack([x_ND[holds_N].mean(0) for holds_N in holds_NC.T])
            apart = (mean_CD[::2] - mean_CD[1::2]).norm(dim=1) / steer.typical_norm(x_ND)
            print(f"\nseed {seed}: memories apart after {step} steps: {apart.tolist()}")
            if apart.min() < MEMORY_APART:
                raise _Forgetful
            model.train()

    for seed in itertools.count(1):
        try:
            return *pretrain.train_model(tokenizer.get_vocab(), seed=seed, callback=look), seed
        except _Forgetful:
            continue


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
    """All of `shipped.recipes()`, site by site, so that activations are collected once each."""
    recipes = shipped.recipes()
    places = list(dict.fromkeys((recipe.model, recipe.site) for recipe in recipes.values()))
    for model, site in places:
        lm = LM.load(root / model)
        tokens_NT = corpus.encode(corpus.documents(SAE_DOCUMENTS), lm.tokenizer.get_vocab())
        x_ND = collect(lm, tokens_NT, site, progress=True).x_ND
        for name, recipe in recipes.items():
            if (recipe.model, recipe.site) == (model, site):
                build_sae(root, name, x_ND, lm.about(site))


def build_sae(root: Path, name: str, x_ND: Tensor, about: dict[str, Any]) -> None:
    """Train one of `shipped.recipes()` on activations of its site and save it with its history.

    Args:
        about: where the activations come from (`LM.about`).
    """
    recipe = shipped.recipes()[name]
    print(f"SAE {name}")
    d_sae, how = recipe.d_sae or shipped.D_SAE, SAE_TRAINING | {"seed": recipe.seed}
    how["lr"] = lr_for(x_ND.shape[1], d_sae, recipe.l1_coefficient) / SLOWER.get(name, 1.0)
    strength = {"k": recipe.k} if recipe.k else {"l1_coefficient": recipe.l1_coefficient}
    kind = {"kind": TopK, "objective": REVIVING} if recipe.k else {}
    trained = train(x_ND, d_sae, **kind, **strength, **how)
    trained.sae.metadata |= strength | how | about | {
        "model_name": OURS + (", untrained" if recipe.model == "lm_random" else ""),
        "context_size": corpus.LENGTH,
        "scale": trained.scale,
    }  # fmt: skip
    trained.sae.save(root / "saes" / name)
    artifacts.write_json(root / "saes" / f"{name}.history.json", trained.history)


def lr_for(d_in: int, d_sae: int, l1_coefficient: float | None) -> float:
    """The usual rate, less where more than a few features in a hundred would die of it.

    That is where the penalty is strong, with TopK (no coefficient), and where features are many for
    the width: with 4,096 of them 40 % were silent at the usual rate, 10 % at half of it, 2 % at a
    quarter (one seed each, with the recipe before; 1 % at a quarter now).
    """
    strong = 2.0 if l1_coefficient is None else max(1.0, l1_coefficient) ** 0.5
    many = max(1.0, d_sae / (8 * d_in))
    return usual_lr(SAE_TRAINING["batch_size"], d_in) / (strong * many)


def build_probes(root: Path) -> None:
    """What a linear probe reads off the site: held-out F1 for each concept."""
    held = shipped.held_out(PROBE_DOCUMENTS)
    labels_NC, _ = held.flat()
    x_ND = collect(LM.load(root / "lm"), held.tokens_NT, shipped.SITE).x_ND
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


def build_controls(root: Path) -> None:
    """SAEs that never learned half of what they do, and what they score."""
    controls.build(root / "controls", root)


def build_beyond(root: Path) -> None:
    """SAEs of each architecture at equal L0, a transcoder, and what all seeds score."""
    beyond.build(root / "beyond", root)


def build_applications(root: Path) -> None:
    """Probes on features and on activations, in four regimes."""
    monitors.build(root / "applications", root)


STEPS = {
    "lm": Step(build_lm, 10, "tokenizer, tiny language model, the same untrained"),
    "fourgrams": Step(build_fourgrams, 1, "every run of four words that the corpus writes"),
    "saes": Step(build_saes, 40, "SAEs over eight L1 coefficients, seeds, sizes, sites and TopK"),
    "probes": Step(build_probes, 1, "what a linear probe reads off the site"),
    "controls": Step(build_controls, 12, "SAEs of which half was never trained, and their scores"),
    "beyond": Step(build_beyond, 24, "architectures at equal L0, a transcoder, their scores"),
    "applications": Step(build_applications, 3, "probes on features and on activations, compared"),
    "dial": Step(build_dial, 1, "the toy sweep behind the L1 dial"),
}


def build(names: Sequence[str] = (), root: Path | None = None) -> None:
    """Run steps in order (all if none is named), each with the time it will take said first.

    One thread computes: on the same processor the language model comes out the same to the bit,
    however many cores it has.

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
    print(f"{len(chosen)} of {len(STEPS)} steps, about {total:g} minutes")
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        for name in chosen:
            _run(name, root)
    finally:
        torch.set_num_threads(before)


def _run(name: str, root: Path) -> None:
    step, started = STEPS[name], time.monotonic()
    free = shutil.disk_usage(root).free / 2**30
    print(f"\n{name}: {step.what} (about {step.minutes:g} min, {free:.0f} GB free)")
    step.run(root)
    artifacts.write_manifest(root)
    print(f"{name}: done in {(time.monotonic() - started) / 60:.1f} min")
