"""The sparse autoencoder: its equations, what its variants change, and its file.

Shapes: B batch, D = d_in activation width, F = d_sae features, I features that start anew.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from saelearn import artifacts
from saelearn.errors import (
    ABOVE_0,
    Refusal,
    check_activations,
    check_choice,
    check_range,
    check_tensor,
    check_width,
    checked,
    number,
    whole,
)
from saelearn.sae import formats
from saelearn.sae.formats import CONFIG_FILE, WEIGHTS_FILE, WRONG

CENTERS = ("mean", "geometric_median", "zero")
TURNED_AT_ONCE = 1_024  # features: at the end of a training there is no room for all


class SAEOutput(NamedTuple):
    """What a forward pass gives: the reconstruction `x_hat` [B, D] and the features `f` [B, F]."""

    x_hat: Tensor
    f: Tensor


class Units(NamedTuple):
    """What an SAE takes for 0 and for 1 in each row: it sees (x - center) / (scale + epsilon).

    `center`, `scale`: `[B, 1]`, or single numbers if they are the same for all rows.
    """

    center: Tensor | float
    scale: Tensor | float
    epsilon: float = 0.0


def _layer_norm(x_BD: Tensor) -> Units:
    center_B1 = x_BD.mean(-1, keepdim=True)
    return Units(center_B1, (x_BD - center_B1).std(-1, keepdim=True), 1e-5)


def _constant_norm(x_BD: Tensor) -> Units:
    length_B1 = x_BD.norm(dim=-1, keepdim=True) / math.sqrt(x_BD.shape[-1])
    return Units(0.0, length_B1.clamp(min=torch.finfo(x_BD.dtype).tiny))


BY_ROW: dict[str, Callable[[Tensor], Units]] = {
    "layer_norm": _layer_norm,
    "constant_norm_rescale": _constant_norm,
}
"""Normalisations that differ from row to row, by SAELens' names: no weights can do them."""


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

    SAEs of others may normalise each row before they encode it, and undo that afterwards
    (`units`). Such a one computes as it did there, but cannot be trained or folded.

    A subclass is another architecture. It changes what differs of `pre`, `activate` and `decode`,
    and says with these what training, resampling and files need to know:

    Attributes:
        architecture: its name in a file; naming one makes `load` find the class.
        any_axes: whether `turn_` turns all that it has, and nothing in it looks at single
            coordinates; each class says so for itself, or is trained along the axes given.
        feature_axis: for each parameter or buffer with an entry for each feature: along which axis.
        offsets: parameters that are as large as pre-activations, and so have further to go than a
            weight (`Settings.bias_lr`).
        objectives: names of the objectives that can train it; any, if empty.
        accepted: settings that a file of it may have, with the values that mean the same features.
    """

    architecture: ClassVar[str] = "standard"
    any_axes: ClassVar[bool] = True
    feature_axis: ClassVar[dict[str, int]] = {"W_enc": 1, "b_enc": 0, "W_dec": 0}
    offsets: ClassVar[tuple[str, ...]] = ("b_enc",)
    objectives: ClassVar[tuple[str, ...]] = ()
    accepted: ClassVar[dict[str, tuple]] = {
        "activation_fn": ("relu",),
        "normalize_activations": ("none", *BY_ROW),
        "reshape_activations": ("none", "hook_z"),  # rows of a site are flat anyway
    }
    known: ClassVar[dict[str, type[SAE]]] = {}

    @checked(d_in=whole(1), d_sae=whole(1), decoder_init_norm=number(0), seed=whole(0))
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
        generator = torch.Generator().manual_seed(seed)
        rows_FD = torch.randn(d_sae, d_in, generator=generator)
        rows_FD *= decoder_init_norm / rows_FD.norm(dim=1, keepdim=True)
        self.W_enc = nn.Parameter(rows_FD.clone().T)  # feature by feature, as it is read
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(rows_FD)
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.normalize_activations = "none"
        self.metadata = dict(metadata or {})

    def __init_subclass__(cls) -> None:
        """Make an architecture with a name of its own one that `load` finds; the last one with
        a name counts, so that a cell of a notebook can be run again."""
        super().__init_subclass__()
        if "architecture" in vars(cls):
            cls.known[cls.architecture] = cls

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        """Width of what is reconstructed: `d_in`, unless it is another site's."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @classmethod
    def from_data(cls, x_ND: Tensor, d_sae: int, *, center: str = "mean", **arguments) -> Self:
        """An SAE whose `b_dec` starts at the data's centre.

        Args:
            x_ND: activations, `[N, D]`.
            d_sae: number of features.
            center: "mean", "geometric_median" (robust against outliers) or "zero".
            arguments: as for the class.
        """
        check_activations(x_ND)
        return cls(x_ND.shape[1], d_sae, **arguments).center_(x_ND, center)

    def center_(self, target_ND: Tensor, center: str) -> Self:
        """Set `b_dec` to the centre of what is to be reconstructed; `from_data` names the ways."""
        check_choice(center, "center", CENTERS)
        if center == "mean":
            self.b_dec.data = target_ND.float().mean(0).cpu()
        elif center == "geometric_median":
            self.b_dec.data = geometric_median(target_ND.float()).cpu()
        return self

    # --- what it computes -------------------------------------------------------------------------

    def pre(self, x_BD: Tensor) -> Tensor:
        """What the nonlinearity is applied to, `[B, F]`."""
        if self.apply_b_dec_to_input:
            x_BD = x_BD - self.b_dec
        return x_BD @ self.W_enc + self.b_enc

    def activate(self, pre_BF: Tensor) -> Tensor:
        """Features `f_BF` >= 0 of `pre`."""
        return torch.relu(pre_BF)

    def encode(self, x_BD: Tensor) -> Tensor:
        """Features `f_BF` >= 0 of activations `x_BD` (any leading dimensions)."""
        self._check(x_BD)
        return self.activate(self.pre(self.normalized(x_BD)))

    def _check(self, x_BD: Tensor) -> None:
        """Refuse what cannot be encoded."""
        check_width(x_BD, self.d_in)
        if x_BD.device != self.W_dec.device:
            raise Refusal(
                f"activations on the SAE's device, {self.W_dec.device}",
                f"activations on {x_BD.device}",
                "move one of them: sae.to(x.device)",
            )

    def units(self, x_BD: Tensor) -> Units:
        """What is subtracted from each row and what it is divided by; 0 and 1 for most SAEs.

        A decoder row times `scale` is what its feature adds to x.
        """
        way = BY_ROW.get(self.normalize_activations)
        return Units(0.0, 1.0) if way is None else way(x_BD)

    def normalized(self, x_BD: Tensor) -> Tensor:
        """`x_BD` in those units."""
        if self.normalize_activations == "none":
            return x_BD
        center, scale, epsilon = self.units(x_BD)
        return (x_BD - center) / (scale + epsilon)

    def decode(self, f_BF: Tensor) -> Tensor:
        """A sum of decoder rows, weighted by the features: the reconstruction, if the SAE takes
        rows as they are; `reconstruct` goes back from its `units`."""
        check_width(f_BF, self.d_sae, name="features")
        return f_BF @ self.W_dec + self.b_dec

    def reconstruct(self, x_BD: Tensor, f_BF: Tensor) -> Tensor:
        """`x_hat_BD`: `decode`, and whatever goes from the input to the output past features."""
        if self.normalize_activations == "none":
            return self.decode(f_BF)
        center, scale, _ = self.units(x_BD)
        return self.decode(f_BF) * scale + center

    def forward(self, x_BD: Tensor) -> SAEOutput:
        """Encode and decode."""
        f_BF = self.encode(x_BD)
        return SAEOutput(self.reconstruct(x_BD, f_BF), f_BF)

    # --- in training ------------------------------------------------------------------------------

    def activate_in_training(self, pre_BF: Tensor, now) -> Tensor:
        """`activate`, unless training does it otherwise; `now` is an `objectives.Now`."""
        return self.activate(pre_BF)

    def observe(self, f: Tensor) -> Tensor | None:
        """What `after_step_` has to know of a batch's features, or of the active ones alone."""
        return None

    @torch.no_grad()
    def after_step_(self, observed_P: Tensor | None) -> None:
        """What follows an update; `observed_P` holds what each process observed."""

    @torch.no_grad()
    def restart_(
        self, dead_I: Tensor, alive_F: Tensor, reads_ID: Tensor, writes_ID: Tensor
    ) -> None:
        """Give features a new start that read and write directions of length 1.

        Decoder rows get the living ones' mean length, encoder columns 0.2 times theirs; all else
        that belongs to a feature starts at 0 (Bricken et al., 2023).
        """
        for name, axis in self.feature_axis.items():
            getattr(self, name).index_fill_(axis, dead_I, 0.0)
        self.W_dec[dead_I] = writes_ID * self.W_dec[alive_F].norm(dim=1).mean()
        self.W_enc[:, dead_I] = 0.2 * self.W_enc[:, alive_F].norm(dim=0).mean() * reads_ID.T

    @torch.no_grad()
    def fold_scale_(self, scale: float, target_scale: float | None = None) -> Self:
        """Turn an SAE of `scale * x` into the same SAE of raw `x`; features stay as they were.

        scale * x_hat(x) was the reconstruction before; x_hat(x) is it afterwards. What another
        site's activations were multiplied by, if they are what it reconstructs, is `target_scale`.
        """
        if self.normalize_activations != "none":
            raise Refusal("an SAE that takes rows as they are", self.normalize_activations)
        target_scale = scale if target_scale is None else target_scale
        scale, target_scale = (
            check_range(value.item() if _is_one(value) else value, "scale", ABOVE_0)
            for value in (scale, target_scale)
        )
        self.W_enc.mul_(scale)
        self.W_dec.div_(target_scale)
        self.b_dec.div_(target_scale)
        return self

    @torch.no_grad()
    def turn_(self, basis_DD: Tensor, target_basis_OO: Tensor | None = None) -> Self:
        """Turn an SAE of `x @ basis` into the same SAE of `x`; features stay as they were.

        Args:
            basis_DD: orthonormal columns, the axes that activations were written along.
            target_basis_OO: of another site's activations, if they are what it reconstructs.
        """
        if self.normalize_activations != "none":
            raise Refusal("an SAE that takes rows as they are", self.normalize_activations)
        target_basis_OO = basis_DD if target_basis_OO is None else target_basis_OO
        _check_basis(basis_DD, self.d_in)
        _check_basis(target_basis_OO, self.d_out)
        basis_DD, target_basis_OO = (t.to(self.W_dec) for t in (basis_DD, target_basis_OO))
        for W_enc_DI in self.W_enc.split(TURNED_AT_ONCE, dim=1):
            W_enc_DI.copy_(basis_DD @ W_enc_DI)
        for W_dec_IO in self.W_dec.split(TURNED_AT_ONCE):
            W_dec_IO.copy_(W_dec_IO @ target_basis_OO.T)
        self.b_dec.copy_(target_basis_OO @ self.b_dec)
        return self

    # --- files ------------------------------------------------------------------------------------

    def exported(self) -> SAE:
        """The SAE as files know it; what differs in training alone is left behind."""
        return self

    def own_config(self) -> dict[str, Any]:
        """The constructor's arguments that are this architecture's own; they go into the file."""
        return {}

    def save(self, folder: str | Path) -> None:
        """Write the folder in SAELens' v6 layout; a folder that is there is replaced at once.

        Raises:
            ArtifactError: it could not be written; what was there before is still there.
        """
        sae = self.exported()
        with artifacts.replacing(folder) as temporary:
            temporary.mkdir()
            artifacts.write_tensors(temporary / WEIGHTS_FILE, sae.state_dict())
            artifacts.write_json(temporary / CONFIG_FILE, sae.config())

    def config(self) -> dict[str, Any]:
        """What the file says about the weights."""
        hook = self.metadata.get("hook_name", "")
        return {
            "architecture": self.architecture,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "dtype": str(self.W_dec.dtype).removeprefix("torch."),
            "device": "cpu",
            "apply_b_dec_to_input": self.apply_b_dec_to_input,
            "normalize_activations": self.normalize_activations,
            # there a site of heads is [..., heads, width]: the loader has to flatten it
            "reshape_activations": "hook_z" if str(hook).endswith("_z") else "none",
            **self.own_config(),
            # a loader of this format takes its pre-6 path, and drops metadata, without a version
            "metadata": {"sae_lens_version": "6.54.12", **self.metadata},
        }

    @classmethod
    def arguments_from(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The same arguments from a file's settings; `own_config` turned round."""
        return {}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        device: str = "cpu",
        scale: float | None = None,
        revision: str | None = None,
    ) -> Self:
        """Read an SAE, saved here or published by others, as the class that it is of.

        Known are SAELens' folders (versions 2 to 6), Gemma Scope's params.npz, the ae.pt and
        config.json of dictionary_learning, and OpenAI's .pt; `sae.formats` has a file for each.
        Features and reconstructions are what the original computes.

        Args:
            path: a folder or a file; `hub:owner/repository/folder` on the Hugging Face hub, whose
                cache keeps it.
            device: where to put it.
            scale: what activations were multiplied by in training, for files that need it and do
                not say; it is folded into the weights.
            revision: on the hub: a branch, tag or commit.

        Raises:
            ArtifactError: a file is missing or damaged, or would run code.
            Refusal: another architecture than this class or one below it, a normalisation that
                cannot be folded, or weights that do not fit their settings; the hub is out of
                reach.
        """
        published = formats.read(path, scale=scale, revision=revision)
        settings, name = published.settings, published.settings["architecture"]
        able = {n: known for n, known in cls.known.items() if issubclass(known, cls)}
        if name not in able:
            raise Refusal(f"an architecture of {', '.join(sorted(able))}", repr(name), WRONG)
        kind = able[name]
        for key, values in kind.accepted.items():
            if key in settings and settings[key] not in values:
                said = " or ".join(map(repr, values))
                what = f"{key}={said} in a file of the architecture {name!r}"
                raise Refusal(what, repr(settings[key]), WRONG)
        sae = kind._of(settings, published.weights)
        try:
            return sae.to(device)
        except (RuntimeError, AssertionError, TypeError) as error:
            said = (str(error) or type(error).__name__).splitlines()[0]
            raise Refusal("a device of this machine", f"{device!r}: {said}") from error

    @classmethod
    def _of(cls, settings: dict[str, Any], weights: dict[str, Tensor]) -> Self:
        """From settings and weights that were found to fit, but for what is this class's own."""
        given = {name: settings[name] for name in ("apply_b_dec_to_input", "metadata")}
        try:
            own = cls.arguments_from(settings)
            sae = cls(settings["d_in"], settings["d_sae"], **given, **own)
        except Refusal:
            raise
        except (TypeError, KeyError, ValueError, AttributeError, RuntimeError) as error:
            raise Refusal(
                f"a {cls.__name__} that can be made of {CONFIG_FILE}",
                f"{type(error).__name__}: {error}",
                f"own_config and arguments_from of {cls.__name__} have to name its arguments",
            ) from error
        sae.normalize_activations = settings.get("normalize_activations", "none")
        expected = {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}
        received = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if received != expected:
            raise Refusal(
                f"weights {expected}",
                str(received),
                "the file does not fit its settings, or holds another kind of SAE",
            )
        dtypes = [tensor.dtype for tensor in weights.values()]
        sae.to(dtype=functools.reduce(torch.promote_types, dtypes))
        sae.load_state_dict(weights)
        return sae


SAE.known[SAE.architecture] = SAE


def load(
    path: str | os.PathLike,
    *,
    device: str = "cpu",
    scale: float | None = None,
    revision: str | None = None,
) -> SAE:
    """Read an SAE of whichever kind it is, in whichever format it is published; see `SAE.load`.

    load("my_sae")
    load("hub:google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71")
    """
    return SAE.load(path, device=device, scale=scale, revision=revision)


def needs(config: dict[str, Any], name: str) -> Any:
    """A setting that an architecture's file cannot do without."""
    if name not in config:
        raise Refusal(f"{name} in {CONFIG_FILE}", f"only {', '.join(sorted(config))}")
    return config[name]


def _check_basis(basis_DD: Tensor, width: int) -> None:
    """Refuse what would stretch a row: a few random ones are tried."""
    check_tensor(basis_DD, "basis_DD", "DD", {"D": width})
    generator = torch.Generator().manual_seed(0)
    x_BD = torch.randn(8, width, generator=generator, dtype=torch.float64).to(basis_DD.device)
    change = ((x_BD @ basis_DD.double()).norm(dim=1) / x_BD.norm(dim=1) - 1).abs().max()
    if change > 1e-3:
        raise Refusal("a basis_DD with orthonormal columns", f"one that stretches by {change:.2g}")


def _is_one(value: float | Tensor) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


@torch.no_grad()
@checked(iterations=whole(1), tolerance=number(0))
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
