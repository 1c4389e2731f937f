"""Three families of models: what is captured, edited, generated, and that nothing stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import CONTEXT, FAMILIES, LAYERS, WIDTH, WORDS, make, some_tokens
from torch import Tensor, nn

from saelearn.errors import Refusal
from saelearn.lm import LM, Batch

TOKENS = some_tokens()


@pytest.fixture(params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LM:
    return make(request.param)


def identity(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
    return x_BTD


def n_hooks(lm: LM) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._forward_hooks_with_kwargs)
        for m in lm.model.modules()
    )


# --- capture --------------------------------------------------------------------------------------


def test_captured_is_what_transformers_calls_hidden_states(lm: LM) -> None:
    with torch.no_grad():
        hidden = lm.model(TOKENS, output_hidden_states=True).hidden_states
    sites = lm.residual_sites()
    assert len(sites) == LAYERS
    found = lm.capture(TOKENS, sites)
    for i in range(LAYERS - 1):  # the last of hidden_states is normalised, ours is not
        torch.testing.assert_close(found[sites[i]], hidden[i + 1])
    before = lm.capture(TOKENS, [site.replace(":out", ":in") for site in sites])
    for i, site in enumerate(sites):
        torch.testing.assert_close(before[site.replace(":out", ":in")], hidden[i])
    norm = dict(lm.model.named_modules())
    last = next(
        n for n in ("transformer.ln_f", "gpt_neox.final_layer_norm", "model.norm") if n in norm
    )
    with torch.no_grad():
        torch.testing.assert_close(norm[last](found[sites[-1]]), hidden[-1])


def test_a_pass_ends_at_the_last_site(lm: LM) -> None:
    """What comes after it is not computed, and nothing is left over."""
    sites = lm.residual_sites()
    whole, expected, ran = lm.capture(TOKENS, sites), lm.logits(TOKENS), []
    for i, site in enumerate(sites):
        lm.find_site(site)[0].register_forward_hook(lambda *_, i=i: ran.append(i))
    lm.model.get_output_embeddings().register_forward_hook(lambda *_: ran.append("head"))
    for asked, blocks in ((sites[:1], [0]), (sites[1::-1], [0, 1]), (sites, [*range(LAYERS)])):
        ran.clear()
        found = lm.capture(TOKENS, asked)
        assert ran == blocks and set(found) == set(asked)
        assert all(torch.equal(found[site], whole[site]) for site in asked)
    ran.clear()
    assert torch.equal(lm.logits(TOKENS), expected) and ran == [*range(LAYERS), "head"]
    first = lm.generate(TOKENS[:1], max_new_tokens=3, temperature=0)
    assert torch.equal(first, slow_generate(lm, TOKENS[:1], 3))


def test_saelens_names_mean_the_same_places(lm: LM) -> None:
    """Residual = what was there + attention + MLP, and the MLP's output is its last map of ours."""
    names = ["hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post", "mlp.hook_post"]
    found = lm.capture(TOKENS, [f"blocks.1.{n}" for n in names])
    pre, attention, mlp, post, neurons = (found[f"blocks.1.{n}"] for n in names)
    torch.testing.assert_close(pre + attention + mlp, post, rtol=1e-4, atol=1e-4)
    assert neurons.shape == (*TOKENS.shape, 4 * WIDTH)
    block = lm.model.get_submodule(lm.residual_sites()[1].removesuffix(":out"))
    down = next(
        getattr(block.mlp, n)
        for n in ("c_proj", "dense_4h_to_h", "down_proj")
        if hasattr(block.mlp, n)
    )
    with torch.no_grad():
        torch.testing.assert_close(down(neurons), mlp, rtol=1e-4, atol=1e-4)
    assert torch.equal(post, lm.capture(TOKENS, lm.residual_sites()[1:2]).popitem()[1])
    assert torch.equal(pre, lm.capture(TOKENS, ["blocks.0.hook_resid_post"]).popitem()[1])


def test_without_a_side_a_site_is_what_comes_out(lm: LM) -> None:
    site = lm.residual_sites()[0]
    bare = site.removesuffix(":out")
    found = lm.capture(TOKENS, [site, bare])
    assert torch.equal(found[site], found[bare])


def test_what_was_captured_is_a_copy(lm: LM) -> None:
    site = lm.residual_sites()[0]
    found = lm.capture(TOKENS, [site])[site]
    assert not found.requires_grad
    before = lm.logits(TOKENS)
    found.zero_()
    assert torch.equal(lm.logits(TOKENS), before)


# --- edit -----------------------------------------------------------------------------------------


def all_sites(lm: LM) -> list[str]:
    residual = lm.residual_sites()
    more = ["hook_mlp_out", "hook_attn_out", "mlp.hook_post", "hook_resid_pre"]
    return [*residual, *(f"blocks.0.{name}" for name in more)]


def test_the_identity_changes_nothing(lm: LM) -> None:
    expected = lm.logits(TOKENS)
    edits = dict.fromkeys(all_sites(lm), identity)
    assert torch.equal(lm.logits(TOKENS, edits), expected)
    assert torch.equal(expected, lm.model(TOKENS).logits)


def test_an_edit_changes_what_comes_after_and_nothing_before(lm: LM) -> None:
    """A vector added at the middle, from position 4 on: causality in depth and in time."""
    first, middle, last = lm.residual_sites()
    clean = lm.capture(TOKENS, [first, middle, last])
    push = torch.full((WIDTH,), 3.0)
    push[::2] *= -1

    def edit(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        return x_BTD + (positions_T >= 4)[:, None] * push

    with lm.editing({middle: edit}):
        edited = lm.capture(TOKENS, [first, middle, last])
    assert torch.equal(edited[first], clean[first])
    torch.testing.assert_close(edited[middle][:, 4:], clean[middle][:, 4:] + push)
    assert torch.equal(edited[last][:, :4], clean[last][:, :4])
    assert (edited[last][:, 4:] - clean[last][:, 4:]).abs().amax(-1).min() > 0.1
    assert (lm.logits(TOKENS, {middle: edit}) - lm.logits(TOKENS))[:, 4:].abs().max() > 0.01


def test_zeroing_every_write_leaves_the_embedding(lm: LM) -> None:
    """Attention and MLP of each block off: what leaves the last block is what entered the first."""
    names = [f"blocks.{i}.{n}" for i in range(LAYERS) for n in ("hook_attn_out", "hook_mlp_out")]
    with lm.editing({name: lambda x_BTD, positions_T: 0 * x_BTD for name in names}):
        found = lm.capture(TOKENS, ["blocks.0.hook_resid_pre", lm.residual_sites()[-1]])
    start, end = found.values()
    torch.testing.assert_close(end, start)


def test_hooks_never_leak(lm: LM) -> None:
    site = lm.residual_sites()[1]
    expected = lm.logits(TOKENS)

    def broken(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        raise KeyError("mistake")

    def too_late(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        if positions_T[0] > 6:
            raise KeyboardInterrupt
        return x_BTD

    for action, error in (
        (lambda: lm.logits(TOKENS, {site: broken}), KeyError),
        (lambda: lm.loss(TOKENS, {site: broken}), KeyError),
        (lambda: lm.generate(TOKENS[:1, :5], max_new_tokens=9, edits={site: broken}), KeyError),
        (
            lambda: lm.generate(TOKENS[:1, :5], max_new_tokens=9, edits={site: too_late}),
            KeyboardInterrupt,
        ),
        (lambda: lm.logits(TOKENS, {site: identity, "nowhere": identity}), Refusal),
    ):
        with pytest.raises(error):
            action()
        assert n_hooks(lm) == 0
        assert torch.equal(lm.logits(TOKENS), expected)
    seen = []
    lm.logits(TOKENS, {site: lambda x, positions_T: seen.append(positions_T.tolist()) or x})
    assert seen == [list(range(10))]  # and positions begin at 0 again after a broken generation
    with lm.editing({site: identity}), lm.editing({site: identity}):
        assert n_hooks(lm) >= 2
    assert n_hooks(lm) == 0


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda x, p: x[:, :-1], r"\(3, 10, 16\).*\(3, 9, 16\)"),
        (lambda x, p: x[..., :-1], r"\(3, 10, 16\).*\(3, 10, 15\)"),
        (lambda x, p: None, "NoneType"),
    ],
)
def test_an_edit_of_another_shape_is_refused(lm: LM, edit: object, words: str) -> None:
    with pytest.raises(Refusal, match=f"(?s){words}"):
        lm.logits(TOKENS, {lm.residual_sites()[0]: edit})


@pytest.mark.parametrize(
    "site",
    ["", ":in", "nowhere", "transformer.h.99", "blocks.9.hook_resid_post", "blocks.0.hook_nothing",
     "blocks.0", "lm_head:sideways", "LAYERS"],
)  # fmt: skip
def test_unknown_sites_are_refused_with_known_ones(lm: LM, site: str) -> None:
    known = lm.residual_sites()[0]
    if site == "LAYERS":  # a list of blocks is a module, but nothing passes through it
        site = known.removesuffix(".0:out")
    with pytest.raises(Refusal, match=r"lm\.residual_sites") as caught:
        lm.capture(TOKENS, [site])
    assert known in caught.value.expected and repr(site) == caught.value.received
    with pytest.raises(Refusal):
        lm.logits(TOKENS, {site: identity})


def test_a_string_of_sites_is_refused(lm: LM) -> None:
    with pytest.raises(Refusal, match="list of sites"):
        lm.capture(TOKENS, lm.residual_sites()[0])


def test_a_site_that_never_runs_is_refused() -> None:
    lm = make("gpt2")
    lm.model.spare = nn.Linear(2, 2)
    with pytest.raises(Refusal, match=r"(?s)runs through.*spare"):
        lm.capture(TOKENS, ["spare"])


# --- loss -----------------------------------------------------------------------------------------


def test_the_loss_is_transformers_loss(lm: LM) -> None:
    tokens = some_tokens(7, 10, seed=1)
    with torch.no_grad():
        expected = lm.model(tokens, labels=tokens).loss.item()
    for pass_size in (1, 3, 100):
        assert lm.loss(tokens, pass_size=pass_size) == pytest.approx(expected, rel=1e-5)


# --- generate -------------------------------------------------------------------------------------


def slow_generate(lm: LM, tokens: Tensor, n_new: int, edits: dict | None = None) -> Tensor:
    """The likeliest token again and again, each time from the start and without a cache."""
    for _ in range(n_new):
        logits = lm.logits(tokens, edits)[:, -1]
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    return tokens


def test_the_cache_changes_nothing(lm: LM) -> None:
    found = lm.generate(TOKENS, max_new_tokens=12, temperature=0)
    assert torch.equal(found, slow_generate(lm, TOKENS, 12))
    assert torch.equal(found[:, : TOKENS.shape[1]], TOKENS)


def test_the_cache_changes_nothing_with_edits_at_some_positions(lm: LM) -> None:
    push = 4 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))

    def edit(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        return x_BTD + ((positions_T >= 3) & (positions_T < 13))[:, None] * push

    edits = {lm.residual_sites()[1]: edit}
    found = lm.generate(TOKENS, max_new_tokens=12, temperature=0, edits=edits)
    assert torch.equal(found, slow_generate(lm, TOKENS, 12, edits))
    assert not torch.equal(found, slow_generate(lm, TOKENS, 12))


def test_edits_see_each_position_once(lm: LM) -> None:
    seen = []

    def edit(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        assert x_BTD.shape == (2, len(positions_T), WIDTH)
        seen.append(positions_T.tolist())
        return x_BTD

    for _ in range(2):  # the second time like the first
        seen.clear()
        edits = {lm.residual_sites()[0]: edit}
        lm.generate(TOKENS[:1, :4], max_new_tokens=5, n=2, edits=edits)
        assert seen == [[0, 1, 2, 3], [4], [5], [6], [7]]


def test_the_same_seed_gives_the_same_tokens(lm: LM) -> None:
    first, again, other = (
        lm.generate("<doc> w2 w3", max_new_tokens=9, n=4, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (4, 12) and first[:, :3].tolist() == [[0, 2, 3]] * 4
    assert len({tuple(row) for row in first.tolist()}) > 1


def test_draws_follow_the_models_probabilities() -> None:
    """4,000 draws of one token against softmax(logits / temperature)."""
    lm = make("gpt2")
    prompt = TOKENS[:1, :4]
    for temperature in (0.5, 1.0, 2.0):
        drawn = lm.generate(prompt, max_new_tokens=1, n=4_000, temperature=temperature)[:, -1]
        share = torch.bincount(drawn, minlength=WORDS) / 4_000
        expected = (lm.logits(prompt)[0, -1] / temperature).softmax(-1)
        error = (expected * (1 - expected) / 4_000).sqrt()
        assert ((share - expected).abs() < 5 * error + 1e-3).all()


def test_more_than_the_context_is_refused(lm: LM) -> None:
    assert lm.context_length == CONTEXT
    assert lm.generate(TOKENS, max_new_tokens=CONTEXT - 10).shape[1] == CONTEXT
    with pytest.raises(Refusal, match=f"(?s)between 1 and {CONTEXT}.*{CONTEXT + 1}"):
        lm.generate(TOKENS, max_new_tokens=CONTEXT - 9)
    with pytest.raises(Refusal, match=f"(?s)between 1 and {CONTEXT}.*{CONTEXT + 1}"):
        lm.logits(some_tokens(1, CONTEXT + 1))
    for temperature in (-1.0, float("nan")):
        with pytest.raises(Refusal, match="temperature"):
            lm.generate(TOKENS, max_new_tokens=1, temperature=temperature)


# --- text -----------------------------------------------------------------------------------------


def test_text_becomes_tokens_and_back(lm: LM) -> None:
    tokens = lm.tokenize("<doc> w7 w2")
    assert tokens.tolist() == [[0, 7, 2]]
    assert lm.words(tokens[0]) == ["<doc>", "w7", "w2"]
    assert lm.text(tokens[0]) == "<doc> w7 w2"


def test_unknown_words_and_empty_texts_are_refused() -> None:
    lm = make("gpt2")
    with pytest.raises(Refusal, match=r"(?s)'cat', 'W2'.*get_vocab"):
        lm.tokenize("<doc> w7 cat W2 w3")
    with pytest.raises(Refusal, match="at least one token"):
        lm.tokenize("")


def test_a_tokenizer_whose_unknown_is_its_beginning_takes_both() -> None:
    """GPT-2's <|endoftext|> is its BOS, its EOS and its unknown token."""
    lm = make("gpt2")
    lm.tokenizer.unk_token = "<doc>"
    assert lm.tokenize("<doc> w7").tolist() == [[0, 7]]


# --- load -----------------------------------------------------------------------------------------


def test_a_saved_folder_gives_the_same_model(lm: LM, tmp_path: Path) -> None:
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    back = LM.load(tmp_path / "model")
    assert torch.equal(back.logits(TOKENS), lm.logits(TOKENS))
    assert back.tokenize("w7").tolist() == [[0, 7]] and not back.model.training
    half = LM.load(str(tmp_path / "model"), dtype="bfloat16")
    assert half.capture(TOKENS, half.residual_sites()).popitem()[1].dtype == torch.bfloat16
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(Refusal, match="a causal language model"):
        LM.load(tmp_path / "model")


def test_an_unknown_folder_is_refused(tmp_path: Path) -> None:
    for name in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(Refusal, match=r"(?s)'tiny', a folder.*check the name"):
            LM.load(name)


@pytest.mark.parametrize("offline", ["1", "0"])
def test_an_unknown_name_is_refused_quickly(offline: str, tmp_path: Path) -> None:
    """In a process of its own; the proxy leads nowhere, as if the network were cut."""
    script = (
        "import time\n"
        "from saelearn.lm import LM\n"
        "from saelearn.errors import Refusal\n"
        "start = time.monotonic()\n"
        "try:\n"
        "    LM.load('nobody/no-such-model')\n"
        "except Refusal as error:\n"
        "    print('refused', time.monotonic() - start, error)\n"
    )
    nowhere = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    environment = os.environ | nowhere | {"HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path)}
    environment |= {name.lower(): value for name, value in nowhere.items()} | {"no_proxy": ""}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=100
    )
    assert result.stdout.startswith("refused"), result.stderr
    assert "nobody/no-such-model" in result.stdout and "without network" in result.stdout
    assert float(result.stdout.split()[1]) < 20


# --- batches of prompts ---------------------------------------------------------------------------


def test_many_prompts_go_on_as_each_alone(lm: LM) -> None:
    prompts = ["w2 w3 w4 w5 w6", "w7", "<doc> w9 w8"]
    written = lm.generate_all(prompts, max_new_tokens=7, temperature=0, stop_at_eos=False)
    for prompt, tokens_T, mask_T in zip(prompts, *written, strict=True):
        alone = lm.generate(prompt, max_new_tokens=7, temperature=0)[0]
        assert torch.equal(tokens_T[mask_T], alone)
        assert mask_T.sum() == len(alone) and mask_T[: len(alone)].all()


def test_several_continuations_of_each(lm: LM) -> None:
    prompts = ["w2 w3 w4", "w7"]
    how = {"max_new_tokens": 6, "n": 3, "stop_at_eos": False}
    first, again = (lm.generate_all(prompts, seed=1, **how) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first.tokens_BT[::2, :4].tolist() == 3 * [[0, 2, 3, 4]]
    assert first.tokens_BT[1::2, :2].tolist() == 3 * [[0, 7]]
    assert first.mask_BT.sum(1).tolist() == [10, 8] * 3
    assert len({tuple(row) for row in first.tokens_BT[::2].tolist()}) > 1
    other = lm.generate_all(prompts, seed=2, **how)
    assert not torch.equal(first.tokens_BT, other.tokens_BT)
    one = lm.generate_all(["w2 w3"], seed=4, **how).tokens_BT
    assert torch.equal(one, lm.generate("w2 w3", max_new_tokens=6, n=3, seed=4))


def test_a_text_ends_with_its_eos(lm: LM) -> None:
    """Each text is the endless one up to its first new EOS, which it keeps."""
    prompts, how = ["w2 w3 w4", "w7", "<doc> w5 w6"], {"max_new_tokens": 15, "temperature": 0}
    endless = lm.generate_all(prompts, stop_at_eos=False, **how)
    starts = [4, 2, 3]
    eos = int(endless.tokens_BT[0, 7])  # a token that comes up
    lm.model.generation_config.eos_token_id = [eos, 0]
    written = lm.generate_all(prompts, **how)
    for start, tokens_T, mask_T, whole_T in zip(starts, *written, endless.tokens_BT, strict=True):
        new = whole_T[start : start + 15].tolist()
        ends = [i for i, token in enumerate(new) if token in (eos, 0)]
        length = start + (ends[0] + 1 if ends else 15)
        assert mask_T.sum() == length and torch.equal(tokens_T[mask_T], whole_T[:length])
        assert (tokens_T[~mask_T] == eos).all()
    assert written.mask_BT[0].sum() <= 8
    assert written.tokens_BT.shape[1] == int(written.mask_BT.sum(1).max())


@pytest.mark.parametrize("wrong", [-1, 1.5, "3", None, float("nan")])
def test_numbers_of_tokens_are_whole(lm: LM, wrong: object) -> None:
    for call in (
        lambda: lm.generate("w2", max_new_tokens=wrong),
        lambda: lm.generate_all(["w2"], max_new_tokens=wrong),
        lambda: lm.generate("w2", max_new_tokens=1, n=wrong),
    ):
        with pytest.raises(Refusal):
            call()
    assert lm.generate("w2", max_new_tokens=0).tolist() == [[0, 2]]


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (torch.tensor([[0, WORDS]]), f"0 to {WORDS - 1}"),
        (torch.tensor([[0, -1]]), f"0 to {WORDS - 1}"),
        (TOKENS[0], r"\[B, T\]"),
        (TOKENS[:0], r"\[B, T\]"),
        (TOKENS[:, :0], "tokens in a document >= 1"),
        (TOKENS.float(), "whole numbers"),
        (TOKENS > 3, "whole numbers"),
        (TOKENS.tolist(), "token ids"),
        (None, "token ids"),
    ],
)
def test_what_is_no_token_is_refused(lm: LM, tokens: object, said: str) -> None:
    for call in (
        lambda: lm.logits(tokens),
        lambda: lm.loss(tokens),
        lambda: lm.capture(tokens, lm.residual_sites()),
        lambda: lm.generate(tokens, max_new_tokens=1),
        lambda: lm.generate_all(Batch(tokens, None), max_new_tokens=1),
    ):
        with pytest.raises(Refusal, match=f"{said}|one prompt|a text"):
            call()
