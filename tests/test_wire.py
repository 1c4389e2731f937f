"""What passes between judge and sandbox: values come through whole, and garbage is refused."""

from __future__ import annotations

import io
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from saelearn.course import calls, wire
from saelearn.course.wire import Broken, Packer, Strange, Unpacker


def through(value):
    """What arrives at the judge of a value that a student's function returned."""
    functions, graphs = [], []

    def keep(kept: list):
        return lambda each: kept.append(each) or len(kept) - 1

    packer = Packer(keep(functions), keep(graphs))
    header = json.loads(json.dumps(packer.pack(value)))
    return Unpacker(
        packer.body(),
        functions.__getitem__,
        lambda tensor, number: tensor.requires_grad_(),
        lambda number, name, *module: wire.named(name, Strange)(),
    ).unpack(header)


SCALARS = (
    st.none()
    | st.just(...)
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


def same(a, b) -> bool:
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(same, a.values(), b.values()))
    return type(a) is type(b) and (a == b)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_plain_values_come_through(value):
    assert same(value, through(value))


@pytest.mark.parametrize("dtype", sorted(wire.DTYPES, key=str), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 4)], ids=str)
def test_tensors_come_through(dtype, shape):
    tensor = (10 * torch.rand(shape)).to(dtype)
    arrived = through([tensor, tensor.T if tensor.ndim == 2 else tensor])[0]
    assert arrived.dtype == dtype and torch.equal(arrived, tensor)


def test_arrays_stay_arrays_and_numbers_of_numpy_become_pythons():
    array, number, size = through([np.arange(6.0).reshape(2, 3).T, np.float32(0.5), np.int8(3)])
    assert isinstance(array, np.ndarray) and array.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert (type(number), number, type(size), size) == (float, 0.5, int, 3)


def test_a_named_tuple_keeps_its_name_and_large_numbers_their_digits():
    found = through(torch.rand(3, 2).max(0))
    assert isinstance(found, tuple) and type(found).__name__ == "max"
    assert through(10**4_000) == 10**4_000
    assert through(torch.rand(2, requires_grad=True)).requires_grad


class Bomb:
    def __reduce__(self):
        return (print, ("boom",))


@pytest.mark.parametrize(
    "value",
    [Bomb(), object(), iter([]), {1, 2}, b"bytes", np.array(["a"]), torch.eye(2).to_sparse(),
     torch.rand(2, device="meta"), torch.rand(2).to(torch.complex128), 10 ** 10**6],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_does_not_pass_becomes_a_name(value):
    arrived = through(value)
    assert isinstance(arrived, Strange) and type(arrived).__name__ == type(value).__name__


def test_what_has_no_end_ends():
    circle: list = []
    circle.append(circle)
    assert isinstance(through(circle), list)
    wide = through([0] * (2 * wire.MOST))
    assert isinstance(wide[-1], Strange)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
KINDS = ["NoneType", "dots", "bool", "int", "float", "complex", "str", "list", "tuple", "dict"]
KINDS += ["function", "tensor", "object", "module", "strange", "?"]
FORGED = st.recursive(
    JSON,
    lambda inner: st.fixed_dictionaries(
        {"is": st.sampled_from(KINDS)},
        optional={
            key: inner | JSON | st.lists(inner) | st.lists(st.lists(inner, max_size=3))
            for key in ("as", "of", "id", "index", "numpy", "graph", "name", "base", "parts")
        },
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(FORGED, st.binary(max_size=64))
def test_forged_answers_are_refused_or_values(header, body):
    refused_or_a_value(header, body)


@pytest.mark.slow
@settings(max_examples=2_000, deadline=None)
@given(FORGED, st.binary(max_size=64))
def test_more_forged_answers_are_refused_or_values(header, body):
    refused_or_a_value(header, body)


def refused_or_a_value(header, body: bytes) -> None:
    """Nothing else than a value of the known kinds, or Broken."""
    for bytes_ in (b"", body):
        try:
            unpacker = Unpacker(bytes_, lambda n: n, lambda t, n: t, lambda *_: Strange())
            value = unpacker.unpack(header)
        except Broken:
            continue
        known = (type(None), type(...), bool, int, float, complex, str, list, tuple, dict, Strange)
        assert isinstance(value, known)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64))
def test_forged_frames_are_refused(content):
    file = io.BytesIO(content + bytes(8))

    def exactly(n: int) -> bytes:
        found = file.read(n)
        if len(found) < n:
            raise EOFError
        return found

    try:
        header, _ = wire.read_frame(exactly)
        assert isinstance(header, dict)
    except (Broken, EOFError):
        pass


def test_a_frame_is_read_as_it_was_written_and_a_large_one_not_at_all():
    content = io.BytesIO(wire.frame({"do": "cell"}, b"body"))
    assert wire.read_frame(content.read) == ({"do": "cell"}, b"body")
    with pytest.raises(Broken, match="too large"):
        wire.read_frame(io.BytesIO(wire.HEAD.pack(10, wire.LONGEST_BODY + 1)).read)
    for junk in (b"[1]", b"{", b"\xff"):
        with pytest.raises(Broken):
            wire.read_frame(io.BytesIO(wire.HEAD.pack(len(junk), 0) + junk).read)


def test_what_goes_in_keeps_what_belongs_together():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = []
    generator = torch.Generator().manual_seed(3)
    sent = (model, model[1], optimizer, generator, lambda x: x + 1, Carrier(model[0]), [np.ones(2)])
    body, taken = calls.call_into(sent, {}, lambda f: kept.append(f) or 0)
    got, _, theirs = calls.call_from_judge(body, lambda reference: reference)
    assert got[0][1] is got[1] and got[5].inner is got[0][0]
    assert got[2].param_groups[0]["params"][0] is got[0][0].weight
    assert torch.equal(torch.rand(3, generator=got[3]), torch.rand(3, generator=generator))
    assert got[4] == ("ask", 0) and kept[0](1) == 2
    for found, held in ((taken, sent), (theirs, got)):
        assert [*map(id, found.tensors)] == [*map(id, held[0].parameters())]
        assert [*map(id, found.modules)] == [*map(id, held[0].modules())]
        assert found.optimizers == [held[2]]
        assert found.holders[0] is held[6] and found.arrays[0] is held[6][0]
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(body)  # nobody else reads it by accident


class Carrier:
    def __init__(self, inner):
        self.inner = inner
