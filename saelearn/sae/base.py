"""The sparse autoencoder: its equations, what its variants change, and its file.

Shapes: B batch, D = d_in activation width, F = d_sae features, I features that start anew.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from saelearn import artifacts
from saelearn.errors import ArtifactError, Refusal, check_activations, check_width

WEIGHTS_FILE, CONFIG_FILE = "sae_weights.safetensors", "cfg.json"
CENTERS = ("mean", "geometric_median", "zero")


class SAEOutput(NamedTuple):
    """What a forward pass gives: the reconstruction `x_hat` [B, D] and the features `f` [B, F]."""

    x_hat: Tensor
    f: Tensor


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

    A subclass is another architecture. It changes what differs of `pre`, `activate` and `decode`,
    and says with these what training, resampling and files need to know:

    Attributes:
        architecture: its name in a file; naming one makes `load` find the class.
        feature_axis: for each parameter or buffer with an entry for each feature: along which axis.
        offsets: parameters that are as large as pre-activations, and so have further to go than a
            weight (`Settings.bias_lr`).
        objectives: names of the objectives that can train it; any, if empty.
    """

    architecture: ClassVar[str] = "standard"
    feature_axis: ClassVar[dict[str, int]] = {"W_enc": 1, "b_enc": 0, "W_dec": 0}
    offsets: ClassVar[tuple[str, ...]] = ("b_enc",)
    objectives: ClassVar[tuple[str, ...]] = ()
    accepted: ClassVar[dict[str, Any]] = {
        "activation_fn": "relu",  # files before v6 name it, one way or the other
        "activation_fn_str": "relu",
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    """Settings in a file that must have this value: any other means other features."""
    known: ClassVar[dict[str, type[SAE]]] = {}

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

    def __init_subclass__(cls) -> None:
        """Make an architecture with a name of its own one that `load` finds."""
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
        if center not in CENTERS:
            raise Refusal(f"center as one of {', '.join(CENTERS)}", repr(center))
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
        check_width(x_BD, self.d_in)
        if x_BD.device != self.W_enc.device:
            raise Refusal(
                f"activations on the SAE's device, {self.W_enc.device}",
                f"activations on {x_BD.device}",
                "move one of them: sae.to(x.device)",
            )
        return self.activate(self.pre(x_BD))

    def decode(self, f_BF: Tensor) -> Tensor:
        """The reconstruction `x_hat_BD`: a sum of decoder rows, weighted by the features."""
        check_width(f_BF, self.d_sae, name="features")
        return f_BF @ self.W_dec + self.b_dec

    def reconstruct(self, x_BD: Tensor, f_BF: Tensor) -> Tensor:
        """`decode`, and whatever goes from the input to the output past the features."""
        return self.decode(f_BF)

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
        target_scale = scale if target_scale is None else target_scale
        for value in (scale, target_scale):
            if not (value > 0 and math.isfinite(value)):
                raise Refusal("a finite scale above 0", repr(value))
        self.W_enc.mul_(scale)
        self.W_dec.div_(target_scale)
        self.b_dec.div_(target_scale)
        return self

    # --- files ------------------------------------------------------------------------------------

    def exported(self) -> SAE:
        """The SAE as files know it; what differs in training alone is left behind."""
        return self

    def settings(self) -> dict[str, Any]:
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
        return {
            "architecture": self.architecture,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "dtype": str(self.W_dec.dtype).removeprefix("torch."),
            "device": "cpu",
            "apply_b_dec_to_input": self.apply_b_dec_to_input,
            "normalize_activations": "none",
            "reshape_activations": "none",
            **self.settings(),
            # a loader of this format takes its pre-6 path, and drops metadata, without a version
            "metadata": {"sae_lens_version": "6.54.12", **self.metadata},
        }

    @classmethod
    def arguments(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The constructor's arguments from a file's settings; `settings` turned round."""
        return {}

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu") -> Self:
        """Read an SAE in SAELens' v6 layout, saved here or there, as the class that it is of.

        Raises:
            ArtifactError: a file is missing or damaged.
            Refusal: another architecture than this class or one below it, a normalisation that is
                not folded, or weights that do not fit their settings.
        """
        config = artifacts.read_json(Path(folder) / CONFIG_FILE)
        if not isinstance(config, dict):
            raise ArtifactError(f"an SAE's settings in {CONFIG_FILE}", type(config).__name__)
        name = config.get("architecture", "standard")
        able = {n: known for n, known in cls.known.items() if issubclass(known, cls)}
        if not isinstance(name, str) or name not in able:
            raise Refusal(
                f"an architecture in {CONFIG_FILE} of {', '.join(sorted(able))}",
                repr(name),
                "reading it as another would give wrong features without an error",
            )
        kind = able[name]
        for key, value in kind.accepted.items():
            if config.get(key, value) != value:
                raise Refusal(
                    f"{key}={value!r} in {CONFIG_FILE} of the architecture {name!r}",
                    repr(config[key]),
                    "reading it as if it were would give wrong features without an error",
                )
        return kind._of(config, artifacts.read_tensors(Path(folder) / WEIGHTS_FILE, device))

    @classmethod
    def _of(cls, config: dict[str, Any], weights: dict[str, Tensor]) -> Self:
        """From a file's settings and weights, which must fit each other."""
        size = {name: config.get(name) for name in ("d_in", "d_sae")}
        found = weights["W_enc"] if "W_enc" in weights else torch.empty(0)
        if tuple(found.shape) != tuple(size.values()):  # compared before memory is taken for it
            raise Refusal(
                f"weights with W_enc {tuple(size.values())} in {WEIGHTS_FILE}",
                str(tuple(found.shape)),
                f"the file does not fit its {CONFIG_FILE}, or holds another kind of SAE",
            )
        given = {"apply_b_dec_to_input": True, "metadata": {}}
        given = {name: config.get(name, default) for name, default in given.items()}
        sae = cls(**size, **given, **cls.arguments(config))
        sae.to(device=found.device, dtype=found.dtype)
        expected = {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}
        received = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if received != expected:
            raise Refusal(
                f"weights {expected} in {WEIGHTS_FILE}",
                str(received),
                f"the file does not fit its {CONFIG_FILE}, or holds another kind of SAE",
            )
        sae.load_state_dict(weights)
        return sae


SAE.known[SAE.architecture] = SAE


def load(folder: str | Path, *, device: str = "cpu") -> SAE:
    """Read an SAE of whichever kind its settings name; see `SAE.load`."""
    return SAE.load(folder, device=device)


def needs(config: dict[str, Any], name: str) -> Any:
    """A setting that an architecture's file cannot do without."""
    if name not in config:
        raise Refusal(f"{name} in {CONFIG_FILE}", f"only {', '.join(sorted(config))}")
    return config[name]


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
