"""Data go to a GPU where they fit beside their training, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from saelearn.errors import Refusal
from saelearn.sae import L1, SAE, Transcoder
from saelearn.train import beside, memory
from saelearn.train.settings import Settings

D, F, B = 8, 64, 32
CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch) -> SimpleNamespace:
    """As if there were a GPU of so many free bytes."""
    machine = SimpleNamespace(free=10**9)
    monkeypatch.setattr(memory, "free", lambda device: machine.free)
    copied = beside._copied
    monkeypatch.setattr(beside, "_copied", lambda x_ND, device: ("gpu", copied(x_ND, CPU)))
    return machine


def settings(device: str = "cuda", **how) -> Settings:
    how = {"d_sae": F, "objective": L1(1.0), "steps": 10, "batch_size": B} | how
    made = Settings(**how)
    object.__setattr__(made, "device", device)  # no machine here has one, so it would be refused
    return made


def taken(saes: int = 1) -> int:
    """Bytes of the trainings themselves."""
    kind = memory.of_kind(SAE(D, 1), settings())
    return sum(memory.needed(D, saes * F, B, **kind).values())


@pytest.mark.parametrize("saes", [1, 5])
def test_activations_go_if_half_of_what_is_left_holds_them(gpu, saes: int) -> None:
    x_ND, y_ND = torch.randn(1_000, D), torch.randn(1_000, 2 * D)
    there = beside.placed(x_ND, None, settings(), saes=saes)
    where, copied_ND = there.data
    assert where == "gpu" and torch.equal(copied_ND, x_ND) and there.target is None
    size = x_ND.nbytes + 16 * 1_000  # and two orders of the rows
    assert there.taken == size
    there = beside.placed(x_ND, y_ND, settings(kind=Transcoder), saes=saes)
    assert torch.equal(there.data[1], x_ND) and torch.equal(there.target[1], y_ND)
    assert there.taken == 2 * (x_ND.nbytes + y_ND.nbytes) + 16 * 1_000  # all of it is sample, too
    gpu.free = taken(saes) + 2 * size
    assert beside.placed(x_ND, None, settings(), saes=saes).taken == size
    gpu.free -= 2
    as_they_are = beside.placed(x_ND, None, settings(), saes=saes)
    assert as_they_are.data is x_ND and as_they_are.taken == 0
    gpu.free = 0
    assert beside.placed(x_ND, None, settings(), saes=saes).data is x_ND


def test_columns_of_something_wider_go_alone(gpu) -> None:
    wide_NX = torch.randn(40_000, 3 * D, requires_grad=True)
    _, copied_ND = beside.placed(wide_NX[:, D : 2 * D], None, settings()).data
    assert copied_ND.is_contiguous() and not copied_ND.requires_grad
    assert torch.equal(copied_ND, wide_NX[:, D : 2 * D])


def test_where_there_is_too_little_after_all_they_stay(gpu, monkeypatch) -> None:
    def full(x_ND: torch.Tensor, device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(beside, "_copied", full)
    x_ND = torch.zeros(100, D)
    there = beside.placed(x_ND, None, settings())
    assert there.data is x_ND and there.taken == 0


def test_what_is_not_finite_is_refused_before_it_goes(gpu) -> None:
    x_ND = torch.zeros(100, D)
    x_ND[70, 3] = torch.nan
    with pytest.raises(Refusal, match="finite"):
        beside.placed(x_ND, None, settings())


def test_a_store_is_told_how_much_it_may_take(gpu) -> None:
    asked = []

    def on_device(device: torch.device, memory: int) -> SimpleNamespace:
        asked.append((device, memory))
        return SimpleNamespace(taken=77)

    store = SimpleNamespace(on_device=on_device, d_in=D, batch_size=B)
    there = beside.placed(store, None, settings())
    assert there.data.taken == there.taken == 77
    assert asked == [(torch.device("cuda"), (10**9 - taken()) // 2)]


def test_other_data_and_devices_are_left_alone(gpu) -> None:
    x_ND, stream = torch.zeros(100, D), iter([torch.zeros(B, D)])
    reads = SimpleNamespace(reads_tokens=True, decoder_norm="weighted")
    for data, target, how in (
        (x_ND, None, settings("cpu")),
        (x_ND, None, settings("mps")),
        (stream, None, settings()),
        (x_ND[0], None, settings()),  # one row; refused where data are looked at
        (x_ND, [x_ND], settings()),
        ("no data", None, settings()),
    ):
        assert beside.placed(data, target, how) == (data, target, 0)
    documents = settings()
    object.__setattr__(documents, "objective", reads)
    assert beside.placed(x_ND, None, documents).data is x_ND
