"""Data go to a GPU where they fit beside their training, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from saelearn.sae import L1, SAE, Transcoder
from saelearn.train import beside, memory
from saelearn.train.settings import Settings

D, F, B = 8, 64, 32


class Rows(torch.Tensor):
    """Activations that note where they go."""

    @staticmethod
    def __new__(cls, n: int, width: int = D) -> Rows:
        return torch.zeros(n, width).as_subclass(cls)

    def to(self, device: torch.device) -> tuple[str, int]:
        return str(device), len(self)


@pytest.fixture
def gpu(monkeypatch) -> SimpleNamespace:
    """As if there were a GPU of so many free bytes."""
    machine = SimpleNamespace(free=10**9)
    monkeypatch.setattr(memory, "free", lambda device: machine.free)
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
    x_ND, y_ND = Rows(1_000), Rows(1_000, 2 * D)
    there = beside.placed(x_ND, None, settings(), saes=saes)
    assert there == (("cuda", 1_000), None, x_ND.nbytes)
    there = beside.placed(x_ND, y_ND, settings(kind=Transcoder), saes=saes)
    assert there == (("cuda", 1_000), ("cuda", 1_000), 3 * x_ND.nbytes)
    gpu.free = taken(saes) + 2 * x_ND.nbytes
    assert beside.placed(x_ND, None, settings(), saes=saes).taken == x_ND.nbytes
    gpu.free -= 2
    as_they_are = beside.placed(x_ND, None, settings(), saes=saes)
    assert as_they_are.data is x_ND and as_they_are.taken == 0
    gpu.free = 0
    assert beside.placed(x_ND, None, settings(), saes=saes).data is x_ND


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
    x_ND, stream = Rows(100), iter([torch.zeros(B, D)])
    reads = SimpleNamespace(reads_tokens=True, decoder_norm="weighted")
    for data, target, how in (
        (x_ND, None, settings("cpu")),
        (x_ND, None, settings("mps")),
        (stream, None, settings()),
        (Rows(3, 4)[0], None, settings()),  # one row; refused where data are looked at
        (x_ND, [x_ND], settings()),
        ("no data", None, settings()),
    ):
        assert beside.placed(data, target, how) == (data, target, 0)
    documents = settings()
    object.__setattr__(documents, "objective", reads)
    assert beside.placed(x_ND, None, documents).data is x_ND
