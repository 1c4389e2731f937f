"""Variants of the SAE: what each does differently, its file, its training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saelearn.errors import Refusal
from saelearn.sae import SAE, TopK, load
from saelearn.train import mean_norm_scale, train


@pytest.fixture
def x_ND() -> torch.Tensor:
    return torch.randn(200, 6, generator=torch.Generator().manual_seed(1))


def test_topk_keeps_the_largest(x_ND):
    sae = TopK.from_data(x_ND, 24, k=3, seed=5)
    dense_NF = SAE.encode(sae, x_ND).detach().numpy()
    expected_NF = np.zeros_like(dense_NF)
    for row, dense in zip(expected_NF, dense_NF, strict=True):
        for i in np.argsort(dense)[-3:]:
            row[i] = dense[i]
    np.testing.assert_allclose(sae.encode(x_ND).detach().numpy(), expected_NF)
    assert sae.encode(x_ND.reshape(10, 20, 6)).shape == (10, 20, 24)


def test_topk_with_all_features_is_the_standard_sae(x_ND):
    sae, plain = TopK(6, 10, k=10, seed=2), SAE(6, 10, seed=2)
    assert torch.equal(sae(x_ND).x_hat, plain(x_ND).x_hat)


@pytest.mark.parametrize("k", [0, 25])
def test_impossible_k_is_refused(k):
    with pytest.raises(Refusal, match="k"):
        TopK(6, 24, k=k)


def test_files_come_back_as_what_they_are(tmp_path, x_ND):
    topk = TopK(6, 24, k=3, metadata={"site": "here"})
    plain = SAE(6, 24)
    topk.save(tmp_path / "topk")
    plain.save(tmp_path / "plain")
    again = load(tmp_path / "topk")
    assert isinstance(again, TopK) and again.k == 3 and again.metadata["site"] == "here"
    assert torch.equal(again.encode(x_ND), topk.encode(x_ND))
    assert type(load(tmp_path / "plain")) is SAE


def test_one_kind_is_not_read_as_another(tmp_path):
    TopK(6, 24, k=3).save(tmp_path / "topk")
    SAE(6, 24).save(tmp_path / "plain")
    assert type(SAE.load(tmp_path / "topk")) is TopK  # a TopK is an SAE
    with pytest.raises(Refusal, match="architecture"):
        TopK.load(tmp_path / "plain")


def test_training_decodes_what_the_class_decodes(x_ND):
    """One step without momentum's memory moves the weights as autograd through the class says."""
    scale = mean_norm_scale(x_ND)
    how = {"steps": 1, "batch_size": 200, "lr": 1e-4, "basis": "given", "progress": False}
    trained = train(x_ND, 24, kind=TopK, k=3, **how)
    start = TopK.from_data(x_ND * scale, 24, k=3, seed=0)
    (start(x_ND * scale).x_hat - x_ND * scale).square().sum(1).mean().backward()
    moved = trained.sae.fold_scale_(1 / scale).W_dec - start.W_dec
    large = start.W_dec.grad.abs() > 1e-3  # Adam's first step is its sign
    assert torch.equal(moved[large].sign(), -start.W_dec.grad[large].sign())


def test_training_finds_planted_features():
    generator = torch.Generator().manual_seed(0)
    true_GD = torch.nn.functional.normalize(torch.randn(20, 12, generator=generator), dim=1)
    on_NG = torch.rand(20_000, 20, generator=generator) < 0.08
    x_ND = (on_NG * torch.rand(20_000, 20, generator=generator)) @ true_GD
    how = {"steps": 1_500, "batch_size": 256, "lr": 3e-3, "log_every": 500, "progress": False}
    trained = train(x_ND, 40, kind=TopK, k=2, **how)
    rows_FD = torch.nn.functional.normalize(trained.sae.W_dec.detach(), dim=1)
    assert ((rows_FD @ true_GD.T).max(0).values > 0.9).sum() >= 17
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]
    assert trained.history[-1]["l0"] <= 2
