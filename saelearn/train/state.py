"""All that a training remembers from one step to the next, and what it gives at the end.

Shapes: F features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from saelearn.errors import Refusal
from saelearn.sae import SAE
from saelearn.train.autograd import Seen
from saelearn.train.frame import Frame
from saelearn.train.resampling import generator_for
from saelearn.train.update import Adam

Record = dict[str, float]


@dataclass
class Trained:
    """What training gives.

    Attributes:
        sae: the SAE, on the CPU, for raw activations (the scale is folded in).
        history: one record every `log_every` steps: step, loss, the objective's terms by name, l0,
            dead (share of features silent since the last record), decoder_norm (mean), lr.
            Losses are in training units (after scaling).
        scale: what the activations were multiplied by.
        steps: how many steps were done; fewer than asked for if it was interrupted.
        memory: bytes that it took, as they were counted beforehand, by what they were for
            (`memory.needed`); of a sweep, what all its SAEs took together.
        basis: along which axes it went, "principal" or "given".
    """

    sae: SAE
    history: list[Record] = field(default_factory=list)
    scale: float = 1.0
    steps: int = 0
    memory: dict[str, int] = field(default_factory=dict)
    basis: str = "given"

    def column(self, name: str) -> list[float]:
        """One quantity over time."""
        return [record[name] for record in self.history]


class State:
    """An SAE in training, Adam's moments, who is silent, a generator, history and step.

    Attributes:
        frame: the units and axes that activations are brought to.
        silent_F: for how many steps each feature has not been active.
        watched_from: the step from which it counts for the next resampling who is silent.
        step: steps done.
        whole: False while a step is under way; only a whole state may be saved.
    """

    def __init__(
        self,
        sae: SAE,
        *,
        lr: float,
        seed: int,
        bias_lr: float = 1.0,
        frame: Frame | None = None,
        memory: dict[str, int] | None = None,
    ):
        self.sae, self.frame, self.memory = sae, frame or Frame(), memory or {}
        factors = {getattr(sae, name): bias_lr for name in sae.offsets}
        self.optimizer = Adam(sae.parameters(), lr=lr, factors=factors)
        self.generator = generator_for(seed, "resampling")
        self.silent_F = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.W_dec.device)
        self.history: list[Record] = []
        self.step, self.watched_from, self.whole = 0, 0, True

    def saw(self, count_F: Tensor) -> None:
        """Count a step, and note which features were active in its batch."""
        self.step += 1
        self.silent_F.add_(1).mul_(count_F == 0)

    def dead(self, steps: int) -> Tensor:
        """`dead_F`: which features have been silent for at least so many steps."""
        return self.silent_F >= steps

    def record(self, seen: Seen) -> Record:
        """Add what the last step was like to the history.

        Raises:
            Refusal: the loss is not finite.
        """
        since = self.step - (int(self.history[-1]["step"]) if self.history else 0)
        record = {
            "step": self.step,
            "loss": seen.loss.total.item(),
            **{name: term.item() for name, term in seen.loss.terms.items()},
            "l0": seen.count_F.sum().item() / int(seen.rows),
            "dead": self.dead(since).float().mean().item(),
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
        return record

    def tensors(self) -> dict[str, Tensor]:
        """What a file has to hold, by name; the numbers are in `numbers`."""
        moments = {
            f"adam.{name}.{key}": value
            for name, parameter in self.sae.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }
        weights = {f"sae.{name}": t.detach() for name, t in self.sae.state_dict().items()}
        silence = {"silent_F": self.silent_F, "generator": self.generator.get_state()}
        frame = {f"frame.{name}": t for name, t in self.frame.tensors().items()}
        return weights | moments | silence | frame

    def numbers(self) -> dict:
        """The rest, as JSON can hold it."""
        names = ("step", "watched_from", "history")
        return {name: getattr(self, name) for name in names} | {"frame": self.frame.numbers()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping) -> None:
        """Become the state that `tensors` and `numbers` were taken from, layout included."""
        for name, t in self.sae.state_dict().items():
            t.copy_(tensors[f"sae.{name}"])
        for name, parameter in self.sae.named_parameters():
            prefix, state = f"adam.{name}.", self.optimizer.state[parameter]
            for key in (k for k in tensors if k.startswith(prefix)):
                value = tensors[key].to(parameter.device, copy=True)
                if value.ndim:  # strides as the parameter's: the fused update relies on it
                    value = torch.empty_like(parameter).copy_(value)
                state[key.removeprefix(prefix)] = value
        self.silent_F.copy_(tensors["silent_F"])
        self.generator.set_state(tensors["generator"])
        stored = {n.removeprefix("frame."): t for n, t in tensors.items() if n.startswith("frame.")}
        self.frame = Frame.of(stored, numbers["frame"]).to(self.sae.W_dec.device)
        for name in ("step", "watched_from"):
            setattr(self, name, numbers[name])
        self.history = list(numbers["history"])

    def result(self) -> Trained:
        """The SAE for raw activations, on the CPU, and how it came about; ends the training."""
        return self._trained(self.sae, self.history)

    def so_far(self) -> Trained:
        """The same in memory of its own, while training goes on."""
        copies = {id(t): _copied(t) for t in (*self.sae.parameters(), *self.sae.buffers())}
        return self._trained(copy.deepcopy(self.sae, copies), list(self.history))

    def _trained(self, sae: SAE, history: list[Record]) -> Trained:
        sae = self.frame.leave_(sae.cpu()).requires_grad_(True)
        sae.metadata["scale"] = self.frame.scale
        basis = "principal" if self.frame.tensors() else "given"
        return Trained(sae, history, self.frame.scale, self.step, self.memory, basis)


def _copied(tensor: Tensor) -> Tensor:
    """On the CPU, in memory of its own, and laid out as it is."""
    copied = tensor.detach().to("cpu", copy=True)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copied, requires_grad=tensor.requires_grad)
    return copied
