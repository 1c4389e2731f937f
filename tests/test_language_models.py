"""One table of language models: on each, capture, edits, positions, names and padding hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import language_models
import pytest
import torch
from language_models import ALL, WIDTH, WORDS, Architecture
from torch import Tensor, nn

from saelearn.activations import collect
from saelearn.errors import Refusal
from saelearn.lm import LM, Batch
from saelearn.sae import SAE

TOKENS = torch.randint(2, WORDS, (3, 9), generator=torch.Generator().manual_seed(1))
FLOAT32 = [a for a in ALL if a.dtype == "float32"]  # others round by the size of the batch
_kept: dict[str, LM] = {}


@pytest.fixture(params=ALL, ids=lambda architecture: architecture.label)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return request.param


@pytest.fixture
def lm(architecture: Architecture) -> LM:
    if architecture.label not in _kept:
        _kept.clear()  # tests of one architecture follow each other
        _kept[architecture.label] = language_models.build(architecture)
    return _kept[architecture.label]


def by_hand(lm: LM, keep: Callable[[str, nn.Module], bool]) -> dict[str, Tensor]:
    """Outputs of modules, by PyTorch's own hooks: those that are one row a token."""
    found, handles, twice = {}, [], set()

    def hook_for(path: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            first = output if isinstance(output, Tensor) else output[0]
            one_row_a_token = (TOKENS.shape, (TOKENS.numel(),))
            if not isinstance(first, Tensor) or first.shape[:-1] not in one_row_a_token:
                return
            if f"{path}:out" in found:
                twice.add(f"{path}:out")  # one module, two places: Phi's dropout
            found[f"{path}:out"] = first.clone()

        return hook

    for path, module in lm.model.named_modules():
        if keep(path, module):
            handles.append(module.register_forward_hook(hook_for(path)))
    with torch.no_grad():
        lm.model(TOKENS, use_cache=False)
    for handle in handles:
        handle.remove()
    return {site: x for site, x in found.items() if site not in twice}


def in_blocks(lm: LM) -> Callable[[str, nn.Module], bool]:
    """The blocks, and the modules that they are directly made of: attention, MLP, norms."""
    blocks = [site.removesuffix(":out") for site in lm.residual_sites()]
    return lambda path, _: path in blocks or path.rpartition(".")[0] in blocks


def test_captured_is_what_plain_hooks_see_to_the_bit(lm: LM) -> None:
    expected = by_hand(lm, in_blocks(lm))
    assert set(lm.residual_sites()) <= expected.keys() and len(expected) >= 6
    for site, x in expected.items():
        found = lm.capture(TOKENS, [site])[site]
        assert found.shape[:2] == TOKENS.shape
        assert torch.equal(found.reshape(x.shape), x), site
    together = lm.capture(TOKENS, list(expected))
    assert all(torch.equal(together[site].reshape(x.shape), x) for site, x in expected.items())


def test_the_identity_changes_nothing_and_a_push_does(lm: LM) -> None:
    sites = list(by_hand(lm, in_blocks(lm)))
    with torch.no_grad():
        expected = lm.model(TOKENS, use_cache=False).logits
    assert torch.equal(lm.logits(TOKENS), expected)
    assert torch.equal(lm.logits(TOKENS, dict.fromkeys(sites, lambda x, _: x)), expected)
    for site in sites:

        def push(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
            wave_D = torch.linspace(-3, 4, x_BTD.shape[-1]).sin()
            return x_BTD + (positions_T >= 4)[:, None] * 3 * wave_D.to(x_BTD)

        changed_BT = (lm.logits(TOKENS, {site: push}) - expected).abs().amax(-1)
        assert not changed_BT[:, :4].any(), site
        assert changed_BT[:, 4:].max() > 0, site


def push_at(lm: LM, first: int, last: int) -> dict[str, Callable]:
    push_D = 2 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))

    def edit(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        inside_T = (positions_T >= first) & (positions_T < last)
        return x_BTD + inside_T[:, None] * push_D.to(x_BTD)

    return {lm.residual_sites()[0]: edit}


def test_cache_no_cache_and_transformers_own_loop_write_the_same(
    lm: LM, architecture: Architecture
) -> None:
    """Pushed at positions 5 to 13: four of the prompt, five that are written."""
    edits, n_new = push_at(lm, 5, 14), 10
    ours = lm.generate(TOKENS, max_new_tokens=n_new, temperature=0, edits=edits)
    with lm.editing(edits):
        theirs = lm.model.generate(TOKENS, max_new_tokens=n_new, do_sample=False)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, lm.generate(TOKENS, max_new_tokens=n_new, temperature=0))
    slow = TOKENS
    while slow.shape[1] < ours.shape[1]:
        last = lm.logits(slow, edits)[:, -1]
        slow = torch.cat([slow, last.argmax(-1, keepdim=True)], dim=1)
    if architecture.dtype == "float32":  # else two ways to compute differ in what is likeliest
        assert torch.equal(ours, slow)


def test_saelens_names_are_what_is_added_to_the_stream(lm: LM, architecture: Architecture) -> None:
    names = {n: f"blocks.1.hook_{n}" for n in ("resid_pre", "attn_out", "mlp_out", "resid_post")}
    if not architecture.names:
        for name in ("attn_out", "mlp_out"):
            with pytest.raises(Refusal, match=f"hook_{name}"):
                lm.find_site(names[name])
        return
    found = lm.capture(TOKENS, list(names.values()))
    pre, attention, mlp, post = (found[name].float() for name in names.values())
    half = architecture.dtype != "float32"
    close = {"rtol": 0.02, "atol": 0.02 * float(post.abs().max())} if half else {}
    torch.testing.assert_close(
        pre + attention + mlp, post, **(close or {"rtol": 1e-4, "atol": 1e-4})
    )
    assert torch.equal(pre, lm.capture(TOKENS, ["blocks.0.hook_resid_post"]).popitem()[1].float())


def texts_of(lengths: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, WORDS, (n,), generator=generator) for n in lengths]


def filled(texts: list[Tensor], side: str) -> Batch:
    """Documents of unequal lengths, filled up with 0 on one side or on both."""
    length = max(map(len, texts)) + 2
    tokens_BT, mask_BT = torch.zeros(len(texts), length, dtype=torch.long), None
    mask_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    for b, tokens_T in enumerate(texts):
        free = length - len(tokens_T)
        start = {"left": free, "right": 0, "both": free // 2}[side]
        tokens_BT[b, start : start + len(tokens_T)] = tokens_T
        mask_BT[b, start : start + len(tokens_T)] = True
    return Batch(tokens_BT, mask_BT)


@pytest.mark.parametrize("architecture", FLOAT32, ids=lambda a: a.label, indirect=True)
def test_filling_changes_nothing(lm: LM) -> None:
    filling_changes_nothing(lm, 1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "bloom", "mamba"])
def test_filling_changes_nothing_to_1e_5(kind: str) -> None:
    """With weights as they are made: where logits are a hundred, so is the rounding."""
    small = next(replace(a, scale=1) for a in FLOAT32 if a.kind == kind)
    filling_changes_nothing(language_models.build(small), 1e-5)


def filling_changes_nothing(lm: LM, tolerance: float) -> None:
    """Logits, loss, activations, features and greedy texts, with a push, against each document
    alone: filled up on the left, on the right and on both sides."""
    texts, near = texts_of((3, 9, 1, 6)), {"rtol": tolerance, "atol": tolerance}
    site, edits, sae = lm.residual_sites()[1], push_at(lm, 2, 5), SAE(WIDTH, 40)
    greedy = {"max_new_tokens": 4, "temperature": 0, "edits": edits}
    logits = [lm.logits(tokens_T[None], edits)[0] for tokens_T in texts]
    passed_ND = torch.cat([lm.capture(tokens_T[None], [site])[site][0] for tokens_T in texts])
    written = [lm.generate(tokens_T[None], **greedy)[0] for tokens_T in texts]
    nats = [
        nn.functional.cross_entropy(logits_TV[:-1], tokens_T[1:], reduction="sum")
        for logits_TV, tokens_T in zip(logits, texts, strict=True)
    ]
    loss = float(sum(nats)) / sum(len(tokens_T) - 1 for tokens_T in texts)
    for side in ("left", "right", "both"):
        batch = filled(texts, side)
        tokens_BT, mask_BT = batch
        found = lm.logits(tokens_BT, edits, mask_BT=mask_BT)
        torch.testing.assert_close(found[mask_BT], torch.cat(logits), **near)
        x_BTD = lm.capture(tokens_BT, [site], mask_BT=mask_BT)[site]
        torch.testing.assert_close(x_BTD[mask_BT], passed_ND, **near)
        assert found[~mask_BT].isnan().all() and x_BTD[~mask_BT].isnan().all()
        x_ND = collect(lm, tokens_BT, site, mask_NT=mask_BT, skip=0).x_ND
        f_NF, expected_NF = sae.encode(x_ND), sae.encode(passed_ND)
        torch.testing.assert_close(f_NF, expected_NF, **near)
        assert lm.loss(tokens_BT, edits, mask_NT=mask_BT) == pytest.approx(loss, rel=tolerance)
    together = lm.generate_all(batch, **greedy)
    for tokens_T, mask_T, own_T in zip(*together, written, strict=True):
        assert torch.equal(tokens_T[mask_T], own_T)


def test_the_table_is_as_long_as_promised() -> None:
    assert len({architecture.kind for architecture in ALL}) >= 60
