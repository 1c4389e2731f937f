"""Edits against their own arithmetic: where they act, how far, and that they leave no trace."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from saelearn import steer
from saelearn.errors import Refusal
from saelearn.sae import SAE

WIDTH = tiny_models.WIDTH
SITE = "transformer.h.1:out"


@pytest.fixture(scope="module")
def lm():
    return tiny_models.make("gpt2")


@pytest.fixture(scope="module")
def sae():
    sae = SAE(WIDTH, 40, decoder_init_norm=1.5, seed=1)
    generator = torch.Generator().manual_seed(2)
    sae.W_enc.data += 0.2 * torch.randn(WIDTH, 40, generator=generator)
    sae.b_enc.data = 0.3 * torch.randn(40, generator=generator)
    sae.b_dec.data = torch.randn(WIDTH, generator=generator)
    return sae.requires_grad_(False)


@pytest.fixture
def x_BTD():
    return 2 * torch.randn(3, 9, WIDTH, generator=torch.Generator().manual_seed(3))


def here(x_BTD):
    return torch.arange(x_BTD.shape[1])


def hooks(lm):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


# --- typical_norm ---------------------------------------------------------------------------------


def test_typical_norm_of_a_shell_is_its_radius():
    """Points at distance 3 from a far centre, in opposite pairs so that the mean is the centre."""
    half = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    half = 3 * half / half.norm(dim=1, keepdim=True)
    x_ND = torch.cat([half, -half]) + 100
    assert steer.typical_norm(x_ND) == pytest.approx(3, rel=1e-4)
    assert steer.typical_norm(5 * x_ND) == pytest.approx(15, rel=1e-4)


# --- add ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0.01, 1.0, 300.0])
def test_add_moves_by_exactly_the_amount_at_the_positions_only(x_BTD, length):
    direction_D = length * torch.randn(WIDTH, generator=torch.Generator().manual_seed(4))
    y_BTD = steer.add(direction_D, 2.5, positions=range(2, 5))(x_BTD, here(x_BTD))
    moved_BTD = y_BTD - x_BTD
    inside_T = torch.tensor([2 <= t < 5 for t in range(9)])
    assert not moved_BTD[:, ~inside_T].any()
    torch.testing.assert_close(moved_BTD[:, inside_T].norm(dim=-1), torch.full((3, 3), 2.5))
    cosine = torch.cosine_similarity(moved_BTD[:, inside_T], direction_D, dim=-1)
    torch.testing.assert_close(cosine, torch.ones(3, 3))


def test_add_everywhere_leaves_the_first_position_alone(x_BTD):
    moved_BTD = steer.add(torch.ones(WIDTH), 1.0)(x_BTD, here(x_BTD)) - x_BTD
    assert not moved_BTD[:, 0].any()
    assert (moved_BTD[:, 1:] != 0).all()


def test_add_does_not_touch_what_it_was_given(x_BTD):
    before = x_BTD.clone()
    steer.add(torch.ones(WIDTH), 1.0)(x_BTD, here(x_BTD))
    assert torch.equal(x_BTD, before)


def test_positions_count_from_the_start_of_the_document_while_generating(lm):
    """With a cache the later passes see one token each; they must know which one it is."""
    seen = []

    def watch(x_BTD, positions_T):
        seen.extend(positions_T.tolist())
        return x_BTD

    lm.generate("<doc> w3 w4", max_new_tokens=5, edits={SITE: watch})
    assert seen == [0, 1, 2, 3, 4, 5, 6]


def test_steering_late_positions_does_not_change_early_words(lm):
    edit = steer.add(torch.randn(WIDTH, generator=torch.Generator().manual_seed(5)), 100.0,
                     positions=range(6, 99))  # fmt: skip
    plain = lm.generate("<doc>", max_new_tokens=12, n=20, seed=1)
    pushed = lm.generate("<doc>", max_new_tokens=12, n=20, seed=1, edits={SITE: edit})
    assert torch.equal(plain[:, :7], pushed[:, :7])  # x at 6 is the first to be pushed: word 7
    assert not torch.equal(plain[:, 7:], pushed[:, 7:])


# --- clamp and ablate -----------------------------------------------------------------------------


def test_clamp_equals_add_where_the_feature_is_silent(x_BTD, sae):
    f_BTF = sae.encode(x_BTD)
    feature = int((f_BTF[:, 1:] == 0).float().mean((0, 1)).argmax())
    silent_BT = f_BTF[..., feature] == 0
    silent_BT[:, 0] = False
    assert silent_BT.any()
    value = 3.0
    clamped = steer.clamp(sae, feature, value)(x_BTD, here(x_BTD))
    row_D = sae.W_dec[feature]
    added = steer.add(row_D, value * float(row_D.norm()))(x_BTD, here(x_BTD))
    torch.testing.assert_close(clamped[silent_BT], added[silent_BT])


def test_clamp_moves_along_one_row_by_the_difference(x_BTD, sae):
    """With tied, orthonormal directions the clamped feature then encodes to exactly the value."""
    tied = SAE(WIDTH, WIDTH, seed=0)
    tied.W_dec.data = torch.linalg.qr(sae.W_dec[:WIDTH])[0]
    tied.W_enc.data = tied.W_dec.data.T.clone()
    tied.b_dec.data = sae.b_dec.clone()
    with torch.no_grad():
        y_BTD = steer.clamp(tied, 4, 7.0)(x_BTD, here(x_BTD))
        was, now = tied.encode(x_BTD), tied.encode(y_BTD)
    on_BT = was[..., 4] > 0
    on_BT[:, 0] = False
    torch.testing.assert_close(now[on_BT][:, 4], torch.full((int(on_BT.sum()),), 7.0))
    others = [i for i in range(WIDTH) if i != 4]
    torch.testing.assert_close(now[..., others], was[..., others], atol=1e-4, rtol=1e-4)
    assert torch.equal(y_BTD[:, 0], x_BTD[:, 0])


def test_clamp_keeps_the_error_term(x_BTD, sae):
    """x - x_hat is the same before and after, if x_hat is decoded from the features as set."""
    y_BTD = steer.clamp(sae, 3, 4.0)(x_BTD, here(x_BTD))
    f_BTF = sae.encode(x_BTD)
    error_BTD = x_BTD - sae.decode(f_BTF)
    f_BTF[..., 3] = 4.0
    torch.testing.assert_close(y_BTD[:, 1:], (sae.decode(f_BTF) + error_BTD)[:, 1:])


def test_ablate_leaves_the_error_term_and_is_clamp_to_zero(x_BTD, sae):
    chosen = [1, 5, 8]
    y_BTD = steer.ablate(sae, chosen)(x_BTD, here(x_BTD))
    f_BTF = sae.encode(x_BTD)
    error_BTD = x_BTD - sae.decode(f_BTF)
    f_BTF[..., chosen] = 0
    torch.testing.assert_close(y_BTD[:, 1:], (sae.decode(f_BTF) + error_BTD)[:, 1:])
    one = steer.ablate(sae, [5])(x_BTD, here(x_BTD))
    torch.testing.assert_close(one, steer.clamp(sae, 5, 0.0)(x_BTD, here(x_BTD)))


def test_ablating_a_silent_feature_changes_nothing(x_BTD, sae):
    quiet = SAE(WIDTH, 4, seed=0)
    quiet.b_enc.data -= 1e6
    assert torch.equal(steer.ablate(quiet, [0, 1, 2, 3])(x_BTD, here(x_BTD)), x_BTD)


# --- refusals -------------------------------------------------------------------------------------


def test_ablating_along_another_direction_takes_as_much_away(x_BTD, sae):
    other_KD = torch.randn(2, x_BTD.shape[-1], generator=torch.Generator().manual_seed(8))
    for along_KD, rows_KD in ((other_KD, other_KD), (5 * sae.W_dec[[3, 4]], sae.W_dec[[3, 4]])):
        new_BTD = steer.ablate(sae, [3, 4], along_KD=along_KD)(x_BTD, torch.arange(x_BTD.shape[1]))
        unit_KD = rows_KD / rows_KD.norm(dim=1, keepdim=True)
        size_BTK = sae.encode(x_BTD)[..., [3, 4]] * sae.W_dec[[3, 4]].norm(dim=1)
        size_BTK[:, 0] = 0  # <doc> stays
        torch.testing.assert_close(new_BTD, x_BTD - size_BTK @ unit_KD)
    assert size_BTK.max() > 0
    with pytest.raises(Refusal, match="a direction for each feature"):
        steer.ablate(sae, [3], along_KD=other_KD)


def test_edits_refuse_what_cannot_be_meant(x_BTD, sae, lm):
    with pytest.raises(Refusal, match="zeros"):
        steer.add(torch.zeros(WIDTH), 1.0)
    with pytest.raises(Refusal, match="NaN"):
        steer.add(torch.tensor([1.0, float("nan")]), 1.0)
    with pytest.raises(Refusal, match="width"):
        steer.add(torch.ones(WIDTH + 1), 1.0)(x_BTD, here(x_BTD))
    for wrong in (-1, 40):
        with pytest.raises(Refusal, match="0 to 39"):
            steer.clamp(sae, wrong, 1.0)
        with pytest.raises(Refusal, match="0 to 39"):
            steer.ablate(sae, [0, wrong])
    with pytest.raises(Refusal, match="width"):
        lm.generate("<doc>", max_new_tokens=3, edits={SITE: steer.add(torch.ones(3), 1.0)})
    assert hooks(lm) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda sae: steer.add([1.0] * WIDTH, 1.0),
        lambda sae: steer.add(torch.ones(1, WIDTH), 1.0),
        lambda sae: steer.add(torch.ones(WIDTH), float("nan")),
        lambda sae: steer.add(torch.ones(WIDTH), -float("inf")),
        lambda sae: steer.add(torch.ones(WIDTH), "1"),
        lambda sae: steer.add(torch.ones(WIDTH), 1.0, positions=3),
        lambda sae: steer.add(torch.ones(WIDTH), 1.0, positions=range(0, 9, 2)),
        lambda sae: steer.clamp(sae, 1.5, 1.0),
        lambda sae: steer.clamp(sae, "1", 1.0),
        lambda sae: steer.clamp(sae, 1, float("nan")),
        lambda sae: steer.clamp(sae, 1, None),
        lambda sae: steer.ablate(sae, [0.5]),
        lambda sae: steer.ablate(sae, [1], positions=[1]),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(sae, call):
    with pytest.raises(Refusal):
        call(sae)


# --- difference of means --------------------------------------------------------------------------


def test_difference_of_means_points_from_one_cloud_to_the_other():
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.rand(4_000, generator=generator) < 0.3
    shift_D = torch.tensor([1.0, -2.0, 0.0, 3.0])
    x_ND = torch.randn(4_000, 4, generator=generator) + labels_N[:, None] * shift_D
    torch.testing.assert_close(
        steer.difference_of_means(x_ND, labels_N), shift_D, atol=0.15, rtol=0
    )


@pytest.mark.parametrize("value", [True, False])
def test_difference_of_means_needs_both_kinds(value):
    with pytest.raises(Refusal, match="only one kind"):
        steer.difference_of_means(torch.randn(5, 2), torch.full((5,), value))


# --- dose and response ----------------------------------------------------------------------------


def run(lm, **arguments):
    generator = torch.Generator().manual_seed(6)
    directions = {name: torch.randn(WIDTH, generator=generator) for name in ("one", "two")}
    common = {"unit": 3.0, "prompt": "<doc>", "n": 12, "max_new_tokens": 6}
    return steer.dose_response(
        lm, SITE, directions, [0.0, 1.0, 40.0], measure, **common | arguments
    )


def measure(tokens_NT):
    return {"mean": float(tokens_NT.double().mean()), "length": float(tokens_NT.shape[1])}


def test_dose_response_is_one_number_a_strength_and_deterministic(lm):
    first, again = run(lm), run(lm)
    assert first == again
    assert first.strengths == [0.0, 1.0, 40.0]
    assert set(first.measured) == {"one", "two"}
    for quantities in first.measured.values():
        assert quantities["length"] == [7.0, 7.0, 7.0]
        assert len(quantities["mean"]) == 3
    assert hooks(lm) == 0


def test_strength_zero_is_the_model_itself_and_a_large_one_is_not(lm):
    plain = measure(lm.generate("<doc>", max_new_tokens=6, n=12, seed=0))["mean"]
    response = run(lm).measured
    assert response["one"]["mean"][0] == response["two"]["mean"][0] == plain
    assert response["one"]["mean"][2] != plain
    assert response["one"]["mean"][2] != response["two"]["mean"][2]


def test_dose_response_uses_unit_seed_and_positions(lm):
    assert run(lm, unit=6.0) != run(lm)
    assert run(lm, seed=1) != run(lm)
    nowhere = run(lm, positions=range(50, 60)).measured["one"]["mean"]
    assert len(set(nowhere)) == 1


def test_no_hook_is_left_when_a_measure_or_an_edit_fails(lm):
    def fails(tokens_NT):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        steer.dose_response(
            lm, SITE, {"one": torch.ones(WIDTH)}, [1.0], fails,
            unit=1.0, prompt="<doc>", n=2, max_new_tokens=2,
        )  # fmt: skip
    with pytest.raises(Refusal):
        lm.generate("<doc>", max_new_tokens=2, edits={SITE: steer.add(torch.ones(5), 1.0)})
    assert hooks(lm) == 0
