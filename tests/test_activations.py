"""Which activation belongs to which token, and what a spliced or ablated site costs."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, WIDTH, make, some_tokens
from torch import Tensor

from saelearn.activations import (
    ActivationStore,
    ablation,
    chunk,
    collect,
    gather,
    measure_loss_recovered,
    splice,
    stream,
)
from saelearn.activations.harvest import write
from saelearn.activations.shards import Tokens
from saelearn.errors import ArtifactError, Refusal
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
    """All rows of 90 tokens less position 0; only the last batch may be smaller."""
    lm = make("gpt2")
    lm.model.double()  # rows of equal batches are then equal after rounding to fp32
    parts = TOKENS.split(2)
    batches = list(stream(lm, parts, SITE, batch_size=batch_size, buffer_size=buffer_size, seed=0))
    rows = torch.cat(batches)
    every = count_rows(collect(lm, TOKENS, SITE, batch_size=2).x_ND)
    assert every.total() == 81 and len(every) > 75  # documents that begin alike share a row
    assert count_rows(rows) == every
    assert {len(x) for x in batches[:-1]} <= {batch_size} and len(batches[-1]) <= batch_size


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


# --- on disk --------------------------------------------------------------------------------------


def padded() -> Tensor:
    """Documents of lengths 1 to 9, filled up with token 0, which also opens them."""
    tokens_NT = TOKENS.clone()
    for d in range(9):
        tokens_NT[d, d + 1 :] = 0
    tokens_NT[8, 4] = 0  # inside of a document it is no filler
    return tokens_NT


def every_row(store: ActivationStore) -> Tensor:
    return torch.cat(list(store)).float()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_gathered_is_what_collect_collects(
    lm: LM, tmp_path: Path, dtype: str, memory_limit: int
) -> None:
    limit = memory_limit or 2 * 64 * (WIDTH * 4 + 16)  # two windows of 64 rows, of 162
    documents = some_tokens(18, 10, seed=4)
    store = gather(lm, documents, SITE, folder=tmp_path / "s", memory_limit=limit, dtype=dtype,
                   batch_size=11, epochs=1, pass_size=4, seed=2)  # fmt: skip
    assert (tmp_path / "s").exists() == (memory_limit == 0 and dtype == "float32")
    expected = collect(lm, documents, SITE, batch_size=4).x_ND.to(getattr(torch, dtype))
    assert count_rows(every_row(store)) == count_rows(expected.float())
    assert (store.rows, store.d_in, store.batches_per_epoch) == (162, WIDTH, 15)
    if store.tokens:
        assert store.tokens == Tokens(read=180, stored=162, skipped=18, padding=0)


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_every_token_is_accounted_for(tmp_path: Path, skip: int) -> None:
    """Counted document by document."""
    lm, tokens_NT = make("gpt2"), padded()
    account = write(lm, tokens_NT, SITE, tmp_path / "s", skip=skip, padding=0, dtype="float32")
    lengths = range(1, 10)  # the first, of one token, is nothing but filler
    stored = sum(max(0, n - skip) for n in lengths if n > 1)
    assert account.read == 90 and account.stored == stored
    assert account.padding == sum(10 - n for n in lengths) + 1
    store = ActivationStore(tmp_path / "s", epochs=1)
    assert store.tokens == account
    alone = [lm.capture(tokens_NT, [SITE])[SITE][n - 1, skip:n] for n in lengths if n > 1]
    assert count_rows(every_row(store)) == count_rows(torch.cat(alone))
    in_memory = gather(lm, tokens_NT, SITE, skip=skip, padding=0, dtype="float32", epochs=1)
    assert count_rows(every_row(in_memory)) == count_rows(torch.cat(alone))


def test_documents_too_short_for_a_row_are_counted(tmp_path: Path) -> None:
    lm, parts = make("gpt2"), (TOKENS[:3], TOKENS[3:6, :2], TOKENS[6:, :1], TOKENS[6:, :7])
    account = write(lm, parts, SITE, tmp_path / "s", skip=2)
    assert account == Tokens(read=30 + 6 + 3 + 21, stored=24 + 15, skipped=6 + 6 + 3 + 6, padding=0)
    rows = torch.cat(list(stream(lm, parts, SITE, skip=2, batch_size=10)))
    assert len(rows) == 39


class Stopped(Exception):
    pass


def stopping(parts: tuple[Tensor, ...], after: int) -> Iterator[Tensor]:
    yield from parts[:after]
    raise Stopped


@pytest.mark.parametrize("shard_rows", [5, 20, 33])
def test_an_interrupted_writer_goes_on(tmp_path: Path, shard_rows: int, monkeypatch) -> None:
    lm, parts = make("gpt2"), some_tokens(30, 10, seed=3).split(3)  # 27 rows each
    how = {"shard_rows": shard_rows}
    whole = write(lm, parts, SITE, tmp_path / "whole", **how)
    for after in (4, 2, 7):
        with pytest.raises(Stopped):
            write(lm, stopping(parts, after), SITE, tmp_path / "s", **how)
    passes = []
    capture = LM.capture

    def count(self, tokens_BT, sites, **how):
        passes.append(len(tokens_BT))
        return capture(self, tokens_BT, sites, **how)

    monkeypatch.setattr(LM, "capture", count)
    assert write(lm, parts, SITE, tmp_path / "s", **how) == whole
    assert passes.count(3) == 10 - 7 * 27 // shard_rows * shard_rows // 27  # the rest was there
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "s").iterdir())
    for name in names:
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    passes.clear()
    assert write(lm, parts, SITE, tmp_path / "s", **how) == whole  # nothing left to do
    assert 3 not in passes


def test_a_folder_is_gone_on_with_only_from_the_same(tmp_path: Path) -> None:
    parts, folder = some_tokens(30, 10, seed=3).split(3), tmp_path / "s"
    lm = make("gpt2")
    with pytest.raises(Stopped):
        write(lm, stopping(parts, 7), SITE, folder, shard_rows=50)
    others = (parts[1], *parts[1:])
    for name, change in (
        ("site", {"site": "blocks.0.hook_resid_post"}),
        ("model", {"lm": make("gpt2", seed=1)}),
        ("skip", {"skip": 2}),
        ("padding", {"padding": 0}),
        ("dtype", {"dtype": "bfloat16"}),
        ("shard_rows", {"shard_rows": 51}),
        ("documents", {"documents": others}),
        ("documents", {"documents": parts[:2]}),
        ("documents", {"documents": some_tokens(30, 10, seed=3).split(5)}),
    ):
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        how = {"lm": lm, "documents": parts, "site": SITE, "shard_rows": 50} | change
        with pytest.raises(Refusal, match=name):
            write(folder=folder, **how)
        assert before == {p.name: p.read_bytes() for p in folder.iterdir()}
    write(lm, parts, SITE, folder, shard_rows=50)
    for documents in ((*parts, parts[0]), parts[:-1], others):
        with pytest.raises(Refusal, match="documents"):
            write(lm, documents, SITE, folder, shard_rows=50)
    assert ActivationStore(folder).rows == 270


def test_what_does_not_fit_needs_a_folder(tmp_path: Path, monkeypatch) -> None:
    lm = make("gpt2")
    with pytest.raises(Refusal, match=r"(?s)81 rows of width 16 in float16.*folder=\.\.\."):
        gather(lm, TOKENS, SITE, memory_limit=81 * WIDTH * 2 - 1)
    assert gather(lm, TOKENS, SITE, memory_limit=81 * WIDTH * 2).rows == 81
    with pytest.raises(Refusal, match="unknown number"):
        gather(lm, TOKENS.split(3), SITE)
    assert gather(lm, TOKENS.split(3), SITE, folder=tmp_path / "s").rows == 81
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**20}))
    with pytest.raises(ArtifactError, match="GiB free"):
        write(lm, TOKENS, SITE, tmp_path / "other")


def test_activations_that_overflow_are_refused(tmp_path: Path) -> None:
    lm = make("gpt2")
    with torch.no_grad():
        lm.model.get_submodule("transformer.h.1.mlp.c_proj").bias += 70_000
    for folder in (None, tmp_path / "s"):
        with pytest.raises(Refusal, match=r"(?s)65,504.*bfloat16"):
            gather(lm, TOKENS, SITE, folder=folder, memory_limit=0 if folder else 2**30)
    assert gather(lm, TOKENS, SITE, dtype="bfloat16").rows == 81


@pytest.mark.parametrize("documents", [TOKENS[:0], TOKENS[0], TOKENS[:, :1], []])
def test_nothing_to_store_is_refused(tmp_path: Path, documents: Tensor) -> None:
    with pytest.raises(Refusal, match=r"documents|at least one token"):
        write(make("gpt2"), documents, SITE, tmp_path / "s")
    if isinstance(documents, Tensor):
        with pytest.raises(Refusal, match="documents"):
            gather(make("gpt2"), documents, SITE)


# --- back into the model --------------------------------------------------------------------------


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
