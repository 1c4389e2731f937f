"""SAELens' names, against the equation that defines them and against what the code of each says."""

from __future__ import annotations

import language_models
import pytest
import torch
from language_models import ALL, WIDTH, WORDS
from torch import nn

from saelearn.errors import Refusal
from saelearn.lm import LM
from saelearn.lm.writes import translate

TOKENS = torch.randint(2, WORDS, (3, 9), generator=torch.Generator().manual_seed(1))
PLACES = {
    # kind: attn_out, mlp_out, hook_z, hook_post, resid_mid, as its code in transformers has them
    "gpt2": ("attn:out", "mlp:out", "attn.c_proj:in", "mlp.c_proj:in", "ln_2:in"),
    "gpt_neox": ("attention:out", "mlp:out", "attention.dense:in", "mlp.dense_4h_to_h:in", None),
    "llama": (
        "self_attn:out", "mlp:out", "self_attn.o_proj:in", "mlp.down_proj:in",
        "post_attention_layernorm:in",
    ),
    "bloom": (
        "self_attention.dense:out", "mlp.dense_4h_to_h:out", "self_attention.dense:in",
        "mlp.dense_4h_to_h:in", "post_attention_layernorm:in",
    ),
    "falcon": (
        "self_attention:out", "mlp:out", "self_attention.dense:in", "mlp.dense_4h_to_h:in", None,
    ),
    "opt": ("self_attn:out", "fc2:out", "self_attn.out_proj:in", "fc2:in", "final_layer_norm:in"),
    "mpt": ("attn:out", "ffn.down_proj:out", "attn.out_proj:in", "ffn.down_proj:in", "norm_2:in"),
    "gptj": ("attn:out", "mlp:out", "attn.out_proj:in", "mlp.fc_out:in", None),
    "phi": ("self_attn:out", "mlp:out", "self_attn.dense:in", "mlp.fc2:in", None),
    "gemma2": (
        "post_attention_layernorm:out", "post_feedforward_layernorm:out", "self_attn.o_proj:in",
        "mlp.down_proj:in", "pre_feedforward_layernorm:in",
    ),
    "gemma3_text": (
        "post_attention_layernorm:out", "post_feedforward_layernorm:out", "self_attn.o_proj:in",
        "mlp.down_proj:in", "pre_feedforward_layernorm:in",
    ),
    "olmo2": (
        "post_attention_layernorm:out", "post_feedforward_layernorm:out", "self_attn.o_proj:in",
        "mlp.down_proj:in", "mlp:in",
    ),
    "glm4": (
        "post_self_attn_layernorm:out", "post_mlp_layernorm:out", "self_attn.o_proj:in",
        "mlp.down_proj:in", "post_attention_layernorm:in",
    ),
    "mixtral": (
        "self_attn:out", "mlp:out", "self_attn.o_proj:in", None, "post_attention_layernorm:in",
    ),
}  # fmt: skip
HOOKS = ("hook_attn_out", "hook_mlp_out", "attn.hook_z", "mlp.hook_post", "hook_resid_mid")


def first_of(kind: str) -> LM:
    return language_models.build(next(a for a in ALL if a.kind == kind and a.dtype == "float32"))


@pytest.mark.parametrize("kind", PLACES)
def test_names_are_the_places_that_the_code_says(kind: str) -> None:
    lm = first_of(kind)
    block = lm.residual_sites()[1].removesuffix(":out")
    for hook, place in zip(HOOKS, PLACES[kind], strict=True):
        name = f"blocks.1.{hook}"
        if place is None:
            with pytest.raises(Refusal, match=hook):
                lm.capture(TOKENS, [name])
        else:
            assert translate(lm.model, name) == f"{block}.{place}"
    assert translate(lm.model, "blocks.1.hook_resid_pre") == f"{block}:in"
    assert translate(lm.model, "blocks.1.hook_resid_post") == f"{block}:out"


@pytest.mark.parametrize("kind", [kind for kind, places in PLACES.items() if places[4]])
def test_the_stream_between_attention_and_mlp(kind: str) -> None:
    lm = first_of(kind)
    names = [f"blocks.1.hook_{name}" for name in ("resid_pre", "attn_out", "resid_mid")]
    pre, attention, middle = (lm.capture(TOKENS, names)[name] for name in names)
    torch.testing.assert_close(pre + attention, middle, rtol=1e-4, atol=1e-4)


def test_the_stream_between_them_cannot_be_edited_there() -> None:
    """Its path to the next block goes past the module that reads it."""
    lm = first_of("gpt2")
    with pytest.raises(Refusal, match="goes past this module"):
        lm.logits(TOKENS, {"blocks.1.hook_resid_mid": lambda x_BTD, positions_T: x_BTD})


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gptj", "opt", "gemma2"])
def test_z_and_post_are_what_the_last_maps_read(kind: str) -> None:
    lm = first_of(kind)
    for hook, writer in (("attn.hook_z", HOOKS[0]), ("mlp.hook_post", HOOKS[1])):
        name = f"blocks.1.{hook}"
        last = lm.find_site(name).module
        raw = translate(lm.model, name).replace(":in", ":out")
        found = lm.capture(TOKENS, [name, raw, f"blocks.1.{writer}"])
        with torch.no_grad():
            torch.testing.assert_close(last(found[name]), found[raw], rtol=1e-4, atol=1e-4)
        if kind != "gemma2":  # there a norm follows
            assert torch.equal(found[raw], found[f"blocks.1.{writer}"])


EMBEDDINGS = {
    "gpt2": "transformer.wte:out",
    "llama": "model.embed_tokens:out",
    "opt": "model.decoder.embed_tokens:out",
    "bloom": "transformer.h.0:in",  # a norm follows the table
    "phi": "model.embed_tokens:out",
}


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_the_embedding_is_what_enters_the_stream_for_a_token(kind: str) -> None:
    lm = first_of(kind)
    assert translate(lm.model, "hook_embed") == EMBEDDINGS[kind]


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text", "granite", "recurrent_gemma"])
def test_a_scaled_embedding_is_taken_behind_the_scale(kind: str) -> None:
    lm = first_of(kind)
    names = ["hook_embed", "blocks.0.hook_resid_pre"]
    found = lm.capture(TOKENS, names)
    torch.testing.assert_close(found[names[0]], found[names[1]])


def test_a_block_that_multiplies_what_it_writes_is_refused() -> None:
    """Granite's stream gets a quarter of what its attention computes: no module gives that."""
    lm = language_models.build(
        next(a for a in ALL if a.settings.get("residual_multiplier") == 0.25)
    )
    for hook in HOOKS:
        with pytest.raises(Refusal, match="no two outputs in GraniteDecoderLayer add up"):
            lm.find_site(f"blocks.1.{hook}")


@pytest.mark.parametrize(
    ("site", "near"),
    [
        ("blocks.1.hook_resid_posst", "blocks.1.hook_resid_post"),
        ("blocks.7.hook_mlp_out", "blocks.1.hook_mlp_out"),
        ("blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"),
        ("blocks.1.attn.hook_zz", "blocks.1.attn.hook_z"),
        ("transformer.h.1.mpl:out", "transformer.h.1.mlp"),
        ("hook_embedd", "hook_embed"),
        ("transformer.h.1.attn.c_porj:in", "transformer.h.1.attn.c_proj"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(site: str, near: str) -> None:
    with pytest.raises(Refusal) as caught:
        first_of("gpt2").find_site(site)
    assert near in caught.value.expected and repr(site) == caught.value.received


@pytest.mark.parametrize("site", [None, 3, ("a",), b"transformer.h.1"])
def test_a_site_is_a_name(site: object) -> None:
    lm = first_of("gpt2")
    for call in (lambda: lm.find_site(site), lambda: lm.capture(TOKENS, [site])):
        with pytest.raises(Refusal, match="a site of this model"):
            call()


def test_measuring_leaves_nothing_behind_and_sees_no_edits() -> None:
    """Also within a block of `editing` that makes the equation wrong."""
    lm = first_of("llama")
    expected = lm.logits(TOKENS)
    with lm.editing({"model.layers.1:out": lambda x_BTD, positions_T: 7 * x_BTD}):
        assert translate(lm.model, "blocks.1.hook_mlp_out") == "model.layers.1.mlp:out"
        lm.model(TOKENS)
    assert torch.equal(lm.logits(TOKENS), expected)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())
    assert hooks == 0


def test_a_renamed_block_is_measured_all_the_same() -> None:
    """No name of an architecture is looked up: attention is found under another path."""

    class Held(nn.Module):
        def __init__(self, attn: nn.Module):
            super().__init__()
            self.attn_core = attn

        def forward(self, *args, **kwargs):
            return self.attn_core(*args, **kwargs)

    lm = first_of("gpt2")
    block = lm.model.transformer.h[1]
    block.attn = Held(block.attn)
    assert translate(lm.model, "blocks.1.attn.hook_z") == "transformer.h.1.attn.attn_core.c_proj:in"
    assert lm.capture(TOKENS, ["blocks.1.attn.hook_z"]).popitem()[1].shape == (3, 9, WIDTH)


def test_a_module_that_is_used_at_two_places_is_no_site() -> None:
    """Phi's blocks have one dropout for what attention and what the MLP writes."""
    lm = first_of("phi")
    site = "model.layers.1.resid_dropout:out"
    for call in (
        lambda: lm.capture(TOKENS, [site]),
        lambda: lm.capture(TOKENS, [site, *lm.residual_sites()]),
        lambda: lm.logits(TOKENS, {site: lambda x_BTD, positions_T: x_BTD}),
    ):
        with pytest.raises(Refusal, match="used at 2 places"):
            call()
    assert torch.isfinite(lm.logits(TOKENS)).all()
