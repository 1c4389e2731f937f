"""Text into tokens and back: BOS by one rule, words as people read them, pieces that join."""

from __future__ import annotations

import pytest
import small_tokenizers
import tiny_models
import torch

from saelearn import features
from saelearn.activations import Activations, chunk
from saelearn.errors import Refusal
from saelearn.lm import LM
from saelearn.lm.text import opens_with_bos

TEXT = "he went to the 골든 리트리버 — café 🐕 he"


@pytest.fixture(params=["byte_level", "sentencepiece"])
def lm(request) -> LM:
    model = tiny_models.make("gpt2").model
    return LM(model, getattr(small_tokenizers, request.param)())


@pytest.fixture
def words_only() -> LM:
    return tiny_models.make("gpt2")


def plain(lm: LM, text: str) -> list[int]:
    return lm.tokenizer(text, add_special_tokens=False)["input_ids"]


# --- BOS ------------------------------------------------------------------------------------------


def test_bos_opens_texts_where_the_model_was_trained_so() -> None:
    """It adds it itself (Llama), or it stands between documents (GPT-2); else it means something
    else, as SmolLM2's opens a chat's turns."""
    assert opens_with_bos(small_tokenizers.byte_level())
    assert opens_with_bos(small_tokenizers.sentencepiece())
    assert not opens_with_bos(small_tokenizers.sentencepiece(adds_bos=False))
    without = small_tokenizers.byte_level()
    without.bos_token = None
    assert not opens_with_bos(without)


def test_one_rule_for_tokenize_chunk_and_generate(lm: LM, monkeypatch) -> None:
    bos, ids = lm.tokenizer.bos_token_id, plain(lm, TEXT)
    seen = []
    monkeypatch.setattr(lm, "_generate", lambda prompts, *_: seen.append(prompts) or prompts)
    for rule, opening in ((None, [bos]), (True, [bos]), (False, [])):
        own = LM(lm.model, lm.tokenizer, bos=rule)
        assert own.tokenize(TEXT).tolist() == [opening + ids]
        assert own.tokenize_all([TEXT]).tokens_BT.tolist() == [opening + ids]
        documents = chunk(own, TEXT, length=6)
        assert documents[0].tolist() == (opening + ids)[:6]
        assert (documents[:, 0] == bos).all() == bool(opening)
        assert (
            documents[:, len(opening) :].flatten().tolist()
            == ids[: documents[:, len(opening) :].numel()]
        )
        monkeypatch.setattr(own, "_generate", lambda prompts, *_: seen.append(prompts) or prompts)
        own.generate(TEXT, max_new_tokens=1)
        own.generate_all([TEXT], max_new_tokens=1)
        assert [prompts.tokens_BT.tolist() for prompts in seen[-2:]] == 2 * [[opening + ids]]
    assert lm.tokenize(TEXT, bos=False).tolist() == [ids]


def test_bos_is_never_given_twice(lm: LM) -> None:
    bos = lm.tokenizer.bos_token
    once = lm.tokenize(bos + TEXT)[0].tolist()
    assert once.count(lm.tokenizer.bos_token_id) == 1 and once[0] == lm.tokenizer.bos_token_id


def test_a_chat_is_what_its_template_says(lm: LM) -> None:
    with pytest.raises(Refusal, match="chat template"):
        lm.chat("he")
    bos = lm.tokenizer.bos_token
    lm.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }} : {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant :{% endif %}"
    )
    ids = lm.chat("he went")[0].tolist()
    assert ids == plain(lm, f"{bos}user : he went\nassistant :")
    assert ids.count(lm.tokenizer.bos_token_id) == 1
    turns = [{"role": "user", "content": "he"}, {"role": "assistant", "content": "she"}]
    assert lm.chat(turns)[0].tolist() == plain(lm, f"{bos}user : he\nassistant : she\nassistant :")
    lm.tokenizer.chat_template = "{{ raise_exception('only users here') }}"
    with pytest.raises(Refusal, match="only users here"):
        lm.chat("he")


def test_texts_of_unequal_length_are_filled_up_behind_them(words_only: LM) -> None:
    tokens_BT, mask_BT = words_only.tokenize_all(["w2 w3 w4", "<doc> w5"])
    assert tokens_BT.tolist() == [[0, 2, 3, 4], [0, 5, 0, 0]]
    assert mask_BT.tolist() == [[True] * 4, [True, True, False, False]]


# --- words and pieces -----------------------------------------------------------------------------


def test_a_word_shows_its_leading_space_and_its_bytes(lm: LM) -> None:
    he, and_he = plain(lm, "he")[-1:], plain(lm, "to he")[-1:]
    assert lm.words(and_he) == [" he"]
    if he != and_he:
        assert lm.words(he) == ["he"]
    for token in range(len(lm.tokenizer)):
        (word,) = lm.words([token])
        assert word and "�" not in word
    dog = lm.words(plain(lm, "🐕"))
    assert "".join(dog).strip().removeprefix("▁") in ("🐕", "<0xF0><0x9F><0x90><0x95>")


def test_pieces_join_to_the_text(lm: LM) -> None:
    ids = plain(lm, TEXT)
    assert "".join(lm.pieces(ids)) == lm.text(ids) == TEXT
    assert len(lm.pieces(ids)) == len(ids)
    for cut in range(1, len(ids)):  # also where a character is cut in two
        assert "".join(lm.pieces(ids[:cut])) == lm.text(ids[:cut])
    assert lm.pieces([]) == []


def test_contexts_join_to_the_text_they_came_from(lm: LM, words_only: LM) -> None:
    for each, text in ((lm, TEXT), (words_only, "w2 w3 w4 w5 w6 w7 w8 w9")):
        ids_T = each.tokenize(text)[0]
        acts = Activations(torch.zeros(len(ids_T) - 1, 4), ids_T[None], "site", 1)
        for peak in range(len(ids_T) - 1):
            f_N = torch.zeros(len(ids_T) - 1)
            f_N[peak] = 1
            (context,) = features.contexts(f_N, acts, each, window=3)
            cut = context.separator.join(context.words)
            assert cut in text or cut.strip() in text
            assert len(context.words) == len(context.activations)
        (context,) = features.contexts(f_N, acts, each, window=100)
        assert context.separator.join(context.words).strip() == text


def test_the_separator_is_a_space_between_words_only(lm: LM, words_only: LM) -> None:
    assert lm.separator == "" and words_only.separator == " "


# --- what cannot be used --------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [None, 3, ["he"], b"he", ("he", "went")])
def test_other_than_a_text_is_refused(lm: LM, wrong: object) -> None:
    for call in (lm.tokenize, lm.ids):
        with pytest.raises(Refusal, match="a text"):
            call(wrong)
    with pytest.raises(Refusal):
        lm.generate(wrong, max_new_tokens=1)


@pytest.mark.parametrize("wrong", ["he", [], ["he", ""], [None], None])
def test_other_than_texts_are_refused(lm: LM, wrong: object) -> None:
    for call in (lm.tokenize_all, lambda texts: lm.generate_all(texts, max_new_tokens=1)):
        with pytest.raises(Refusal):
            call(wrong)


@pytest.mark.parametrize("length", [-1, 0, 1, float("nan"), "8"])
def test_a_document_has_room_for_text(lm: LM, length: object) -> None:
    with pytest.raises(Refusal, match="length"):
        chunk(lm, TEXT, length=length)


def test_without_a_tokenizer_text_is_refused_and_ids_work() -> None:
    lm = LM(tiny_models.make("gpt2").model)
    assert lm.logits(torch.tensor([[1, 2]])).shape == (1, 2, tiny_models.WORDS)
    for call in (
        lambda: lm.tokenize("w2"),
        lambda: lm.words([2]),
        lambda: lm.text([2]),
        lambda: lm.pieces([2]),
        lambda: lm.chat("w2"),
        lambda: lm.bos,
        lambda: lm.generate("w2", max_new_tokens=1),
        lambda: lm.generate_all(["w2"], max_new_tokens=1),
        lambda: chunk(lm, "w2 w3", length=2),
    ):
        with pytest.raises(Refusal, match="a model with a tokenizer"):
            call()
