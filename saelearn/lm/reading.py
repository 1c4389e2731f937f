"""Token ids of a text too long for memory, those of the whole, from pieces of it.

Tokens at a cut are others than in the whole text. So a stretch of text is tokenized with more
behind it than is used, and the next one with some of it in front; where both agree, one goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from saelearn.lm import text

PIECE = 2**17
"""Characters that are tokenized at once."""
AROUND = 2**10
"""Characters on either side of a cut that are looked at: far more than a token depends on."""


def ids(tokenizer: Any, pieces: Iterable[str]) -> Iterator[list[int]]:
    """Ids of one text, some at a time; joined, they are those of the joined pieces.

    A tokenizer that does not tell where its tokens stand (a slow one) gets the whole text.
    """
    if not tokenizer.is_fast:
        yield text.plain_ids(tokenizer, "".join(pieces))
        return
    held, first, enough = "", 0, PIECE  # `first`: the character whose token comes next
    for piece in pieces:
        held += piece
        if len(held) < enough:
            continue
        cut = _cut(tokenizer, held, first)
        if cut is None:  # one long word: nothing tells yet where it can be cut
            enough = 2 * len(held)
            continue
        found, keep = cut
        yield found
        held, first, enough = held[keep - AROUND :], AROUND, PIECE
    whole = _encoding(tokenizer, held)
    start = _token_at(whole, held, first)
    yield [] if start is None else whole.ids[start:]


def _cut(tokenizer: Any, held: str, first: int) -> tuple[list[int], int] | None:
    """Ids from the character `first` on up to a cut near the end, and where that is."""
    whole = _encoding(tokenizer, held)
    stop = _token_at(whole, held, len(held) - AROUND)
    if stop is None:
        return None
    cut = whole.token_to_chars(stop)[0]
    if cut <= max(first, AROUND):
        return None
    rest = held[cut - AROUND :]
    after = _encoding(tokenizer, rest)
    again = _token_at(after, rest, AROUND)
    if again is None or after.ids[again:] != whole.ids[stop:]:
        return None
    return whole.ids[_token_at(whole, held, first) : stop], cut


def _token_at(encoding: Any, words: str, character: int) -> int | None:
    """The first token at a character or, where none stands, behind it."""
    found = (encoding.char_to_token(i) for i in range(character, len(words)))
    return next((token for token in found if token is not None), None)


def _encoding(tokenizer: Any, words: str) -> Any:
    return text.encoding(tokenizer, words).encodings[0]
