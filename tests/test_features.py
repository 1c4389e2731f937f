"""Evidence about features against counting by hand, closed forms, and numpy."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import WIDTH, make, some_tokens
from torch import Tensor, nn

from saelearn import features, metrics
from saelearn.activations import Activations, collect
from saelearn.errors import Misplaced, Refusal
from saelearn.sae import SAE, TopK

SITE = "transformer.h.1:out"


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def lm():
    return make("gpt2")


def test_encode_in_pieces_is_encode() -> None:
    sae, x_ND = SAE(5, 12, seed=2), normal(0, 37, 5)
    f_NF = features.encode(sae, x_ND, batch_size=10)
    torch.testing.assert_close(f_NF, sae.encode(x_ND).detach())
    assert not f_NF.requires_grad


@pytest.mark.parametrize("at_once", [1, 100, 2**24])
def test_a_search_finds_what_encode_finds(monkeypatch, at_once: int) -> None:
    """The dense array is the oracle for each thing that is asked of it."""
    monkeypatch.setattr(features, "AT_ONCE", at_once)
    sae, x_ND = TopK(5, 12, k=3, seed=2), normal(0, 203, 5)
    f_NF = features.encode(sae, x_ND)
    found = features.search(sae, iter(x_ND.split(50)))
    assert found.rows == 203 and len(found.value_E) == int((f_NF != 0).sum()) <= 3 * 203
    torch.testing.assert_close(found.dense(0, 12), f_NF)
    for feature in range(12):
        torch.testing.assert_close(found.of(feature), f_NF[:, feature])
    torch.testing.assert_close(found.frequency_F, metrics.firing_frequency(f_NF))
    value_Fk, row_Fk = found.top(60)
    expected_kF = f_NF.sort(0, descending=True).values[:60]
    torch.testing.assert_close(value_Fk.T, expected_kF)
    fires_Fk = row_Fk >= 0
    assert torch.equal(fires_Fk, value_Fk > 0) and not fires_Fk.all()
    torch.testing.assert_close(f_NF.T.gather(1, row_Fk.clamp(min=0))[fires_Fk], value_Fk[fires_Fk])
    counts_FH = found.histogram(torch.tensor([0.5, 1.0, 2.0]))
    for feature, counts_H in enumerate(counts_FH.tolist()):
        values = f_NF[:, feature]
        inner = [((values > a) & (values <= b)).sum() for a, b in ((0, 0.5), (0.5, 1), (1, 2))]
        assert counts_H == [*inner, (values > 2).sum()]
    labels_NC = torch.stack([x_ND[:, 0] > 1, x_ND[:, 1] < -1, x_ND[:, 2] > 0.5], dim=1)
    best, whole = found.best_f1(labels_NC), metrics.best_f1(f_NF, labels_NC)
    torch.testing.assert_close(best.chosen_f1_C, whole.chosen_f1_C)
    same_C = best.candidate_C == whole.candidate_C  # of two as good ones either may be taken
    assert same_C.any() and torch.equal(best.f1_C[same_C], whole.f1_C[same_C])


def test_a_search_of_nothing_and_elsewhere() -> None:
    sae = SAE(5, 12, seed=2)
    with pytest.raises(Refusal, match="rows of activations"):
        features.search(sae, [])
    sae.metadata = {"site": "transformer.h.0:out"}
    acts = Activations(normal(0, 15, 5), TOKENS, SITE, 1, about={"site": SITE})
    with pytest.warns(Misplaced):
        assert features.search(sae, acts).rows == 15


# --- contexts -------------------------------------------------------------------------------------

TOKENS = torch.tensor([[0, 2, 3, 4, 5, 6], [0, 7, 8, 9, 10, 11], [0, 12, 13, 14, 15, 16]])
F_NT = torch.tensor([[0.0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0.5, 0, 0, 0, 3]])  # without <doc>


def source(skip: int = 1) -> Activations:
    return Activations(torch.zeros(TOKENS[:, skip:].numel(), 4), TOKENS, SITE, skip)


def test_contexts_by_hand(lm) -> None:
    first, second = features.contexts(F_NT.flatten(), source(), lm, k=5, window=1)
    assert (first.document, first.position, first.center) == (2, 5, 1)
    assert first.words == ["w15", "w16"] and first.activations == [0, 3]
    assert (second.document, second.position, second.center) == (0, 2, 1)
    assert second.words == ["w2", "w3", "w4"] and second.activations == [0, 1, 0]


def test_a_context_points_at_its_token_whatever_was_skipped(lm) -> None:
    for skip in (0, 1, 2):
        f_N = TOKENS[:, skip:].flatten().float()
        for c in features.contexts(f_N, source(skip), lm, window=2):
            assert c.words[c.center] == f"w{TOKENS[c.document, c.position]}"
            assert c.activations[c.center] == max(c.activations)


def test_quantile_walks_down_the_documents_that_fire(lm) -> None:
    tokens_NT = some_tokens(11, 4)
    f_NT = torch.zeros(11, 3)
    f_NT[:9, 1] = torch.arange(9, 0, -1)  # two documents never fire

    def peaks(quantile: float) -> list[float]:
        spot = Activations(torch.zeros(33, 4), tokens_NT, SITE, 1)
        found = features.contexts(f_NT.flatten(), spot, lm, k=3, quantile=quantile)
        return [max(c.activations) for c in found]

    assert peaks(1.0) == [9, 8, 7]
    assert peaks(0.5) == [6, 5, 4]
    assert peaks(0.0) == [3, 2, 1]


def test_peaks_that_tie_but_for_rounding_stay_in_order(lm) -> None:
    f_NT = torch.zeros(3, 5)
    f_NT[:, 2] = torch.tensor([1.0, 1.0 + 1e-7, 1.0 - 1e-7])
    found = features.contexts(f_NT.flatten(), source(), lm)
    assert [c.document for c in found] == [0, 1, 2]


def test_a_silent_feature_has_no_contexts(lm) -> None:
    assert features.contexts(torch.zeros(15), source(), lm) == []


def test_contexts_refuse_what_does_not_fit(lm) -> None:
    with pytest.raises(Refusal, match="one activation a row"):
        features.contexts(torch.zeros(14), source(), lm)
    with pytest.raises(Refusal, match="quantile"):
        features.contexts(torch.zeros(15), source(), lm, quantile=1.5)


# --- what a feature writes ------------------------------------------------------------------------


def test_logit_effect_at_the_end_is_the_unembedding(lm) -> None:
    """Behind the last LayerNorm nothing is left but the unembedding: direction @ W_U, centred."""
    direction_D = normal(3, WIDTH)
    effect = features.logit_effect(lm, "transformer.ln_f:out", direction_D, some_tokens(), k=4)
    expected_V = (lm.model.lm_head.weight @ direction_D).detach()
    expected_V -= expected_V.mean()
    torch.testing.assert_close(effect.effect_V, expected_V, rtol=1e-3, atol=1e-3)
    order = expected_V.argsort(descending=True).tolist()
    assert [w for w, _ in effect.raised] == lm.words(order[:4])
    assert [w for w, _ in effect.lowered] == lm.words(order[::-1][:4])
    assert [v for _, v in effect.lowered] == pytest.approx(
        expected_V.sort().values[:4].tolist(), rel=1e-3
    )


def test_logit_effect_counts_later_blocks_and_leaves_the_first_position_alone(lm) -> None:
    tokens_NT, direction_D = some_tokens(), normal(4, WIDTH)
    block = lm.model.transformer.h[1]

    def push(module, args, output):
        x = (output if isinstance(output, Tensor) else output[0]).clone()
        x[:, 1:] += direction_D
        return x if isinstance(output, Tensor) else (x, *output[1:])

    before_NTV = lm.logits(tokens_NT)
    handle = block.register_forward_hook(push)
    after_NTV = lm.logits(tokens_NT)
    handle.remove()
    expected_V = (after_NTV - before_NTV)[:, 1:].mean((0, 1))
    effect_V = features.logit_effect(lm, SITE, direction_D, tokens_NT).effect_V
    torch.testing.assert_close(effect_V, expected_V - expected_V.mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lm.logits(tokens_NT), before_NTV)


# --- registers ------------------------------------------------------------------------------------


def test_effective_registers_by_hand() -> None:
    register_N = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    specialist = torch.tensor([1.0, 2, 0, 1, 0, 0, 0, 0])
    even_per_token = torch.ones(8)  # in the large register too: size must not count
    signed = torch.tensor([0.0, 0, 0, 0, -3, -3, 3, 3])
    silent = torch.zeros(8)
    f_NF = torch.stack([specialist, even_per_token, signed, silent], 1)
    found = features.effective_registers(f_NF, register_N).tolist()
    assert found == pytest.approx([1, 3, 2, 1])
    share_RF = features.register_shares(f_NF, register_N)
    assert share_RF.T.tolist() == [
        pytest.approx(row) for row in ([1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0.5, 0.5], [0, 0, 0])
    ]


def test_effective_registers_is_exp_of_the_entropy() -> None:
    f_NF, register_N = normal(5, 60, 4).relu(), torch.arange(60) % 5
    for j, value in enumerate(features.effective_registers(f_NF, register_N).tolist()):
        mean = [float(f_NF[register_N == r, j].mean()) for r in range(5)]
        entropy = -sum(m / sum(mean) * math.log(m / sum(mean)) for m in mean)
        assert value == pytest.approx(math.exp(entropy), rel=1e-5)


# --- baselines ------------------------------------------------------------------------------------


def test_a_probe_separates_what_a_plane_separates() -> None:
    x_ND = normal(6, 800, 6) * torch.tensor([1.0, 5, 0.1, 1, 1, 1]) + 3
    margin_NC = (x_ND - 3) @ normal(7, 6, 2)
    labels_NC = margin_NC > 0
    scores_NC = features.linear_probe(x_ND, labels_NC)
    assert ((scores_NC > 0) == labels_NC)[400:].double().mean() > 0.97


def test_a_probe_finds_nothing_in_noise_and_never_sees_the_second_half() -> None:
    x_ND, labels_NC = normal(8, 600, 5), normal(9, 600, 2) > 0
    scores_NC = features.linear_probe(x_ND, labels_NC, iterations=20)
    assert abs(((scores_NC > 0) == labels_NC)[300:].double().mean() - 0.5) < 0.1
    other_NC = labels_NC.clone()
    other_NC[300:] = ~other_NC[300:]
    again_NC = features.linear_probe(x_ND, other_NC, iterations=20)
    assert torch.equal(again_NC, scores_NC)


def told(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores of 12 candidates, one concept: the 3 loudest say nothing, 5 and 7 tell it together."""
    scores_NS, holds_N1 = normal(seed, 4_000, 12), normal(seed + 1, 4_000, 1) > 1
    scores_NS[:, :3] *= 50
    scores_NS[:, 5] += 1.5 * holds_N1[:, 0]
    scores_NS[:, 7] -= 1.5 * holds_N1[:, 0]
    return scores_NS, holds_N1


def test_a_sparse_probe_reads_what_tells_not_what_is_loud() -> None:
    scores_NS, holds_N1 = told()
    chosen = features.most_telling(scores_NS, holds_N1, 2)
    assert sorted(chosen[0].tolist()) == [5, 7]
    one, two = (float(features.sparse_probe_f1(scores_NS, holds_N1, k)) for k in (1, 2))
    all_12 = float(features.sparse_probe_f1(scores_NS, holds_N1, 12))
    assert one + 0.05 < two == pytest.approx(all_12, abs=0.03)


def test_a_sparse_probe_on_everything_is_scikit_learns_discriminant() -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    scores_NS, holds_N1 = told(5)
    lda = LinearDiscriminantAnalysis().fit(scores_NS[:2_000], holds_N1[:2_000, 0])
    read_N1 = torch.from_numpy(lda.decision_function(scores_NS)).float()[:, None]
    expected = metrics.best_f1(read_N1, holds_N1, n_thresholds=40).f1_C
    torch.testing.assert_close(features.sparse_probe_f1(scores_NS, holds_N1, 12), expected)


def test_a_sparse_probe_never_sees_the_second_half() -> None:
    scores_NS, holds_N1 = told(9)
    turned_N1 = holds_N1.clone()
    turned_N1[2_000:] = ~turned_N1[2_000:]
    first, second = (features.most_telling(scores_NS, h, 3) for h in (holds_N1, turned_N1))
    assert first.tolist() == second.tolist()
    for k in (0, 13):
        with pytest.raises(Refusal, match="k"):
            features.most_telling(scores_NS, holds_N1, k)


def test_random_directions_are_unit_and_repeat() -> None:
    directions = features.random_directions(50, 7, seed=3)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(50))
    assert torch.equal(directions, features.random_directions(50, 7, seed=3))
    assert not torch.equal(directions, features.random_directions(50, 7, seed=4))


def test_evidence_from_a_model_fits_together(lm) -> None:
    """From tokens to contexts: the strongest place is where the features say it is."""
    tokens_NT = some_tokens(6, 10)
    acts = collect(lm, tokens_NT, SITE)
    sae = SAE(WIDTH, 24, seed=1)
    nn.init.constant_(sae.b_enc, -0.01)
    f_N = features.encode(sae, acts.x_ND)[:, 5]
    top = features.contexts(f_N, acts, lm, k=1)[0]
    row = int(f_N.argmax())
    assert (top.document, top.position) == (row // 9, row % 9 + 1)
    assert top.activations[top.center] == pytest.approx(float(f_N.max()))
