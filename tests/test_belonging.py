"""Where an SAE belongs: what it remembers, in names that others know, and warnings elsewhere."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from tiny_models import make, some_tokens

from saelearn import activations, features, steer, tiny
from saelearn.errors import Misplaced, Refusal
from saelearn.lm import LM, OURS
from saelearn.sae import SAE, load
from saelearn.train import sweep, train

TOKENS = some_tokens()


def silent(run, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error", Misplaced)
        return run(*args, **kwargs)


@pytest.mark.parametrize(
    ("kind", "site", "hook"),
    [
        ("gpt2", "transformer.h.1:out", "blocks.1.hook_resid_post"),
        ("gpt2", "transformer.h.1", "blocks.1.hook_resid_post"),
        ("gpt2", "transformer.h.1:in", "blocks.1.hook_resid_pre"),
        ("gpt2", "transformer.h.0.mlp:out", "blocks.0.hook_mlp_out"),
        ("gpt2", "transformer.h.0.attn:out", "blocks.0.hook_attn_out"),
        ("gpt2", "transformer.h.0.attn.c_proj:in", "blocks.0.attn.hook_z"),
        ("gpt2", "transformer.wte", "hook_embed"),
        ("llama", "model.layers.0:out", "blocks.0.hook_resid_post"),
        ("llama", "model.layers.1.mlp.down_proj:in", "blocks.1.mlp.hook_post"),
        ("llama", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_pre"),
    ],
)
def test_sites_in_saelens_names(kind: str, site: str, hook: str) -> None:
    lm = make(kind)
    about = lm.about(site, context_size=9)
    assert about["hook_name"] == hook and about["context_size"] == 9
    assert lm.find_site(about["hook_name"]) == lm.find_site(about["site"]) == lm.find_site(site)


def test_a_site_without_such_a_name_keeps_its_own() -> None:
    about = make("gpt2").about("transformer.h.1.ln_1:out")
    assert about["hook_name"] == about["site"] == "transformer.h.1.ln_1:out"
    with pytest.raises(Refusal):
        make("gpt2").about("transformer.h.9")


def test_a_model_without_blocks_has_no_such_names() -> None:
    lm = make("gpt2")
    lm.model.config.n_layer = 7  # as if no list were as long as the settings say
    with pytest.raises(Refusal):
        lm.residual_sites()
    assert lm.about("transformer.h.0:out")["hook_name"] == "transformer.h.0:out"
    silent(lm.logits, TOKENS, {"transformer.h.0:out": activations.splice(at("transformer.h.0"))})


def test_it_travels_through_training_and_files(tmp_path) -> None:
    lm = tiny.load_lm()
    acts = activations.collect(lm, tiny.held_out(8).tokens_NT, tiny.SITE)
    trained = train(acts.x_ND, 12, l1_coefficient=1.0, steps=3, metadata=acts.about, progress=False)
    trained.sae.save(tmp_path / "sae")
    about = load(tmp_path / "sae").metadata
    assert about == trained.sae.metadata == acts.about | {"scale": trained.scale}
    assert about["model_name"] == OURS and about["hook_name"] == "blocks.1.hook_resid_post"
    assert about["prepend_bos"] is lm.bos and about["context_size"] == 64
    assert str(len(lm.tokenizer)) in about["tokenizer"]
    several = sweep(acts.x_ND, 12, [1.0, 2.0], steps=3, progress=False)
    assert [each.sae.metadata["scale"] for each in several] == [trained.scale] * 2
    for bad in ({"x": torch.zeros(2)}, {"x": float("nan")}, 3):
        with pytest.raises(Refusal, match="metadata"):
            train(acts.x_ND, 12, l1_coefficient=1.0, steps=3, metadata=bad, progress=False)
    json.dumps(about)


def at(hook: str, model: str = "", **more: str) -> SAE:
    """A random SAE for width 16 or so that remembers a place."""
    about = {"hook_name": hook} | ({"model_name": model} if model else {}) | more
    return SAE(make("gpt2").model.config.n_embd, 4, metadata=about)


@pytest.mark.parametrize("use", [activations.splice, lambda s: steer.clamp(s, 1, 2.0),
                                 lambda s: steer.ablate(s, [1])])  # fmt: skip
def test_a_use_at_another_site_warns(use) -> None:
    lm = make("gpt2")
    same = {
        "transformer.h.0:out": ("blocks.0.hook_resid_post", "transformer.h.0",
                                "blocks.1.hook_resid_pre", "transformer.h.1:in"),
        "blocks.1.hook_mlp_out": ("transformer.h.1.mlp:out",),
    }  # fmt: skip
    for made, others in same.items():
        for site in (made, *others):
            silent(lm.logits, TOKENS, {site: use(at(made))})
            silent(lm.logits, TOKENS, {made: use(at(site))})
        with pytest.warns(Misplaced, match="made for the site"):
            lm.logits(TOKENS, {"transformer.h.1:out": use(at(made))})
        control = activations.splice(at(made), elsewhere=True)
        silent(lm.logits, TOKENS, {"transformer.h.1:out": control})
    with pytest.warns(Misplaced, match=r"'model\.layers\.0:out', used at 'transformer\.h\.0'"):
        lm.generate(TOKENS[:1], max_new_tokens=2,
                    edits={"transformer.h.0": use(at("model.layers.0:out"))})  # fmt: skip
    silent(lm.logits, TOKENS, {"transformer.h.1:out": use(SAE(lm.model.config.n_embd, 4))})


def test_a_use_in_another_model_warns() -> None:
    lm, site = make("gpt2"), "transformer.h.0:out"
    edits = {site: activations.splice(at(site, "gpt2-small"))}
    silent(lm.logits, TOKENS, edits)  # an object has no name
    for name in ("gpt2", "openai-community/gpt2", "gpt2-small"):
        lm.name = name
        silent(lm.logits, TOKENS, edits)
    lm.name = "EleutherAI/pythia-70m"
    with pytest.warns(Misplaced, match="made for the model 'gpt2-small', used in 'Eleu"):
        activations.measure_loss_recovered(
            lm, at(site, "gpt2-small"), site, TOKENS, ablation_name="zero"
        )
    assert LM.load().name == OURS


def test_features_of_rows_from_elsewhere_warn() -> None:
    lm = make("gpt2")
    acts = activations.collect_all(lm, TOKENS, ["blocks.1.hook_resid_pre", "blocks.0.hook_mlp_out"])
    stream, mlp = acts.values()
    for made in ("blocks.0.hook_resid_post", "transformer.h.1:in", "blocks.1.hook_resid_pre",
                 "transformer.h.0", "transformer.h.0:out"):  # fmt: skip
        f_NF = silent(features.encode, at(made), stream)
        assert torch.equal(f_NF, features.encode(at(made), stream.x_ND))
        with pytest.warns(Misplaced, match="used on rows of"):
            features.encode(at(made), mlp)
        silent(features.encode, at(made), mlp.x_ND)  # bare rows: nothing is known
