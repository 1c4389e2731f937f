"""In which units and along which axes a training sees activations; undone at its end.

The scale brings rows to a usual length. The axes matter to Adam alone, which divides each weight's
gradient by its own typical size: along the axes that activations come in, every number mixes
directions in which they vary a lot with others in which they hardly vary, and one size has to do
for both; along their principal axes each has its own (as SOAP turns the gradient: Vyas et al.,
2024). Where the loss is the same along any axes, an SAE is trained on turned activations and turned
back. Lesson 07.

Shapes: N rows, D activation width.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from saelearn.errors import checked
from saelearn.sae import SAE, Objective

ROWS = 2**14  # that the axes are taken from: twenty for each of 768 dimensions
LEAST = 2  # rows for each dimension: of fewer, most axes would be chance
WHOLE, SMALL = 16, 2**25  # numbers; multiplications


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """What activations are multiplied by, and the axes that they are turned to.

    Attributes:
        scale, target_scale: of the input, and of what is to be reconstructed.
        basis_DD, target_basis_DD: orthonormal columns; None turns nothing.
    """

    scale: float = 1.0
    target_scale: float = 1.0
    basis_DD: Tensor | None = None
    target_basis_DD: Tensor | None = None

    @functools.cached_property
    def _maps(self) -> tuple[Tensor | float, Tensor | float]:
        pairs = (self.basis_DD, self.scale), (self.target_basis_DD, self.target_scale)
        return tuple(scale if basis is None else scale * basis for basis, scale in pairs)

    def rows(self, x_BD: Tensor, target_BD: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A batch as the training sees it."""
        pair = zip((x_BD, target_BD), self._maps, strict=True)
        return tuple(t if t is None else _mapped(t, by) for t, by in pair)

    def enter_(self, sae: SAE) -> SAE:
        """Turn an SAE of scaled activations to these axes."""
        return self._turned_(sae, lambda basis_DD: basis_DD.T)

    def leave_(self, sae: SAE) -> SAE:
        """Make an SAE in training one of raw activations, on its device."""
        self._turned_(sae, lambda basis_DD: basis_DD)
        return sae.fold_scale_(self.scale, self.target_scale)

    def _turned_(self, sae: SAE, which: Callable[[Tensor], Tensor]) -> SAE:
        if self.basis_DD is None:
            return sae
        pair = self.basis_DD, self.target_basis_DD
        with steady(sae.d_sae, *self.tensors().values()):
            return sae.turn_(*(t if t is None else which(t).to(sae.W_dec.device) for t in pair))

    def to(self, device: str | torch.device) -> Frame:
        """The same with its tensors on a device."""
        moved = {name: t.to(device) for name, t in self.tensors().items()}
        return Frame(**self.numbers() | moved)

    def tensors(self) -> dict[str, Tensor]:
        """What a file has to hold, by name; the rest is in `numbers`."""
        pair = {"basis_DD": self.basis_DD, "target_basis_DD": self.target_basis_DD}
        return {name: t for name, t in pair.items() if t is not None}

    def numbers(self) -> dict[str, float]:
        """The rest, as JSON can hold it."""
        return {"scale": self.scale, "target_scale": self.target_scale}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], numbers: Mapping) -> Frame:
        """What `tensors` and `numbers` were taken from, among whatever else they hold."""
        names = {"basis_DD", "target_basis_DD"} & set(tensors)
        own = {name: tensors[name].clone() for name in names}  # as any tensor lies in memory
        return cls(scale=numbers["scale"], target_scale=numbers["target_scale"], **own)


def _mapped(x_BD: Tensor, by: Tensor | float) -> Tensor:
    if isinstance(by, Tensor):
        with steady(len(x_BD), by):
            return x_BD @ by
    return x_BD if by == 1 else x_BD * by


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch's operations on one thread, and afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def steady(rows: int, *bases: Tensor) -> contextlib.AbstractContextManager:
    """For a product of so many rows that is to have the same bits with any number of threads.

    Several split what they share, and round otherwise where a part is no whole number of registers
    (seen with 3 threads and a width of 24, 4 and 100); small products they make no faster.
    """
    widths = [len(basis_DD) for basis_DD in bases]
    small = rows * max(widths) ** 2 < SMALL
    on_one = small or any(n % WHOLE for n in (rows, *widths))
    here = bases[0].device.type == "cpu"
    return one_thread() if here and on_one else contextlib.nullcontext()


def may_turn(sae: SAE, objective: Objective) -> bool:
    """Whether both say, each for its own class, that they come to the same along any axes.

    A class that changes anything of another is asked itself: it may hold weights that `turn_` does
    not know, or look at single coordinates.
    """
    return all(vars(type(each)).get("any_axes", False) for each in (sae, objective))


def enough(x_ND: Tensor) -> Tensor:
    """Of many rows some, drawn without a choice: at equal distances they might be of one place."""
    if len(x_ND) <= ROWS:
        return x_ND
    order_N = torch.randperm(len(x_ND), generator=torch.Generator().manual_seed(0))
    return x_ND[order_N[:ROWS].sort().values.to(x_ND.device)]


@torch.no_grad()
@checked()
def principal_basis(x_ND: Tensor) -> Tensor:
    """Principal axes of activations, as the columns of an orthonormal `basis_DD`.

    Each points to where its largest number is positive. The later, the more the rows vary along it.
    On a CPU one thread computes them, so that the bits are the same with any number.

    Args:
        x_ND: activations, on the CPU or on CUDA; of many rows some are used.
    """
    x_ND = enough(x_ND).detach()
    x_ND = (x_ND if x_ND.is_cuda else x_ND.cpu()).float()
    with one_thread():
        x_ND = x_ND - x_ND.mean(0)
        x_ND /= x_ND.abs().max().clamp(min=torch.finfo(torch.float32).tiny)  # squares stay finite
        _, basis_DD = torch.linalg.eigh((x_ND.T @ x_ND).double())
    longest_1D = basis_DD.abs().argmax(0, keepdim=True)
    return (basis_DD * basis_DD.gather(0, longest_1D).sign()).float().contiguous()
