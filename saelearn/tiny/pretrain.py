"""Train the course's tiny language model, in Hugging Face's formats.

Nothing here is special to interpretability: a tokenizer of whole words, a GPT-2 of three layers,
AdamW with a cosine schedule. `saelearn data lm` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from saelearn import corpus
from saelearn.corpus.grammar import Bag
from saelearn.corpus.registers import DRILLS

DRILL_TIME = (0.3, 0.45)  # shares of the steps between which the corpus is mostly drills


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, words split at spaces; the vocabulary is all of the corpus' words."""
    ids = {word: i for i, word in enumerate(corpus.vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=corpus.UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=corpus.BOS,
        eos_token=corpus.BOS,
        unk_token=corpus.UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=corpus.LENGTH,
    )


def make_model(n_words: int, *, seed: int, n_layer: int = 3, d_model: int = 128) -> GPT2LMHeadModel:
    """A GPT-2 with random weights: `n_layer` blocks of width `d_model`, 4 heads, no dropout."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=n_words,
        n_positions=corpus.LENGTH,
        n_embd=d_model,
        n_layer=n_layer,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",  # gelu_new is the same, in eight slow steps
        attn_implementation="eager",  # in bf16 on a CPU twice as fast as the fused backward
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def train_model(
    vocabulary: dict[str, int],
    *,
    steps: int = 5_000,
    batch_size: int = 64,
    lr: float = 3e-3,
    warmup: int = 100,
    seed: int = 0,
    log_every: int = 250,
    callback: Callable[[int, GPT2LMHeadModel], None] | None = None,
) -> tuple[GPT2LMHeadModel, list[tuple[int, float]]]:
    """Train on `steps * batch_size` fresh documents; each is seen once.

    AdamW (betas 0.9 and 0.95, weight decay 0.01), linear warm-up, cosine decay to zero, bf16
    products with fp32 weights, gradient norm clipped at 1. Whether a statement agrees with a fact
    is a comparison of two words, which the model does not discover in text where it seldom pays:
    in the middle of the training, `DRILL_TIME`, seven segments of ten are such statements
    (`registers.drill`). Before and after, documents are the corpus' own.

    Returns:
        the model, and `(step, training loss in nats per token)` every `log_every` steps.
    """
    model = make_model(len(vocabulary), seed=seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)

    def factor(step: int) -> float:
        progress = max(0, step - warmup) / max(1, steps - warmup)
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * progress))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    history, recent, drills = [], [], Bag(DRILLS)
    bar = tqdm(range(steps), desc="language model", unit="step", mininterval=2)
    for step in bar:
        mix = drills if DRILL_TIME[0] <= step / steps < DRILL_TIME[1] else corpus.MIX
        docs = corpus.documents(batch_size, start=step * batch_size, mix=mix)
        tokens_BT = corpus.encode(docs, vocabulary)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(tokens_BT, labels=tokens_BT).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if (step + 1) % log_every == 0:
            history.append((step + 1, sum(recent) / len(recent)))
            bar.set_postfix(loss=f"{history[-1][1]:.4f}")
            recent.clear()
            if callback:
                callback(step + 1, model)
    return model.eval(), history


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, tokens_NT: Tensor, *, batch_size: int = 250) -> float:
    """Mean cross-entropy in nats per predicted token over documents `tokens_NT`, in fp32."""
    losses = [
        model(batch, labels=batch).loss.item() * len(batch) for batch in tokens_NT.split(batch_size)
    ]
    return sum(losses) / len(tokens_NT)


def save(folder: Path, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write model and tokenizer into one folder that `AutoModelForCausalLM` reads."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
