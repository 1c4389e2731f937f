"""The fast step: autograd in double precision, torch's Adam, and the sampler's law as oracles."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from saelearn import toy
from saelearn.toy import toy_step


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_autograd(W: Tensor, b: Tensor, f_BG: Tensor, importance_G: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the loss as the lesson writes it, in double precision."""
    W, b = W.double().requires_grad_(), b.double().requires_grad_()
    f_BG, importance_G = f_BG.double(), importance_G.double()
    loss = sum(
        (importance_G * (f_BG - torch.relu(f_BG @ w @ w.T + c)).square()).mean()
        for w, c in zip(W, b, strict=True)
    )
    return torch.autograd.grad(loss, (W, b))


def compiled(
    W: Tensor, b: Tensor, f_NG: Tensor, importance_G: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """As `toy_step.gradients`, by the loops; what they would leave out stays nan."""
    scale_G = importance_G * (2 / (batch_size * f_NG.shape[1]))
    found = torch.full_like(W, torch.nan), torch.full_like(b, torch.nan)
    given = (t.numpy() for t in (W, b, f_NG, scale_G))
    toy_step.loops().gradients(*given, batch_size - len(f_NG), *(t.numpy() for t in found))
    return found


each_way = pytest.mark.parametrize("way", [toy_step.gradients, compiled])


def far_from_kinks(W: Tensor, b: Tensor, f_BG: Tensor) -> Tensor:
    """Rows at whose z rounding cannot decide on which side of the ReLU they are."""
    z_KBG = f_BG @ W @ W.mT + b[:, None]
    return f_BG[(z_KBG.abs() > 1e-4).all(2).all(0) | (f_BG == 0).all(1)]


@each_way
@settings(deadline=None, max_examples=150)
@given(
    n_features=st.sampled_from([1, 2, 3, 5, 8, 20, toy_step.WIDE, toy_step.WIDE + 1, 90]),
    d_hidden=st.integers(1, 15),
    n_instances=st.integers(1, 12),
    batch_size=st.integers(1, 40),
    p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    lowered=st.sampled_from([0.0, 0.0, 1e3]),  # by so much nothing is positive
    correlated=st.booleans(),
    weighted=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_gradients_are_those_of_autograd(
    way, n_features, d_hidden, n_instances, batch_size, p, lowered, correlated, weighted, seed
):
    g = generator(seed)
    W = torch.randn(n_instances, n_features, d_hidden, generator=g)
    b = torch.randn(n_instances, n_features, generator=g) / 3 - lowered
    importance_G = torch.rand(n_features, generator=g) if weighted else torch.ones(n_features)
    law = {"generator": g, "correlated": correlated}
    f_BG = far_from_kinks(W, b, toy.sample_features(batch_size, n_features, p, **law))
    if not len(f_BG):
        return
    busy_NG = f_BG[f_BG.any(1)]
    got = way(W, b, busy_NG, importance_G, len(f_BG))
    for ours, right in zip(got, by_autograd(W, b, f_BG, importance_G), strict=True):
        assert (ours - right).abs().max() <= 1e-5 * right.abs().max()
    # empty rows that are handed over count as well as those that are left out
    whole = way(W, b, f_BG, importance_G, len(f_BG))
    for ours, theirs in zip(got, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(ours.abs().max()))


@each_way
@pytest.mark.parametrize("n_features", [5, toy_step.WIDE + 1])
def test_a_feature_that_is_never_on_gets_the_gradient_of_its_echo(way, n_features):
    f_BG = toy.sample_features(64, n_features, 0.2, generator=generator())
    f_BG[:, 1] = 0
    W = torch.randn(2, n_features, 2, generator=generator(1))
    b, importance_G = torch.full((2, n_features), 0.1), torch.ones(n_features)
    f_BG = far_from_kinks(W, b, f_BG)
    got = way(W, b, f_BG[f_BG.any(1)], importance_G, len(f_BG))
    for ours, right in zip(got, by_autograd(W, b, f_BG, importance_G), strict=True):
        assert right[:, 1].abs().max() > 0
        assert (ours - right).abs().max() <= 1e-5 * right.abs().max()


@each_way
@pytest.mark.parametrize("where", ["W", "b", "f"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_nan_comes_out_and_stays_with_its_instance(way, where, p):
    """Also where nothing is on, and where a loop passes features that are off."""
    f_NG = toy.sample_features(30, 5, 0.5, generator=generator())[: 30 if p else 0]
    W, b = torch.randn(2, 5, 2, generator=generator(1)), torch.full((2, 5), 0.1)
    clean = way(W.clone(), b.clone(), f_NG, torch.ones(5), 40)
    {"W": W[0, 1], "b": b[0, 1:2], "f": f_NG[:1, 1]}[where].fill_(torch.nan)
    d_W, d_b = way(W, b, f_NG, torch.ones(5), 40)
    if where == "f":
        assert not p or (d_W.isnan().all() and d_b.isnan().all())
        return
    assert d_W[0].isnan().any() if where == "W" or p else d_b[0, 1].isnan()
    assert torch.equal(d_W[1], clean[0][1]) and torch.equal(d_b[1], clean[1][1])


class CompiledAdam(toy_step.Adam):
    """Its loop, called as the class is."""

    def step(self, gradients, lr):
        slope = torch.cat([gradient.flatten() for gradient in gradients])
        rows = (t.numpy() for t in (self.flat, self.mean, self.square, slope))
        toy_step.loops().adam(*rows, *self.next(lr))


@pytest.mark.parametrize("kind", [toy_step.Adam, CompiledAdam])
def test_adam_is_torchs(kind):
    models = [nn.Linear(4, 3), nn.Linear(4, 3)]
    models[1].load_state_dict(models[0].state_dict())
    theirs, ours = torch.optim.Adam(models[0].parameters()), kind(models[1])
    for step in range(60):
        lr = 0.02 * (1 + math.cos(math.pi * step / 60))
        g = generator(step)
        gradients = [torch.randn(p.shape, generator=g) for p in models[0].parameters()]
        for p, gradient in zip(models[0].parameters(), gradients, strict=True):
            p.grad = gradient
        theirs.param_groups[0]["lr"] = lr
        theirs.step()
        ours.step(gradients, lr)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("n_features", "p", "loops"),
    [
        (5, 1.0, True),
        (5, torch.full((5,), 0.5), True),
        (128, 0.25, True),
        (128, 0.3, False),  # more are on
        (129, 0.01, False),  # there are more
    ],
)
def test_loops_are_taken_where_few_are_on(n_features, p, loops, monkeypatch):
    """And both ways lead to the same weights, whatever the first steps' moments are."""
    found = []
    importance_G = 0.9 ** torch.arange(float(n_features))
    for known in (toy_step.loops(), None):
        monkeypatch.setattr(toy_step, "loops", lambda known=known: known)
        model = toy.ToyModel(n_features, 3, n_instances=2)
        training = toy_step.Training(model, importance_G, 50, p)
        assert (training._loops is not None) == (known is not None and loops)
        for f_NG in draw(10, 50, n_features, p):
            training.step(f_NG, 0.01)
        found.append(list(model.parameters()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


TRAINED = """
import sys
from saelearn import compiled, toy
{broken}
run = toy.train_toy(4, 2, p=0.1, n_instances=3, steps=200, batch_size=256)
print(*run.W.flatten().tolist(), *run.loss.tolist(), "numba.core" in sys.modules)
"""
BROKEN = {
    "not at all": "",
    "not there": "sys.modules['numba'] = None",
    "a library of its own is not there": "def loop(*_): raise OSError('no libllvm')\n"
    "compiled.loop = loop",
    "no place to keep": "def loop(*_): raise RuntimeError('no locator')\ncompiled.loop = loop",
}


def test_without_numba_toys_are_trained_as_well():
    found = {}
    for name, broken in BROKEN.items():
        command = [sys.executable, "-c", TRAINED.format(broken=broken)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        *numbers, loaded = done.stdout.split()
        assert (loaded == "True") == (name == "not at all")
        found[name] = torch.tensor([float(number) for number in numbers])
    for numbers in found.values():
        torch.testing.assert_close(numbers, found["not there"], rtol=1e-2, atol=1e-3)


def draw(n_batches: int, *args, seed: int = 0, **kwargs) -> list[Tensor]:
    batches = toy_step.busy_batches(*args, generator=generator(seed), **kwargs)
    return list(itertools.islice(batches, n_batches))


@pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
def test_busy_rows_follow_the_samplers_law(p):
    n, B, G = 200, 500, 4
    batches = draw(n, B, G, p)
    f_NG = torch.cat(batches).double()
    on_NG, rows = f_NG > 0, n * B
    assert on_NG.any(1).all(), "no empty row is handed over"
    busy = 1 - (1 - p) ** G
    assert len(f_NG) / rows == pytest.approx(busy, abs=5 * math.sqrt(busy * (1 - busy) / rows))
    error = 5 * math.sqrt(p * (1 - p) / rows)
    torch.testing.assert_close(on_NG.sum(0) / rows, torch.full((G,), p), atol=error, rtol=0)
    together = (on_NG[:, 0] & on_NG[:, 3]).sum().item() / rows
    assert together == pytest.approx(p * p, abs=2 * error)
    amplitude = f_NG[on_NG]
    grid = torch.arange(1, 10) / 10
    cdf = torch.stack([(amplitude < x).double().mean() for x in grid])
    assert (cdf - grid).abs().max() < 5 / math.sqrt(4 * len(amplitude))
    assert amplitude.max() <= 1
    both = f_NG[on_NG[:, 0] & on_NG[:, 1], :2]
    assert abs(torch.corrcoef(both.T)[0, 1]) < 5 / math.sqrt(len(both))
    spread = torch.tensor([float(len(f)) for f in batches]).std().item()
    assert spread == pytest.approx(math.sqrt(B * busy * (1 - busy)), rel=0.25)


def test_partners_share_a_coin_but_not_an_amplitude():
    f_NG = torch.cat(draw(100, 400, 5, 0.2, correlated=True))
    on_NG = f_NG > 0
    assert torch.equal(on_NG[:, 0], on_NG[:, 1])
    assert torch.equal(on_NG[:, 2], on_NG[:, 3])
    share_G = on_NG.sum(0) / 40_000
    torch.testing.assert_close(share_G, torch.full((5,), 0.2), atol=0.01, rtol=0)
    assert (on_NG[:, 0] & on_NG[:, 4]).sum() / 40_000 == pytest.approx(0.04, abs=0.005)
    both = f_NG[on_NG[:, 0], :2]
    assert abs(torch.corrcoef(both.T)[0, 1]) < 0.05
    assert both.mean() == pytest.approx(0.5, abs=0.02)
    odd = draw(1, 50, 4, torch.tensor([1.0, 0.0, 0.0, 1.0]), correlated=True)[0] > 0
    assert odd[:, :2].all() and not odd[:, 2:].any(), "the first of two partners decides"


def test_each_feature_may_have_its_own_probability():
    p_G = torch.tensor([0.0, 0.1, 0.5, 1.0])
    batch_NG = draw(1, 20_000, 4, p_G)[0]
    torch.testing.assert_close((batch_NG > 0).float().mean(0), p_G, atol=0.02, rtol=0)


def test_nothing_on_leaves_empty_batches_and_everything_on_leaves_all():
    assert [f.shape for f in draw(3, 10, 4, 0.0)] == [(0, 4)] * 3
    assert [f.shape for f in draw(3, 10, 4, 1.0)] == [(10, 4)] * 3


def test_same_seed_same_batches():
    a, b, c = draw(20, 64, 3, 0.3), draw(20, 64, 3, 0.3), draw(20, 64, 3, 0.3, seed=1)
    assert all(map(torch.equal, a, b))
    assert not torch.equal(a[0], c[0])
    assert not torch.equal(a[0], a[1])
