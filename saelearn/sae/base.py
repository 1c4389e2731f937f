"""The sparse autoencoder: its equations, its loss, its file. Built in lesson 05.

Shapes: B batch, D = d_in activation width, F = d_sae features.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saelearn import artifacts
from saelearn.errors import ArtifactError, Refusal, check_activations, check_width

WEIGHTS_FILE, CONFIG_FILE = "sae_weights.safetensors", "cfg.json"
DECODER_NORMS = ("weighted", "unit_norm", "free")
CENTERS = ("mean", "geometric_median", "zero")


class SAEOutput(NamedTuple):
    """What a forward pass gives: the reconstruction `x_hat` [B, D] and the features `f` [B, F]."""

    x_hat: Tensor
    f: Tensor


class Loss(NamedTuple):
    """A loss and its two terms, each a mean over the batch; `total` is what is minimised.

    `reconstruction` is the squared error summed over D; `sparsity` is the penalty before it is
    multiplied by the coefficient.
    """

    total: Tensor
    reconstruction: Tensor
    sparsity: Tensor


class SAE(nn.Module):
    """A sparse autoencoder with ReLU features.

        f     = ReLU((x - b_dec) W_enc + b_enc)        [B, F]
        x_hat = f W_dec + b_dec                        [B, D]

    Row i of `W_dec` is the direction that feature i writes; column i of `W_enc` is what it looks
    for. With `apply_b_dec_to_input=False` the input is not centred: f = ReLU(x W_enc + b_enc).
    (Bricken et al., 2023, "Towards Monosemanticity"; Cunningham et al., 2023.)

    Args:
        d_in: width of the activations.
        d_sae: number of features.
        apply_b_dec_to_input: subtract `b_dec` before encoding.
        decoder_init_norm: length of each decoder row at the start. Rows point in random
            directions, and the encoder starts as their transpose.
        seed: seed of those directions.
        metadata: anything JSON can hold (model, site, training); saved with the weights.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        apply_b_dec_to_input: bool = True,
        decoder_init_norm: float = 0.1,
        seed: int = 0,
        metadata: dict | None = None,
    ):
        super().__init__()
        if d_in < 1 or d_sae < 1:
            raise Refusal("d_in and d_sae of at least 1", f"d_in={d_in}, d_sae={d_sae}")
        generator = torch.Generator().manual_seed(seed)
        rows_FD = torch.randn(d_sae, d_in, generator=generator)
        rows_FD *= decoder_init_norm / rows_FD.norm(dim=1, keepdim=True)
        self.W_enc = nn.Parameter(rows_FD.clone().T)  # feature by feature, as it is read
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(rows_FD)
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.metadata = dict(metadata or {})

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @classmethod
    def from_data(cls, x_ND: Tensor, d_sae: int, *, center: str = "mean", **arguments) -> SAE:
        """An SAE whose `b_dec` starts at the data's centre.

        Args:
            x_ND: activations, `[N, D]`.
            d_sae: number of features.
            center: "mean", "geometric_median" (robust against outliers) or "zero".
            arguments: as for `SAE`.
        """
        check_activations(x_ND)
        if center not in CENTERS:
            raise Refusal(f"center as one of {', '.join(CENTERS)}", repr(center))
        sae = cls(x_ND.shape[1], d_sae, **arguments)
        if center == "mean":
            sae.b_dec.data = x_ND.float().mean(0).cpu()
        elif center == "geometric_median":
            sae.b_dec.data = geometric_median(x_ND.float()).cpu()
        return sae

    def encode(self, x_BD: Tensor) -> Tensor:
        """Features `f_BF` >= 0 of activations `x_BD` (any leading dimensions)."""
        check_width(x_BD, self.d_in)
        if x_BD.device != self.W_enc.device:
            raise Refusal(
                f"activations on the SAE's device, {self.W_enc.device}",
                f"activations on {x_BD.device}",
                "move one of them: sae.to(x.device)",
            )
        if self.apply_b_dec_to_input:
            x_BD = x_BD - self.b_dec
        return torch.relu(x_BD @ self.W_enc + self.b_enc)

    def decode(self, f_BF: Tensor) -> Tensor:
        """The reconstruction `x_hat_BD`: a sum of decoder rows, weighted by the features."""
        check_width(f_BF, self.d_sae, name="features")
        return f_BF @ self.W_dec + self.b_dec

    def forward(self, x_BD: Tensor) -> SAEOutput:
        """Encode and decode."""
        f_BF = self.encode(x_BD)
        return SAEOutput(self.decode(f_BF), f_BF)

    @torch.no_grad()
    def fold_scale_(self, scale: float) -> SAE:
        """Turn an SAE of `scale * x` into the same SAE of raw `x`; features stay as they were.

        scale * x_hat(x) was the reconstruction before; x_hat(x) is it afterwards.
        """
        if not (scale > 0 and math.isfinite(scale)):
            raise Refusal("a finite scale above 0", repr(scale))
        self.W_enc.mul_(scale)
        self.W_dec.div_(scale)
        self.b_dec.div_(scale)
        return self

    def save(self, folder: str | Path) -> None:
        """Write the folder in SAELens' v6 layout; a folder that is there is replaced at once.

        Raises:
            ArtifactError: it could not be written; what was there before is still there.
        """
        with artifacts.replacing(folder) as temporary:
            temporary.mkdir()
            artifacts.write_tensors(temporary / WEIGHTS_FILE, self.state_dict())
            artifacts.write_json(temporary / CONFIG_FILE, self._config())

    def _config(self) -> dict:
        return {
            "architecture": "standard",
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "dtype": str(self.W_dec.dtype).removeprefix("torch."),
            "device": "cpu",
            "apply_b_dec_to_input": self.apply_b_dec_to_input,
            "normalize_activations": "none",
            "reshape_activations": "none",
            # a loader of this format takes its pre-6 path, and drops metadata, without a version
            "metadata": {"sae_lens_version": "6.54.12", **self.metadata},
        }

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu") -> SAE:
        """Read a standard SAE in SAELens' v6 layout, saved here or there.

        Raises:
            ArtifactError: a file is missing or damaged.
            Refusal: another architecture, a normalisation that is not folded, or wrong shapes.
        """
        config = artifacts.read_json(Path(folder) / CONFIG_FILE)
        if not isinstance(config, dict):
            raise ArtifactError(f"an SAE's settings in {CONFIG_FILE}", type(config).__name__)
        for key, accepted in _ACCEPTED.items():
            if (value := config.get(key, accepted)) != accepted:
                raise Refusal(
                    f"{key}={accepted!r} in {CONFIG_FILE}",
                    repr(value),
                    "this class is the standard ReLU SAE on raw activations; loading anything "
                    "else as one would give wrong features without an error",
                )
        weights = artifacts.read_tensors(Path(folder) / WEIGHTS_FILE, device)
        _check_weights(weights, config)
        sae = cls(
            config["d_in"],
            config["d_sae"],
            apply_b_dec_to_input=config.get("apply_b_dec_to_input", True),
            metadata=config.get("metadata", {}),
        )
        sae.to(device=device, dtype=weights["W_dec"].dtype)
        sae.load_state_dict(weights)
        return sae


_ACCEPTED = {
    "architecture": "standard",
    "activation_fn": "relu",  # files before v6 name it, one way or the other
    "activation_fn_str": "relu",
    "normalize_activations": "none",
    "reshape_activations": "none",
}


def _check_weights(weights: dict[str, Tensor], config: dict) -> None:
    d, f = config.get("d_in"), config.get("d_sae")
    expected = {"W_enc": (d, f), "b_enc": (f,), "W_dec": (f, d), "b_dec": (d,)}
    received = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if received != expected:
        raise Refusal(
            f"weights {expected} in {WEIGHTS_FILE}",
            str(received),
            f"the file does not fit its {CONFIG_FILE}, or holds another kind of SAE",
        )


def l1_loss(
    x_BD: Tensor,
    output: SAEOutput,
    W_dec_FD: Tensor,
    *,
    l1_coefficient: float | Tensor,
    decoder_norm: str = "weighted",
) -> Loss:
    """The loss of an L1 sparse autoencoder.

        mean_B sum_D (x - x_hat)^2  +  l1_coefficient * mean_B sum_F f_i ||W_dec_i||

    The penalty acts on activations, not on weights. Both terms are means over the batch, so the
    coefficient does not depend on the batch size. With unit-norm rows, or if `decoder_norm` is
    "free", the norm is left out. (Conerly et al., 2024, for the weighted form.)

    Args:
        x_BD: the activations.
        output: what the SAE made of them.
        W_dec_FD: the decoder, for its norms.
        l1_coefficient: lambda, in units of the activations' size.
        decoder_norm: "weighted", "unit_norm" or "free".
    """
    if decoder_norm not in DECODER_NORMS:
        raise Refusal(f"decoder_norm as one of {', '.join(DECODER_NORMS)}", repr(decoder_norm))
    reconstruction = (x_BD - output.x_hat).square().sum(-1).mean()
    f_BF = output.f * W_dec_FD.norm(dim=1) if decoder_norm == "weighted" else output.f
    sparsity = f_BF.sum(-1).mean()  # f >= 0, so its sum is its L1 norm
    return Loss(reconstruction + l1_coefficient * sparsity, reconstruction, sparsity)


@torch.no_grad()
def geometric_median(x_ND: Tensor, *, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point `[D]` with the least summed distance to the rows (Weiszfeld's algorithm, 1937)."""
    median_D = x_ND.mean(0)
    for _ in range(iterations):
        distance_N = (x_ND - median_D).norm(dim=1).clamp(min=1e-12)
        weight_N = 1 / distance_N
        updated_D = (weight_N @ x_ND) / weight_N.sum()
        if (updated_D - median_D).norm() <= tolerance * (1 + median_D.norm()):
            return updated_D
        median_D = updated_D
    return median_D
