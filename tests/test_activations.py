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
    collect_all,
    gather,
    measure_loss_recovered,
    splice,
    stream,
)
from saelearn.activations.harvest import write
from saelearn.activations.shards import Tokens
from saelearn.errors import ArtifactError, Refusal
from saelearn.lm import LM, Batch
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
@pytest.mark.parametrize("pass_size", [1, 4, 100])
def test_rows_are_documents_then_positions(lm: LM, skip: int, pass_size: int) -> None:
    found = collect(lm, TOKENS, SITE, skip=skip, pass_size=pass_size)
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
    with pytest.raises(Refusal, match="pass_size"):
        collect(make("gpt2"), TOKENS, SITE, pass_size=0)
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
    every = count_rows(collect(lm, TOKENS, SITE, pass_size=2).x_ND)
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
    expected = collect(lm, documents, SITE, pass_size=4).x_ND.to(getattr(torch, dtype))
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


# --- what is left out -----------------------------------------------------------------------------

LENGTHS = (4, 10, 1, 7, 2)


def filled(side: str) -> tuple[Tensor, Tensor]:
    """Documents of `LENGTHS` tokens in 12 columns, filled up with 5, which is a word as well."""
    documents = some_tokens(len(LENGTHS), 12, seed=6)
    tokens_NT, mask_NT = torch.full_like(documents, 5), torch.zeros_like(documents).bool()
    for d, n in enumerate(LENGTHS):
        start = {"left": 12 - n, "right": 0, "both": (12 - n) // 2}[side]
        tokens_NT[d, start : start + n], mask_NT[d, start : start + n] = documents[d, :n], True
    return tokens_NT, mask_NT


def alone(lm: LM, skip: int) -> Tensor:
    """The rows of each document by itself."""
    documents = some_tokens(len(LENGTHS), 12, seed=6)
    parts = [lm.capture(documents[d : d + 1, :n], [SITE])[SITE][0] for d, n in enumerate(LENGTHS)]
    return torch.cat([part_TD[skip:] for part_TD in parts])


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("skip", [0, 1, 2])
def test_filling_gives_no_rows_wherever_it_stands(
    lm: LM, side: str, skip: int, tmp_path: Path
) -> None:
    tokens_NT, mask_NT = filled(side)
    expected = alone(lm, skip)
    found = collect(lm, tokens_NT, SITE, mask_NT=mask_NT, skip=skip, pass_size=2)
    torch.testing.assert_close(found.x_ND, expected, rtol=1e-4, atol=1e-4)
    documents = some_tokens(len(LENGTHS), 12, seed=6)
    words = [documents[d, skip:n] for d, n in enumerate(LENGTHS)]
    assert torch.equal(found.tokens_N, torch.cat(words))
    batch = Batch(tokens_NT, mask_NT)
    how = {"skip": skip, "dtype": "float32", "pass_size": 2}
    account = write(lm, batch, SITE, tmp_path / "s", **how)
    assert account.read == 60 and account.padding == 60 - sum(LENGTHS)
    assert account.stored == sum(max(0, n - skip) for n in LENGTHS)
    on_disk = every_row(ActivationStore(tmp_path / "s", epochs=1))
    in_memory = every_row(gather(lm, batch, SITE, epochs=1, **how))
    streamed = torch.cat(list(stream(lm, [batch], SITE, skip=skip)))
    for rows in (on_disk, in_memory, streamed):
        torch.testing.assert_close(rows.sort(0)[0], expected.sort(0)[0], rtol=1e-4, atol=1e-4)


def test_a_filling_id_before_documents_is_left_out_or_refused() -> None:
    """If it opens documents too, two of it in front could be one filling or none."""
    lm = make("gpt2")
    tokens_NT, _ = filled("left")
    tokens_NT[tokens_NT == 5] = 1  # an id that stands in no document
    store = gather(lm, tokens_NT, SITE, padding=1, dtype="float32", epochs=1)
    expected = alone(lm, 1).sort(0)[0]
    torch.testing.assert_close(every_row(store).sort(0)[0], expected, rtol=1e-4, atol=1e-4)
    tokens_NT[tokens_NT == 1] = 0  # BOS
    with pytest.raises(Refusal, match=r"(?s)begin with 0 more than once.*Batch"):
        gather(lm, tokens_NT, SITE, padding=0)


def test_loss_recovered_counts_no_filling(lm: LM) -> None:
    """The same as of the documents cut to one length, one pass each."""
    sae = SAE(WIDTH, 40, seed=2)
    tokens_NT, mask_NT = filled("left")
    for name in ("zero", "mean"):
        found = measure_loss_recovered(
            lm, sae, SITE, tokens_NT, mask_NT=mask_NT, ablation_name=name
        )
        mean_D = alone(lm, 1).mean(0) if name == "mean" else None
        documents = some_tokens(len(LENGTHS), 12, seed=6)
        sums = torch.zeros(3)
        for d, n in enumerate(LENGTHS):
            edits = ({}, {SITE: splice(sae)}, {SITE: ablation(mean_D)})
            if n > 1:
                loss = torch.tensor([lm.loss(documents[d : d + 1, :n], e) for e in edits])
                sums += (n - 1) * loss
        clean, spliced, ablated = (sums / (sum(LENGTHS) - len(LENGTHS))).tolist()
        assert (found.clean, found.spliced, found.ablated) == pytest.approx(
            (clean, spliced, ablated), rel=1e-3
        )


def packed() -> Tensor:
    """Documents with BOS (0) inside of them, as text that was packed without cutting."""
    tokens_NT = some_tokens(6, 10, seed=8)
    tokens_NT[1, 4] = tokens_NT[4, 7] = tokens_NT[4, 8] = 0
    return tokens_NT


def test_rows_are_left_out_by_token(lm: LM, tmp_path: Path) -> None:
    tokens_NT = packed()
    every = collect(lm, tokens_NT, SITE)
    wanted_N = (every.tokens_N != 0) & (every.tokens_N != 7)
    how = {"leave_tokens": [0, 7]}
    found = collect(lm, tokens_NT, SITE, **how)
    assert int((~wanted_N).sum()) > 3 and torch.equal(found.x_ND, every.x_ND[wanted_N])
    assert torch.equal(found.tokens_N, every.tokens_N[wanted_N])
    account = write(lm, tokens_NT, SITE, tmp_path / "s", dtype="float32", **how)
    assert account.stored == int(wanted_N.sum()) and account.padding == 0
    for rows in (
        every_row(ActivationStore(tmp_path / "s", epochs=1)),
        torch.cat(list(stream(lm, [tokens_NT], SITE, **how))),
    ):
        assert count_rows(rows) == count_rows(found.x_ND)


def sinks(lm: LM) -> None:
    """Make the words 7 and 8 a hundred times as long as others."""
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[7:9] *= 100


@pytest.mark.parametrize("shard_rows", [4, 7, 100])
def test_rows_are_left_out_by_norm(tmp_path: Path, shard_rows: int) -> None:
    """And a writer that is interrupted goes on, though only the model knows how many there are."""
    lm, site = make("llama"), "model.layers.0:in"
    sinks(lm)
    parts = some_tokens(18, 10, seed=8).split(3)
    every = [collect(lm, part, site) for part in parts]
    expected = []
    for acts in every:
        norm_N = acts.x_ND.norm(dim=1)
        expected.append(acts.x_ND[norm_N <= 10 * norm_N.median()])
    left_out = sum(len(a.x_ND) - len(e) for a, e in zip(every, expected, strict=True))
    assert left_out == sum(int(((a.tokens_N == 7) | (a.tokens_N == 8)).sum()) for a in every) > 3
    tokens_NT, how = torch.cat(parts), {"max_norm": 10.0}
    found = collect(lm, tokens_NT, site, pass_size=3, **how)
    assert torch.equal(found.x_ND, torch.cat(expected))
    assert not ((found.tokens_N == 7) | (found.tokens_N == 8)).any()
    how |= {"shard_rows": shard_rows, "dtype": "float32"}
    whole = write(lm, parts, site, tmp_path / "whole", **how)
    assert whole.stored == len(found.x_ND)
    for after in (2, 4):
        with pytest.raises(Stopped):
            write(lm, stopping(parts, after), site, tmp_path / "s", **how)
    assert write(lm, parts, site, tmp_path / "s", **how) == whole
    assert write(lm, parts, site, tmp_path / "s", **how) == whole  # nothing left to do
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "s" / path.name).read_bytes() == path.read_bytes()
    rows = every_row(ActivationStore(tmp_path / "s", epochs=1))
    assert count_rows(rows) == count_rows(found.x_ND)
    with pytest.raises(Refusal, match="max_norm"):
        write(lm, parts, site, tmp_path / "s", **how | {"max_norm": 20.0})


@pytest.mark.parametrize("wrong", [0.5, -1.0, float("nan"), float("inf"), "10"])
def test_a_norm_to_leave_out_is_a_number_of_medians(wrong: object) -> None:
    with pytest.raises(Refusal, match="max_norm"):
        collect(make("gpt2"), TOKENS, SITE, max_norm=wrong)


def test_rows_that_are_not_finite_are_refused_with_where_and_why() -> None:
    lm = make("gpt2")
    with torch.no_grad():
        lm.model.get_submodule("transformer.h.0.mlp.c_proj").weight *= 1e5
    lm.model.half()
    calls = (
        lambda: collect(lm, TOKENS, SITE),
        lambda: list(stream(lm, [TOKENS], SITE)),
        lambda: gather(lm, TOKENS, SITE, dtype="float32"),
    )
    for call in calls:
        with pytest.raises(Refusal, match=r"(?s)NaN or infinity.*document.*position.*bfloat16"):
            call()
    lm.model.float()
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[9] = float("nan")
    tokens_NT = torch.tensor([[0, 2, 3, 4], [0, 2, 9, 4]])
    with pytest.raises(Refusal, match=r"(?s)rows of 6 with NaN.*document 1 of its pass"):
        collect(lm, tokens_NT, SITE)


# --- several sites in one pass --------------------------------------------------------------------


def test_several_sites_take_one_pass_up_to_the_last(lm: LM) -> None:
    ran = []
    for i, site in enumerate(lm.residual_sites()):
        lm.find_site(site).module.register_forward_hook(lambda *_, i=i: ran.append(i))
    sites = ["blocks.1.hook_mlp_out", *lm.residual_sites()[:2]]
    lm.capture(TOKENS, sites)  # what the names mean is measured once
    ran.clear()
    found = collect_all(lm, TOKENS, sites, pass_size=5, skip=2)
    assert ran == 2 * [0, 1]  # two batches; the third block never
    assert list(found) == sites
    for site in sites:
        single = collect(lm, TOKENS, site, pass_size=5, skip=2)
        assert torch.equal(found[site].x_ND, single.x_ND) and found[site].site == site
    for wrong in ("blocks.1.hook_mlp_out", [], None):
        with pytest.raises(Refusal, match=r"sites as a list|list of sites"):
            collect_all(lm, TOKENS, wrong)


@pytest.mark.parametrize("wrong", [2.5, 2.0, True, "2", None, -1, float("nan")])
def test_counts_are_whole_numbers(tmp_path: Path, wrong: object) -> None:
    lm = make("gpt2")
    for name in ("pass_size", "skip"):
        with pytest.raises(Refusal, match=name):
            collect(lm, TOKENS, SITE, **{name: wrong})
    for name in ("batch_size", "pass_size", "skip", "seed"):
        with pytest.raises(Refusal, match=name):
            gather(lm, TOKENS, SITE, **{name: wrong})
    for name in ("batch_size", "buffer_size", "skip"):
        with pytest.raises(Refusal, match=name):
            list(stream(lm, [TOKENS], SITE, **{name: wrong}))
    if wrong is not None:
        with pytest.raises(Refusal, match="shard_rows"):
            write(lm, TOKENS, SITE, tmp_path / "s", shard_rows=wrong)
    with pytest.raises(Refusal, match="token"):
        collect(lm, TOKENS, SITE, leave_tokens=[wrong])
