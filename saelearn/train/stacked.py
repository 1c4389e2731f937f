"""Many SAEs at once: K coefficients (or seeds) share the data and the step. Lesson 05.

Side by side they are one wide SAE (`kernels`), so K small trainings cost little more than one.
Shapes: K SAEs, B batch, D activation width, F features.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from saelearn.errors import Refusal
from saelearn.sae import SAE, Loss
from saelearn.train import memory
from saelearn.train.batches import Feed, batches, mean_norm_scale
from saelearn.train.fast.kernels import Kernel, Stack
from saelearn.train.fast.tuning import measured_plan
from saelearn.train.resampling import resample, resampling_steps
from saelearn.train.settings import check_arguments, check_device
from saelearn.train.state import State, Trained
from saelearn.train.stopping import Stop
from saelearn.train.update import Adam, constrain_, l1_factor, lr_factor, unit_rows_

Callback = Callable[[float, int, Trained], None]


def sweep(
    data: Tensor | Callable[[], Iterable[Tensor]],
    d_sae: int,
    l1_coefficients: Sequence[float],
    *,
    steps: int,
    seeds: Sequence[int] = (0,),
    batch_size: int = 1_024,
    progress: bool = True,
    callback: Callback | None = None,
    **arguments,
) -> list[Trained]:
    """Train one SAE for each coefficient and seed; each equals `train` called by itself.

    All that see the same batches are trained at once: those of one seed, which shuffles the data,
    or all, if a stream gives the batches.

    Args:
        data: activations `x_ND`, or a function that starts the stream of batches anew.
        d_sae: number of features F of each.
        l1_coefficients: the values of lambda.
        steps: optimizer steps.
        seeds: trained for each of them.
        batch_size: B, if `data` is one tensor.
        progress: one bar over the whole sweep.
        callback: called with (coefficient, seed, what was trained so far) for each SAE whenever
            there is a record, every `log_every` steps.
        arguments: as for `train`; without checkpoints.

    Returns:
        the results, coefficients outermost. Ctrl-C ends the sweep: what was under way has done
        fewer steps, what had not begun is missing.

    Raises:
        Refusal: as for `train`.
    """
    pairs = list(itertools.product(l1_coefficients, seeds))
    if not pairs:
        raise Refusal("at least one coefficient and one seed", "none")
    together = [pairs] if callable(data) else [[p for p in pairs if p[1] == s] for s in seeds]
    done: dict[tuple[float, int], Trained] = {}
    with Stop() as stop, tqdm(
        total=steps * len(together), desc=f"{len(pairs)} SAEs", unit="step", mininterval=0.5,
        disable=not progress,
    ) as bar:  # fmt: skip
        for group in together:
            source = data() if callable(data) else data
            states = _train(
                source, d_sae, group, steps=steps, batch_size=batch_size, stop=stop, bar=bar,
                callback=callback, **arguments,
            )  # fmt: skip
            done |= {pair: _so_far(state) for pair, state in zip(group, states, strict=True)}
            if states[0].step < steps:
                break
    return [done[pair] for pair in pairs if pair in done]


def _train(
    data: Tensor | Iterable[Tensor],
    d_sae: int,
    pairs: Sequence[tuple[float, int]],
    *,
    steps: int,
    batch_size: int,
    stop: Stop,
    bar: tqdm,
    callback: Callback | None,
    lr: float = 1e-3,
    lr_warmup: float = 0.02,
    lr_decay: float = 0.2,
    l1_warmup: float = 0.05,
    decoder_norm: str = "weighted",
    center: str = "mean",
    normalize: bool = True,
    clip_norm: float = 1.0,
    resample_at: Sequence[float] = (),
    device: str = "cpu",
    precision: str = "fp32",
    log_every: int = 50,
) -> list[State]:
    """`train.train` for all pairs of coefficient and seed on the same batches."""
    for coefficient, _ in pairs:
        check_arguments(coefficient, steps, lr, decoder_norm, precision, log_every)
    check_device(device)
    source = batches(data, batch_size, seed=pairs[0][1])
    feed, sample_ND = Feed(source, device), source.sample_ND.float()
    d_in = sample_ND.shape[1]
    room = memory.check(d_in, len(pairs) * d_sae, source.size, device=device, precision=precision)
    bar.set_description(memory.title(f"{len(pairs)} SAEs at once", room))
    scale = mean_norm_scale(sample_ND) if normalize else 1.0
    length = 1.0 if decoder_norm == "unit_norm" else 0.1
    start = {"center": center, "decoder_init_norm": length}
    states = [
        State(
            SAE.from_data(sample_ND * scale, d_sae, seed=seed, **start).to(device),
            lr=lr, seed=seed, scale=scale, memory=room,
        )
        for _, seed in pairs
    ]  # fmt: skip
    plan = measured_plan(d_in, d_sae, source.size, device=device)  # as each by itself
    several = _Several(states, Kernel(plan, precision=precision), decoder_norm, clip_norm)
    resample_steps, watch_steps = resampling_steps(resample_at, steps)
    with contextlib.suppress(KeyboardInterrupt):
        for i in range(steps):
            if stop.requested:
                break
            x_BD = next(feed) if scale == 1 else next(feed) * scale
            rise = l1_factor(i, steps, warmup=l1_warmup)
            loss, count_KF = several.step(
                x_BD,
                lr=lr * lr_factor(i, steps, warmup=lr_warmup, decay=lr_decay),
                l1_coefficients=[coefficient * rise for coefficient, _ in pairs],
            )
            if i + 1 in watch_steps:
                several.alive_KF.zero_()
            for k, (state, pair) in enumerate(zip(states, pairs, strict=True)):
                if state.step % log_every == 0 or state.step == steps:
                    state.record(Loss(*(term[k] for term in loss)), count_KF[k], feed.rows)
                    if callback:
                        callback(*pair, _so_far(state))
                if state.step in resample_steps:
                    several.resample(k, x_BD)
            bar.update()
    return states


class _Several:
    """SAEs in training side by side: their parameters in four tensors, a state for each."""

    def __init__(
        self, states: Sequence[State], kernel: Kernel, decoder_norm: str, clip_norm: float
    ):
        self.states, self.kernel = states, kernel
        self.constraints = {"decoder_norm": decoder_norm, "clip_norm": clip_norm}
        stacks = [Stack.of(state.sae) for state in states]
        self.stack = Stack(*(nn.Parameter(torch.cat(each)) for each in zip(*stacks, strict=True)))
        self.adam = Adam(self.stack, lr=0.0)
        self.fired_KF = torch.stack([state.fired_F for state in states])
        self.alive_KF = self.fired_KF.clone()
        for k, state in enumerate(states):  # what they hold are views from now on
            sae, (W_enc_FD, b_enc_F, W_dec_FD, b_dec_D) = state.sae, (p.data[k] for p in self.stack)
            sae.W_enc.data, sae.b_enc.data = W_enc_FD.T, b_enc_F
            sae.W_dec.data, sae.b_dec.data = W_dec_FD, b_dec_D
            state.fired_F, state.alive_F = self.fired_KF[k], self.alive_KF[k]

    def step(
        self, x_BD: Tensor, *, lr: float, l1_coefficients: Sequence[float]
    ) -> tuple[Loss, Tensor]:
        """`step.step` for all: losses `[K]` and `count_KF`."""
        decoder_norm = self.constraints["decoder_norm"]
        loss, count_KF, gradient = self.kernel.stacked(
            self.stack, x_BD, l1_K=torch.tensor(l1_coefficients, device=x_BD.device),
            decoder_norm=decoder_norm, centred=True,
        )  # fmt: skip
        constrain_(self.stack, gradient, **self.constraints)
        for parameter, slope in zip(self.stack, gradient, strict=True):
            parameter.grad = slope
        self.adam.lr = lr
        self.adam.step()
        if decoder_norm == "unit_norm":
            unit_rows_(self.stack)
        self.fired_KF |= count_KF > 0
        self.alive_KF |= count_KF > 0
        for state in self.states:
            state.step += 1
            state.optimizer.lr = lr  # for the record
        return loss, count_KF

    def resample(self, k: int, x_BD: Tensor) -> None:
        """`resampling.resample` for one; its own optimizer holds views of the shared moments."""
        state = self.states[k]
        sae, moments = state.sae, state.optimizer.state
        own = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
        for parameter, shared in zip(own, self.stack, strict=True):
            for name in ("exp_avg", "exp_avg_sq"):
                view = self.adam.state[shared][name][k]
                moments[parameter][name] = view.T if parameter is sae.W_enc else view
        resample(sae, state.optimizer, ~state.alive_F, x_BD, generator=state.generator)


def _so_far(state: State) -> Trained:
    """What one SAE's training has given, in memory of its own, for raw activations."""
    sae = SAE(state.sae.d_in, state.sae.d_sae)
    sae.load_state_dict(state.sae.state_dict())
    sae.fold_scale_(state.scale)
    return Trained(sae, list(state.history), state.scale, state.step, state.memory)
