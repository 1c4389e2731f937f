"""Between text and tokens: when a text is opened by BOS, and how a single token is shown.

A tokenizer is one of transformers'. Shapes: T tokens of one text.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from saelearn.errors import Refusal

BROKEN = "�"  # what decoding gives for bytes that are no whole character


def opens_with_bos(tokenizer: Any) -> bool:
    """Whether the model was trained on texts that begin with its BOS token.

    So it was if its tokenizer puts it there, or if BOS is EOS too: then it stands between the
    documents of the training text. Else it is a sign of something else, such as a chat's turns.
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        return False
    if bos == tokenizer.eos_token_id:
        return True
    return tokenizer("a")["input_ids"][:1] == [bos]


def encode(tokenizer: Any, text: str, *, bos: bool) -> list[int]:
    """Token ids, with BOS in front if `bos`, once: also of a text that begins with it.

    Raises:
        Refusal: no text, no token in it, or a word that a closed vocabulary does not have.
    """
    ids = plain_ids(tokenizer, text)
    if not ids:
        raise Refusal("a text with at least one token", repr(text))
    _refuse_unknown(tokenizer, text, ids)
    opened = ids[:1] == [tokenizer.bos_token_id]
    return [tokenizer.bos_token_id, *ids] if bos and not opened else ids


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, nothing put around them."""
    if not isinstance(text, str):
        raise Refusal("a text", type(text).__name__, "lm.tokenize_all takes a list of texts")
    return encoding(tokenizer, text)["input_ids"]


def encoding(tokenizer: Any, text: str) -> Any:
    """What the tokenizer makes of a text, nothing put around it."""
    how = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    try:
        return tokenizer(text, **how)
    except (TypeError, UnicodeEncodeError) as error:  # JSON and Windows know such halves
        expected, received = "a text of whole characters", "half of a pair of UTF-16"
        remedy = 'text.encode("utf-8", "replace").decode() puts "?" in its place'
        raise Refusal(expected, received, remedy) from error


def _refuse_unknown(tokenizer: Any, text: str, ids: list[int]) -> None:
    unknown = tokenizer.unk_token_id
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id)  # GPT-2: all the same
    if unknown is None or unknown in special or unknown not in ids:
        return
    alone = {w: tokenizer(w, add_special_tokens=False)["input_ids"] for w in text.split()}
    words = [word for word, its_ids in alone.items() if its_ids == [unknown]]
    raise Refusal(
        "words that the model knows",
        ", ".join(map(repr, words)) or "unknown characters",
        "lm.tokenizer.get_vocab() lists them; punctuation stands between spaces",
    )


def decode(tokenizer: Any, ids_T: Sequence[int]) -> str:
    """Tokens as one text, nothing tidied up."""
    return tokenizer.decode(list(ids_T), clean_up_tokenization_spaces=False)


def word(tokenizer: Any, token: int) -> str:
    """One token by itself, for a list of tokens: with its leading space; bytes as `<0xE2>`.

    Decoding a token alone loses the space in which SentencePiece's words begin, and shows every
    part of a character that is more than one byte long as the same sign.
    """
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece is None:  # an id that the model has and the tokenizer does not
        return f"<{token}>"
    if "▁" in piece and token not in tokenizer.all_special_ids:
        return piece.replace("▁", " ")
    text = decode(tokenizer, [token])
    if not text or piece.startswith("<0x"):
        return piece
    if BROKEN not in text:
        return text
    bytes_ = (_BYTE_OF.get(sign) for sign in piece)
    return "".join("" if b is None else chr(b) if b < 128 else f"<0x{b:02X}>" for b in bytes_)


def pieces(tokenizer: Any, ids_T: Sequence[int]) -> list[str]:
    """What each token adds to a text; joined, the text itself.

    A character of several tokens belongs to the last of them; the others add nothing yet.
    """
    ids, texts = list(ids_T), [""]
    for end in range(1, len(ids) + 1):
        text = decode(tokenizer, ids[:end])
        texts.append(text if end == len(ids) else text.rstrip(BROKEN))
    added = [after.removeprefix(before) for before, after in pairwise(texts)]
    if "".join(added) != texts[-1]:  # a decoder that changes what it said before
        return [word(tokenizer, token) for token in ids]
    return added


def separator(tokenizer: Any) -> str:
    """What stands between tokens in a text: nothing, or a space if the tokens are words."""
    special = set(tokenizer.all_special_ids)
    token = next((i for i in range(len(tokenizer)) if i not in special), None)
    if token is None:
        return ""
    shown = word(tokenizer, token)
    return " " if decode(tokenizer, [token, token]) == f"{shown} {shown}" else ""


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: printable ones for themselves, others from 256 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
