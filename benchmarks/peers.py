"""One training step of each tool, from the same weights, on the same data.

A peer's step is what its own trainer does in a step: forward, loss, backward, clipping where it
clips, optimizer, its running statistics. Logging, where it can be switched off, is off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

Step = Callable[[], object]


@dataclass(frozen=True)
class Problem:
    """Weights with a given share of active features, batches, and a learning rate so small that
    the share stays."""

    x_NBD: Tensor
    W_enc_DF: Tensor
    b_enc_F: Tensor
    W_dec_FD: Tensor
    b_dec_D: Tensor
    l0: float  # share of features that are active
    l1: float = 1.0
    lr: float = 1e-7

    @classmethod
    def make(cls, B: int, D: int, F: int, l0: float, *, n: int = 4, seed: int = 0) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        W_dec_FD = torch.randn(F, D, generator=generator)
        W_dec_FD /= W_dec_FD.norm(dim=1, keepdim=True)
        x_NBD = torch.randn(n, B, D, generator=generator)
        # x.w is a standard normal variable, so its quantile gives the share
        b_enc_F = torch.special.ndtri(torch.full((F,), l0, dtype=torch.float64)).float()
        return cls(x_NBD, W_dec_FD.T.contiguous(), b_enc_F, W_dec_FD, torch.zeros(D), l0)

    @property
    def k(self) -> int:
        """That share as a number of features."""
        return max(1, round(self.l0 * len(self.b_enc_F)))

    def weights(self) -> dict[str, Tensor]:
        """By the names that we share with SAELens."""
        return {"W_enc": self.W_enc_DF, "b_enc": self.b_enc_F,
                "W_dec": self.W_dec_FD, "b_dec": self.b_dec_D}  # fmt: skip

    def unbiased(self) -> Problem:
        """Without `b_enc`: then each row has k features above 0, whatever k."""
        return replace(self, b_enc_F=torch.zeros_like(self.b_enc_F))

    def batches(self) -> Callable[[], Tensor]:
        """A function that gives one batch after the other, round and round."""
        state = {"i": -1}

        def following() -> Tensor:
            state["i"] = (state["i"] + 1) % len(self.x_NBD)
            return self.x_NBD[state["i"]]

        return following


def saelearn(problem: Problem) -> Step:
    """Ours: what `train.train` does in a step, the plan measured beforehand."""
    from saelearn.sae import L1, SAE

    return _ours(SAE(*problem.W_enc_DF.shape), L1(problem.l1), problem)


def saelearn_topk(problem: Problem) -> Step:
    """The same for TopK with k = L0 and the squared error alone."""
    from saelearn.sae import Squared, TopK

    return _ours(TopK(*problem.W_enc_DF.shape, k=problem.k), Squared(), problem)


def _ours(sae, objective, problem: Problem) -> Step:
    from saelearn.train import Adam, engine_for, step
    from saelearn.train.fast import measured_plan

    sae.load_state_dict(problem.weights())
    optimizer, following = Adam(sae.parameters(), lr=problem.lr), problem.batches()
    plan = measured_plan(sae.d_in, sae.d_sae, problem.x_NBD.shape[1])
    engine = engine_for(sae, objective, plan=plan)
    return lambda: step(sae, following(), optimizer, objective, engine=engine)


def textbook(problem: Problem) -> Step:
    """Two linear layers, the loss as it is written, autograd, Adam."""

    def loss(x_BD: Tensor, encoder: nn.Linear, decoder: nn.Linear) -> Tensor:
        f_BF = torch.relu(encoder(x_BD))
        error = (x_BD - decoder(f_BF)).square().sum(1).mean()
        return error + problem.l1 * f_BF.sum(1).mean()

    return _two_layers(problem, loss)


def textbook_topk(problem: Problem) -> Step:
    """The same for TopK."""

    def loss(x_BD: Tensor, encoder: nn.Linear, decoder: nn.Linear) -> Tensor:
        pre_BF = encoder(x_BD)
        top = pre_BF.topk(problem.k, dim=1)
        f_BF = torch.zeros_like(pre_BF).scatter(1, top.indices, top.values.relu())
        return (x_BD - decoder(f_BF)).square().sum(1).mean()

    return _two_layers(problem, loss)


def _two_layers(problem: Problem, loss_of: Callable[..., Tensor]) -> Step:
    D, F = problem.W_enc_DF.shape
    encoder, decoder = nn.Linear(D, F), nn.Linear(F, D)
    with torch.no_grad():
        encoder.weight.copy_(problem.W_enc_DF.T)
        encoder.bias.copy_(problem.b_enc_F)
        decoder.weight.copy_(problem.W_dec_FD.T)
        decoder.bias.copy_(problem.b_dec_D)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=problem.lr)
    following = problem.batches()

    def step() -> None:
        loss = loss_of(following(), encoder, decoder)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def sae_lens(problem: Problem, *, autocast: bool = False) -> Step:
    """SAELens' trainer, its standard SAE, fp32 or bf16 autocast."""
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig

    D, F = problem.W_enc_DF.shape
    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=D, d_sae=F, l1_coefficient=problem.l1))
    return _theirs(sae, problem, autocast=autocast)


def sae_lens_bf16(problem: Problem) -> Step:
    return sae_lens(problem, autocast=True)


def sae_lens_topk(problem: Problem) -> Step:
    """SAELens' trainer, its TopK SAE; its sparse activations, off by default, fail on a CPU."""
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    D, F = problem.W_enc_DF.shape
    return _theirs(TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D, d_sae=F, k=problem.k)), problem)


def _theirs(sae, problem: Problem, *, autocast: bool = False) -> Step:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae.load_state_dict(problem.weights())
    config = SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=problem.x_NBD.shape[1],
        lr=problem.lr, lr_end=problem.lr, autocast=autocast, device="cpu",
    )  # fmt: skip
    following = problem.batches()
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter([]))

    def step() -> None:
        trainer.step(following())
        trainer.n_training_steps += 1

    return step


def dictionary_learning(problem: Problem) -> Step:
    """dictionary_learning's standard trainer, decoder norms constrained."""
    from dictionary_learning.trainers.standard import StandardTrainer

    D, F = problem.W_enc_DF.shape
    trainer = StandardTrainer(
        steps=10**9, activation_dim=D, dict_size=F, layer=0, lm_name="none", lr=problem.lr,
        l1_penalty=problem.l1, warmup_steps=1, sparsity_warmup_steps=None, device="cpu",
    )  # fmt: skip
    with torch.no_grad():
        trainer.ae.encoder.weight.copy_(problem.W_enc_DF.T)
        trainer.ae.encoder.bias.copy_(problem.b_enc_F)
        trainer.ae.decoder.weight.copy_(problem.W_dec_FD.T)
        trainer.ae.bias.copy_(problem.b_dec_D)
    following, state = problem.batches(), {"i": 0}

    def step() -> None:
        state["i"] += 1
        trainer.update(state["i"], following())

    return step


def overcomplete(problem: Problem) -> Step:
    """overcomplete's SAE with its own encoder, penalty and training loop's operations."""
    from overcomplete.sae import SAE
    from overcomplete.sae.losses import mse_l1
    from overcomplete.sae.modules import TieableEncoder
    from overcomplete.sae.trackers import DeadCodeTracker

    D, F = problem.W_enc_DF.shape
    sae = SAE(D, F, encoder_module=TieableEncoder(D, F, bias=True)).train()
    with torch.no_grad():
        sae.encoder.weight.copy_(problem.W_enc_DF.T)
        sae.encoder.bias.copy_(problem.b_enc_F)
        sae.dictionary._weights.copy_(problem.W_dec_FD)
    optimizer = torch.optim.Adam(sae.parameters(), lr=problem.lr)
    tracker, following = DeadCodeTracker(F, "cpu"), problem.batches()

    def step() -> None:
        x_BD = following()
        optimizer.zero_grad()
        before, f_BF, x_hat = sae(x_BD)
        loss = mse_l1(x_BD, x_hat, before, f_BF, sae.get_dictionary(), penalty=problem.l1)
        tracker.update(f_BF)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()

    return step


def sparsify(problem: Problem) -> Step:
    """EleutherAI's TopK coder with k = L0, the fastest of the peers."""
    from sparsify import SparseCoder, SparseCoderConfig

    D, F = problem.W_enc_DF.shape
    sae = SparseCoder(D, SparseCoderConfig(num_latents=F, k=problem.k), dtype=torch.float32)
    with torch.no_grad():
        sae.encoder.weight.copy_(problem.W_enc_DF.T)
        sae.encoder.bias.copy_(problem.b_enc_F)
        sae.W_dec.copy_(problem.W_dec_FD)
    optimizer = torch.optim.Adam(sae.parameters(), lr=problem.lr)
    following = problem.batches()

    def step() -> None:
        sae.set_decoder_norm_to_unit_norm()
        sae(following()).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return step


PACKAGES = {
    sae_lens: "sae-lens", sae_lens_bf16: "sae-lens", dictionary_learning: "dictionary-learning",
    overcomplete: "overcomplete", sparsify: "eai-sparsify",
}  # fmt: skip
TOPK = {sae_lens_topk: "sae-lens", sparsify: "eai-sparsify"}
L1_FP32 = ("sae_lens", "dictionary_learning", "overcomplete")
