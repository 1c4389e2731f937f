"""Objects of a student's class, seen from the judge's side; and what a call changes of its own."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import nn

from saelearn.course.answers import Gone, Mother, Sandbox
from saelearn.course.confine import Limits
from saelearn.sae import SAE

pytestmark = pytest.mark.skipif(os.name == "nt", reason="students' code runs on POSIX alone")
CLASSES = """
import torch
from torch import nn
from saelearn.sae import SAE

class Probe:
    '''No module.'''
    def __init__(self, bias=0.0):
        self.bias, self._secret = bias, 1
    def fit(self, x):
        self.mean = x.mean(0)
        return self
    def predict(self, x):
        return x @ self.mean + self.bias

class Counting(SAE):
    def __init__(self, *a, **k):
        super().__init__(*a, **k)
        self.register_buffer('seen', torch.zeros(()))
    def activate(self, p):
        self.seen += len(p)
        return p.relu() * 2
    def forget(self):
        with torch.no_grad():
            self.W_enc.zero_()

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)
    def forward(self, x):
        return self.inner(x) ** 2

class Liar(SAE):
    def named_parameters(self, *a, **k):
        yield 'W_enc', torch.eye(3)[0]
        yield '.', torch.ones(1, dtype=torch.int8).requires_grad_(False)
"""


@pytest.fixture(scope="module")
def mother():
    with Mother(["saelearn.sae"]) as started:
        yield started


@pytest.fixture
def sandbox(mother):
    with Sandbox(mother, Limits()) as started:
        started.start_check()
        assert started.run(CLASSES) == ""
        yield started


def test_an_object_has_its_attributes_and_methods_and_nothing_private(sandbox):
    x = torch.arange(6.0).reshape(3, 2)
    probe = sandbox.value("Probe")(bias=1.0)
    assert type(probe).__name__ == "Probe" and probe.bias == 1.0
    assert torch.equal(probe.fit(x).predict(x), x @ x.mean(0) + 1)
    assert torch.equal(probe.mean, x.mean(0))
    assert not hasattr(probe, "median") and not hasattr(probe, "_secret")
    with pytest.raises(TypeError):
        float(probe)


def test_a_gradient_reaches_the_parameters_of_a_module_that_stays(sandbox):
    sae, twin = sandbox.value("Counting")(4, 6, seed=3), SAE(4, 6, seed=3)
    x_BD = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert isinstance(sae, SAE) and (sae.d_in, sae.d_sae) == (4, 6)
    found = torch.autograd.grad(sae.encode(x_BD).square().sum(), [*sae.parameters()][:2])
    right = torch.autograd.grad(4 * twin.encode(x_BD).square().sum(), [*twin.parameters()][:2])
    assert all(map(torch.allclose, found, right))
    assert dict(sae.named_parameters()).keys() == dict(twin.named_parameters()).keys()


def test_what_either_side_changes_of_a_module_the_other_sees(sandbox):
    sae, x_BD = sandbox.value("Counting")(4, 6), torch.ones(5, 4)
    sae.encode(x_BD)
    assert sae.seen == 5
    before = sae.encode(x_BD)
    optimizer = torch.optim.SGD(sae.parameters(), lr=1.0)
    sae.encode(x_BD).sum().backward()
    optimizer.step()
    assert not torch.equal(sae.encode(x_BD), before)
    sae.forget()
    assert sae.seen == 20 and not sae.W_enc.any()
    assert not sae.eval().training and not sae.sandbox.attribute(sae, "training")


def test_a_module_of_any_kind_is_computed_where_it_is(sandbox):
    two = sandbox.value("Two")()
    assert list(dict(two.named_parameters())) == ["inner.weight", "inner.bias"]
    y = two(torch.ones(1, 3))
    weight = dict(two.named_parameters())["inner.weight"]
    slope = torch.autograd.grad(y.sum(), weight)[0]
    raw = torch.ones(1, 3) @ weight.T + dict(two.named_parameters())["inner.bias"]
    assert torch.allclose(y, raw**2) and torch.allclose(slope, 2 * raw.T.expand(2, 3))


def test_a_module_that_lies_about_its_parts_gives_values_or_ends(sandbox):
    try:
        liar = sandbox.value("Liar(3, 4)")
        assert all(isinstance(part, torch.Tensor) for part in liar.parameters())
        liar.encode(torch.ones(2, 3))
    except (Gone, Exception) as error:
        assert isinstance(error, Gone | AttributeError | KeyError | TypeError | RuntimeError)


class Carrier:
    """Holds a model, as a language model with its tokenizer does."""

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


CHANGES = {
    "a weight in place": "c.model[0].weight.data.mul_(2)",
    "another weight": "c.model[0].weight = nn.Parameter(torch.ones(2, 2))",
    "another layer": "c.model[0] = nn.Linear(2, 2)",
    "a layer that has no weight": "c.model[0] = nn.Identity()",
    "nothing": "None",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_becomes_of_a_model_within_an_object_is_seen(change, mother, monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    with Mother(["test_standins"]) as own, Sandbox(own, Limits()) as sandbox:
        sandbox.start_check()
        sandbox.run(
            f"import torch\nfrom torch import nn\ndef f(c):\n    {CHANGES[change]}\n    return 1"
        )
        import test_standins

        carrier = test_standins.Carrier()
        before = carrier.model[0].weight.detach().clone()
        assert sandbox.value("f")(carrier) == 1
        assert torch.equal(before, carrier.model[0].weight) == (change == "nothing")


def test_lists_dictionaries_and_arrays_come_back_as_they_were_left(sandbox):
    source = "def f(a, *, l, d):\n    a *= 2; l.append(3); del l[0]; d['k'] = l[:]; return len(l)"
    assert sandbox.run(source) == ""
    array, held, named = np.arange(3.0), [1, 2], {"x": [5]}
    same = named["x"]
    assert sandbox.value("f")(array, l=held, d=named) == 2
    assert array.tolist() == [0, 2, 4] and held == [2, 3] and named == {"x": [5], "k": [2, 3]}
    assert same == [5]
