"""What the L1 dial shows: one SAE for each of sixteen L1 coefficients, on planted data.

Everything is trained with one set of choices, so that only the coefficient differs. The data are
unscaled, so a coefficient here is in units of the data themselves (lesson 05).
Shapes: N rows, D activation width, F SAE features, G planted features, A planted activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from saelearn import artifacts, metrics, toy, train
from saelearn.sae import SAE

# log-spaced from 0.01 to 3, written as they are shown
L1_COEFFICIENTS = (
    0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0,
)  # fmt: skip
D_SAE = 128  # twice the planted features: nobody knows the true number, so take plenty
BATCH_SIZE = 256
N_ROWS = 20_000  # to measure on; "dead" means silent in all of them
N_PICTURE = 200  # rows whose activations are kept for the picture
TRAINING = {
    "steps": 2_000,
    "decoder_norm": "unit_norm",
    "normalize": False,
}
NUMBERS_FILE, ARRAYS_FILE = "numbers.json", "pictures.safetensors"


@dataclass(frozen=True)
class Numbers:
    """What an SAE does to the planted data, in numbers.

    Attributes:
        l1_coefficient: lambda, of the training.
        l0: mean number of active features in a row (the truth: 3).
        unexplained: share of the variance that the reconstruction misses.
        dead: share of features that are silent in all rows.
        gamma: shrinkage, mean ||x_hat||^2 / mean <x, x_hat>; 1 without.
        n_recovered: planted features with a decoder row at a cosine above 0.9 (of 64).
        mean_max_cosine: mean over planted features of the best row's cosine.

    Rows of dead features are not counted: what never fires finds nothing, wherever it points.
    """

    l1_coefficient: float
    l0: float
    unexplained: float
    dead: float
    gamma: float
    n_recovered: int
    mean_max_cosine: float


@dataclass(frozen=True)
class DialPoint:
    """One setting of the dial: its numbers and what is drawn.

    Attributes:
        numbers: see `Numbers`.
        cosine_GF: cosines of planted directions and decoder rows (0 for dead features); column g
            is the row matched with planted feature g, the spare rows stand behind in falling order.
        planted_A: amplitudes of the planted features that are on in the first rows.
        active_A: what the SAE says about them: the sum over the matched feature and its copies
            (features above 0.9, too; two copies share the work, and their sum is what counts).
    """

    numbers: Numbers
    cosine_GF: Tensor
    planted_A: Tensor
    active_A: Tensor


@cache
def planted() -> toy.PlantedFeatures:
    """The planted features behind the dial: 64 directions in 32 dimensions, 3 on at a time."""
    return toy.PlantedFeatures.make()


@cache
def rows() -> tuple[Tensor, Tensor]:
    """Fresh rows `x_ND` and their planted amplitudes `f_NG`; no training sees them."""
    return planted().sample(N_ROWS, generator=torch.Generator().manual_seed(2**32))


def train_sae(
    l1_coefficient: float,
    *,
    seed: int = 0,
    steps: int = TRAINING["steps"],
    progress: bool = False,
    callback: Callable | None = None,
) -> train.Trained:
    """Train one SAE as the dial's were trained; with seed 0 it is the dial's own.

    Args:
        l1_coefficient: lambda.
        seed: of the first weights and of the data.
        steps: fewer are faster, and no longer the dial's.
        progress, callback: as for `train.train`.
    """
    return train.train(
        planted().batches(BATCH_SIZE, seed=seed),
        D_SAE,
        l1_coefficient=l1_coefficient,
        seed=seed,
        progress=progress,
        callback=callback,
        **{**TRAINING, "steps": steps},
    )


def train_point(l1_coefficient: float, **arguments) -> DialPoint:
    """Train as `train_sae` does, and measure."""
    return measure(train_sae(l1_coefficient, **arguments).sae, l1_coefficient)


@torch.no_grad()
def measure(sae: SAE, l1_coefficient: float) -> DialPoint:
    """Everything the dial shows about one SAE of the planted data."""
    x_ND, planted_NG = rows()
    directions_GD = planted().directions_GD
    x_hat_ND, f_NF = sae(x_ND)
    W_dec_FD = sae.W_dec.data * (f_NF > 0).any(0)[:, None]  # a dead row's cosines become 0
    found = metrics.recovery(W_dec_FD, directions_GD)
    numbers = Numbers(
        l1_coefficient=float(l1_coefficient),
        l0=metrics.l0(f_NF),
        unexplained=1 - metrics.explained_variance(x_ND, x_hat_ND),
        dead=metrics.dead_fraction(f_NF),
        gamma=metrics.shrinkage(x_ND, x_hat_ND),
        n_recovered=found.n_recovered,
        mean_max_cosine=float(found.max_cosine_G.mean()),
    )
    copies_GF = metrics.cosine_matrix(directions_GD, W_dec_FD) > 0.9
    copies_GF[torch.arange(len(directions_GD)), found.matched_G] = True
    planted_NG, f_NF = planted_NG[:N_PICTURE], f_NF[:N_PICTURE]
    on_NG = planted_NG > 0
    active_A = (f_NF @ copies_GF.float().T)[on_NG]
    cosine_GF = matched_first(W_dec_FD, directions_GD)
    return DialPoint(numbers, cosine_GF, planted_NG[on_NG], active_A)


def matched_first(W_dec_FD: Tensor, true_GD: Tensor) -> Tensor:
    """Cosines `[G, F]`, columns sorted: column g is matched with truth g, spare ones behind.

    Needs at least as many rows as truths. A dictionary that found every planted feature shows a
    diagonal; one that was drawn at random does not.
    """
    cosine_GF = metrics.cosine_matrix(true_GD, W_dec_FD)
    matched_G = metrics.recovery(W_dec_FD, true_GD).matched_G
    spare_F = torch.ones(len(W_dec_FD), dtype=torch.bool)
    spare_F[matched_G] = False
    order = cosine_GF.max(0).values.argsort(descending=True, stable=True)
    return cosine_GF[:, torch.cat([matched_G, order[spare_F[order]]])]


def build_sweep(folder: Path, *, progress: bool = True) -> None:
    """Train all settings (a minute or two) and write numbers and pictures into `folder`."""
    bar = tqdm(L1_COEFFICIENTS, desc="L1 dial", unit="SAE", disable=not progress)
    points = [train_point(l1_coefficient) for l1_coefficient in bar]
    with artifacts.replacing(folder) as temporary:
        temporary.mkdir()
        save(points, temporary)


def save(points: list[DialPoint], folder: Path) -> None:
    """Write points as JSON (numbers, 6 digits) and safetensors (pictures, half precision)."""
    numbers = [{k: float(f"{v:.6g}") for k, v in asdict(p.numbers).items()} for p in points]
    artifacts.write_json(folder / NUMBERS_FILE, numbers)
    arrays = {
        "cosine_KGF": torch.stack([p.cosine_GF for p in points]).half(),
        "active_KA": torch.stack([p.active_A for p in points]).half(),
        "planted_A": points[0].planted_A.half(),
    }
    artifacts.write_tensors(folder / ARRAYS_FILE, arrays)


def load_sweep(folder: Path | None = None) -> list[DialPoint]:
    """The precomputed settings, by rising coefficient; from data/dial, verified, by default."""
    folder = folder or artifacts.find("dial")
    arrays = artifacts.read_tensors(folder / ARRAYS_FILE)
    cosine_KGF, active_KA = arrays["cosine_KGF"].float(), arrays["active_KA"].float()
    planted_A = arrays["planted_A"].float()
    numbers = [
        Numbers(**{**n, "n_recovered": int(n["n_recovered"])})
        for n in artifacts.read_json(folder / NUMBERS_FILE)
    ]
    triples = zip(numbers, cosine_KGF, active_KA, strict=True)
    return [DialPoint(n, cosine, planted_A, active) for n, cosine, active in triples]
