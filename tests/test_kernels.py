"""The hand-written gradient against automatic differentiation in double precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelearn import kernels
from saelearn.sae import SAE, l1_loss


def relative_error(sae: SAE, x_BD: torch.Tensor, *, l1: float, norm: str) -> float:
    """The largest relative difference of a gradient (or the loss) from float64 autograd."""
    loss, _ = kernels.loss_and_gradients(sae, x_BD, l1_coefficient=l1, decoder_norm=norm)
    exact = SAE(sae.d_in, sae.d_sae, apply_b_dec_to_input=sae.apply_b_dec_to_input).double()
    exact.load_state_dict({name: value.double() for name, value in sae.state_dict().items()})
    x_BD = x_BD.double()
    expected = l1_loss(x_BD, exact(x_BD), exact.W_dec, l1_coefficient=l1, decoder_norm=norm)
    expected.total.backward()
    pairs = [(p.grad, q.grad) for p, q in zip(sae.parameters(), exact.parameters(), strict=True)]
    pairs += list(zip(loss, (term.detach() for term in expected), strict=True))
    return max(
        float((ours.double() - theirs).norm() / theirs.norm().clamp(min=1e-6))
        for ours, theirs in pairs
    )


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 40),
    d_in=st.integers(1, 24),
    d_sae=st.integers(1, 60),
    bias=st.sampled_from([-10.0, -1.0, -0.3, 0.0, 10.0]),
    norm=st.sampled_from(["weighted", "unit_norm", "free"]),
    centred=st.booleans(),
    sparse=st.booleans(),
    seed=st.integers(0, 1_000),
)
def test_gradients_equal_float64_autograd(batch, d_in, d_sae, bias, norm, centred, sparse, seed):
    """Over shapes, densities from nothing to everything, norms, pre-bias, and both routes."""
    torch.manual_seed(seed)
    sae = SAE(d_in, d_sae, apply_b_dec_to_input=centred, decoder_init_norm=0.7, seed=seed)
    sae.b_enc.data = torch.full((d_sae,), bias)
    sae.b_dec.data = torch.randn(d_in)
    x_BD = torch.randn(batch, d_in)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "SPARSE_BELOW", 1.1 if sparse else -1.0)
        assert relative_error(sae, x_BD, l1=0.3, norm=norm) < 1e-4


def test_strided_input():
    """Columns of a larger tensor, transposed: not contiguous in memory."""
    x_BD = torch.randn(30, 64)[:, ::4].contiguous().T.contiguous().T
    assert relative_error(SAE(16, 40, decoder_init_norm=0.5), x_BD, l1=0.1, norm="weighted") < 1e-5


def test_the_sparse_route_is_the_one_taken_when_little_is_active(monkeypatch):
    """A forbidden dense route raises; a batch with few active entries must not reach it."""
    sae = SAE(16, 400, decoder_init_norm=1.0)
    sae.b_enc.data -= 3 * sae.W_enc.norm(dim=0).mean()
    monkeypatch.setattr(kernels, "_dense", lambda *_: pytest.fail("went the dense way"))
    x_BD = torch.randn(64, 16)
    assert 0 < (sae.encode(x_BD) > 0).float().mean() < kernels.SPARSE_BELOW
    kernels.loss_and_gradients(sae, x_BD, l1_coefficient=0.1, decoder_norm="weighted")
