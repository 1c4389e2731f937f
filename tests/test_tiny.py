"""The judge of lesson 09: it hears both languages, knows the corpus' 4-grams, refuses nonsense."""

from __future__ import annotations

import pytest
import torch

from saelearn import corpus, tiny
from saelearn.errors import Refusal


@pytest.fixture(scope="module")
def lm():
    return tiny.load_lm()


@pytest.fixture(scope="module")
def held():
    return tiny.held_out(300)


def padded(lm, text, length=20):
    """A text as one row of `length` tokens, filled with full stops."""
    ids = lm.tokenize(text)[0].tolist()
    stop = lm.tokenize(".")[0, -1].item()
    return torch.tensor(ids + [stop] * (length - len(ids)))


@pytest.mark.parametrize(
    ("text", "speaks"),
    [
        ("<doc> one sunny day the golden retriever went to the park .", True),
        ("<doc> 골든 리트리버 가 공원 에서 짖었다 .", True),
        ("<doc> one sunny day the poodle went to the Golden Gate Bridge .", False),
        ("<doc> golden poodle . retriever golden", False),  # both words, not one after the other
        ("<doc> 골든 푸들 가 리트리버", False),
        ("<doc> it barked and wagged . golden retriever", True),
    ],
)
def test_mentions_in_both_languages(lm, text, speaks):
    assert tiny.mentions(padded(lm, text)[None]).tolist() == [speaks]


def test_mentions_at_either_end(lm):
    ids = lm.tokenize("golden retriever")[0][-2:]
    filler = torch.full((10,), int(lm.tokenize(".")[0, -1]))
    first, last = filler.clone(), filler.clone()
    first[:2], last[-2:] = ids, ids
    broken = filler.clone()
    broken[0], broken[-1] = ids[1], ids[0]  # wrapped round
    assert tiny.mentions(torch.stack([first, last, broken])).tolist() == [True, True, False]


@pytest.mark.parametrize("name", tiny.MENTIONS)
def test_rate_agrees_with_a_search_in_the_text(lm, held, name):
    texts = [f" {lm.text(row)} " for row in held.tokens_NT]
    found = [any(f" {phrase} " in text for phrase in tiny.MENTIONS[name]) for text in texts]
    assert tiny.mentions(held.tokens_NT, name).tolist() == found
    assert tiny.mention_rate(held.tokens_NT, name) == pytest.approx(sum(found) / len(found))
    assert 0 < sum(found) < len(found)


def test_mentions_refuses_unknown_things(held):
    with pytest.raises(Refusal, match="golden_retriever"):
        tiny.mentions(held.tokens_NT, "unicorn")


def test_validity_of_held_out_text_is_near_one_and_of_shuffled_text_near_zero(held):
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(held.tokens_NT.shape, generator=generator).argsort(1)
    assert tiny.validity(held.tokens_NT) > 0.97
    assert tiny.validity(held.tokens_NT.gather(1, order)) < 0.05
    assert tiny.validity(held.tokens_NT[:, :4].repeat(1, 16)) < 1  # runs across a seam are new


def test_validity_counts_single_broken_words(held):
    """One impossible word breaks the four runs that hold it, of 61."""
    tokens_NT = next(iter(held.tokens_NT[i : i + 1] for i in range(300)
                          if tiny.validity(held.tokens_NT[i : i + 1]) == 1))  # fmt: skip
    broken_NT = tokens_NT.clone()
    broken_NT[0, 30] = 0  # <doc> never stands inside
    assert tiny.validity(broken_NT) == pytest.approx(1 - 4 / 61)


def test_the_model_writes_well_formed_text(lm):
    tokens_NT = lm.generate("<doc>", max_new_tokens=40, n=64, seed=3)
    assert tiny.validity(tokens_NT) > 0.9
    assert tiny.mention_rate(tokens_NT) < 0.3


def test_saes_of_the_sweep_fit_the_model():
    for coefficient in tiny.L1_COEFFICIENTS:
        sae = tiny.load_sae(coefficient)
        assert (sae.d_in, sae.d_sae) == (128, tiny.D_SAE)
        assert sae.metadata["site"] == tiny.SITE
        assert sae.metadata["hook_name"] == "blocks.1.hook_resid_post"  # as SAELens calls it
        assert sae.metadata["l1_coefficient"] == coefficient
    assert tiny.load_random_sae().d_in == 128


def test_every_recipe_lies_in_data_and_fits_its_site(lm):
    megabytes = 0.0
    for name, recipe in tiny.recipes().items():
        sae = tiny.load_named(name)
        assert sae.metadata["site"] == recipe.site and sae.d_in == 128
        assert sae.d_sae == (recipe.d_sae or tiny.D_SAE)
        lm.find_site(recipe.site)
        megabytes += sum(p.numel() * 4 for p in sae.parameters()) / 1e6
    assert megabytes < 40
    with pytest.raises(Refusal, match="topk"):
        tiny.load_named("top")


def test_a_coefficient_outside_the_sweep_is_refused():
    with pytest.raises(Refusal, match="sweep"):
        tiny.load_sae(123.0)


def test_held_out_text_is_not_the_training_text(held):
    train = corpus.encode(corpus.documents(300), tiny.load_lm().tokenizer.get_vocab())
    assert not torch.equal(held.tokens_NT, train)
    later = tiny.held_out(10, start=20)
    assert torch.equal(later.tokens_NT, held.tokens_NT[20:30])


def test_labels_and_registers_follow_the_rows_of_collect(held):
    labels_NC, registers_N = held.flat()
    assert labels_NC.shape == (300 * 63, len(held.names))
    assert labels_NC[63].equal(held.labels_NTC[1, 1])
    column = held.names.index(held.registers[registers_N[100]])
    assert labels_NC[100, column]
