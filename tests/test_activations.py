"""Which activation belongs to which token, and what a spliced or ablated site costs."""

from __future__ import annotations

import collections

import pytest
import torch
from tiny_models import FAMILIES, WIDTH, make, some_tokens
from torch import Tensor

from saelearn.activations import (
    ablation,
    chunk,
    collect,
    measure_loss_recovered,
    splice,
    stream,
)
from saelearn.errors import Refusal
from saelearn.lm import LM
from saelearn.sae import SAE

TOKENS = some_tokens(9, 10)
SITE = "blocks.1.hook_resid_post"


@pytest.fixture(params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LM:
    return make(request.param)


def exact_sae() -> SAE:
    """An SAE that gives back what it gets: a feature for each axis and one for its opposite."""
    sae = SAE(WIDTH, 2 * WIDTH)
    both = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    sae.W_enc.data, sae.W_dec.data = both.T.contiguous(), both
    return sae


@pytest.mark.parametrize("skip", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_rows_are_documents_then_positions(lm: LM, skip: int, batch_size: int) -> None:
    found = collect(lm, TOKENS, SITE, skip=skip, batch_size=batch_size)
    kept = 10 - skip
    assert found.x_ND.shape == (9 * kept, WIDTH) and (found.site, found.skip) == (SITE, skip)
    for d in (0, 4, 8):
        alone = lm.capture(TOKENS[d : d + 1], [SITE])[SITE][0]
        for t in range(skip, 10):
            row = d * kept + t - skip
            torch.testing.assert_close(found.x_ND[row], alone[t], rtol=1e-4, atol=1e-4)
            assert found.tokens_N[row] == TOKENS[d, t]


@pytest.mark.parametrize("tokens", [TOKENS[0], TOKENS[:0], TOKENS[:, :1]])
def test_no_documents_are_refused(tokens: Tensor) -> None:
    with pytest.raises(Refusal, match="tokenize some text"):
        collect(make("gpt2"), tokens, SITE)


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(Refusal, match="batch_size"):
        collect(make("gpt2"), TOKENS, SITE, batch_size=0)
    with pytest.raises(Refusal, match="a site of this model"):
        collect(make("gpt2"), TOKENS, "nowhere")


def count_rows(x: Tensor) -> collections.Counter:
    return collections.Counter(tuple(row) for row in x.tolist())


@pytest.mark.parametrize("buffer_size", [1, 40, 10_000])
@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_a_stream_gives_each_row_once(buffer_size: int, batch_size: int) -> None:
    """All rows of 90 tokens less position 0, except for what does not fill the last batch."""
    lm = make("gpt2")
    lm.model.double()  # rows of equal batches are then equal after rounding to fp32
    parts = TOKENS.split(2)
    batches = list(stream(lm, parts, SITE, batch_size=batch_size, buffer_size=buffer_size, seed=0))
    rows = torch.cat(batches)
    every = count_rows(collect(lm, TOKENS, SITE, batch_size=2).x_ND)
    assert every.total() == 81 and len(every) > 75  # documents that begin alike share a row
    assert count_rows(rows) <= every
    assert {len(x) for x in batches[:-1]} <= {batch_size} or buffer_size < batch_size
    assert len(rows) > 81 - batch_size - (buffer_size < batch_size) * batch_size


def test_a_stream_is_mixed_and_repeatable() -> None:
    lm = make("gpt2")
    first, again, other = (
        torch.cat(list(stream(lm, TOKENS.split(3), SITE, batch_size=9, buffer_size=50, seed=s)))
        for s in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.allclose(first, collect(lm, TOKENS, SITE).x_ND[: len(first)])


def test_an_empty_stream_is_empty() -> None:
    assert list(stream(make("gpt2"), [], SITE)) == []


def test_position_0_is_left_alone(lm: LM) -> None:
    clean = lm.capture(TOKENS, [SITE])[SITE]
    sae, mean = SAE(WIDTH, 32), torch.arange(float(WIDTH))
    for edit, expected in (
        (splice(sae), sae(clean).x_hat.detach()),
        (ablation(None), torch.zeros_like(clean)),
        (ablation(mean), mean.expand_as(clean)),
    ):
        with lm.editing({SITE: edit}):
            edited = lm.capture(TOKENS, [SITE])[SITE]
        assert torch.equal(edited[:, 0], clean[:, 0])
        torch.testing.assert_close(edited[:, 1:], expected[:, 1:])


def test_a_generated_token_is_not_position_0(lm: LM) -> None:
    """With a cache every pass has one token; all of them are spliced but the first of the text."""
    changed = []

    def watch(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        y_BTD = ablation(None)(x_BTD, positions_T)
        changed.extend((y_BTD != x_BTD).any(-1)[0].tolist())
        return y_BTD

    lm.generate(TOKENS[:1, :3], max_new_tokens=4, edits={SITE: watch})
    assert changed == [False] + 5 * [True]


@pytest.mark.parametrize("name", ["zero", "mean"])
def test_loss_recovered_is_1_without_error_and_0_for_the_ablation_itself(lm: LM, name: str) -> None:
    perfect = measure_loss_recovered(lm, exact_sae(), SITE, TOKENS, ablation_name=name)
    assert perfect.value == pytest.approx(1, abs=1e-3) and perfect.ablation == name
    assert perfect.clean == pytest.approx(lm.loss(TOKENS))
    useless = SAE(WIDTH, 4)
    useless.b_enc.data.fill_(-1e6)
    if name == "mean":
        useless.b_dec.data = collect(lm, TOKENS, SITE).x_ND.mean(0)
    same = measure_loss_recovered(lm, useless, SITE, TOKENS, ablation_name=name)
    assert same.value == pytest.approx(0, abs=1e-4)
    assert same.spliced == pytest.approx(same.ablated) and same.ablated != same.clean


def test_an_unknown_ablation_is_refused() -> None:
    with pytest.raises(Refusal, match="zero, mean"):
        measure_loss_recovered(make("gpt2"), exact_sae(), SITE, TOKENS, ablation_name="noise")


def test_a_long_text_becomes_documents(lm: LM) -> None:
    words = [f"w{2 + i % 30}" for i in range(25)]
    tokens = chunk(lm, " ".join(words), length=8)
    assert tokens.shape == (3, 8) and not tokens[:, 0].any()
    assert lm.words(tokens[:, 1:].flatten()) == words[:21]
    lm.tokenizer.bos_token = None
    assert lm.words(chunk(lm, " ".join(words), length=8).flatten()) == words[:24]
    with pytest.raises(Refusal, match="at least 8 tokens"):
        chunk(lm, "w2 w3", length=8)
