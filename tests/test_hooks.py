"""Edits within passes: at which positions, in which shapes, by whom, with which gradients."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import pytest
import torch
from tiny_models import CONTEXT, FAMILIES, WIDTH, make, some_tokens
from torch import Tensor, nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from saelearn import steer
from saelearn.activations import splice
from saelearn.errors import Refusal
from saelearn.lm import LM, Batch
from saelearn.sae import SAE

TOKENS = some_tokens()


@pytest.fixture(params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LM:
    lm = make(request.param)
    lm.model.generation_config.eos_token_id = None
    return lm


class Watch:
    """An edit that pushes from position 5 to 9 and remembers which positions it was given."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.push_D = 3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))

    def __call__(self, x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        self.seen.append(positions_T.tolist())
        inside_T = (positions_T >= 5) & (positions_T < 9)
        return x_BTD + inside_T[:, None] * self.push_D


# --- positions come from what the model is given --------------------------------------------------


def test_positions_under_the_models_own_generate(lm: LM) -> None:
    """The documented way, `with lm.editing(...)`, steers what is generated, token by token."""
    watch, site = Watch(), lm.residual_sites()[1]
    with lm.editing({site: watch}):
        theirs = lm.model.generate(TOKENS[:1, :4], max_new_tokens=8, do_sample=False)
    assert watch.seen == [[0, 1, 2, 3], *([t] for t in range(4, 11))]
    ours = lm.generate(TOKENS[:1, :4], max_new_tokens=8, temperature=0, edits={site: watch})
    plain = lm.generate(TOKENS[:1, :4], max_new_tokens=8, temperature=0)
    assert torch.equal(theirs, ours) and not torch.equal(ours, plain)
    assert torch.equal(ours[:, :6], plain[:, :6])  # x at 5 is the first to be pushed: token 6


def test_filled_up_prompts_under_the_models_own_generate(lm: LM) -> None:
    """Left padding, as transformers wants it: each document is pushed at its own positions."""
    prompts = [TOKENS[0, :3], TOKENS[1, :7], TOKENS[2, :5]]
    mask_BT = torch.tensor([[t >= 7 - len(p) for t in range(7)] for p in prompts])
    tokens_BT = torch.zeros(3, 7, dtype=torch.long).masked_scatter(mask_BT, torch.cat(prompts))
    watch, site = Watch(), lm.residual_sites()[1]
    with lm.editing({site: watch}):
        theirs = lm.model.generate(
            tokens_BT, attention_mask=mask_BT.long(), max_new_tokens=6, do_sample=False
        )
    ours = lm.generate_all(
        Batch(tokens_BT, mask_BT), max_new_tokens=6, temperature=0, edits={site: watch}
    )
    for theirs_T, ours_T, mask_T, prompt_T in zip(theirs, *ours, prompts, strict=True):
        alone = lm.generate(prompt_T[None], max_new_tokens=6, temperature=0, edits={site: watch})
        assert torch.equal(theirs_T[7 - len(prompt_T) :], alone[0])
        assert torch.equal(ours_T[mask_T], alone[0])


def test_positions_of_a_pass_by_hand(lm: LM) -> None:
    """position_ids first, then a mask over all tokens so far, then the cache's length."""
    watch, site = Watch(), lm.residual_sites()[0]
    with lm.editing({site: watch}), torch.no_grad():
        cache = lm.model(TOKENS[:, :4], use_cache=True).past_key_values
        lm.model(TOKENS[:, 4:6], past_key_values=cache)
        lm.model(input_ids=TOKENS[:, :3], position_ids=torch.arange(7, 10)[None])
        lm.model(inputs_embeds=lm.model.get_input_embeddings()(TOKENS[:, :2]))
        lm.model.base_model(TOKENS[:, :2])
        lm.model(TOKENS[:1, :4], attention_mask=torch.tensor([[0, 1, 1, 1]]))
    known = [[0, 1, 2, 3], [4, 5], [7, 8, 9], [0, 1], [0, 1]]
    assert watch.seen[:5] == known
    assert watch.seen[5][1:] == [0, 1, 2]  # what stands in the first column is filling


def test_a_part_of_the_model_alone_tells_no_position(lm: LM) -> None:
    site = "blocks.1.hook_mlp_out"
    mlp = lm.find_site(site).module
    with pytest.raises(Refusal, match="whole model"), lm.editing({site: Watch()}):
        mlp(torch.zeros(1, 2, WIDTH))
    assert torch.isfinite(lm.logits(TOKENS)).all()


def test_filling_is_not_steered(lm: LM) -> None:
    site, seen = lm.residual_sites()[0], {}
    mask_BT = torch.ones_like(TOKENS, dtype=torch.bool)
    mask_BT[0, :4] = mask_BT[1, 7:] = False

    def push(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        seen["positions"] = positions_T.tolist()
        return x_BTD + 100

    clean = lm.capture(TOKENS, [site], mask_BT=mask_BT)[site]
    with lm.editing({site: push}):
        found = lm.capture(TOKENS, [site], mask_BT=mask_BT)[site]
    assert seen["positions"] == list(range(10))
    torch.testing.assert_close(found[mask_BT], clean[mask_BT] + 100)
    assert found[~mask_BT].isnan().all()


@pytest.mark.parametrize(
    ("mask_BT", "said"),
    [
        (torch.ones(3, 9), r"\(3, 10\)"),
        ([[True] * 10] * 3, "list"),
        (torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1, 1, 1]] * 3), "hole in document 0"),
        (torch.tensor([[0, 1, 1, 0, 1, 1, 0, 0, 0, 0]] * 3), "hole in document 0"),
    ],
)
def test_masks_that_cannot_be_meant_are_refused(lm: LM, mask_BT: object, said: str) -> None:
    for call in (
        lambda: lm.logits(TOKENS, mask_BT=mask_BT),
        lambda: lm.loss(TOKENS, mask_NT=mask_BT),
        lambda: lm.capture(TOKENS, lm.residual_sites(), mask_BT=mask_BT),
        lambda: lm.generate_all(Batch(TOKENS, mask_BT), max_new_tokens=1),
    ):
        with pytest.raises(Refusal, match=said):
            call()


# --- an edit that never runs ----------------------------------------------------------------------


def test_an_edit_that_never_runs_is_refused_everywhere() -> None:
    lm = make("gpt2")
    lm.model.spare = nn.Linear(2, 2)
    edits = {"spare": lambda x_BTD, positions_T: x_BTD}

    def block() -> None:
        with lm.editing(edits):
            lm.model(TOKENS)

    for call in (
        lambda: lm.logits(TOKENS, edits),
        lambda: lm.loss(TOKENS, edits),
        lambda: lm.compare(TOKENS, edits),
        lambda: lm.capture(TOKENS, ["spare"]),
        lambda: lm.capture(TOKENS, [lm.residual_sites()[0], "spare"]),
        lambda: lm.generate(TOKENS, max_new_tokens=2, edits=edits),
        lambda: lm.generate_all(Batch(TOKENS, None), max_new_tokens=2, edits=edits),
        block,
    ):
        with pytest.raises(Refusal, match=r"(?s)runs through.*spare"):
            call()
    with lm.editing(edits):  # no pass, nothing ignored
        pass
    with lm.editing({lm.residual_sites()[2]: Watch()}):  # a pass that ends before the edit's site
        lm.capture(TOKENS, lm.residual_sites()[:1])


def vision_and_text(kind: str) -> LM:
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 5, "num_attention_heads": 2,
        "image_size": 8, "patch_size": 4, "projection_dim": 8, "vision_use_head": False,
    }  # fmt: skip
    text = {
        "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "max_position_embeddings": CONTEXT, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "gemma3":
        config = Gemma3Config(
            text_config=text, vision_config=vision | {"model_type": "siglip_vision_model"},
            image_token_index=39, boi_token_index=38, eoi_token_index=37, mm_tokens_per_image=4,
        )  # fmt: skip
        return LM(Gemma3ForConditionalGeneration(config))
    config = LlavaConfig(
        text_config=text | {"model_type": "llama"}, image_token_index=39,
        vision_config=vision | {"model_type": "clip_vision_model"},
    )  # fmt: skip
    return LM(LlavaForConditionalGeneration(config))


@pytest.mark.parametrize("kind", ["gemma3", "llava"])
def test_of_a_model_for_images_the_text_part_is_taken(kind: str) -> None:
    """Its image encoder has more blocks, and never runs for text."""
    lm = vision_and_text(kind)
    sites = lm.residual_sites()
    assert len(sites) == 2 and all("vision" not in site for site in sites)
    assert lm.context_length == CONTEXT
    clean = lm.logits(TOKENS)
    assert (lm.logits(TOKENS, {sites[0]: Watch()}) - clean)[:, 5:].abs().max() > 1e-3
    assert lm.capture(TOKENS, sites)[sites[1]].shape == (3, 10, WIDTH)
    vision = next(
        path for path, module in lm.model.named_modules()
        if "vision" in path and path.endswith("layers.0")
    )  # fmt: skip
    with pytest.raises(Refusal, match=r"(?s)runs through.*vision"):
        lm.logits(TOKENS, {f"{vision}:out": lambda x_BTD, positions_T: x_BTD})


def test_experts_are_no_blocks() -> None:
    class Expert(nn.ModuleList):
        pass

    config = MixtralConfig(
        vocab_size=40, hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=8, bos_token_id=0,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    model.model.layers[0].mlp.more = Expert([nn.Linear(WIDTH, WIDTH) for _ in range(8)])
    assert LM(model).residual_sites() == ["model.layers.0:out", "model.layers.1:out"]


def test_context_lengths() -> None:
    lm = make("llama")
    for stated, expected in ((7, 7), (2**31, None), (10**30, None)):
        lm.model.config.max_position_embeddings = stated
        assert lm.context_length == expected
    assert lm.logits(some_tokens(1, 40)).shape == (1, 40, 40)
    config = MambaConfig(vocab_size=40, hidden_size=WIDTH, num_hidden_layers=1, state_size=2)
    assert LM(MambaForCausalLM(config)).context_length is None


# --- shapes ---------------------------------------------------------------------------------------


class Named(NamedTuple):
    first: Tensor
    second: int


class Wrapped(nn.Module):
    """A module whose output comes in some other form."""

    def __init__(self, inner: nn.Module, form: str):
        super().__init__()
        self.inner, self.form = inner, form

    def forward(self, x: Tensor) -> object:
        y = self.inner(x)
        return {
            "flat": lambda: y.flatten(0, 1),
            "list": lambda: [y, 3],
            "tuple": lambda: (y, 3),
            "dict": lambda: {"y": y, "z": 3},
            "named": lambda: Named(y, 3),
            "swapped": lambda: y.transpose(0, 1),
            "text": lambda: "none",
            "whole numbers": lambda: y.long(),
            "first alone": lambda: y[:1],
            "nested": lambda: ((y,), 3),
        }[self.form]()


class Unwrapped(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        y = next(iter(y.values())) if isinstance(y, dict) else y
        y = y[0] if isinstance(y, list | tuple) else y
        return y.reshape(x.shape)


@pytest.mark.parametrize("form", ["flat", "list", "tuple", "dict", "named"])
def test_every_form_of_one_row_a_token_is_the_same_site(form: str) -> None:
    lm = make("gpt2")
    site = "transformer.h.1.mlp:out"
    expected, clean = lm.capture(TOKENS, [site])[site], lm.logits(TOKENS)
    steered = lm.logits(TOKENS, {site: Watch()})
    block = lm.model.transformer.h[1]
    block.mlp = Unwrapped(Wrapped(block.mlp, form))
    inner = "transformer.h.1.mlp.inner:out"
    assert torch.equal(lm.capture(TOKENS, [inner])[inner], expected)
    assert torch.equal(lm.logits(TOKENS, {inner: lambda x_BTD, positions_T: x_BTD}), clean)
    assert torch.equal(lm.logits(TOKENS, {inner: Watch()}), steered)


@pytest.mark.parametrize("form", ["swapped", "text", "whole numbers", "first alone", "nested"])
def test_what_is_not_one_row_a_token_is_refused(form: str) -> None:
    lm = make("gpt2")
    block = lm.model.transformer.h[1]
    block.mlp = Unwrapped(Wrapped(block.mlp, form))
    inner = "transformer.h.1.mlp.inner:out"
    for call in (
        lambda: lm.capture(TOKENS, [inner]),
        lambda: lm.logits(TOKENS, {inner: Watch()}),
    ):
        with pytest.raises(Refusal, match=rf"(?s)at {inner}"):
            call()


def test_the_whole_models_output_is_a_site_too(lm: LM) -> None:
    """It comes in named fields, and keeps them."""
    base = next(path for path, module in lm.model.named_modules() if module is lm.model.base_model)
    found = lm.capture(TOKENS, [base])[base]
    with torch.no_grad():
        assert torch.equal(found, lm.model.base_model(TOKENS).last_hidden_state)
    steered = lm.logits(TOKENS, {base: lambda x_BTD, positions_T: 0 * x_BTD})
    assert (steered == steered[0, 0]).all()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda x, p: x.to(torch.complex64), "complex64"),
        (lambda x, p: x.to("meta"), "meta"),
    ],
)
def test_an_edit_gives_real_numbers_where_the_model_is(edit: object, said: str) -> None:
    lm = make("gpt2")
    with pytest.raises(Refusal, match=said):
        lm.logits(TOKENS, {lm.residual_sites()[0]: edit})


def test_an_edit_that_gives_nan_writes_no_text() -> None:
    lm = make("gpt2")
    edits = {lm.residual_sites()[0]: lambda x_BTD, positions_T: x_BTD * float("nan")}
    for temperature in (0.0, 1.0):
        with pytest.raises(Refusal, match="NaN"):
            lm.generate(TOKENS, max_new_tokens=2, temperature=temperature, edits=edits)


def test_a_model_without_its_head_has_no_logits_but_activations() -> None:
    whole = make("gpt2")
    lm = LM(whole.model.transformer)
    (found,) = lm.capture(TOKENS, ["h.1:out"]).values()
    (expected,) = whole.capture(TOKENS, ["transformer.h.1:out"]).values()
    assert torch.equal(found, expected)
    for call in (
        lambda: lm.logits(TOKENS),
        lambda: lm.loss(TOKENS),
        lambda: lm.generate(TOKENS, max_new_tokens=1),
    ):
        with pytest.raises(Refusal, match="with its head"):
            call()


# --- gradients ------------------------------------------------------------------------------------


def test_gradients_through_an_sae_are_the_differences(lm: LM) -> None:
    """d logit / d feature, by the library's edit with gradients and by raising the feature."""
    site, sae = lm.residual_sites()[1], SAE(WIDTH, 30, seed=1)
    lm.model.double()
    sae.double().requires_grad_(False)
    sae.W_dec.mul_(20)
    kept = {}

    def through(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        f_BTF = kept["f"] = sae.encode(x_BTD)
        f_BTF.retain_grad()
        return sae.decode(f_BTF)

    lm.logits(TOKENS, {site: through}, gradients=True)[0, -1, 7].backward()
    gradient = kept["f"].grad[0, 3, 5]
    with lm.editing({site: through}):  # the other documented way
        lm.model(TOKENS).logits[0, -1, 7].backward()
    assert torch.equal(kept["f"].grad[0, 3, 5], gradient)

    def logit(by: float) -> Tensor:
        def raised(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
            f_BTF = sae.encode(x_BTD)
            f_BTF[0, 3, 5] += by
            return sae.decode(f_BTF)

        return lm.logits(TOKENS, {site: raised})[0, -1, 7]

    step = 1e-3  # some norms compute in single precision
    difference = (logit(step) - logit(-step)) / (2 * step)
    torch.testing.assert_close(gradient, difference, rtol=2e-2, atol=1e-6)
    assert gradient != 0


def test_nothing_remembers_how_it_was_computed_unless_asked(lm: LM) -> None:
    site = lm.residual_sites()[1]
    assert not lm.logits(TOKENS).requires_grad
    assert not lm.capture(TOKENS, [site])[site].requires_grad
    assert lm.logits(TOKENS, gradients=True).requires_grad
    assert lm.capture(TOKENS, [site], gradients=True)[site].requires_grad
    with torch.no_grad():
        assert lm.logits(TOKENS, gradients=True).requires_grad
    assert torch.is_grad_enabled()
    assert not lm.generate_all(Batch(TOKENS, None), max_new_tokens=1).tokens_BT.requires_grad


# --- threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_threads", "seconds"),
    [(2, 0), (4, 0), *(pytest.param(n, 60, marks=pytest.mark.slow) for n in (2, 4))],
)
def test_threads_with_different_pushes_do_not_disturb_each_other(
    lm: LM, n_threads: int, seconds: int
) -> None:
    """Each writes and captures what it would alone, to the bit; six times, and for so long."""
    site, other = lm.residual_sites()[:2]
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(n_threads, WIDTH, generator=generator)

    def work(i: int) -> list[Tensor]:
        edits = {site: steer.add(directions[i], 20.0)}
        with lm.editing(edits):
            captured = lm.capture(TOKENS, [other])[other]
        return [
            lm.generate(TOKENS[:1, :3], max_new_tokens=12, n=3, seed=i, edits=edits),
            captured,
            lm.logits(TOKENS, edits),
            lm.generate(TOKENS[:1, :3], max_new_tokens=12, n=3, seed=i),
        ]

    alone = [work(i) for i in range(n_threads)]
    wrong: list[object] = []
    done = [0] * n_threads
    start = threading.Barrier(n_threads)

    def repeat(i: int) -> None:
        start.wait()
        try:
            begun, times = time.monotonic(), 0
            while times < 6 or time.monotonic() - begun < seconds:
                found, times = work(i), times + 1
                done[i] = times
                wrong.extend(
                    i for a, b in zip(found, alone[i], strict=True) if not torch.equal(a, b)
                )
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100 + seconds)
    print(f"{n_threads} threads: {done} rounds of four results, {len(wrong)} wrong")
    assert not wrong and not any(thread.is_alive() for thread in threads)
    assert not torch.equal(alone[0][0], alone[1][0])


def test_two_objects_around_one_model_share_its_lock(lm: LM) -> None:
    twin, done = LM(lm.model, lm.tokenizer), threading.Event()
    plain = lm.logits(TOKENS)
    found = []
    thread = threading.Thread(target=lambda: (found.append(twin.logits(TOKENS)), done.set()))
    with lm.editing({lm.residual_sites()[0]: Watch()}):
        lm.model(TOKENS)
        thread.start()
        assert not done.wait(0.2), "it waits for the end of the block"
    assert done.wait(20)
    thread.join()
    assert torch.equal(found[0], plain)


def test_an_sae_in_half_precision_is_spliced_and_clamped() -> None:
    lm, sae = make("gpt2"), SAE(WIDTH, 30, seed=1).requires_grad_(False)
    site = lm.residual_sites()[1]
    whole = [splice(sae), steer.clamp(sae, 3, 2.0), steer.ablate(sae, [1, 2])]
    expected = [lm.logits(TOKENS, {site: edit}) for edit in whole]
    sae.to(torch.bfloat16)
    for edit, logits in zip(whole, expected, strict=True):
        half = lm.logits(TOKENS, {site: edit})
        torch.testing.assert_close(half, logits, rtol=0.1, atol=0.1 * float(logits.abs().max()))
