"""Tiny random models of many architectures, for what must hold on every one of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from saelearn.lm import LM

WORDS, WIDTH, CONTEXT = 40, 16, 32
_COMMON = {
    "vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 24,
    "max_position_embeddings": CONTEXT, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
_MOE = {
    "num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2, "n_routed_experts": 3,
    "moe_intermediate_size": 8, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_MLA = {"kv_lora_rank": 4, "q_lora_rank": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
        "v_head_dim": 8, "num_key_value_heads": 2, "head_dim": 4}  # fmt: skip
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4,
          "mamba_chunk_size": 4}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A model type of transformers, settings that differ from the common ones, and a dtype."""

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    names: bool = True  # whether SAELens' attn_out and mlp_out exist in block 1
    scale: float = 8  # of the weights

    @property
    def label(self) -> str:
        extra = "" if self.dtype == "float32" else f"-{self.dtype}"
        return self.kind + extra + "".join(f"-{k}" for k in self.settings if k in _SHOWN)


_SHOWN = ("tie_word_embeddings", "sliding_window", "use_parallel_residual", "parallel_attn",
          "residual_multiplier", "alibi", "new_decoder_architecture")  # fmt: skip


def _a(
    kind: str,
    /,
    dtype: str = "float32",
    names: bool = True,
    scale: float = 8,
    **settings: Any,
) -> Architecture:
    return Architecture(kind, settings, dtype, names, scale)


ALL = (
    _a("gpt2", n_inner=24),
    _a("gpt2", dtype="bfloat16"),
    _a("gpt2", dtype="float16"),
    _a("openai-gpt", names=False),
    _a("gpt_bigcode"),
    _a("gpt_neo", num_layers=2, attention_types=[[["global", "local"], 1]], window_size=4),
    _a("gptj", rotary_dim=4),
    _a("codegen", rotary_dim=4, num_attention_heads=4),
    _a("gpt_neox"),
    _a("gpt_neox", use_parallel_residual=False),
    _a("bloom"),
    _a("falcon", head_dim=None),
    _a("falcon", head_dim=None, parallel_attn=False, alibi=True),
    _a("falcon", head_dim=None, new_decoder_architecture=True),
    _a("opt", word_embed_proj_dim=16, ffn_dim=24),
    _a("mpt", max_seq_len=CONTEXT),
    _a("xglm", d_model=16, ffn_dim=24, attention_heads=2, num_layers=2),
    _a("biogpt"),
    _a("llama"),
    _a("llama", tie_word_embeddings=True),
    _a("llama", dtype="bfloat16"),
    _a("mistral", sliding_window=4),
    _a("qwen2", sliding_window=4, use_sliding_window=True, max_window_layers=1),
    _a("qwen3"),
    _a("phi"),
    _a("phi3"),
    _a("gemma"),
    _a("gemma2", sliding_window=4),
    _a("gemma3_text", sliding_window=4),
    _a("gemma3_text", sliding_window=4, dtype="bfloat16"),
    _a("olmo"),
    _a("olmo2"),
    _a("olmo3", sliding_window=4),
    _a("glm"),
    _a("glm4"),
    _a("cohere"),
    _a("cohere2", sliding_window=4),
    _a("stablelm"),
    _a("starcoder2"),
    _a("nemotron"),
    _a("granite"),
    _a("granite", residual_multiplier=0.25, names=False),
    _a("smollm3"),
    _a("exaone4"),
    _a("persimmon"),
    _a("helium"),
    _a("mixtral", **_MOE),
    _a("olmoe", **_MOE),
    _a("qwen2_moe", **_MOE, shared_expert_intermediate_size=8),
    _a("qwen3_moe", **_MOE),
    _a("granitemoe", **_MOE),
    _a("gpt_oss", **_MOE, sliding_window=4),
    _a("phimoe", **_MOE),
    _a("deepseek_v2", **_MOE, **_MLA),
    _a("deepseek_v3", **_MOE, **_MLA),
    _a("jetmoe", **_MOE),
    _a("flex_olmo", **_MOE),
    _a("llama4_text", **_MOE, intermediate_size_mlp=24),
    _a("ernie4_5"),
    _a("seed_oss"),
    _a("arcee"),
    _a("apertus"),
    _a("vaultgemma"),
    _a("nanochat"),
    _a("doge"),
    _a("bitnet"),
    _a("cwm"),
    _a("diffllama", num_key_value_heads=2),
    _a("minimax", names=False, **_MOE),
    _a("hunyuan_v1_dense"),
    _a("ministral"),
    _a("mamba", names=False, scale=3),
    _a("falcon_mamba", names=False),
    _a(
        "mamba2",
        names=False,
        num_heads=4,
        head_dim=8,
        state_size=4,
        n_groups=1,
        expand=2,
        chunk_size=4,
    ),
    _a("recurrent_gemma", num_hidden_layers=3, attention_window_size=4),
    _a("jamba", **_MOE, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4),
    _a("bamba", scale=4, **_MAMBA, attn_layer_indices=[1]),
    _a("lfm2", layer_types=["conv", "full_attention"]),
    _a(
        "qwen3_next",
        **_MOE,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=4,
        linear_value_head_dim=4,
        layer_types=["linear_attention", "full_attention"],
        shared_expert_intermediate_size=8,
    ),
    _a("ctrl", dff=24),
    _a("afmoe", **_MOE),
)


def build(architecture: Architecture) -> LM:
    """The model, its weights large enough for every part of it to matter."""
    settings = {k: v for k, v in (_COMMON | architecture.settings).items() if v is not None}
    torch.manual_seed(0)
    config = CONFIG_MAPPING[architecture.kind](**settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= architecture.scale
    model.generation_config.eos_token_id = None  # a text is as long as it is asked to be
    return LM(model.to(getattr(torch, architecture.dtype)))
