"""The axes that a training goes along: turned to before it, turned back from after it."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from killed_run import KINDS
from torch import Tensor, nn

from saelearn import metrics
from saelearn.errors import Refusal
from saelearn.sae import (
    SAE,
    MatchingPursuit,
    Now,
    SkipTranscoder,
    Squared,
    TopK,
    Transcoder,
)
from saelearn.train import Trained, principal_basis, sweep, train
from saelearn.train.frame import Frame
from saelearn.train.settings import objective_of

N, D, F, WRITTEN = 400, 10, 24, 6


def basis(width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator)).Q.contiguous()


def rows(n: int = N, width: int = D, seed: int = 1) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + 0.5


def uneven(n: int = 4_000, width: int = D) -> Tensor:
    """Sparse rows whose directions vary by a factor of a hundred, along axes of no meaning."""
    spread_D = torch.logspace(0, -2, width)
    return (rows(n, width).relu() * spread_D) @ basis(width)


@pytest.mark.parametrize("seed", range(3))
def test_principal_axes(seed: int) -> None:
    x_ND = uneven() @ basis(D, seed)
    basis_DD = principal_basis(x_ND)
    torch.testing.assert_close(basis_DD.T @ basis_DD, torch.eye(D), rtol=0, atol=1e-5)
    covariance_DD = (x_ND @ basis_DD).T.cov()
    variance_D = covariance_DD.diag()
    assert (variance_D.diff() >= 0).all()
    apart_DD = (covariance_DD - variance_D.diag()).abs()
    assert (apart_DD <= 1e-3 * (variance_D[:, None] * variance_D).sqrt() + 1e-7).all()
    largest_D = basis_DD.gather(0, basis_DD.abs().argmax(0, keepdim=True))
    assert (largest_D > 0).all()
    assert torch.equal(basis_DD, principal_basis(x_ND))


@pytest.mark.parametrize(
    "x_ND",
    [rows(1), torch.ones(5, D), rows(D // 2), 1e30 * rows(), 1e-30 * rows(), rows().half()],
    ids=["one row", "all alike", "fewer than dimensions", "huge", "tiny", "half"],
)
def test_any_rows_have_axes(x_ND: Tensor) -> None:
    basis_DD = principal_basis(x_ND)
    assert basis_DD.dtype == torch.float32
    torch.testing.assert_close(basis_DD.T @ basis_DD, torch.eye(D), rtol=0, atol=1e-5)


def test_of_many_rows_some_are_enough() -> None:
    x_ND = uneven(40_000)
    few_DD, all_DD = principal_basis(x_ND), torch.linalg.eigh(x_ND.T.cov()).eigenvectors
    assert ((few_DD * all_DD).sum(0).abs() > 0.95).all()


def random_(sae: SAE) -> SAE:
    generator = torch.Generator().manual_seed(2)
    for parameter in sae.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return sae


@pytest.mark.parametrize("centred", [True, False])
def test_turned_it_is_the_same_sae_of_turned_rows(centred: bool) -> None:
    sae, basis_DD, x_ND = (
        random_(SAE(D, F, apply_b_dec_to_input=centred, seed=3)), basis(D), rows(),
    )  # fmt: skip
    before = sae(x_ND)
    assert sae.turn_(basis_DD.T) is sae
    after = sae(x_ND @ basis_DD)
    torch.testing.assert_close(after.f, before.f, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.x_hat @ basis_DD.T, before.x_hat, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Transcoder, SkipTranscoder])
def test_a_transcoder_has_two_pairs_of_axes(kind: type[SAE]) -> None:
    sae, x_ND = random_(kind(D, F, d_out=WRITTEN)), rows()
    frame = Frame(scale=2.0, target_scale=0.5, basis_DD=basis(D), target_basis_DD=basis(WRITTEN))
    y_ND, f_NF = sae(x_ND)
    raw = frame.leave_(sae)  # what it was in training, it is of raw rows
    x_raw_ND = x_ND @ frame.basis_DD.T / 2
    there_ND, _ = frame.rows(x_raw_ND, None)
    torch.testing.assert_close(there_ND, x_ND, rtol=1e-4, atol=1e-5)
    y_raw_ND, f_raw_NF = raw(x_raw_ND)
    torch.testing.assert_close(f_raw_NF, f_NF, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(frame.rows(x_raw_ND, y_raw_ND)[1], y_ND, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (torch.eye(D + 1), "basis_DD of shape"),
        (2 * torch.eye(D), "orthonormal columns"),
        (torch.ones(D), "basis_DD of shape"),
        (torch.full((D, D), torch.nan), "NaN"),
    ],
)
def test_what_is_no_basis_is_refused(wrong: Tensor, expected: str) -> None:
    sae = SAE(D, F)
    before = {name: t.clone() for name, t in sae.state_dict().items()}
    with pytest.raises(Refusal, match=expected):
        sae.turn_(wrong)
    assert all(torch.equal(before[name], t) for name, t in sae.state_dict().items())


def test_an_sae_that_looks_at_coordinates_is_not_turned() -> None:
    sae = SAE(D, F)
    sae.normalize_activations = "layer_norm"
    with pytest.raises(Refusal, match="rows as they are"):
        sae.turn_(basis(D))
    with pytest.raises(Refusal, match="trained here"):
        MatchingPursuit(D, F).turn_(basis(D))


def test_a_basis_may_be_of_another_dtype() -> None:
    sae = SAE(D, F).double()
    assert sae.turn_(basis(D)).W_dec.dtype == torch.float64


@dataclass(frozen=True)
class ByCoordinate(Squared):
    """Sum of absolute errors: along other axes it is another number."""

    def __call__(self, sae, x_BD, now):
        loss, output = super().__call__(sae, x_BD, now)
        return loss._replace(total=(output.x_hat - x_BD).abs().sum(1).mean()), output


class Bypassed(SAE):
    """With a weight that `turn_` does not know."""

    def __init__(self, d_in: int, d_sae: int, **arguments):
        super().__init__(d_in, d_sae, **arguments)
        self.gain_D = nn.Parameter(torch.zeros(d_in))

    def reconstruct(self, x_BD: Tensor, f_BF: Tensor) -> Tensor:
        return self.decode(f_BF) + x_BD * self.gain_D


class NotNegative(SAE):
    """Whose decoder is kept above 0, coordinate by coordinate."""

    def after_step_(self, observed_P: Tensor | None) -> None:
        self.W_dec.data.clamp_(min=0)


class Again(TopK):
    """That changes nothing, and says that any axes will do."""

    any_axes = True


def basis_of(**how) -> str:
    how = {"steps": 2, "batch_size": 100, "progress": False} | how
    if not how.keys() & {"objective", "k"}:
        how["l1_coefficient"] = 0.1
    return train(rows(), F, **how).basis


@pytest.mark.parametrize("of", KINDS)
def test_every_kind_of_ours_is_turned(of: str) -> None:
    how = dict(KINDS[of])
    if of == "skip_transcoder":
        how["target"] = rows(width=WRITTEN, seed=5)
    assert basis_of(**how) == ("given" if of == "own" else "principal")
    assert basis_of(**how, basis="given") == "given"


def test_whoever_changes_a_class_has_to_say_so_again() -> None:
    assert basis_of(kind=Again, k=3) == "principal"
    assert basis_of(kind=functools.partial(SAE, apply_b_dec_to_input=False)) == "principal"
    for how in ({"kind": Bypassed}, {"kind": NotNegative}, {"objective": ByCoordinate()}):
        assert basis_of(**how) == "given"
    kept = train(rows(), F, l1_coefficient=0.1, kind=NotNegative, steps=9, progress=False).sae
    assert kept.W_dec.min() == 0


@pytest.mark.parametrize("of", [of for of in KINDS if of != "own"])
def test_what_says_so_is_the_same_along_any_axes(of: str) -> None:
    """Loss, features, reconstruction and gradients, in float64, far from the origin too."""
    how = {"kind": SAE} | KINDS[of]
    objective = objective_of(
        **{n: how.get(n) for n in ("objective", "l1_coefficient", "decoder_norm", "k")}
    )
    given = {"k": how["k"]} if "k" in how else {}
    width = D
    if of == "skip_transcoder":
        given["d_out"] = width = WRITTEN
    sae = random_(how["kind"](D, F, **given)).double()
    turned = copy.deepcopy(sae)
    bases = [torch.linalg.qr(basis(n).double()).Q for n in (D, width)]
    turned.turn_(*(basis_DD.T for basis_DD in bases))
    x_ND, y_ND = rows().double() + 10, rows(width=width, seed=6).double()
    dead_F = torch.arange(F) % 3 == 0
    outputs = []
    for each, x, y in ((sae, x_ND, y_ND), (turned, x_ND @ bases[0], y_ND @ bases[1])):
        now = Now(dead_F=dead_F, target_BD=y if "d_out" in given else None)
        loss, output = objective(each, x, now)
        loss.total.backward()
        outputs.append((loss.total, output.f, output.x_hat, each.W_dec.grad, each.W_enc.grad))
    (loss, f, x_hat, to_dec, to_enc), (loss_, f_, x_hat_, to_dec_, to_enc_) = outputs
    torch.testing.assert_close(loss_, loss)
    torch.testing.assert_close(f_, f)
    torch.testing.assert_close(x_hat_ @ bases[1].T, x_hat)
    torch.testing.assert_close(to_dec_ @ bases[1].T, to_dec)
    torch.testing.assert_close(bases[0] @ to_enc_, to_enc, rtol=1e-6, atol=1e-6)


def test_axes_of_too_few_rows_are_left() -> None:
    how = {"l1_coefficient": 0.1, "steps": 2, "batch_size": 8, "progress": False}
    assert train(rows(2 * D - 1), F, **how).basis == "given"
    assert train(rows(2 * D), F, **how).basis == "principal"
    for n, expected in ((2 * D - 1, "given"), (2 * D, "principal")):
        stream = iter([rows(n)] * 3)
        assert train(stream, F, **how).basis == expected


def test_many_seeds_on_one_stream_far_from_the_origin_are_as_each_alone() -> None:
    """All of a sweep that lie side by side see the same rows: they have to be turned alike."""
    how = {"steps": 40, "batch_size": 100, "progress": False}

    def stream() -> Iterator[Tensor]:
        return iter([10 + rows(100, 32, seed=i) for i in range(50)])

    several = sweep(stream, F, [0.1, 0.3], seeds=(0, 1, 2), **how)
    for (l1, seed), one in zip(itertools.product([0.1, 0.3], range(3)), several, strict=True):
        alone = train(stream(), F, l1_coefficient=l1, seed=seed, **how)
        assert torch.equal(one.sae.W_dec, alone.sae.W_dec)


def test_a_training_is_of_raw_rows_whatever_axes_it_went_along() -> None:
    x_ND = 3 * uneven()
    how = {"steps": 400, "batch_size": 200, "lr": 5e-3, "l1_coefficient": 0.1, "progress": False}
    explained = {}
    for name in ("principal", "given"):
        sae = train(x_ND, F, basis=name, **how).sae
        explained[name] = metrics.explained_variance(x_ND, sae(x_ND).x_hat)
    assert min(explained.values()) > 0.9
    assert not torch.equal(*(train(x_ND, F, basis=n, **how | {"steps": 9}).sae.W_dec
                             for n in ("principal", "given")))  # fmt: skip


def test_a_sweep_goes_along_the_same_axes() -> None:
    how = {"steps": 30, "batch_size": 100, "progress": False}
    for name in ("principal", "given"):
        (one,) = sweep(rows(), F, [0.1], basis=name, **how)
        alone = train(rows(), F, l1_coefficient=0.1, basis=name, **how)
        assert torch.equal(one.sae.W_dec, alone.sae.W_dec)


def test_a_callback_may_have_the_sae_of_raw_rows_to_itself() -> None:
    how = {"steps": 20, "batch_size": 100, "log_every": 10, "progress": False}
    seen = []

    def watch(record: dict, so_far: Callable[[], Trained]) -> None:
        sae = so_far().sae
        seen.append({name: t.clone() for name, t in sae.state_dict().items()})
        sae.W_dec.data.zero_()

    watched = train(rows(), F, l1_coefficient=0.1, callback=watch, **how).sae
    alone = train(rows(), F, l1_coefficient=0.1, **how).sae
    for name, t in alone.state_dict().items():
        assert torch.equal(t, watched.state_dict()[name]) and torch.equal(t, seen[-1][name])


@pytest.mark.parametrize("wrong", ["pca", "", None, 3, ["principal"]])
def test_other_axes_are_refused(wrong: object) -> None:
    with pytest.raises(Refusal, match="basis"):
        train(rows(), F, l1_coefficient=0.1, steps=1, basis=wrong, progress=False)
