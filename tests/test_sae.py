"""The SAE's equations, loss and file against loops in numpy, float64, scipy and SAELens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from saelearn import artifacts
from saelearn.errors import ArtifactError, Refusal
from saelearn.sae import DECODER_NORMS, SAE, geometric_median, l1_loss, load

DATA = Path(__file__).parent / "data"
D, F, B = 5, 7, 11


def random_sae(seed: int = 0, **arguments) -> SAE:
    """An SAE in which no part is zero or the transpose of another."""
    generator = torch.Generator().manual_seed(seed)
    sae = SAE(D, F, **arguments)
    for parameter in sae.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return sae


def data(seed: int = 1, n: int = B) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def arrays(sae: SAE) -> dict[str, np.ndarray]:
    return {name: p.detach().double().numpy() for name, p in sae.named_parameters()}


@pytest.mark.parametrize("centred", [True, False])
def test_forward_is_the_equation_in_loops(centred: bool) -> None:
    sae, x = random_sae(apply_b_dec_to_input=centred), data()
    w = arrays(sae)
    f, x_hat = np.zeros((B, F)), np.zeros((B, D))
    for n in range(B):
        for i in range(F):
            total = w["b_enc"][i]
            for j in range(D):
                total += (float(x[n, j]) - (w["b_dec"][j] if centred else 0)) * w["W_enc"][j, i]
            f[n, i] = max(0.0, total)
        for j in range(D):
            x_hat[n, j] = w["b_dec"][j] + sum(f[n, i] * w["W_dec"][i, j] for i in range(F))
    output = sae(x)
    np.testing.assert_allclose(output.f.detach(), f, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.x_hat.detach(), x_hat, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.encode(x), output.f)
    torch.testing.assert_close(sae.decode(output.f), output.x_hat)
    assert 0.1 < (f > 0).mean() < 0.9  # both sides of the ReLU were looked at


def test_leading_dimensions_do_not_matter() -> None:
    sae, x = random_sae(), data(n=12)
    torch.testing.assert_close(
        sae(x.reshape(3, 4, D)).x_hat.reshape(12, D), sae(x).x_hat, rtol=1e-5, atol=1e-5
    )


def test_a_new_sae_starts_as_its_docstring_says() -> None:
    sae = SAE(D, F, decoder_init_norm=0.3, seed=4)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((F,), 0.3))
    torch.testing.assert_close(sae.W_enc, sae.W_dec.T)
    assert not sae.b_enc.any() and not sae.b_dec.any()
    assert (sae.d_in, sae.d_sae) == (D, F)
    assert torch.equal(sae.W_dec, SAE(D, F, decoder_init_norm=0.3, seed=4).W_dec)
    assert not torch.equal(sae.W_dec, SAE(D, F, decoder_init_norm=0.3, seed=5).W_dec)


def test_encoder_and_decoder_do_not_share_memory() -> None:
    sae = SAE(D, F)
    before = sae.W_dec.clone()
    sae.W_enc.data.zero_()
    assert torch.equal(sae.W_dec, before)


@pytest.mark.parametrize("decoder_norm", DECODER_NORMS)
def test_the_loss_is_its_formula_in_float64(decoder_norm: str) -> None:
    sae, x = random_sae(), data()
    output = sae(x)
    loss = l1_loss(x, output, sae.W_dec, l1_coefficient=0.7, decoder_norm=decoder_norm)
    f, x_hat = output.f.detach().double().numpy(), output.x_hat.detach().double().numpy()
    norms = np.sqrt((arrays(sae)["W_dec"] ** 2).sum(axis=1))
    squared = sum(np.sum((x[n].double().numpy() - x_hat[n]) ** 2) for n in range(B)) / B
    price = norms if decoder_norm == "weighted" else np.ones(F)
    penalty = sum(abs(f[n, i]) * price[i] for n in range(B) for i in range(F)) / B
    assert loss.reconstruction.item() == pytest.approx(squared, rel=1e-6)
    assert loss.sparsity.item() == pytest.approx(penalty, rel=1e-6)
    assert loss.total.item() == pytest.approx(squared + 0.7 * penalty, rel=1e-6)


@pytest.mark.parametrize("decoder_norm", DECODER_NORMS)
def test_the_loss_does_not_depend_on_the_batch_size(decoder_norm: str) -> None:
    sae, x = random_sae(), data()
    once, thrice = (
        l1_loss(y, sae(y), sae.W_dec, l1_coefficient=0.7, decoder_norm=decoder_norm)
        for y in (x, x.repeat(3, 1))
    )
    torch.testing.assert_close(tuple(once), tuple(thrice))


def test_only_the_weighted_penalty_cannot_be_cheated() -> None:
    """(f / c)(c W) is the same reconstruction; what does its penalty do?"""
    sae, x = random_sae(), data()
    cheat = random_sae()
    cheat.W_enc.data, cheat.b_enc.data, cheat.W_dec.data = (
        sae.W_enc / 10, sae.b_enc / 10, sae.W_dec * 10
    )  # fmt: skip
    for decoder_norm, ratio in (("weighted", 1.0), ("free", 0.1)):
        honest, cheated = (
            l1_loss(x, s(x), s.W_dec, l1_coefficient=1.0, decoder_norm=decoder_norm)
            for s in (sae, cheat)
        )
        torch.testing.assert_close(cheated.reconstruction, honest.reconstruction, rtol=1e-4, atol=0)
        assert (cheated.sparsity / honest.sparsity).item() == pytest.approx(ratio, rel=1e-4)


def test_an_unknown_decoder_norm_is_refused() -> None:
    sae, x = random_sae(), data()
    with pytest.raises(Refusal, match="weighted, unit_norm, free"):
        l1_loss(x, sae(x), sae.W_dec, l1_coefficient=1.0, decoder_norm="unit-norm")


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("scale", [0.03, 1.0, 17.0])
def test_folding_a_scale_changes_units_and_nothing_else(centred: bool, scale: float) -> None:
    sae, x = random_sae(apply_b_dec_to_input=centred), data()
    f, x_hat = sae.encode(scale * x), sae(scale * x).x_hat / scale
    assert sae.fold_scale_(scale) is sae
    torch.testing.assert_close(sae.encode(x), f, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(x).x_hat, x_hat, rtol=1e-4, atol=1e-5 / min(scale, 1))


def test_a_scale_may_be_a_tensor_of_one() -> None:
    of_float, of_tensor = SAE(D, F).fold_scale_(2.0), SAE(D, F).fold_scale_(torch.tensor(2.0))
    assert torch.equal(of_float.W_enc, of_tensor.W_enc)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_cannot_be_folded_is_refused(scale: float) -> None:
    with pytest.raises(Refusal, match="above 0"):
        SAE(D, F).fold_scale_(scale)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.integers(2, 4), st.integers(5, 40))
def test_the_geometric_median_is_scipys_minimum(seed: int, width: int, n: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, width))
    x[0] += 50  # an outlier
    ours = geometric_median(torch.from_numpy(x), iterations=10_000, tolerance=1e-12).numpy()

    def distance(point: np.ndarray) -> float:
        return np.sqrt(((x - point) ** 2).sum(axis=1)).sum()

    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 20_000, "maxfev": 20_000}
    best = minimize(distance, np.median(x, axis=0), method="Nelder-Mead", options=options)
    assert distance(ours) <= best.fun * (1 + 1e-6)


def test_centres_of_data() -> None:
    x = data(n=200) + 3
    x[0] = 1e4
    for center, expected in (
        ("mean", x.mean(0)),
        ("zero", torch.zeros(D)),
        ("geometric_median", x[1:].median(0).values),
    ):
        b_dec = SAE.from_data(x, F, center=center).b_dec.detach()
        atol = 0.3 if center == "geometric_median" else 1e-4
        torch.testing.assert_close(b_dec, expected, rtol=1e-6, atol=atol)
    assert SAE.from_data(x, F, center="mean").b_dec.max() > 40  # which the outlier drew along
    with pytest.raises(Refusal, match="mean, geometric_median, zero"):
        SAE.from_data(x, F, center="median")


def test_unusable_data_is_refused() -> None:
    nan = data()
    nan[3, 2] = torch.nan
    for x, words in (
        (nan, "1 NaN"),
        (torch.full((2, D), torch.inf), "10 infinite"),
        (torch.zeros(0, D), "empty"),
        (torch.zeros(D), r"\[N, D\]"),
    ):
        with pytest.raises(Refusal, match=words):
            SAE.from_data(x, F)
    for width in (D - 1, D + 1, 1):
        with pytest.raises(Refusal, match=rf"width {D}"):
            SAE(D, F).encode(torch.zeros(3, width))
        with pytest.raises(Refusal, match=rf"features of width {F}"):
            SAE(D, F).decode(torch.zeros(3, width))
    for d_in, d_sae in ((0, 3), (3, 0), (-1, 3)):
        with pytest.raises(Refusal, match=r"d_(in|sae) >= 1"):
            SAE(d_in, d_sae)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("centred", [True, False])
def test_save_and_load_give_the_same_sae(centred: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    metadata = {"site": "transformer.h.1:out", "lambdas": [0.1, 1]}
    sae = random_sae(apply_b_dec_to_input=centred, metadata=metadata).to(dtype)
    sae.save(tmp_path / "sae")
    back = SAE.load(tmp_path / "sae")
    for name, parameter in sae.named_parameters():
        other = dict(back.named_parameters())[name]
        assert other.dtype == dtype and torch.equal(other, parameter)
        assert other.requires_grad
    assert back.apply_b_dec_to_input is centred
    assert metadata.items() <= back.metadata.items()
    x = data().to(dtype)
    assert torch.equal(back(x).x_hat, sae(x).x_hat)
    back.save(tmp_path / "again")
    assert (tmp_path / "again" / "cfg.json").read_bytes() == (
        tmp_path / "sae" / "cfg.json"
    ).read_bytes()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architecture", "crosscoder"),
        ("activation_fn", "tanh-relu"),
        ("activation_fn_str", "tanh-relu"),
        ("normalize_activations", "expected_average_only_in"),
        ("normalize_activations", True),
        ("normalize_activations", "covariance_whitening"),
        ("reshape_activations", "patches"),
    ],
)
def test_another_kind_of_sae_is_refused(key: str, value: str, tmp_path: Path) -> None:
    random_sae().save(tmp_path / "sae")
    config = artifacts.read_json(tmp_path / "sae" / "cfg.json")
    artifacts.write_json(tmp_path / "sae" / "cfg.json", config | {key: value})
    told = "expected_average_only_in" if value is True else value
    told_of = key.removesuffix("_str")
    with pytest.raises(
        Refusal, match=rf"(?s){told_of}.*{told}.*(wrong features|features .* wrong)"
    ):
        SAE.load(tmp_path / "sae")


@pytest.mark.parametrize(
    ("architecture", "missing"), [("topk", "k in"), ("jumprelu", "threshold"), ("gated", "r_mag")]
)
def test_weights_of_another_architecture_are_refused(architecture, missing, tmp_path) -> None:
    random_sae().save(tmp_path / "sae")
    config = artifacts.read_json(tmp_path / "sae" / "cfg.json") | {"architecture": architecture}
    artifacts.write_json(tmp_path / "sae" / "cfg.json", config)
    with pytest.raises(Refusal, match=missing):
        SAE.load(tmp_path / "sae")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    sae = random_sae()
    good = {name: p.detach() for name, p in sae.named_parameters()}
    missing = {name: p for name, p in good.items() if name != "b_dec"}
    for bad in (
        good | {"W_enc": good["W_enc"].T.contiguous()},
        good | {"W_dec": good["W_dec"][:-1].contiguous()},
        good | {"threshold": torch.zeros(F)},
        missing,
    ):
        sae.save(tmp_path / "sae")
        artifacts.write_tensors(tmp_path / "sae" / "sae_weights.safetensors", bad)
        with pytest.raises(Refusal, match=r"(?s)W_.*does not fit its"):
            SAE.load(tmp_path / "sae")


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file"):
        SAE.load(tmp_path / "nowhere")
    for name in ("cfg.json", "sae_weights.safetensors"):
        folder = tmp_path / name
        random_sae().save(folder)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ArtifactError, match="damaged file"):
            SAE.load(folder)
        (folder / name).unlink()
        with pytest.raises(ArtifactError, match=r"(?s)cfg\.json and sae_weights.*with "):
            SAE.load(folder)
    for text in ("[]", "{}", '{"d_in": "5", "d_sae": 7}'):
        (folder / "cfg.json").write_text(text)
        random_sae().save(tmp_path / "whole")
        shutil.copy(tmp_path / "whole" / "sae_weights.safetensors", folder)
        with pytest.raises(Refusal):
            SAE.load(folder)


# --- others; data/make_saelens_fixture.py and data/make_published_fixture.py made them -----------

ALL = sorted(folder.name for folder in DATA.iterdir() if folder.is_dir())


def example_of(name: str) -> tuple[SAE, dict[str, Tensor]]:
    """The SAE in a folder of data/, and what the original computes."""
    (path,) = (DATA / name).rglob("example.safetensors")
    return load(path.parent), artifacts.read_tensors(path)


@pytest.mark.parametrize("name", ALL)
def test_the_same_numbers_as_the_original(name: str) -> None:
    """Files of others load here, ours loaded there: features and reconstruction agree to 1e-5."""
    sae, example = example_of(name)
    x_hat, f = sae(example["x"])
    if name == "saelens_abstopk":  # of either sign: each is two here
        assert (example["f"] < 0).any() and (f >= 0).all()
        f = f[:, : f.shape[1] // 2] - f[:, f.shape[1] // 2 :]
    torch.testing.assert_close(f, example["f"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x_hat, example["x_hat"], rtol=1e-5, atol=1e-5)
    active_F = (example["f"] != 0).double().mean(0)
    assert active_F.min() == 0 and active_F.max() > 0.5  # dead ones and very active ones
    if name.startswith(("saved_here", "saelens_standard")) and "transcoder" not in name:
        assert sae.apply_b_dec_to_input is not name.endswith("uncentred")
        sae.apply_b_dec_to_input = not sae.apply_b_dec_to_input
        assert (sae(example["x"]).x_hat - example["x_hat"]).abs().max() > 0.1


@pytest.mark.parametrize("name", ALL)
def test_what_others_published_is_saved_as_the_same(name: str, tmp_path: Path) -> None:
    sae, example = example_of(name)
    sae.save(tmp_path / "sae")
    again = load(tmp_path / "sae")
    assert type(again) is type(sae) and again.metadata == sae.metadata
    for one, other in zip(again(example["x"]), sae(example["x"]), strict=True):
        assert torch.equal(one, other)


def test_every_architecture_was_exchanged_both_ways() -> None:
    kinds = {name: type(example_of(name)[0]).__name__ for name in ALL}
    both = {"SAE", "TopK", "JumpReLU", "Gated", "Transcoder", "SkipTranscoder"}
    both |= {"JumpReLUTranscoder", "JumpReLUSkipTranscoder", "MatchingPursuit"}
    for made in ("saved_here", "saelens_"):
        assert {kind for name, kind in kinds.items() if name.startswith(made)} == both
    assert kinds["saved_here_batchtopk"] == kinds["saelens_matryoshka"] == "JumpReLU"
    assert kinds["saelens_abstopk"] == kinds["saelens3_topk"] == kinds["openai_topk"] == "TopK"
    assert kinds["dictionary_learning_matryoshka"] == kinds["gemma_scope"] == "JumpReLU"


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("saved_here")])
def test_what_saelens_read_is_still_what_is_written(name: str, tmp_path: Path) -> None:
    load(DATA / name).save(tmp_path / "sae")
    for file in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "sae" / file).read_bytes() == (DATA / name / file).read_bytes()


def test_the_settings_are_the_ones_that_saelens_writes(tmp_path: Path) -> None:
    """A loader of that format takes another path without a version, and drops the metadata."""
    theirs = json.loads((DATA / "saelens_standard" / "cfg.json").read_text())
    SAE(8, 16, metadata={"model_name": "tiny"}).save(tmp_path / "sae")
    ours = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert {k: v for k, v in ours.items() if k != "metadata"} == {
        k: v for k, v in theirs.items() if k != "metadata"
    }
    assert int(ours["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    assert ours["metadata"]["model_name"] == "tiny"


def test_activations_on_another_device_are_refused():
    """`meta` stands in for a GPU: PyTorch's own message would not say what to move."""
    with pytest.raises(Refusal, match=r"sae\.to"):
        SAE(4, 8).encode(torch.zeros(2, 4, device="meta"))
