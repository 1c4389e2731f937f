"""Train sparse autoencoders: one loop for every kind; its step is `update.step`. Lessons 05, 07.

Shapes: N rows of data, B batch, D activation width, F features.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from saelearn.errors import Refusal, check_flag
from saelearn.sae import SAE, Objective
from saelearn.train import memory, parallel
from saelearn.train.autograd import Plan
from saelearn.train.batches import Feed, Shuffled, Streamed, batches
from saelearn.train.beside import placed
from saelearn.train.checkpoint import Keeper, Stored, same_threads, unpack
from saelearn.train.engines import engine_for
from saelearn.train.resampling import resample
from saelearn.train.rows import Rows
from saelearn.train.settings import Settings, check_metadata
from saelearn.train.state import Record, State, Trained
from saelearn.train.stopping import Stop
from saelearn.train.update import step


def train(
    data: Tensor | Iterable[Tensor],
    d_sae: int,
    *,
    steps: int,
    l1_coefficient: float | None = None,
    kind: Callable[..., SAE] = Settings.kind,
    k: int | None = Settings.k,
    objective: Objective | None = None,
    target: Tensor | None = None,
    batch_size: int = Settings.batch_size,
    lr: float | None = Settings.lr,
    bias_lr: float | None = Settings.bias_lr,
    lr_warmup: float = Settings.lr_warmup,
    lr_decay: float = Settings.lr_decay,
    l1_warmup: float = Settings.l1_warmup,
    decoder_norm: str | None = None,
    center: str = Settings.center,
    basis: str = Settings.basis,
    normalize: bool = Settings.normalize,
    clip_norm: float = Settings.clip_norm,
    resample_at: Sequence[float] = Settings.resample_at,
    frozen: str | None = Settings.frozen,
    seed: int = Settings.seed,
    metadata: Mapping[str, Any] | None = None,
    device: str = Settings.device,
    precision: str = Settings.precision,
    compile: bool = Settings.compile,
    log_every: int = Settings.log_every,
    plan: Plan | None = None,
    progress: bool = True,
    callback: Callable[[Record, Callable[[], Trained]], None] | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int | timedelta = timedelta(minutes=1),
) -> Trained:
    """Train one sparse autoencoder with Adam (betas 0.9 and 0.999).

        train(x_ND, 4_096, l1_coefficient=5.0, steps=10_000)
        train(x_ND, 4_096, kind=BatchTopK, k=32, steps=10_000)
        train(x_ND, 4_096, kind=JumpReLU, objective=JumpL0(target_l0=32), steps=10_000)

    Args:
        data: activations `x_ND`, reshuffled every epoch, or batches `x_BD` without end; for an
            objective that runs the model, documents of token ids `tokens_NT`.
        d_sae: number of features F.
        steps: optimizer steps.
        l1_coefficient: lambda of `sae.l1_loss`, for activations as they are after scaling; short
            for `objective=L1(l1_coefficient, decoder_norm)`.
        kind: the architecture, a class such as `SAE` or `TopK`; `functools.partial` adds arguments.
        k: how many features may be active, for an architecture that takes it; without an
            `objective` the squared error alone is minimised.
        objective: what is minimised.
        target: what is to be reconstructed, if not `data` itself: rows `[N, D']` of another site.
            A stream gives pairs of batches instead.
        batch_size: B, if `data` is one tensor; of all processes together.
        lr: peak learning rate; None takes `usual_lr` of batch size and width, which is right for a
            few million rows: halve it where more than a few features in a hundred die.
        bias_lr: how many times that `b_enc` (and what else is as large as pre-activations) moves
            by. Adam moves every number by about the same, and a bias has as far to go as a whole
            product x.w; None counts it as the weight of an input as long as x: the root of the
            mean squared norm in training.
        lr_warmup, lr_decay: shares of the steps in which it rises from 0, and falls to 0
            (`lr_factor`).
        l1_warmup: share of the steps in which the penalty rises from 0; the shorter, the more
            features die.
        decoder_norm: "weighted", "unit_norm" (rows kept at length 1) or "free" (cheats); weighted
            for L1, where an objective is given its own.
        center: where `b_dec` starts: "mean", "geometric_median" or "zero".
        basis: along which axes Adam goes: "principal", those of the activations, if the classes of
            kind and objective say that this changes nothing else (`any_axes`) and there are two
            rows for each dimension to find them by (of a stream, in its first batch); or "given",
            those that activations come in. What is returned says which it was.
        normalize: multiply activations by one scalar so that their mean squared norm is D;
            the scalar is folded into the weights at the end.
        clip_norm: the gradient's norm is clipped at this; `math.inf` clips nothing.
        resample_at: shares of the steps, between 0 and 1, at which dead features start anew
            (`resample`): those that were silent in the second half of the time since the last such
            step.
        frozen: "decoder" or "encoder": its random directions stay as they are (but for rounding,
            since they are turned and turned back): the control for what training them brings about.
        seed: of the initial weights, of the shuffling, and of a stream of its own for the
            resampling: same seed, same result.
        metadata: what the SAE is to remember, as JSON can hold it: `acts.about` of what
            `activations.collect` gave, or `lm.about(site)`; by default what the data know of it
            themselves (`data.about` of a store or stream). What its activations were multiplied by
            is added, as "scale".
        device: "cpu", "cuda", "mps". On CUDA, data that take at most half of the memory that the
            training leaves are copied there first.
        precision: "fp32"; on CUDA "tf32"; or "bf16" products with fp32 weights.
        compile: let torch.compile fuse the dense way; a minute at the start, pays on a GPU.
        log_every: steps between records of the history.
        plan: how a fast engine goes; by default the fastest way, measured on this machine.
        progress: show a progress bar, which first says how much memory the training takes.
        callback: called with each new record and a function, which gives what was trained so far
            in memory of its own on the CPU: one more set of weights, if it is called.
        checkpoint: a folder. If it holds a checkpoint of this run, the run goes on from there,
            on the CPU to the same bits as without the break; a finished run returns at once.
        checkpoint_every: steps (an int), or the time, between two checkpoints.

    Warns:
        if a few rows, such as "attention sinks", are so long that they alone set the scale.

    Raises:
        Refusal: data or arguments that cannot be trained on; too little memory; a checkpoint of
            a run with other arguments; or the loss became NaN.
        ArtifactError: a checkpoint that is damaged or cannot be written.

    Ctrl-C ends training after the step under way, writes a checkpoint if there is a folder for
    it, and returns what was trained so far. Under `torchrun` all processes train one SAE.
    """
    check_flag(progress, "progress")
    settings = Settings.of(locals())
    metadata = check_metadata(getattr(data, "about", None) if metadata is None else metadata)
    data, target, taken = placed(data, target, settings)
    tokens = settings.objective.reads_tokens
    source = batches(data, batch_size, seed=seed, target=target, tokens=tokens)
    resample_steps, watch_steps = settings.resampling
    quiet = not progress or parallel.rank() > 0
    with contextlib.ExitStack() as stack:
        keeper, stored = _open(checkpoint, checkpoint_every, settings, source, stack)
        rows = Rows(settings, source, turned=not stored)
        room = _room(settings, rows, taken, checkpoint=checkpoint is not None)
        bar = tqdm(total=steps, initial=stored.record["step"] if stored else 0, unit="step",
                   desc=memory.title("SAE", room), mininterval=0.5, disable=quiet)  # fmt: skip
        stack.callback(bar.close)
        state, plan = _begin(source, rows, stored, plan, room)
        del stored  # as large as the state
        stop = stack.enter_context(Stop())
        fastest = engine_for(
            state.sae, settings.objective, device=device, batch_size=rows.batch_size, plan=plan,
            precision=precision, compile=compile,
        )  # fmt: skip
        engine, plan = parallel.Shared(fastest, stop), getattr(fastest, "plan", None) or plan
        feed = stack.enter_context(contextlib.closing(Feed(source, device, parallel.share)))
        keeper.save(state, feed, plan)
        with contextlib.suppress(KeyboardInterrupt):
            while state.step < steps and not engine.stop_now():
                x_BD, now = rows.prepare(next(feed), state)
                state.whole = False
                state.optimizer.lr = rows.lr_at(state.step)
                seen = step(
                    state.sae, x_BD, state.optimizer, settings.objective, now=now,
                    clip_norm=clip_norm, engine=engine,
                )  # fmt: skip
                state.saw(seen.count_F)
                last = state.step == steps
                record = state.record(seen) if state.step % log_every == 0 or last else None
                if state.step in watch_steps:
                    state.watched_from = state.step
                if state.step in resample_steps:
                    start_dead_anew(state, x_BD, now.target_BD)
                state.whole = True
                bar.update()
                if record:
                    bar.set_postfix(l0=f"{record['l0']:.1f}", dead=f"{record['dead']:.0%}")
                if record and callback:
                    callback(record, state.so_far)
                if keeper.due(state.step):
                    keeper.save(state, feed, plan)
        keeper.save(state, feed, plan)
    trained = state.result()
    trained.sae.metadata |= metadata
    return trained


def start_dead_anew(state: State, x_BD: Tensor, target_BD: Tensor | None) -> None:
    """`resample` those that were silent since `watched_from`, alike in all processes."""
    dead_F = state.dead(state.step - state.watched_from)
    x_BD = parallel.gather(x_BD)
    target_BD = None if target_BD is None else parallel.gather(target_BD)
    resample(state.sae, state.optimizer, dead_F, x_BD, target_BD=target_BD,
             generator=state.generator)  # fmt: skip
    parallel.same(state.sae.parameters())


def _open(
    folder: str | os.PathLike | None,
    every: int | timedelta,
    settings: Settings,
    source: Shuffled | Streamed,
    stack: contextlib.ExitStack,
) -> tuple[Keeper, Stored | None]:
    """Who looks after the checkpoints, and the one to go on from, with its number of threads."""
    identity, device = settings.identity(), settings.device
    if folder is not None or parallel.size() > 1:
        identity |= source.fingerprint()
        parallel.agree(identity, "arguments and data", device)
    keeper = Keeper(folder, every, identity, writes=parallel.rank() == 0)
    stack.enter_context(keeper.locked())
    stored = keeper.load()
    parallel.agree(stored and stored.record["step"], "checkpoint", device)
    if stored:
        stack.enter_context(same_threads(stored.record["environment"]["threads"]))
    return keeper, stored


def _room(settings: Settings, rows: Rows, taken: int, *, checkpoint: bool) -> dict[str, int]:
    """The memory that the training takes, if there is room for it, with what its data took."""
    alone = torch.device(settings.device).type == "cuda"  # each process has a GPU of its own
    room = memory.check(
        rows.d_in, settings.d_sae, rows.batch_size, **memory.of_kind(rows.small_sae(), settings),
        processes=parallel.size(), neighbours=1 if alone else parallel.neighbours(),
        checkpoint=checkpoint,
    )  # fmt: skip
    return room | ({"data": taken} if taken else {})


def _begin(
    source: Shuffled | Streamed,
    rows: Rows,
    stored: Stored | None,
    plan: Plan | None,
    room: dict[str, int],
) -> tuple[State, Plan | None]:
    """The state to start with and the engine's plan: new ones, or those of a checkpoint."""
    state = rows.new_state(room)
    parallel.same([*state.sae.parameters(), *state.frame.tensors().values()])
    if not stored:
        return state, plan
    began = stored.record["plan"] and Plan(**stored.record["plan"])
    if plan not in (None, began):
        raise Refusal(f"the plan that the run began with: {began}", str(plan))
    state.restore(stored.tensors, stored.record)
    source.load_state_dict(unpack(stored.record["data"], stored.tensors))
    return state, began
