"""Tokenizers of the kinds that real models have, trained on a few lines."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = (
    "he went to the sea . she went to the shore , he hesitated\n",
    "골든 리트리버 is the name of a dog — naïve café 🐕 he\n",
) * 3


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's: letters for bytes, a space belongs to the word behind it, BOS is EOS."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    inner.train_from_iterator(TEXT, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=end, eos_token=end)


def sentencepiece(*, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """As Llama's: a sign for the space, bytes as `<0xE2>`, BOS put in front."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=first, limit_alphabet=40)
    inner.train_from_iterator(TEXT, trainer)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=AddedToken("<s>"),
        eos_token=AddedToken("</s>"),
        unk_token="<unk>",
    )
