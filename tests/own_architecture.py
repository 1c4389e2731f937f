"""An architecture and an objective of one's own; CONTRIBUTING.md shows this file."""

from dataclasses import dataclass

import torch

from saelearn.sae import AT_FULL, SAE, Loss, Objective, output_of, squared_error


class Loud(SAE):
    """Features that are not much weaker than the strongest of late.

        f = f' where f' > share * level, else 0;  f' = ReLU(pre)

    `level` is a running mean of each batch's largest feature.
    """

    architecture = "loud"  # `load` finds the class by this name

    def __init__(self, d_in, d_sae, *, share=0.05, **arguments):
        super().__init__(d_in, d_sae, **arguments)
        self.share = share
        self.register_buffer("level", torch.zeros(()))  # state: checkpoints hold it

    def activate(self, pre_BF):
        f_BF = torch.relu(pre_BF)
        return f_BF * (f_BF > self.share * self.level)

    def observe(self, f):  # of a batch; each process observes its share
        return f.max()

    def after_step_(self, observed_P):
        self.level.lerp_(observed_P.max().to(self.level), 0.02)

    def settings(self):  # into cfg.json
        return {"share": self.share}

    @classmethod
    def arguments(cls, config):  # and back
        return {"share": config["share"]}


@dataclass(frozen=True)
class LogSparsity(Objective):
    """mean_B sum_D (x - x_hat)^2 + coefficient * mean_B sum_F log(1 + f |w|)"""

    coefficient: float

    def __call__(self, sae, x_BD, now=AT_FULL):
        output = output_of(sae, x_BD, now)
        error = squared_error(x_BD, output.x_hat, now)
        price = torch.log1p(output.f * sae.W_dec.norm(dim=1)).sum(-1).mean()
        total = error + self.coefficient * now.warmup * price
        return Loss(total, {"reconstruction": error, "sparsity": price}), output
