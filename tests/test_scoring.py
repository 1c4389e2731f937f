"""Loss and divergence in pieces: the same numbers as at once, in less memory."""

from __future__ import annotations

import language_models
import pytest
import torch
from language_models import ALL
from tiny_models import FAMILIES, WIDTH, WORDS, make, some_tokens
from torch import Tensor

from saelearn.activations import measure_loss_recovered, splice
from saelearn.errors import Refusal
from saelearn.lm import LM, scoring
from saelearn.sae import SAE

TOKENS = some_tokens(7, 12, seed=1)


@pytest.fixture(params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LM:
    return make(request.param)


def push(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
    wave_D = 5 * torch.linspace(0, 9, x_BTD.shape[-1]).sin()
    return x_BTD + ((positions_T >= 3) & (positions_T < 8))[:, None] * wave_D.to(x_BTD)


def by_hand(lm: LM, edits: dict, mask_BT: Tensor | None = None) -> tuple[float, float, float]:
    """Cross-entropies and divergence in double precision, all at once."""
    mask_BT = torch.ones_like(TOKENS, dtype=torch.bool) if mask_BT is None else mask_BT
    predicted_BT = mask_BT[:, 1:] & mask_BT[:, :-1]
    log_p, log_q = (
        lm.logits(TOKENS, e, mask_BT=mask_BT)[:, :-1][predicted_BT].double().log_softmax(-1)
        for e in ({}, edits)
    )
    target_N1 = TOKENS[:, 1:][predicted_BT][:, None]
    clean, edited = (-float(log.gather(-1, target_N1).mean()) for log in (log_p, log_q))
    kl = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=log_p), torch.distributions.Categorical(logits=log_q)
    )
    return clean, edited, float(kl.mean())


@pytest.mark.parametrize("most", [2**25, 2_000, 12 * WORDS, 3 * WORDS, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_pieces_of_any_size_give_the_same(lm: LM, most: int, masked: bool, monkeypatch) -> None:
    """From all documents at once down to one token at a time."""
    mask_BT = None
    if masked:
        mask_BT = torch.ones_like(TOKENS, dtype=torch.bool)
        mask_BT[0, :5] = mask_BT[2, 4:] = mask_BT[3, 1:] = False
    edits = {lm.residual_sites()[1]: push}
    clean, edited, kl = by_hand(lm, edits, mask_BT)
    monkeypatch.setattr(scoring, "LOGITS", most)
    compared = lm.compare(TOKENS, edits, mask_NT=mask_BT)
    assert tuple(compared) == pytest.approx((clean, edited, kl), rel=1e-4)
    assert lm.loss(TOKENS, mask_NT=mask_BT) == pytest.approx(clean, rel=1e-4)
    assert lm.loss(TOKENS, edits, mask_NT=mask_BT, pass_size=2) == pytest.approx(edited, rel=1e-4)
    assert kl > 0.01 and abs(edited - clean) > 0.01


@pytest.mark.parametrize("kind", ["mamba", "gemma2", "bloom", "jamba", "gpt_oss"])
def test_models_with_other_caches_give_the_same(kind: str, monkeypatch) -> None:
    lm = language_models.build(next(a for a in ALL if a.kind == kind))
    edits = {lm.residual_sites()[0]: push}
    whole = lm.compare(TOKENS, edits)
    monkeypatch.setattr(scoring, "LOGITS", 5 * language_models.WORDS)
    assert tuple(lm.compare(TOKENS, edits)) == pytest.approx(tuple(whole), rel=1e-3)


def test_without_an_edit_nothing_diverges(lm: LM) -> None:
    clean, edited, kl = lm.compare(TOKENS, {lm.residual_sites()[1]: lambda x, positions_T: x})
    assert clean == edited == lm.loss(TOKENS) and kl == 0


def test_nothing_to_predict_is_refused(lm: LM) -> None:
    for tokens_NT, mask_NT in ((TOKENS[:, :1], None), (TOKENS, torch.eye(7, 12))):
        for call in (
            lambda t, m: lm.loss(t, mask_NT=m),
            lambda t, m: lm.compare(t, {lm.residual_sites()[0]: push}, mask_NT=m),
        ):
            with pytest.raises(Refusal, match="nothing to predict"):
                call(tokens_NT, mask_NT)
    for pass_size in (0, -1, float("nan")):
        with pytest.raises(Refusal, match="pass_size"):
            lm.loss(TOKENS, pass_size=pass_size)


@pytest.mark.parametrize("most", [3 * 12 * WORDS, 5 * WORDS])
def test_no_more_logits_than_fit_are_computed_at_once(lm: LM, most: int, monkeypatch) -> None:
    """Counted at the head, for loss recovered with its two edits in one sweep."""
    monkeypatch.setattr(scoring, "LOGITS", most)
    lm.capture(TOKENS, lm.residual_sites())  # which counts once what a pass runs through
    sizes = []
    head = lm.model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, logits_BTV: sizes.append(logits_BTV.numel()))
    site, sae = lm.residual_sites()[1], SAE(WIDTH, 20)
    recovered = measure_loss_recovered(lm, sae, site, TOKENS, ablation_name="mean")
    assert 0 < max(sizes) <= most
    monkeypatch.undo()
    whole = measure_loss_recovered(lm, sae, site, TOKENS, ablation_name="mean")
    pairs = zip(recovered, whole, strict=True)
    assert all(a == b if isinstance(a, str) else a == pytest.approx(b, rel=1e-3) for a, b in pairs)
    expected = by_hand(lm, {site: splice(sae)})
    assert (whole.clean, whole.spliced, whole.kl) == pytest.approx(expected, rel=1e-4)
