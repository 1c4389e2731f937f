"""Train sparse autoencoders: one visible loop for one, a sweep for many. Lessons 05, 07.

Shapes: N rows of data, B batch, D activation width, F features.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from saelearn.errors import Refusal, check_range
from saelearn.sae import SAE
from saelearn.train import memory, parallel
from saelearn.train.batches import Feed, Shuffled, Streamed, batches, mean_norm_scale
from saelearn.train.checkpoint import Keeper, Stored, same_threads, unpack
from saelearn.train.fast.kernels import Kernel, Plan
from saelearn.train.fast.tuning import measured_plan
from saelearn.train.resampling import resample, resampling_steps
from saelearn.train.settings import PRECISIONS, check_arguments, check_device
from saelearn.train.stacked import sweep
from saelearn.train.state import Record, State, Trained
from saelearn.train.stopping import Stop
from saelearn.train.update import l1_factor, lr_factor, step

__all__ = ["PRECISIONS", "Record", "Trained", "lr_factor", "resample", "step", "sweep", "train"]

NO_SETTINGS = {"data", "plan", "progress", "callback", "checkpoint", "checkpoint_every"}
"""Arguments that do not decide what comes out (the data's fingerprint stands for the data)."""


def train(
    data: Tensor | Iterable[Tensor],
    d_sae: int,
    *,
    l1_coefficient: float,
    steps: int,
    batch_size: int = 1_024,
    lr: float = 1e-3,
    lr_warmup: float = 0.02,
    lr_decay: float = 0.2,
    l1_warmup: float = 0.05,
    decoder_norm: str = "weighted",
    center: str = "mean",
    normalize: bool = True,
    clip_norm: float = 1.0,
    resample_at: Sequence[float] = (),
    seed: int = 0,
    device: str = "cpu",
    precision: str = "fp32",
    plan: Plan | None = None,
    compile: bool = False,
    log_every: int = 50,
    progress: bool = True,
    callback: Callable[[Record, SAE], None] | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int | timedelta = timedelta(minutes=1),
) -> Trained:
    """Train one L1 sparse autoencoder with Adam (betas 0.9 and 0.999).

    Args:
        data: activations `x_ND`, reshuffled every epoch, or batches `x_BD` without end.
        d_sae: number of features F.
        l1_coefficient: lambda of `sae.l1_loss`, for activations as they are after scaling.
        steps: optimizer steps.
        batch_size: B, if `data` is one tensor; of all processes together.
        lr: peak learning rate.
        lr_warmup, lr_decay: shares of the steps in which it rises from 0, and falls to 0.
        l1_warmup: share of the steps in which lambda rises from 0; without it many features die.
        decoder_norm: "weighted", "unit_norm" (rows kept at length 1) or "free" (cheats).
        center: where `b_dec` starts: "mean", "geometric_median" or "zero".
        normalize: multiply activations by one scalar so that their mean squared norm is D;
            the scalar is folded into the weights at the end.
        clip_norm: the gradient's norm is clipped at this.
        resample_at: shares of the steps at which dead features start anew (`resample`): those
            that were silent in the second half of the time since the last such step.
        seed: of the initial weights, of the shuffling, and of a stream of its own for the
            resampling: same seed, same result.
        device: "cpu", "cuda", "mps".
        precision: "fp32", or "bf16" products with fp32 weights.
        plan: how the step is computed; by default the fastest, measured on this machine.
        compile: let torch.compile fuse the dense way; a minute at the start, pays on a GPU.
        log_every: steps between records of the history.
        progress: show a progress bar, which first says how much memory the training takes.
        callback: called with each new record and the SAE in training.
        checkpoint: a folder. If it holds a checkpoint of this run, the run goes on from there,
            on the CPU to the same bits as without the break; a finished run returns at once.
        checkpoint_every: steps (an int), or the time, between two checkpoints.

    Raises:
        Refusal: data or arguments that cannot be trained on; too little memory; a checkpoint of
            a run with other arguments; or the loss became NaN.
        ArtifactError: a checkpoint that is damaged or cannot be written.

    Ctrl-C ends training after the step under way, writes a checkpoint if there is a folder for
    it, and returns what was trained so far. Under `torchrun` all processes train one SAE.
    """
    given = dict(locals())
    check_arguments(l1_coefficient, steps, lr, decoder_norm, precision, log_every)
    check_device(device)
    source = batches(data, batch_size, seed=seed)
    resample_steps, watch_steps = resampling_steps(resample_at, steps)
    quiet = not progress or parallel.rank() > 0
    with contextlib.ExitStack() as stack:
        keeper, stored = _open_checkpoint(given, source, stack)
        room = _room(given, source)
        bar = tqdm(total=steps, initial=stored.record["step"] if stored else 0, unit="step",
                   desc=memory.title("SAE", room), mininterval=0.5, disable=quiet)  # fmt: skip
        stack.callback(bar.close)
        state, plan = _begin(given, source, stored, room)
        del stored  # as large as the state
        stop = stack.enter_context(Stop())
        kernel = parallel.Shared(Kernel(plan, precision=precision, compile=compile), stop)
        feed = Feed(source, device, parallel.share)
        keeper.save(state, feed, plan)
        with contextlib.suppress(KeyboardInterrupt):
            while state.step < steps and not kernel.stop_now():
                x_BD = next(feed) if state.scale == 1 else next(feed) * state.scale
                i, state.whole = state.step, False
                state.optimizer.lr = lr * lr_factor(i, steps, warmup=lr_warmup, decay=lr_decay)
                strength = l1_coefficient * l1_factor(i, steps, warmup=l1_warmup)
                loss, count_F = step(
                    state.sae, x_BD, state.optimizer, l1_coefficient=strength,
                    decoder_norm=decoder_norm, clip_norm=clip_norm, kernel=kernel,
                )  # fmt: skip
                state.saw(count_F)
                last = state.step == steps
                record = None
                if state.step % log_every == 0 or last:
                    record = state.record(loss, count_F, feed.rows)
                if state.step in watch_steps:
                    state.alive_F.zero_()
                if state.step in resample_steps:
                    all_BD = parallel.whole(x_BD, feed.rows)
                    resample(state.sae, state.optimizer, ~state.alive_F, all_BD,
                             generator=state.generator)  # fmt: skip
                    parallel.same(state.sae.parameters())
                state.whole = True
                bar.update()
                if record:
                    bar.set_postfix(l0=f"{record['l0']:.1f}", dead=f"{record['dead']:.0%}")
                if record and callback:
                    callback(record, state.sae)
                if keeper.due(state.step):
                    keeper.save(state, feed, plan)
        keeper.save(state, feed, plan)
    return state.result()


def _open_checkpoint(
    given: dict[str, Any], source: Shuffled | Streamed, stack: contextlib.ExitStack
) -> tuple[Keeper, Stored | None]:
    """Who looks after the checkpoints, and the one to go on from, with its number of threads."""
    folder, device = given["checkpoint"], given["device"]
    settings = {name: value for name, value in given.items() if name not in NO_SETTINGS}
    settings |= {"device": torch.device(device).type, "resample_at": list(given["resample_at"])}
    if folder is not None or parallel.size() > 1:
        settings |= source.fingerprint()
        parallel.agree(settings, "arguments and data", device)
    keeper = Keeper(folder, given["checkpoint_every"], settings, writes=parallel.rank() == 0)
    stack.enter_context(keeper.locked())
    stored = keeper.load()
    parallel.agree(stored and stored.record["step"], "checkpoint", device)
    if stored:
        stack.enter_context(same_threads(stored.record["environment"]["threads"]))
    return keeper, stored


def _room(given: dict[str, Any], source: Shuffled | Streamed) -> dict[str, int]:
    """The memory that the training takes, if there is room for it."""
    device, d_sae = given["device"], given["d_sae"]
    check_range(d_sae, "d_sae", 1)
    alone = torch.device(device).type == "cuda"  # each process has a GPU of its own
    return memory.check(
        source.sample_ND.shape[1], d_sae, source.size, device=device,
        precision=given["precision"], processes=parallel.size(),
        neighbours=1 if alone else parallel.neighbours(),
        checkpoint=given["checkpoint"] is not None,
    )  # fmt: skip


def _begin(
    given: dict[str, Any],
    source: Shuffled | Streamed,
    stored: Stored | None,
    room: dict[str, int],
) -> tuple[State, Plan]:
    """The state to start with and the kernel's plan: new ones, or those of a checkpoint."""
    sample_ND, device, d_sae = source.sample_ND.float(), given["device"], given["d_sae"]
    scale = mean_norm_scale(sample_ND) if given["normalize"] else 1.0
    init_norm = 1.0 if given["decoder_norm"] == "unit_norm" else 0.1
    sae = SAE.from_data(
        sample_ND * scale, d_sae, center=given["center"], decoder_init_norm=init_norm,
        seed=given["seed"],
    ).to(device)  # fmt: skip
    parallel.same(sae.parameters())
    state = State(sae, lr=given["lr"], seed=given["seed"], scale=scale, memory=room)
    if not stored:
        plan = given["plan"] or measured_plan(sae.d_in, d_sae, source.size, device=device)
        return state, plan
    plan = Plan(**stored.record["plan"])
    if given["plan"] not in (None, plan):
        raise Refusal(f"the plan that the run began with: {plan}", str(given["plan"]))
    state.restore(stored.tensors, stored.record)
    source.load_state_dict(unpack(stored.record["data"], stored.tensors))
    return state, plan
