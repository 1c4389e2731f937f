"""The GPU's engine against automatic differentiation in double precision.

On a machine with CUDA these run there (`pytest -m gpu tests`). Elsewhere Triton's interpreter runs
the same kernels on the CPU, in a process of its own (`test_gpu_interpreted`): it wants another
NumPy than ours, which `make test` puts into a folder beside the environment.
"""

import copy
import itertools
import math
import os

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny_models import make as make_lm
from tiny_models import some_tokens

from saelearn.activations import ActivationStore, stream
from saelearn.activations.shards import ShardWriter, Tokens
from saelearn.sae import AT_FULL, L1, SAE, BatchTopK, Now, Squared, TopK, Transcoder
from saelearn.train import Adam, Autograd, beside, step, sweep, train
from saelearn.train.autograd import Plan
from saelearn.train.fast import gpu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
EXAMPLES = 6 if INTERPRETED else 60
FEW = 7 if INTERPRETED else 50

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (INTERPRETED or torch.cuda.is_available()) or not gpu.available(),
        reason="no CUDA here; `test_gpu_interpreted` runs these on the CPU",
    ),
]

if INTERPRETED:
    gpu.SLOTS = 8  # each slot is a program, and a program takes a millisecond

SPARSE, DENSE = Plan("triton", 2.0), Plan("triton", 0.0)
SMALL = gpu.Tiles(rows=32, columns=32, chunk=4, at_once=2, decoded_at_once=2)


def make(kind=SAE, D=9, F=40, *, seed=0, bias=0.0, **arguments):
    torch.manual_seed(seed)
    sae = kind(D, F, decoder_init_norm=0.8, **arguments)
    with torch.no_grad():
        sae.b_enc += bias + 0.1 * torch.randn(F)
        sae.b_dec.normal_()
    return sae.to(DEVICE)


def exact(sae):
    """The same in double precision, on the CPU."""
    return copy.deepcopy(sae).cpu().double()


def gap(sae, x_BD):
    """How close a pre-activation comes to zero, where fp32 and float64 may part ways."""
    return float(exact(sae).pre(x_BD.cpu().double()).abs().min().detach())


def differences(sae, x_BD, engine, objective, now=AT_FULL):
    """Relative errors of gradients and loss against float64 autograd."""
    right = exact(sae)
    for parameter in sae.parameters():
        parameter.grad = None
    seen = engine(sae, x_BD, objective, now)
    expected = Autograd()(right, x_BD.cpu().double(), objective, now)
    assert torch.equal(seen.count_F.cpu(), expected.count_F)
    found = {}
    for (name, ours), theirs in zip(sae.named_parameters(), right.parameters(), strict=True):
        length = theirs.grad.norm().clamp(min=1e-6)
        found[name] = float((ours.grad.cpu().double() - theirs.grad).norm() / length)
    for name, term in {"total": seen.loss.total, **seen.loss.terms}.items():
        other = expected.loss.total if name == "total" else expected.loss.terms[name]
        found[name] = abs(float(term) - float(other)) / max(1e-6, abs(float(other)))
    return found


shapes = st.tuples(*(st.sampled_from(n) for n in ((1, 2, 32, 70), (1, 9, 32), (1, 33, 90))))
"""Few sizes, since each is compiled anew: one, a whole block, a block and more."""


@given(
    shape=shapes, seed=st.integers(0, 10**6), bias=st.sampled_from([-3.0, -1.0, 0.0, 4.0]),
    skew=st.booleans(), norm=st.sampled_from(["weighted", "unit_norm", "free"]),
    centred=st.booleans(), plan=st.sampled_from([SPARSE, DENSE]),
)  # fmt: skip
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_gradients_are_those_of_autograd(shape, seed, bias, skew, norm, centred, plan):
    B, D, F = shape
    sae = make(D=D, F=F, seed=seed, bias=bias, apply_b_dec_to_input=centred)
    if skew:
        with torch.no_grad():
            sae.b_enc[:: max(1, F // 3)] += 6.0
    x_BD = torch.randn(B, D, device=DEVICE)
    assume(gap(sae, x_BD) > 1e-5)
    engine = gpu.GpuL1(plan, tiles=SMALL)
    found = differences(sae, x_BD, engine, L1(0.3, norm))
    plain = differences(sae, x_BD, Autograd(), L1(0.3, norm))  # what fp32 can do where sums cancel
    assert all(found[name] < max(1e-5, 4 * plain[name]) for name in found), (found, plain)


def test_a_few_batches():
    """The shortest look at every kernel of the sparse way: pieces, passes' ends, masked tails."""
    sae, x_BD = make(D=5, F=35, bias=-0.5), torch.randn(33, 5, device=DEVICE)
    with torch.no_grad():
        sae.b_enc[7] += 6.0  # a long list
        x_BD[:, 2] = 0.0
        sae.W_enc[:, 11] = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
        sae.b_dec[2] = sae.b_enc[11] = 0.0  # z is 0 in each row: not active
    found = differences(sae, x_BD, gpu.GpuL1(SPARSE, tiles=SMALL), L1(0.3))
    assert max(found.values()) < 1e-5


@pytest.mark.parametrize("plan", [SPARSE, DENSE])
@pytest.mark.parametrize("bias", [-50.0, 50.0])
def test_nothing_or_everything_is_active(plan, bias):
    sae, x_BD = make(bias=bias), torch.randn(33, 9, device=DEVICE)
    found = differences(sae, x_BD, gpu.GpuL1(plan, tiles=SMALL), L1(0.3))
    assert max(found.values()) < 1e-5


@pytest.mark.parametrize("plan", [SPARSE, DENSE])
def test_one_feature_is_active_everywhere(plan):
    sae, x_BD = make(bias=-50.0), torch.randn(70, 9, device=DEVICE)
    with torch.no_grad():
        sae.b_enc[7] = 20.0
    found = differences(sae, x_BD, gpu.GpuL1(plan, tiles=SMALL), L1(0.3))
    assert max(found.values()) < 1e-5


def test_lists_that_do_not_fit_at_once_go_in_passes(monkeypatch):
    """To the same bits: nothing is dropped, and no sum is taken in another order."""
    x_BD, found = torch.randn(40, 9, device=DEVICE), []
    for room in (gpu.LISTED, 90, 1):
        monkeypatch.setattr(gpu, "LISTED", room)
        sae = make()
        gpu.GpuL1(SPARSE, tiles=SMALL)(sae, x_BD, L1(0.3), AT_FULL)
        found.append([p.grad.clone() for p in sae.parameters()])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_pieces_without_a_slot_are_taken_whole(monkeypatch):
    """More long lists than slots: exact all the same."""
    monkeypatch.setattr(gpu, "SLOTS", 4)
    sae, x_BD = make(bias=2.0), torch.randn(40, 9, device=DEVICE)
    found = differences(sae, x_BD, gpu.GpuL1(SPARSE, tiles=SMALL), L1(0.3))
    assert max(found.values()) < 1e-5


def test_bf16_is_close():
    sae, x_BD = make(D=32, F=96, bias=-0.3), torch.randn(64, 32, device=DEVICE)
    right = exact(sae)
    Autograd()(right, x_BD.cpu().double(), L1(0.3), AT_FULL)
    exact_P = torch.cat([p.grad.flatten() for p in right.parameters()])
    for plan in (SPARSE, DENSE):
        gpu.GpuL1(plan, precision="bf16", tiles=SMALL)(sae, x_BD, L1(0.3), AT_FULL)
        found_P = torch.cat([p.grad.cpu().double().flatten() for p in sae.parameters()])
        assert 1e-4 < (found_P - exact_P).norm() / exact_P.norm() < 0.05


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("norm", "clip"), [("weighted", 1.0), ("unit_norm", 0.3), ("free", math.inf)]
)
def test_the_update_is_that_of_adam(precision, norm, clip):
    """Three steps, a resampling-like change between them, beside the plain update."""
    torch.manual_seed(1)
    saes = [make(F=33, bias=-1.0) for _ in range(2)]
    if norm == "unit_norm":
        for sae in saes:
            sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    x_BD = torch.randn(3, FEW, 9, device=DEVICE)
    runs = []
    for sae, own in zip(saes, (True, False), strict=True):
        engine = gpu.GpuL1(SPARSE, precision=precision, tiles=SMALL)
        if not own:
            engine.update = plain_update
        adam = Adam(sae.parameters(), lr=1e-2, factors={sae.b_enc: 3.0})
        for i in range(3):
            step(sae, x_BD[i], adam, L1(0.3, norm), clip_norm=clip, engine=engine)
            with torch.no_grad():
                if i == 1:
                    sae.W_enc[:, :3] *= 0.5
                    sae.W_dec[4] *= -1.0
        runs.append(adam)
    names = dict(saes[0].named_parameters())
    for name in names:
        ours, theirs = (getattr(sae, name) for sae in saes)
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            a, b = runs[0].state[ours][key], runs[1].state[theirs][key]
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
            assert a.stride() == b.stride()


def plain_update(sae, optimizer, **how):
    from saelearn.train.update import update_

    update_(sae, optimizer, **how)


class FakeRecord:
    """What a CUDA graph does: the same work on the same memory, the results where they were."""

    def __init__(self, work):
        self.work, self.found = work, work()

    def replay(self):
        again = self.work()
        for old, new in zip(self.found or (), again or (), strict=True):
            old.copy_(new)


def test_recorded_steps_are_those_launched_one_by_one(monkeypatch):
    """Other rows, another coefficient and rate at each step; other weights in between, and a
    smaller batch, which must not be taken for a record's and leaves them as they are."""
    if INTERPRETED:
        monkeypatch.setattr(gpu, "WARM", 1)

        def taken_down(self, name, work):
            if name[0] == "update":  # to record is not to do
                graph = FakeRecord.__new__(FakeRecord)
                graph.work, graph.found = work, None
                return graph, None
            graph = FakeRecord(work)
            return graph, graph.found

        monkeypatch.setattr(gpu.GpuKernel, "_taken_down", taken_down)
    ends = []
    for record in (True, False):
        sae, x_BD = make(F=33, bias=-1.0), torch.randn(6, FEW, 9, device=DEVICE)
        engine = gpu.GpuL1(SPARSE, precision="bf16", tiles=SMALL)
        engine._record = record
        adam = Adam(sae.parameters(), lr=1e-2)
        losses, small = [], 1 if INTERPRETED else 4
        for i in range(3 if INTERPRETED else 6):
            adam.lr = 1e-2 / (i + 1)
            now, rows = Now(warmup=(i + 1) / 6), x_BD[i]
            if i == small:
                records = {k: r for k, r in engine._recorded.items() if isinstance(r, tuple)}
                rows = rows[: FEW - 2]
            losses.append(step(sae, rows, adam, L1(0.5), now=now, engine=engine).loss.total)
            if i == 1:
                with torch.no_grad():
                    sae.W_enc[:, :3] *= 0.5
        assert bool(records) == record
        assert all(engine._recorded[key] is known for key, known in records.items())
        ends.append([*losses, *(p.detach().clone() for p in sae.parameters())])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_what_is_frozen_stays():
    sae, x_BD = make(F=33, bias=-1.0), torch.randn(FEW, 9, device=DEVICE)
    sae.W_dec.requires_grad_(False)
    before = sae.W_dec.clone(), sae.W_enc.clone()
    adam = Adam(sae.parameters(), lr=1e-2)
    step(sae, x_BD, adam, L1(0.3), engine=gpu.GpuL1(SPARSE, tiles=SMALL))
    assert torch.equal(sae.W_dec, before[0])
    assert not torch.equal(sae.W_enc, before[1])


@pytest.mark.parametrize("norm", ["weighted", "unit_norm"])
@pytest.mark.parametrize("plan", [SPARSE, DENSE])
def test_several_side_by_side_are_as_each_alone(plan, norm):
    from saelearn.train.fast import Case, Stack

    torch.manual_seed(0)
    K, F, D = 3, 40, 9
    stack = Stack(torch.randn(K, F, D), torch.randn(K, F) - 1, torch.randn(K, F, D),
                  torch.randn(K, D))  # fmt: skip
    stack = Stack(*(t.to(DEVICE) for t in stack))
    x_BD, l1_K = torch.randn(37, D, device=DEVICE), torch.linspace(0.1, 2, K, device=DEVICE)
    kernel = gpu.GpuKernel(plan, tiles=SMALL)
    loss, count_KF, gradient = kernel.stacked(stack, x_BD, Case(l1_K, norm, True))
    gradient = Stack(*(g.clone() for g in gradient))
    for k in range(K):
        one = Stack(*(p[k : k + 1] for p in stack))
        case = Case(l1_K[k : k + 1], norm, True)
        alone = gpu.GpuKernel(plan, tiles=SMALL).stacked(one, x_BD, case)
        assert torch.equal(count_KF[k], alone[1][0])
        torch.testing.assert_close(loss.total[k], alone[0].total[0])
        for a, b in zip(gradient, alone[2], strict=True):
            torch.testing.assert_close(a[k], b[0], rtol=1e-4, atol=1e-5)


@given(
    shape=shapes, seed=st.integers(0, 10**6), of_batch=st.booleans(), ties=st.booleans(),
    bias=st.sampled_from([-1.0, 0.0, 4.0]),
)  # fmt: skip
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_largest_are_those_of_autograd(shape, seed, of_batch, ties, bias):
    B, D, F = shape
    kind = BatchTopK if of_batch else TopK
    sae = make(kind, D=D, F=F, seed=seed, bias=bias, k=max(1, F // 8))
    x_BD = torch.randn(B, D, device=DEVICE)
    pre_BF = exact(sae).pre(x_BD.cpu().double()).detach()
    sorted_A = (pre_BF if not of_batch else pre_BF.view(1, -1)).relu().sort(-1).values
    spacing = sorted_A.diff(dim=-1)
    assume(gap(sae, x_BD) > 1e-5)
    assume(not ((spacing > 0) & (spacing < 1e-5)).any())
    engine = gpu.GpuTopK(SPARSE, tiles=SMALL)
    found = differences(sae, x_BD, engine, Squared())
    plain = differences(sae, x_BD, Autograd(), Squared())
    assert all(found[name] < max(1e-5, 4 * plain[name]) for name in found), (found, plain)
    observed = engine(sae, x_BD, Squared(), AT_FULL).observed_P
    if of_batch:
        expected = Autograd()(sae, x_BD, Squared(), AT_FULL).observed_P
        torch.testing.assert_close(observed.cpu(), expected.cpu(), rtol=1e-4, atol=1e-6)
    else:
        assert observed is None


def test_of_equals_as_many_are_taken_as_there_is_room_for():
    """A model whose features come in pairs: each row has ties at the bar."""
    sae = make(TopK, D=8, F=64, k=5)
    with torch.no_grad():
        for p, axis in ((sae.W_enc, 1), (sae.b_enc, 0), (sae.W_dec, 0)):
            half = p.narrow(axis, 0, 32).clone()
            p.narrow(axis, 32, 32).copy_(half)
    x_BD = torch.randn(FEW, 8, device=DEVICE)
    seen = gpu.GpuTopK(SPARSE, tiles=SMALL)(sae, x_BD, Squared(), AT_FULL)
    expected = Autograd()(exact(sae), x_BD.cpu().double(), Squared(), AT_FULL)
    assert seen.count_F.sum() == expected.count_F.sum()
    assert float(seen.loss.total) == pytest.approx(float(expected.loss.total), rel=1e-5)


@pytest.mark.parametrize("kind", [TopK, BatchTopK])
def test_in_half_precision_the_largest_are_those_of_what_was_rounded(kind):
    """Their numbers differ in fewer bits, and only those are looked at."""
    sae, x_BD = make(kind, D=9, F=90, k=7, bias=0.5), torch.randn(FEW, 9, device=DEVICE)
    engine = gpu.GpuTopK(SPARSE, precision="bf16", tiles=SMALL)
    seen = engine(sae, x_BD, Squared(), AT_FULL)
    z_BF = engine._kept["z"][0].float().relu()
    if kind is BatchTopK:
        least = z_BF.flatten().topk(7 * FEW).values[-1]
        assert torch.equal(engine._kept["bar"], least.expand(FEW))
        assert int(seen.count_F.sum()) == int((z_BF >= least).sum())
        assert float(seen.observed_P) == float(least)
    else:
        assert torch.equal(engine._kept["bar"], z_BF.topk(7).values[:, -1])
        assert int(seen.count_F.sum()) == 7 * FEW


def test_dead_features_are_revived():
    sae = make(TopK, D=9, F=40, k=4)
    dead_F = torch.zeros(40, dtype=torch.bool, device=DEVICE)
    dead_F[20:] = True
    x_BD, now = torch.randn(33, 9, device=DEVICE), Now(dead_F=dead_F)
    objective = Squared(aux_k=8)
    right = exact(sae)
    seen = gpu.GpuTopK(SPARSE, tiles=SMALL)(sae, x_BD, objective, now)
    expected = Autograd()(right, x_BD.cpu().double(), objective, Now(dead_F=dead_F.cpu()))
    torch.testing.assert_close(
        float(seen.loss.total), float(expected.loss.total), rtol=1e-5, atol=0
    )
    for ours, theirs in zip(sae.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.cpu().double(), theirs.grad, rtol=1e-4, atol=1e-5)


def test_wide_rows(monkeypatch):
    """More columns than a block has."""
    sae, x_BD = make(D=1_500, F=5, bias=0.3), torch.randn(6, 1_500, device=DEVICE)
    for plan in (SPARSE, DENSE):
        found = differences(sae, x_BD, gpu.GpuL1(plan, tiles=SMALL), L1(0.3))
        assert max(found.values()) < 1e-5


def test_a_row_that_is_read_piece_by_piece(monkeypatch):
    monkeypatch.setattr(gpu, "WHOLE_ROW", 16)
    sae, x_BD = make(TopK, F=90, k=7), torch.randn(20, 9, device=DEVICE)
    found = differences(sae, x_BD, gpu.GpuTopK(SPARSE, tiles=SMALL), Squared())
    assert max(found.values()) < 1e-5


def test_the_choice_rests_on_what_was_active():
    sae, x_BD = make(bias=-50.0), torch.randn(64, 9, device=DEVICE)
    engine = gpu.GpuL1(Plan("triton", 0.3), tiles=SMALL)
    ways = []
    for bias in (-50.0, -50.0, 50.0, 50.0, 50.0, 50.0, -50.0, -50.0, -50.0):
        with torch.no_grad():
            sae.b_enc.fill_(bias)
        engine(sae, x_BD, L1(0.3), AT_FULL)
        ways.append(engine.way[0])
    late = "ssssdddds"[: len(ways)] if not INTERPRETED else "ssddddsss"
    assert "".join(ways) == late


on_cuda = pytest.mark.skipif(INTERPRETED, reason="trains, which takes too long interpreted")


def rows(n=4_096, d=16):
    """Sparse sums of planted directions."""
    generator = torch.Generator().manual_seed(0)
    directions_GD = torch.nn.functional.normalize(torch.randn(32, d, generator=generator), dim=1)
    on_NG = torch.rand(n, 32, generator=generator) < 0.06
    return (torch.rand(n, 32, generator=generator) + 0.5) * on_NG @ directions_GD


@pytest.fixture
def no_waiting():
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@on_cuda
@pytest.mark.parametrize("kind", [SAE, BatchTopK])
def test_a_run_that_was_stopped_ends_with_the_same_bits(kind, tmp_path, deterministic):
    how = {"kind": kind, "steps": 120, "batch_size": 256, "device": "cuda", "precision": "bf16",
           "log_every": 10, "progress": False, "resample_at": (0.6,)}  # fmt: skip
    how |= {"l1_coefficient": 0.5} if kind is SAE else {"k": 4}

    def interrupt(record, sae):
        if record["step"] == 70:
            raise KeyboardInterrupt

    whole = train(rows(), 64, **how)
    cut = train(rows(), 64, checkpoint=tmp_path, callback=interrupt, **how)
    assert cut.steps == 70
    resumed = train(rows(), 64, checkpoint=tmp_path, **how)
    assert resumed.steps == 120
    for a, b in zip(whole.sae.parameters(), resumed.sae.parameters(), strict=True):
        assert torch.equal(a, b)


@on_cuda
@pytest.mark.parametrize("kind", [TopK, BatchTopK])
def test_a_training_ends_where_the_cpu_does(kind):
    how = {"kind": kind, "k": 3, "steps": 400, "batch_size": 256, "progress": False}
    ends = [
        train(rows(), 64, device=d, **how).column("reconstruction")[-1] for d in ("cpu", "cuda")
    ]
    assert ends[0] == pytest.approx(ends[1], rel=0.1)


@on_cuda
def test_a_sweep_is_its_trainings():
    how = {"steps": 60, "batch_size": 256, "device": "cuda", "progress": False}
    together = sweep(rows(), 64, [0.2, 1.0], **how)
    for trained, l1 in zip(together, (0.2, 1.0), strict=True):
        alone = train(rows(), 64, l1_coefficient=l1, **how)
        for a, b in zip(trained.sae.parameters(), alone.sae.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@on_cuda
def test_the_host_waits_for_nothing_in_a_step(no_waiting):
    sae, x_BD = make(D=16, F=64, bias=-1.0), torch.randn(256, 16, device=DEVICE)
    engine = gpu.GpuL1(SPARSE, precision="bf16")
    adam = Adam(sae.parameters(), lr=1e-3)
    for i in range(12):
        if i == 6:  # recorded by now, and what was active two steps before is known
            torch.cuda.set_sync_debug_mode("error")
        step(sae, x_BD, adam, L1(0.5), now=Now(warmup=(i + 1) / 12), engine=engine)
    assert any(isinstance(record, tuple) for record in engine._recorded.values())


@on_cuda
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rows_from_disk_come_as_on_the_cpu(tmp_path, deterministic, dtype):
    """All of them kept on the GPU, two windows there in turns, or fetched from the CPU."""
    writer = ShardWriter(tmp_path, {}, d_in=16, dtype=dtype, shard_rows=9_000)
    for number in range(10):
        writer.add(rows() + number, {"batches": number})
    writer.close(Tokens(40_960, 40_960, 0, 0), {"batches": number})

    def store(**how):
        return ActivationStore(tmp_path, batch_size=700, seed=1, memory_limit=2**19, **how)

    whole, two_windows = list(store(epochs=2)), 2**19 + 2**17
    for limit in (2**40, two_windows):
        begun = store(epochs=2)
        begun.load_state_dict(begun.state_dict(batches=31))
        there = begun.on_device("cuda", limit)
        assert 0 < there.taken <= limit
        given = list(there)
        assert all(x_BD.is_cuda for x_BD in given) and len(given) == len(whole) - 31
        assert all(torch.equal(a.cpu(), b) for a, b in zip(given, whole[31:], strict=True))
    how = {"l1_coefficient": 0.5, "steps": 150, "device": "cuda", "progress": False}
    data = (store(), store().on_device("cuda", two_windows), (x_BD for x_BD in store()))
    kept, turns, fetched = (train(each, 64, **how) for each in data)
    assert kept.memory["data"] > turns.memory["data"] > 0 and "data" not in fetched.memory
    for a, b, c in zip(*(t.sae.parameters() for t in (kept, turns, fetched)), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@on_cuda
def test_activations_go_to_the_gpu_as_a_whole_if_they_fit(monkeypatch, deterministic):
    how = {"l1_coefficient": 0.5, "steps": 60, "device": "cuda", "progress": False}
    across = how | {"target": 2 * rows(), "kind": Transcoder}
    there, further = train(rows(), 64, **how), train(rows(), 64, **across)
    assert rows().nbytes < there.memory["data"] < further.memory["data"] - rows().nbytes
    monkeypatch.setattr(beside, "SHARE", 0.0)
    here, not_further = train(rows(), 64, **how), train(rows(), 64, **across)
    assert "data" not in here.memory | not_further.memory
    for a, b in zip(there.sae.parameters(), here.sae.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(further.sae.parameters(), not_further.sae.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@on_cuda
def test_rows_made_on_the_gpu_stay_there():
    lm = make_lm("gpt2")
    how = {"batch_size": 64, "buffer_size": 512}
    documents, site = some_tokens(400, 10).split(20), "blocks.1.hook_resid_post"
    expected = list(stream(lm, documents, site, **how))
    lm.model.to("cuda")
    on_cpu, there = (stream(lm, documents, site, **how) for _ in range(2))
    assert there.on_device("cuda", 2**30).taken > 0 == on_cpu.taken
    for a, b, c in zip(expected, on_cpu, there, strict=True):
        assert c.is_cuda and not b.is_cuda and torch.equal(b, c.cpu())
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    more = stream(lm, itertools.cycle(documents), site, **how)
    trained = train(more, 64, l1_coefficient=0.5, steps=80, device="cuda", progress=False)
    assert trained.memory["data"] == more.taken > 0
    assert math.isfinite(trained.column("loss")[-1])


@on_cuda
def test_an_error_of_the_stream_comes_at_its_batch():
    """Batches are drawn ahead; what was drawn before the error is still trained on."""

    def stream():
        yield from rows().split(256)[:9]
        raise ValueError("the disk is gone")

    seen = []
    with pytest.raises(ValueError, match="the disk is gone"):
        train(stream(), 64, l1_coefficient=0.5, steps=50, device="cuda", log_every=1,
              progress=False, callback=lambda record, sae: seen.append(record["step"]))  # fmt: skip
    assert seen[-1] == 9
