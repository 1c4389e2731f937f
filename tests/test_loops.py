"""The compiled loops: the same bits by whatever plan and threads, the right update, and a way
without them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelearn.sae import AT_FULL, L1, SAE, BatchTopK, TopK
from saelearn.toy import PlantedFeatures
from saelearn.train import Adam, sweep, train
from saelearn.train.fast import ENCODERS, Plan, SparseL1, active, loops
from saelearn.train.fast import threads as crew
from saelearn.train.fast.search import ROUGH
from saelearn.train.fast.updates import move
from saelearn.train.update import update_

TOY = PlantedFeatures.make(48, 24, 0.05)
X_ND = TOY.sample(3_000, generator=torch.Generator().manual_seed(0))[0]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def weights(plan: Plan, **how) -> list[torch.Tensor]:
    how = {"l1_coefficient": 5.0, "batch_size": 300, "lr": 5e-3} | how
    done = train(X_ND, 160, steps=60, progress=False, plan=plan, **how)
    assert 0 < done.history[-1]["l0"] < 0.15 * 160
    return [p.detach() for p in done.sae.parameters()]


def assert_equal_bits(some: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


HOW = {
    "weighted": {"decoder_norm": "weighted"},
    "unit_norm": {"decoder_norm": "unit_norm"},
    "topk": {"kind": TopK, "k": 3, "l1_coefficient": None},
    "batchtopk": {"kind": BatchTopK, "k": 3, "l1_coefficient": None},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("sparse_below", [Plan().sparse_below, 1.1])
def test_trainings_with_any_plan_end_in_the_same_bits(how, sparse_below, monkeypatch):
    """Dense at first and all of it sparse; several chunks of rows, the last of them not full."""
    monkeypatch.setattr(active, "CHUNK_ROWS", 64)
    plans = [Plan(encoder, sparse_below) for encoder in ENCODERS]
    first, *others = (weights(plan, **HOW[how]) for plan in plans)
    for other in others:
        assert_equal_bits(first, other)
    assert not torch.equal(first[0], weights(plans[0], **HOW[how], seed=1)[0])


@pytest.mark.parametrize("width", [1, 7, 8, 31, 64, 129])
def test_an_entry_has_the_same_bits_whatever_is_multiplied_out_beside_it(width):
    generator = torch.Generator().manual_seed(width)
    x_ND = torch.randn(9, width, generator=generator).numpy()
    W_FD, b_F = torch.randn(2, 1, width, generator=generator).numpy(), np.zeros(1, np.float32)

    def products(row_A: list[int]) -> np.ndarray:
        z_A, starts_F = np.zeros(len(row_A), np.float32), np.array([0, len(row_A)], np.int32)
        loops.dots(x_ND, W_FD[0], b_F, starts_F, np.array(row_A, np.int32), z_A, 0, 1)
        return z_A

    alone_N = np.concatenate([products([row]) for row in range(9)])
    np.testing.assert_allclose(alone_N, x_ND @ W_FD[0, 0], rtol=1e-4, atol=1e-5)
    for begin in range(4):
        np.testing.assert_array_equal(products(list(range(begin, 9))), alone_N[begin:])


@pytest.mark.parametrize(("longest", "offset", "kind"), [(0, 0, np.int8), (125, 64, np.uint8)])
@pytest.mark.parametrize("scale", [1.0, 0.1, 1 / 3, 1e-20, 1e20])
def test_what_rounding_says_is_of_the_numbers_it_wrote(longest, offset, kind, scale):
    """Also where all lie between two whole numbers, and either is as near."""
    x_ND = np.full((3, 70), 20.5)
    x_ND[1, ::2] *= -1
    x_ND[2] = np.random.default_rng(0).standard_normal(70)
    x_ND[:, 0] = 63
    x_ND = np.ascontiguousarray(x_ND * scale, np.float32)
    q_NE, side_4N = np.zeros((3, 72), kind), np.zeros((4, 3), np.float32)
    how = np.float32(63), np.float32(longest), np.int32(offset)
    loops.rounded(x_ND, q_NE, side_4N, *how, 0, 3)
    whole_ND = q_NE[:, :70].astype(np.float64) - offset
    exact_ND = x_ND * side_4N[0, :, None].astype(np.float64)
    assert (q_NE[:, 70:] == offset).all() and (side_4N[0] > 0).all()
    assert np.abs(whole_ND - exact_ND).max() < 0.5 + 1e-4
    for side_N, of_ND in zip(side_4N[1:], (exact_ND - whole_ND, whole_ND, exact_ND), strict=True):
        np.testing.assert_allclose(side_N, np.sqrt((of_ND**2).sum(1)), rtol=1e-5)
    if longest:
        pairs_NSP = np.pad(exact_ND, ((0, 0), (0, 58))).reshape(3, 2, -1, 2, 2)
        assert (pairs_NSP**2).sum((2, 4)).max() <= longest**2 * (1 + 1e-6)


@pytest.mark.parametrize("how", HOW)
def test_any_number_of_threads_gives_the_same_bits(how, threads, monkeypatch):
    """Of the steps; the mean that they start from is PyTorch's."""
    monkeypatch.setattr(crew, "WORTH", 1)  # or all of it would be too little for two
    monkeypatch.setattr(active, "CHUNK_ROWS", 64)
    found = []
    for n in (1, 2, 3):
        threads(n)
        start = {"center": "zero", "normalize": False}
        found.append(weights(Plan("plain", 1.1), **HOW[how], **start))
    assert_equal_bits(found[0], found[1])
    assert_equal_bits(found[0], found[2])


def test_threads_do_not_matter_in_a_sweep(threads, monkeypatch):
    monkeypatch.setattr(crew, "WORTH", 1)
    found = []
    for n in (1, 2):
        threads(n)
        done = sweep(X_ND, 160, [1.0, 3.0, 9.0], steps=60, progress=False)
        found.append([p.detach() for one in done for p in one.sae.parameters()])
    assert_equal_bits(*found)


@pytest.mark.parametrize(
    ("large", "left"), [(20, set()), (45, {"bytes"}), (90, {"bytes", "shorts"}), (600, set(ROUGH))]
)
def test_rows_that_are_too_uneven_for_bytes_go_another_way(large, left):
    """One large number in each row: whole numbers of that scale say little of the others. The last
    have more proposals than lists are made for, those before some too many for one or both."""
    torch.manual_seed(0)
    sae, x_BD = SAE(32, 400, decoder_init_norm=1.0), torch.randn(200, 32)
    sae.b_enc.data -= 2.3 * sae.W_enc.norm(dim=0)
    x_BD[:, 0] += large
    sae.W_enc.data[0] = 0
    found = {}
    if active.shorts() is None:  # then it is the plain way under another name
        left = left - {"shorts"}
    for encoder in ("plain", *ROUGH):
        engine = SparseL1(Plan(encoder, 1.1, otherwise="screen"))
        assert engine._encoder == encoder
        engine(sae, x_BD, L1(0.1), AT_FULL)
        found[encoder] = [p.grad.clone() for p in sae.parameters()]
        assert engine._encoder == ("screen" if encoder in left else encoder)
        assert_equal_bits(found["plain"], found[encoder])
    assert found["plain"][0].abs().sum() > 0


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 70)),
    clip_norm=st.sampled_from([0.01, 1.0, float("inf")]),
    unit=st.booleans(),
    factor=st.sampled_from([1.0, 7.0]),
    steps=st.integers(1, 4),
    seed=st.integers(0, 1_000),
)
def test_the_update_is_the_plain_one_in_double_precision(
    shape, clip_norm, unit, factor, steps, seed
):
    """Clipped and not, with rows of length 1 and free ones, from the second step on: the first is
    the plain one."""
    torch.manual_seed(seed)
    sae = SAE(*shape, seed=seed)
    exact = SAE(*shape, seed=seed).double()
    ours, theirs = (Adam(s.parameters(), lr=1e-2, factors={s.b_enc: factor}) for s in (sae, exact))
    for i in range(steps + 1):
        for p, q in zip(sae.parameters(), exact.parameters(), strict=True):
            q.grad = torch.randn_like(q) + 0.3
            p.grad = torch.empty_like(p).copy_(q.grad)
        slopes = {p: p.grad for p in sae.parameters()}
        how = {"clip_norm": clip_norm, "unit": sae.W_dec if unit else None}
        assert move(slopes, ours, **how) is (i > 0)
        if i == 0:
            update_(sae, ours, clip_norm=clip_norm, unit_norm=unit)
        update_(exact, theirs, clip_norm=clip_norm, unit_norm=unit)
    for p, q in zip(sae.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(p.double(), q, rtol=1e-5, atol=2e-6)
        for name, moment in theirs.state[q].items():
            own = ours.state[p][name].double()
            torch.testing.assert_close(own, moment.double(), rtol=1e-4, atol=1e-6)
    if unit:
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(shape[1]))


@pytest.mark.parametrize("moved", ["weights", "moments", "step"])
def test_the_update_sees_what_lies_elsewhere_by_now(moved):
    """As after a checkpoint was loaded, or weights were put in the place of others."""
    sae, exact = SAE(5, 9, seed=0), SAE(5, 9, seed=0)
    ours, theirs = (Adam(s.parameters(), lr=1e-2) for s in (sae, exact))
    for i in range(4):
        for p, q in zip(sae.parameters(), exact.parameters(), strict=True):
            p.grad = torch.empty_like(p).copy_(torch.full_like(p, 0.1 + i))
            q.grad = p.grad.clone()
            if i == 3:
                for own, optimizer in ((p, ours), (q, theirs)):
                    state = optimizer.state[own]
                    if moved == "weights":
                        own.data = own.data * 2  # laid out as it was
                    elif moved == "moments":
                        state["exp_avg"], state["exp_avg_sq"] = (
                            torch.zeros_like(own) + 0.5 for _ in range(2)
                        )
                    else:
                        state["step"] = torch.tensor(100.0)
        if i == 0 or not move({p: p.grad for p in sae.parameters()}, ours, clip_norm=1.0):
            update_(sae, ours, clip_norm=1.0, unit_norm=False)
        update_(exact, theirs, clip_norm=1.0, unit_norm=False)
    for p, q in zip(sae.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        for name, value in theirs.state[q].items():
            torch.testing.assert_close(ours.state[p][name], value, rtol=1e-5, atol=1e-6)


def test_what_the_loops_cannot_move_is_left_to_the_plain_update():
    sae = SAE(4, 6).double()
    slopes = {p: torch.ones_like(p) for p in sae.parameters()}
    optimizer = Adam(sae.parameters(), lr=1.0)
    for p in sae.parameters():
        optimizer.state_of(p)  # not the first move, which is left to it anyhow
    assert not move(slopes, optimizer, clip_norm=1.0)
    assert not any(p.eq(0).all() for p in sae.parameters() if p is sae.W_enc)


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_does_not_load_numba():
    modules = "saelearn.compiled, saelearn.toy, saelearn.train, saelearn.features"
    run(f"import sys, {modules}; assert 'numba' not in sys.modules")


TRAINED = """
import sys, torch
from saelearn.train import train
x_ND = torch.randn(2_048, 128, generator=torch.Generator().manual_seed(0))
for steps in (1, 100):
    how = {"steps": steps, "batch_size": 1_024, "progress": False}
    train(x_ND, 1_024, l1_coefficient=30.0, **how)
    print("numba" in sys.modules)
"""


def test_a_training_does_not_wait_for_numba_before_its_first_step(tmp_path):
    """Half of all is active then, and a dense step needs no loops; later ones do."""
    run(TRAINED, SAELEARN_CACHE=str(tmp_path))  # measures a plan, by the loops
    assert run(TRAINED, SAELEARN_CACHE=str(tmp_path)).split() == ["False", "True"]


WITHOUT = """
import sys
sys.modules["numba"] = None  # as if it were not installed
import torch
from saelearn.sae import TopK, SAE, L1, Squared
from saelearn.toy import PlantedFeatures
from saelearn.train import Autograd, engine_for, sweep, train
toy = PlantedFeatures.make(48, 24, 0.05)
how = {"steps": 300, "progress": False, "lr": 3e-3, "log_every": 10}
done = train(toy.batches(128), 96, l1_coefficient=0.3, **how)
assert done.history[-1]["loss"] < 0.75 * done.history[0]["loss"], done.history
engine = engine_for(done.sae, L1(0.3))
assert type(engine).__name__ == "SparseL1" and engine.plan.sparse_below == 0
assert type(engine_for(TopK(4, 9, k=2), Squared())) is Autograd
alone = train(toy.batches(128), 96, l1_coefficient=0.3, decoder_norm="unit_norm", **how)
(one,) = sweep(lambda: toy.batches(128), 96, [0.3], decoder_norm="unit_norm", **how)
for p, q in zip(one.sae.parameters(), alone.sae.parameters()):
    assert torch.equal(p, q)
"""


def test_without_numba_all_steps_are_dense():
    run(WITHOUT)


KEPT = """
import os, pathlib, sys
import numba
access = os.access
os.access = lambda path, mode: "fast" not in str(path) and access(path, mode)
from saelearn.train.fast import loops
assert numba.config.CACHE_DIR == ""  # what others compile is kept where they want
import numpy as np
place = np.empty(3, np.int64)
loops.by_feature(np.array([1, 0, 1]), np.empty(3, np.int32), place)
assert place.tolist() == [1, 0, 2]
print(sum(loops.by_feature.stats.cache_hits.values()))
"""


def test_what_is_compiled_is_kept_even_if_the_packages_folder_cannot_be_written(tmp_path):
    first, second = (run(KEPT, SAELEARN_CACHE=str(tmp_path)) for _ in range(2))
    assert int(first) == 0 and int(second) == 1
    assert list((tmp_path / "loops").rglob("*.nbc"))


def test_a_home_that_cannot_be_written_either_does_not_matter(tmp_path):
    (tmp_path / "file").touch()
    assert int(run(KEPT, SAELEARN_CACHE=str(tmp_path / "file"))) == 0
