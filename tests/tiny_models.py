"""Randomly initialised models of three families, small enough for tests, and a tokenizer."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from saelearn.lm import LM

WIDTH, LAYERS, CONTEXT, WORDS = 16, 3, 24, 40
FAMILIES = ("gpt2", "neox", "llama")


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: <doc>, <unk>, w2, w3, ..."""
    ids = {"<doc>": 0, "<unk>": 1} | {f"w{i}": i for i in range(2, WORDS)}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<doc>", eos_token="<doc>", unk_token="<unk>",
        clean_up_tokenization_spaces=False, model_max_length=CONTEXT,
    )  # fmt: skip


def make(family: str, seed: int = 0) -> LM:
    """A model whose weights are large enough for every part of it to matter."""
    torch.manual_seed(seed)
    common = {"vocab_size": WORDS, "bos_token_id": 0, "eos_token_id": 0}
    wide = common | {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "intermediate_size": 4 * WIDTH, "max_position_embeddings": CONTEXT,
    }  # fmt: skip
    if family == "gpt2":
        config = GPT2Config(**common, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=2)
        model = GPT2LMHeadModel(config)
    elif family == "neox":
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**wide))
    else:
        model = LlamaForCausalLM(LlamaConfig(**wide, num_key_value_heads=1))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 8
    return LM(model, tokenizer())


def some_tokens(n: int = 3, length: int = 10, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, WORDS, (n, length), generator=generator)
    tokens[:, 0] = 0
    return tokens
