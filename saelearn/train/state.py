"""All that a training remembers from one step to the next, and what it gives at the end.

Shapes: F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from saelearn.errors import Refusal
from saelearn.sae import SAE, Loss
from saelearn.train.resampling import generator_for
from saelearn.train.update import Adam

Record = dict[str, float]


@dataclass
class Trained:
    """What training gives.

    Attributes:
        sae: the SAE, on the CPU, for raw activations (the scale is folded in).
        history: one record every `log_every` steps: step, loss, reconstruction, sparsity, l0,
            dead (share of features silent since the last record), decoder_norm (mean), lr.
            Losses are in training units (after scaling).
        scale: what the activations were multiplied by.
        steps: how many steps were done; fewer than asked for if it was interrupted.
        memory: bytes that it took, as they were counted beforehand, by what they were for
            (`memory.needed`); of a sweep, what all its SAEs took together.
    """

    sae: SAE
    history: list[Record] = field(default_factory=list)
    scale: float = 1.0
    steps: int = 0
    memory: dict[str, int] = field(default_factory=dict)

    def column(self, name: str) -> list[float]:
        """One quantity over time."""
        return [record[name] for record in self.history]


class State:
    """Weights, Adam's moments, the masks of living features, a generator, history and step.

    Attributes:
        fired_F: which features were active since the last record.
        alive_F: which were active since the last moment from which resampling counts.
        step: steps done.
        whole: False while a step is under way; only a whole state may be saved.
    """

    def __init__(
        self, sae: SAE, *, lr: float, seed: int, scale: float, memory: dict[str, int] | None = None
    ):
        self.sae, self.scale, self.memory = sae, scale, memory or {}
        self.optimizer = Adam(sae.parameters(), lr=lr)
        self.generator = generator_for(seed, "resampling")
        self.fired_F = torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.W_dec.device)
        self.alive_F = self.fired_F.clone()
        self.history: list[Record] = []
        self.step, self.whole = 0, True

    def saw(self, count_F: Tensor) -> None:
        """Count a step, and note which features were active in its batch."""
        self.step += 1
        self.fired_F |= count_F > 0
        self.alive_F |= count_F > 0

    def record(self, loss: Loss, count_F: Tensor, rows: int) -> Record:
        """Add what the last step of `rows` samples was like to the history.

        Raises:
            Refusal: the loss is not finite.
        """
        record = {
            "step": self.step,
            "loss": loss.total.item(),
            "reconstruction": loss.reconstruction.item(),
            "sparsity": loss.sparsity.item(),
            "l0": count_F.sum().item() / rows,
            "dead": 1 - self.fired_F.float().mean().item(),
            "decoder_norm": self.sae.W_dec.detach().norm(dim=1).mean().item(),
            "lr": self.optimizer.lr,
        }
        if not math.isfinite(record["loss"]):
            raise Refusal(
                "a finite loss",
                f"{record['loss']} at step {self.step}",
                "lower lr, or raise lr_warmup",
            )
        self.history.append(record)
        self.fired_F.zero_()
        return record

    def tensors(self) -> dict[str, Tensor]:
        """What a file has to hold, by name; the numbers are in `numbers`."""
        named = dict(self.sae.named_parameters())
        moments = {
            f"adam.{name}.{key}": value
            for name, parameter in named.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        weights = {f"sae.{name}": parameter.detach() for name, parameter in named.items()}
        masks = {"fired_F": self.fired_F, "alive_F": self.alive_F}
        return weights | moments | masks | {"generator": self.generator.get_state()}

    def numbers(self) -> dict:
        """The rest, as JSON can hold it."""
        return {"step": self.step, "scale": self.scale, "history": self.history}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping) -> None:
        """Become the state that `tensors` and `numbers` were taken from, layout included."""
        for name, parameter in self.sae.named_parameters():
            parameter.copy_(tensors[f"sae.{name}"])
            prefix, state = f"adam.{name}.", self.optimizer.state[parameter]
            for key in (k for k in tensors if k.startswith(prefix)):
                value = tensors[key].to(parameter.device, copy=True)
                if value.ndim:  # strides as the parameter's: the fused update relies on it
                    value = torch.empty_like(parameter).copy_(value)
                state[key.removeprefix(prefix)] = value
        self.fired_F.copy_(tensors["fired_F"])
        self.alive_F.copy_(tensors["alive_F"])
        self.generator.set_state(tensors["generator"])
        self.step, self.scale = numbers["step"], numbers["scale"]
        self.history = list(numbers["history"])

    def result(self) -> Trained:
        """The SAE for raw activations, on the CPU, and how it came about; ends the training."""
        sae = self.sae.cpu().fold_scale_(self.scale)
        return Trained(sae, self.history, self.scale, self.step, self.memory)
