"""The tokenizer's side of a language model: text into tokens and back.

Shapes: B batch, T positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saelearn.errors import Refusal, check_series
from saelearn.lm import reading, text
from saelearn.lm.documents import Batch, fill_up


class Reader:
    """What a tokenizer and one rule for BOS make of text.

    Args:
        tokenizer: one of transformers'; None: every use of text is refused.
        bos: whether texts are opened by BOS; None: if the model was trained so.
    """

    device: torch.device

    def __init__(self, tokenizer: Any, bos: bool | None):
        self.tokenizer = tokenizer
        self._bos = bos

    @property
    def bos(self) -> bool:
        """Whether texts are opened by the BOS token."""
        if self._bos is None:
            return text.opens_with_bos(self._tokenizer())
        return self._bos and self._tokenizer().bos_token_id is not None

    def tokenize(self, words: str, *, bos: bool | None = None) -> Tensor:
        """Token ids `tokens_1T` of a text, opened by BOS once if `lm.bos` (or `bos`) says so.

        Raises:
            Refusal: empty text, or a word that a closed vocabulary does not have.
        """
        bos = self.bos if bos is None else bos
        return torch.tensor([text.encode(self._tokenizer(), words, bos=bos)], device=self.device)

    def ids(self, words: str) -> list[int]:
        """Token ids of a text as it stands, words that the model does not know included."""
        return text.plain_ids(self._tokenizer(), words)

    def ids_of(self, pieces: Iterable[str]) -> Iterator[list[int]]:
        """As `ids`, of a text in pieces: some ids at a time, so that it need not fit in memory."""
        return reading.ids(self._tokenizer(), pieces)

    def tokenize_all(self, texts: Sequence[str], *, bos: bool | None = None) -> Batch:
        """Several texts as one batch: `tokens_BT`, and `mask_BT` where their tokens stand."""
        if isinstance(texts, str) or (isinstance(texts, list | tuple) and not texts):
            raise Refusal("a list of texts", repr(texts), "lm.tokenize takes one text")
        texts = check_series(texts, "texts", least=1)
        bos = self.bos if bos is None else bos
        batch = fill_up([text.encode(self._tokenizer(), each, bos=bos) for each in texts], 0)
        return Batch(batch.tokens_BT.to(self.device), batch.mask_BT.to(self.device))

    def chat(self, messages: str | Sequence[Mapping[str, str]]) -> Tensor:
        """What an instructed model reads before it answers, `tokens_1T`, by its own template.

        Args:
            messages: what the user says; or turns, `{"role": "user", "content": ...}`. BOS is
                where the template puts it, and nowhere else.

        Raises:
            Refusal: the tokenizer has no chat template, or the template refuses the turns.
        """
        tokenizer = self._tokenizer()
        if not getattr(tokenizer, "chat_template", None):
            raise Refusal("an instructed model, with a chat template", "a tokenizer without one")
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        try:
            ids = tokenizer.apply_chat_template(
                list(turns), add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # templates are programs: they raise what they like
            raise Refusal("turns that the chat template takes", str(error)) from error
        return torch.tensor([ids], device=self.device)

    def words(self, tokens_T: Tensor | Sequence[int]) -> list[str]:
        """Each token by itself, as in a list of likely ones: with its leading space, if any."""
        return [text.word(self._tokenizer(), int(token)) for token in tokens_T]

    def pieces(self, tokens_T: Tensor | Sequence[int]) -> list[str]:
        """What each token adds to a text: joined, they are `lm.text(tokens_T)`."""
        return text.pieces(self._tokenizer(), [int(token) for token in tokens_T])

    def text(self, tokens_T: Tensor | Sequence[int]) -> str:
        """Tokens as one text."""
        return text.decode(self._tokenizer(), [int(token) for token in tokens_T])

    @property
    def separator(self) -> str:
        """What stands between `words` in a text: a space if tokens are words, else nothing."""
        return text.separator(self._tokenizer())

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise Refusal(
                "a model with a tokenizer",
                "none: its folder has no tokenizer's files, or damaged ones",
                "LM(model, tokenizer), or pass token ids in place of text",
            )
        return self.tokenizer
