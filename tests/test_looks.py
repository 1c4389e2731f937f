"""Cures for shrinkage and features without a twin, against closed forms and plain searches."""

import torch

from saelearn import metrics, tiny
from saelearn.activations import collect
from saelearn.sae import SAE, TopK
from saelearn.tiny import beyond, looks


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def left(x_ND, x_hat_ND) -> float:
    return 1 - metrics.explained_variance(x_ND, x_hat_ND)


def test_the_refitted_decoder_is_least_squares_though_a_feature_is_silent():
    f_NF = randn(0, 300, 8).relu()
    f_NF[:, 3] = 0
    x_ND = 2 + f_NF @ randn(1, 8, 5) + randn(2, 300, 5)
    W_dec_FD, b_dec_D = looks.refit(f_NF, x_ND)
    one_NF = torch.cat([f_NF, torch.ones(300, 1)], dim=1)
    best_FD = torch.linalg.lstsq(one_NF, x_ND, driver="gelsd").solution
    torch.testing.assert_close(f_NF @ W_dec_FD + b_dec_D, one_NF @ best_FD, rtol=1e-3, atol=1e-3)


def test_the_most_useful_features_are_those_of_a_search_that_refits_each_time():
    f_NF = randn(3, 200, 7).relu()
    x_ND = f_NF @ (randn(4, 7, 5) * torch.arange(1, 8)[:, None]) + 0.1 * randn(5, 200, 5)
    chosen: list[int] = []
    for _ in range(4):

        def without(i):
            some_NF = f_NF[:, [*chosen, i]]
            W_FD, b_D = looks.refit(some_NF, x_ND)
            return left(x_ND, some_NF @ W_FD + b_D)

        chosen.append(min((i for i in range(7) if i not in chosen), key=without))
    assert looks.most_useful(f_NF, x_ND, 4) == chosen


def test_best_strengths_are_least_squares_of_what_is_on():
    sae, x_ND = TopK(10, 16, k=4), randn(6, 20, 10)
    with torch.no_grad():
        f_NF = sae.encode(x_ND)
        ours_ND = looks.best_strengths(sae, x_ND, f_NF, most=8)
        for x_D, f_F, ours_D in zip(x_ND, f_NF, ours_ND, strict=True):
            rows_KD = sae.W_dec[f_F > 0]
            best_K = torch.linalg.lstsq(rows_KD.T, (x_D - sae.b_dec)[:, None]).solution[:, 0]
            torch.testing.assert_close(ours_D, best_K @ rows_KD + sae.b_dec, rtol=1e-3, atol=1e-4)


def test_one_number_cures_what_was_shrunk_by_one():
    sae, both_FD = SAE(6, 12), torch.cat([torch.eye(6), -torch.eye(6)])
    with torch.no_grad():
        sae.W_enc.copy_(both_FD.T)
        sae.W_dec.copy_(0.5 * both_FD)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    x_ND = randn(7, 5_000, 6)
    found = looks.cures(sae, x_ND, x_ND)
    assert abs(found["as it is"] - left(x_ND, 0.5 * x_ND)) < 0.05
    assert max(found[cure] for cure in looks.CURES[1:]) < 1e-3


def test_twins_are_told_from_rows_without_one():
    lm, sae = tiny.load_lm(), beyond.load_kind("TopK")
    held_NT = tiny.held_out(20).tokens_NT
    x_ND = collect(lm, held_NT, tiny.SITE).x_ND
    other = beyond.load_kind("TopK")
    order_F = (sae.encode(x_ND) > 0).sum(0).argsort(descending=True)
    with torch.no_grad():
        other.W_dec[order_F[:4]] *= -1  # the most frequent four have no twin any more
    found = looks.harms(lm, sae, other, x_ND, held_NT[:4], each=2)
    assert found["no twin"].cosine < 0.95 < found["twin"].cosine
    for harm in found.values():
        assert harm.own > 0 and harm.random > 0
