"""In which units and along which axes a training sees activations; undone at its end.

The scale brings rows to a usual length. The axes matter to Adam alone, which divides each weight's
gradient by its own typical size: along the axes that activations come in, every number mixes
directions in which they vary a lot with others in which they hardly vary, and one size has to do
for both; along their principal axes each has its own (as SOAP turns the gradient: Vyas et al.,
2024). The loss is the same along any axes, so an SAE is trained on turned activations and turned
back. Lesson 07.

Shapes: N rows, D activation width.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from saelearn.errors import checked
from saelearn.sae import SAE, Now, Objective

ROWS = 2**14  # that the axes are taken from: twenty for each of 768 dimensions
WHOLE, SMALL = 16, 2**25  # numbers; multiplications
TRIED = 64  # rows on which a loss is asked whether it minds
CLOSE = 1e-6  # what rounding may change of it, of float64


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
        with steady(sae.d_sae, self.basis_DD):
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


def steady(rows: int, basis_DD: Tensor) -> contextlib.AbstractContextManager:
    """For a product of so many rows that is to have the same bits with any number of threads.

    Several split what they share, and round otherwise where a part is no whole number of registers
    (seen with 3 threads and a width of 24, 4 and 100); small products they make no faster.
    """
    width = len(basis_DD)
    small = rows * width**2 < SMALL
    on_one = basis_DD.device.type == "cpu" and (small or rows % WHOLE or width % WHOLE)
    return one_thread() if on_one else contextlib.nullcontext()


def enough(x_ND: Tensor) -> Tensor:
    """Of many rows some, at equal distances."""
    return x_ND[:: math.ceil(len(x_ND) / ROWS)]


@torch.no_grad()
@checked()
def principal_basis(x_ND: Tensor) -> Tensor:
    """Principal axes of activations, as the columns of an orthonormal `basis_DD`.

    Each points to where its largest number is positive. The later, the more the rows vary along it.
    On a CPU one thread computes them, so that the bits are the same with any number.

    Args:
        x_ND: activations, on the CPU or on CUDA; of many rows some, at equal distances, are used.
    """
    x_ND = enough(x_ND).detach()
    x_ND = (x_ND if x_ND.is_cuda else x_ND.cpu()).float()
    with one_thread():
        x_ND = x_ND - x_ND.mean(0)
        x_ND /= x_ND.abs().max().clamp(min=torch.finfo(torch.float32).tiny)  # squares stay finite
        _, basis_DD = torch.linalg.eigh((x_ND.T @ x_ND).double())
    longest_1D = basis_DD.abs().argmax(0, keepdim=True)
    return (basis_DD * basis_DD.gather(0, longest_1D).sign()).float().contiguous()


@torch.no_grad()
def indifferent(
    sae: SAE,
    objective: Objective,
    x_ND: Tensor,
    basis_DD: Tensor,
    target_ND: Tensor | None = None,
    target_basis_DD: Tensor | None = None,
) -> bool:
    """Whether SAE and objective come to the same along other axes: asked, not assumed.

    An architecture of one's own may hold weights that `turn_` does not know, and an objective may
    look at single coordinates; they are trained along the axes that their activations come in.

    Args:
        sae: one of the kind, which stays as it is.
        x_ND, target_ND: some rows as in training, and what is to be reconstructed if not these.
        basis_DD, target_basis_DD: what they would be turned by.
    """
    sae = copy.deepcopy(sae).cpu().double()  # an entry close to a threshold stays on its side
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():  # none of them all zero, or it would not count
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_(0.1 * noise)
    x_ND, basis_DD, target_ND, target_basis_DD = (
        None if t is None else t.cpu().double()
        for t in (x_ND[:TRIED], basis_DD, target_ND, target_basis_DD)
    )
    there_ND, written_DD = None, basis_DD
    if target_ND is not None:
        target_ND, written_DD = target_ND[:TRIED], target_basis_DD
        there_ND = target_ND @ written_DD
    try:
        turned = copy.deepcopy(sae).turn_(basis_DD.T, written_DD.T)
        loss, output = objective(sae, x_ND, Now(target_BD=target_ND))
        other_loss, other = objective(turned, x_ND @ basis_DD, Now(target_BD=there_ND))
    except (RuntimeError, TypeError):  # what knows fp32 alone cannot be asked
        return False
    pairs = (loss.total, other_loss.total), (output.f, other.f)
    return all(map(_close, *zip(*pairs, (output.x_hat, other.x_hat @ written_DD.T), strict=True)))


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= CLOSE * one.norm())
