"""The hand-written gradient against automatic differentiation in double precision."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from saelearn.sae import AT_FULL, L1, SAE, l1_loss
from saelearn.train.autograd import Autograd
from saelearn.train.fast import ENCODERS, Case, Kernel, Plan, SparseL1, Stack, active, kernels

PLANS = [Plan("plain", 0.0), *(Plan(encoder, 1.1) for encoder in ENCODERS)]


def errors(
    sae: SAE, x_BD: torch.Tensor, engine: SparseL1 | Autograd, *, l1: float, norm: str
) -> dict[str, float]:
    """Relative differences of gradients and losses from float64 autograd; of counts, absolute."""
    exact = SAE(sae.d_in, sae.d_sae, apply_b_dec_to_input=sae.apply_b_dec_to_input).double()
    exact.load_state_dict({name: value.double() for name, value in sae.state_dict().items()})
    x_double_BD = x_BD.double()
    output = exact(x_double_BD)
    sae.zero_grad()
    loss, count_F, *_ = engine(sae, x_BD, L1(l1, norm), AT_FULL)
    expected = l1_loss(x_double_BD, output, exact.W_dec, l1_coefficient=l1, decoder_norm=norm)
    expected.total.backward()
    pairs = {
        name: (ours.grad, theirs.grad)
        for (name, ours), theirs in zip(sae.named_parameters(), exact.parameters(), strict=True)
    }
    for name in ("total", *expected.terms):
        pairs[name] = getattr(loss, name), getattr(expected, name).detach()
    found = {
        name: float((ours.double() - theirs).norm() / theirs.norm().clamp(min=1e-6))
        for name, (ours, theirs) in pairs.items()
    }
    return found | {"count": float((count_F - (output.f > 0).sum(0)).abs().max())}


def gap(sae: SAE, x_BD: torch.Tensor) -> float:
    """How close a pre-activation comes to zero, where fp32 and float64 may part ways."""
    input_BD = x_BD - sae.b_dec if sae.apply_b_dec_to_input else x_BD
    return float((input_BD @ sae.W_enc + sae.b_enc).abs().min().detach())


def left_over(sae: SAE, x_BD: torch.Tensor) -> float:
    """What x - x_hat is of the terms it is summed from: fp32 loses as many digits as cancel."""
    output = sae(x_BD)
    terms_BD = x_BD.abs() + output.f @ sae.W_dec.abs() + sae.b_dec.abs()
    return float((x_BD - output.x_hat).norm().detach() / terms_BD.norm().detach())


def assert_exact(sae: SAE, x_BD: torch.Tensor, plan: Plan, *, l1: float = 0.3, norm: str) -> None:
    """To 1e-5, or, where sums cancel, to what PyTorch's own gradient in fp32 makes of them."""
    found = errors(sae, x_BD, SparseL1(plan), l1=l1, norm=norm)
    plain = errors(sae, x_BD, Autograd(), l1=l1, norm=norm)
    assert all(found[name] < max(1e-5, 4 * plain[name]) for name in found), (found, plain)


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 40),
    d_in=st.integers(1, 24),
    d_sae=st.integers(1, 60),
    bias=st.sampled_from([-10.0, -1.0, -0.3, 0.0, 10.0]),
    norm=st.sampled_from(["weighted", "unit_norm", "free"]),
    centred=st.booleans(),
    stride=st.integers(1, 3),
    plan=st.sampled_from(PLANS),
    seed=st.integers(0, 1_000),
)
def test_gradients_equal_float64_autograd(
    batch, d_in, d_sae, bias, norm, centred, stride, plan, seed
):
    """Over shapes, strides, densities from nothing to everything, norms, pre-bias, all ways."""
    torch.manual_seed(seed)
    sae = SAE(d_in, d_sae, apply_b_dec_to_input=centred, decoder_init_norm=0.7, seed=seed)
    sae.W_enc.data = torch.randn(d_in, d_sae, stride)[..., 0]  # memory laid out in any way
    sae.W_dec.data = torch.randn(d_in, d_sae).T if stride == 2 else sae.W_dec.data
    sae.b_enc.data = bias + 0.1 * torch.randn(d_sae)
    sae.b_dec.data = torch.randn(d_in)
    x_BD = torch.randn(stride * batch, d_in)[::stride]
    assume(gap(sae, x_BD) > 1e-5 and left_over(sae, x_BD) > 0.02)
    assert_exact(sae, x_BD, plan, norm=norm)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("case", ["nothing", "everything", "one sample", "one feature", "unused"])
def test_extreme_cases(plan, case):
    torch.manual_seed(3)
    sae = SAE(12, 1 if case == "one feature" else 50, decoder_init_norm=0.7)
    sae.b_enc.data += {"nothing": -100.0, "everything": 100.0}.get(case, 0.05)
    if case == "unused":
        sae.b_enc.data[7] = -100.0
    x_BD = torch.randn(1 if case == "one sample" else 30, 12)
    assert_exact(sae, x_BD, plan, norm="weighted")
    if case == "unused":
        assert sae.W_enc.grad[:, 7].eq(0).all() and sae.W_dec.grad[7].eq(0).all()


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_batches_of_several_chunks(plan, monkeypatch):
    """More rows than a chunk holds, not a multiple of them; lists that turn out too short."""
    monkeypatch.setattr(active, "TABLE", 300 * 8)
    monkeypatch.setattr(active, "ROOM", 1e-3)
    torch.manual_seed(0)
    sae = SAE(8, 30, decoder_init_norm=0.5)
    sae.b_enc.data -= 0.4 + 0.01 * torch.rand(30)
    x_BD = torch.randn(2_600, 8)
    input_BF = (x_BD @ sae.W_enc + sae.b_enc).detach()
    x_BD = x_BD[input_BF.abs().min(1).values > 1e-5][:2_500]
    assert len(x_BD) == 2_500 and gap(sae, x_BD) > 1e-5
    assert_exact(sae, x_BD, plan, norm="weighted")


def test_no_encoder_loses_an_entry_whatever_the_sizes_of_rows_and_features():
    """Rows and features of lengths from 1e-4 to 1e4, biases of both signs: none is missed."""
    torch.manual_seed(1)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x_BD = torch.randn(60, 20, generator=generator)
        x_BD *= 10 ** (8 * torch.rand(60, 1, generator=generator) - 4)
        W_FD = torch.randn(80, 20, generator=generator)
        W_FD *= 10 ** (8 * torch.rand(80, 1, generator=generator) - 4)
        # a bias that puts half of a feature's pre-activations close to the threshold
        b_F = -(x_BD @ W_FD.T).median(0).values
        sae = Stack(W_FD[None], b_F[None], W_FD[None], torch.zeros(1, 20))
        plain, *others = (
            Kernel(Plan(encoder, 1.1)).stacked(sae, x_BD, Case(torch.ones(1), "free", True))[1]
            for encoder in ENCODERS
        )
        z_BF = x_BD.double() @ W_FD.double().T + b_F.double()
        close = z_BF.abs() < 1e-6 * (x_BD.norm(dim=1, keepdim=True) * W_FD.norm(dim=1) + b_F.abs())
        assert ((plain[0] - (z_BF > 0).sum(0)).abs() <= close.sum(0)).all()
        assert all(torch.equal(other, plain) for other in others)


@pytest.mark.parametrize("plan", [*PLANS, Plan("plain", 0.3), Plan("screen", 0.3)], ids=str)
@pytest.mark.parametrize("norm", ["weighted", "unit_norm"])
@pytest.mark.parametrize("table", [active.TABLE, 1_000])
def test_saes_side_by_side_are_those_alone_to_the_bit(plan, norm, table, monkeypatch):
    """Dense ones, sparse ones and both in one sweep; in one chunk of rows or several."""
    monkeypatch.setattr(active, "TABLE", table)
    torch.manual_seed(0)
    K, D, F = 5, 16, 40
    W_KFD = torch.randn(K, F, D)
    sae = Stack(W_KFD, torch.randn(K, F) - torch.linspace(0, 10, K)[:, None],
                torch.randn(K, F, D), torch.randn(K, D))  # fmt: skip
    x_BD, l1_K = torch.randn(200, D), torch.linspace(0.1, 2, K)
    together = Kernel(plan).stacked(sae, x_BD, Case(l1_K, norm, True))
    for k in range(K):
        one = Stack(*(p[k : k + 1] for p in sae))
        alone = Kernel(plan).stacked(one, x_BD, Case(l1_K[k : k + 1], norm, True))
        for all_of_them, it in zip(together, alone, strict=True):
            pairs = (
                zip(all_of_them, it, strict=True) if isinstance(it, tuple) else [(all_of_them, it)]
            )
            assert all(torch.equal(a[k], b[0]) for a, b in pairs)


def test_the_sparse_way_is_the_one_taken_when_little_is_active(monkeypatch):
    """A forbidden dense way raises; a batch with few active entries must not reach it."""
    sae = SAE(16, 400, decoder_init_norm=1.0)
    sae.b_enc.data -= 3 * sae.W_enc.norm(dim=0).mean()
    monkeypatch.setattr(kernels, "_dense", lambda *_: pytest.fail("went the dense way"))
    x_BD = torch.randn(64, 16)
    assert 0 < (sae.encode(x_BD) > 0).float().mean() < 0.02
    SparseL1(Plan("plain", 0.05))(sae, x_BD, L1(0.1), AT_FULL)


def test_bf16_products_are_close_to_fp32():
    """Within what 8 bits allow; on a CPU as on a GPU the same lines run."""
    torch.manual_seed(0)
    sae, x_BD = SAE(32, 100, decoder_init_norm=0.5), torch.randn(500, 32)
    gradients = {}
    for precision in ("fp32", "bf16"):
        engine = SparseL1(Plan("plain", 0.0), precision=precision)
        loss = engine(sae, x_BD, L1(0.3), AT_FULL).loss
        gradients[precision] = torch.cat([p.grad.flatten() for p in sae.parameters()])
        assert loss.total.dtype == gradients[precision].dtype == torch.float32
    difference = (gradients["bf16"] - gradients["fp32"]).norm() / gradients["fp32"].norm()
    assert 1e-5 < difference < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.02)])
def test_cuda_agrees_with_the_cpu(precision, tolerance):
    torch.manual_seed(0)
    x_BD, found = torch.randn(500, 32), {}
    for device, p in (("cpu", "fp32"), ("cuda", precision)):
        sae = SAE(32, 100, decoder_init_norm=0.5).to(device)
        SparseL1(Plan("plain", 0.0), precision=p)(sae, x_BD.to(device), L1(0.3), AT_FULL)
        found[device] = torch.cat([q.grad.flatten().cpu() for q in sae.parameters()])
    assert (found["cuda"] - found["cpu"]).norm() / found["cpu"].norm() < tolerance
