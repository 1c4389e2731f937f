"""Many SAEs at once: K coefficients, objectives, k or seeds share the data. Lesson 05.

Those that the L1 kernel trains lie side by side as one wide SAE (`fast.kernels`), so K small
trainings cost little more than one; others take turns on each batch.
Shapes: K SAEs, B batch, D activation width, F features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from saelearn.errors import Refusal, check_flag
from saelearn.sae import SAE, Loss, Objective
from saelearn.train import memory
from saelearn.train.autograd import Seen
from saelearn.train.batches import Feed, batches
from saelearn.train.beside import Placed, placed
from saelearn.train.engines import engine_for, kernel_for
from saelearn.train.fast.kernels import Case, SparseL1, Stack
from saelearn.train.fast.updates import move
from saelearn.train.resampling import resample
from saelearn.train.rows import Rows
from saelearn.train.settings import Settings
from saelearn.train.state import State, Trained
from saelearn.train.stopping import Stop
from saelearn.train.update import Adam, clip_, keep_length_, step, unit_rows_

Callback = Callable[[Any, int, Trained], None]


class Run(NamedTuple):
    """One of a sweep's trainings: what is varied, the seed, and all settings."""

    value: Any
    seed: int
    settings: Settings


def sweep(
    data: Tensor | Callable[[], Iterable[Tensor]],
    d_sae: int,
    l1_coefficients: Sequence[float] = (),
    *,
    steps: int,
    objectives: Sequence[Objective] = (),
    ks: Sequence[int] = (),
    seeds: Sequence[int] = (0,),
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
    device: str = Settings.device,
    precision: str = Settings.precision,
    log_every: int = Settings.log_every,
    progress: bool = True,
    callback: Callback | None = None,
) -> list[Trained]:
    """Train one SAE for each value and seed; each equals `train` called by itself.

    All that see the same batches are trained at once: those of one seed, which shuffles the data,
    or all, if a stream gives the batches.

    Args:
        data: activations `x_ND`, or a function that starts the stream of batches anew.
        d_sae: number of features F of each.
        l1_coefficients, objectives, ks: the values that are varied, of one of the three.
        steps: optimizer steps.
        seeds: trained for each of them.
        kind, k, objective, target, batch_size, lr, bias_lr, lr_warmup, lr_decay, l1_warmup,
            decoder_norm, center, basis, normalize, clip_norm, resample_at, frozen, device,
            precision, log_every: the same for all, and as in `train`. There are no checkpoints.
        progress: one bar over the whole sweep.
        callback: called with (value, seed, what was trained so far) for each SAE whenever there is
            a record, every `log_every` steps.

    Returns:
        the results, values outermost. Ctrl-C ends the sweep: what was under way has done fewer
        steps, what had not begun is missing.

    Raises:
        Refusal: as for `train`.
    """
    given = locals() | {"compile": False}
    check_flag(progress, "progress")
    varied = {"l1_coefficient": l1_coefficients, "objective": objectives, "k": ks}
    chosen = [(name, values) for name, values in varied.items() if len(values)]
    if len(chosen) != 1 or not len(seeds):
        got = ", ".join(f"{len(values)} of {name}" for name, values in varied.items())
        raise Refusal(
            "at least one coefficient, or objective, or k, of one of the three; and one seed",
            f"{got}; {len(seeds)} seeds",
        )
    ((name, values),) = chosen
    runs = [
        Run(value, seed, Settings.of(given | {name: value, "seed": seed}))
        for value in values
        for seed in seeds
    ]
    together = [runs] if callable(data) else [[r for r in runs if r.seed == s] for s in seeds]
    done: dict[int, Trained] = {}
    with Stop() as stop, tqdm(
        total=steps * len(together), desc=f"{len(runs)} SAEs", unit="step", mininterval=0.5,
        disable=not progress,
    ) as bar:  # fmt: skip
        source = data() if callable(data) else data
        there = placed(source, target, runs[0].settings, saes=len(together[0]))
        for group in together:
            states = _train(there, group, stop=stop, bar=bar, callback=callback)
            done |= {id(run): state.so_far() for run, state in zip(group, states, strict=True)}
            if states[0].step < steps:
                break
            del states  # as large as those that follow
    return [done[id(run)] for run in runs if id(run) in done]


def _train(
    there: Placed, runs: Sequence[Run], *, stop: Stop, bar: tqdm, callback: Callback | None
) -> list[State]:
    """`train.train` for all runs on the same batches."""
    first = runs[0].settings
    tokens = first.objective.reads_tokens
    how = {"seed": first.seed, "target": there.target, "tokens": tokens}
    source = batches(there.data, first.batch_size, **how)
    feed, common = Feed(source, first.device), Rows(first, source)
    rows = [common.with_(run.settings) for run in runs]
    kind = memory.of_kind(common.small_sae(), first)
    room = memory.check(common.d_in, len(runs) * first.d_sae, common.batch_size, **kind)
    room |= {"data": there.taken} if there.taken else {}
    bar.set_description(memory.title(f"{len(runs)} SAEs at once", room))
    states = [each.new_state(room) for each in rows]
    several = (_SideBySide if _alike(states, runs) else _InTurn)(states, rows)
    resample_steps, watch_steps = first.resampling
    with contextlib.closing(feed), contextlib.suppress(KeyboardInterrupt):
        for i in range(1, first.steps + 1):
            if stop.requested:
                break
            x_KBD, seen_K = several.step(next(feed))
            for run, state, (x_BD, target_BD), seen in zip(
                runs, states, x_KBD, seen_K, strict=True
            ):
                if i in watch_steps:
                    state.watched_from = i
                if i % first.log_every == 0 or i == first.steps:
                    state.record(seen)
                    if callback:
                        callback(run.value, run.seed, state.so_far())
                if i in resample_steps:
                    several.lend_moments(state)
                    dead_F = state.dead(i - state.watched_from)
                    resample(state.sae, state.optimizer, dead_F, x_BD, target_BD=target_BD,
                             generator=state.generator)  # fmt: skip
            bar.update()
    return states


def _alike(states: Sequence[State], runs: Sequence[Run]) -> bool:
    """Whether all can lie side by side in the L1 kernel."""
    kind = torch.device(runs[0].settings.device).type
    how = {"device": kind, "precision": runs[0].settings.precision}
    return (
        all(
            SparseL1.fits(state.sae, run.settings.objective, **how)
            for state, run in zip(states, runs, strict=True)
        )
        and len({run.settings.objective.decoder_norm for run in runs}) == 1
        and runs[0].settings.frozen is None
    )


class _InTurn:
    """SAEs that take turns on each batch."""

    def __init__(self, states: Sequence[State], rows: Sequence[Rows]):
        self._states, self._rows, settings = states, rows, rows[0].settings
        how = {"device": settings.device, "precision": settings.precision}
        how["batch_size"] = rows[0].batch_size
        chosen = (engine_for(s.sae, r.settings.objective, **how)
                  for s, r in zip(states, rows, strict=True))  # fmt: skip
        shared: dict[type, Any] = {}  # one of each class: it keeps memory, and nothing else
        self._engines = [shared.setdefault(type(engine), engine) for engine in chosen]

    def step(self, batch_BX: Tensor) -> tuple[list[tuple[Tensor, Tensor | None]], list[Seen]]:
        """For each the rows and target of its step, and what was seen in it."""
        inputs, found = [], []
        for state, rows, engine in zip(self._states, self._rows, self._engines, strict=True):
            x_BD, now = rows.prepare(batch_BX, state)
            settings = rows.settings
            state.optimizer.lr = rows.lr_at(state.step)
            seen = step(
                state.sae, x_BD, state.optimizer, settings.objective, now=now,
                clip_norm=settings.clip_norm, engine=engine,
            )  # fmt: skip
            state.saw(seen.count_F)
            inputs.append((x_BD, now.target_BD))
            found.append(seen)
        return inputs, found

    def lend_moments(self, state: State) -> None:
        """Nothing to do: each has its own."""


class _SideBySide:
    """SAEs of one shape as one: their parameters in four tensors, a state for each."""

    def __init__(self, states: Sequence[State], rows: Sequence[Rows]):
        self._states, self._rows, self._settings = states, rows[0], rows[0].settings
        settings, sae = self._settings, states[0].sae
        self._kernel = kernel_for(
            sae.d_in, sae.d_sae, rows[0].batch_size,
            device=settings.device, precision=settings.precision,
        )  # fmt: skip
        self._coefficients = [each.settings.objective.coefficient for each in rows]
        stacks = [Stack.of(state.sae) for state in states]
        self._stack = Stack(*(nn.Parameter(torch.cat(each)) for each in zip(*stacks, strict=True)))
        factors = {self._stack.b_enc_KF: rows[0].bias_lr}
        self._adam = Adam(self._stack, lr=0.0, factors=factors)
        self._silent_KF = torch.stack([state.silent_F for state in states])
        for k, state in enumerate(states):  # what they hold are views from now on
            sae, (W_enc_FD, b_enc_F, W_dec_FD, b_dec_D) = (
                state.sae,
                (p.data[k] for p in self._stack),
            )
            sae.W_enc.data, sae.b_enc.data = W_enc_FD.T, b_enc_F
            sae.W_dec.data, sae.b_dec.data = W_dec_FD, b_dec_D
            state.silent_F = self._silent_KF[k]

    def step(self, batch_BX: Tensor) -> tuple[list[tuple[Tensor, Tensor | None]], list[Seen]]:
        """As `_InTurn.step`, and as `update.step` for all at once."""
        settings, i = self._settings, self._states[0].step
        x_BD, now = self._rows.prepare(batch_BX, self._states[0])
        decoder_norm = settings.objective.decoder_norm
        l1_K = [float(each * now.warmup) for each in self._coefficients]
        centred = self._states[0].sae.apply_b_dec_to_input
        case = Case(torch.tensor(l1_K, device=x_BD.device), decoder_norm, centred)
        sums, count_KF, gradient = self._kernel.stacked(self._stack, x_BD, case)
        self._adam.lr = self._rows.lr_at(i)
        self._update(gradient, unit_norm=decoder_norm == "unit_norm")
        self._silent_KF.add_(1).mul_(count_KF == 0)
        found = []
        for k, state in enumerate(self._states):
            state.step += 1
            state.optimizer.lr = self._adam.lr  # for the record
            total, *terms = (term[k] for term in sums)
            loss = Loss(total, dict(zip(("reconstruction", "sparsity"), terms, strict=True)))
            found.append(Seen(loss, count_KF[k], len(x_BD), None))
        return [(x_BD, None)] * len(found), found

    def _update(self, gradient: Stack, *, unit_norm: bool) -> None:
        """As `update.update_`, the gradient of each SAE clipped by itself."""
        W_dec_KFD, clip_norm = self._stack.W_dec_KFD, self._settings.clip_norm
        how = {"clip_norm": clip_norm, "unit": W_dec_KFD if unit_norm else None}
        slopes = dict(zip(self._stack, gradient, strict=True))
        sparse = self._kernel.plan.sparse_below
        if sparse and move(slopes, self._adam, **how, n_saes=len(W_dec_KFD)):
            return
        if unit_norm:
            keep_length_(W_dec_KFD.detach(), gradient.W_dec_KFD)
        clip_(gradient, clip_norm)
        for parameter, slope in slopes.items():
            parameter.grad = slope
        self._adam.step()
        if unit_norm:
            unit_rows_(W_dec_KFD)

    def lend_moments(self, state: State) -> None:
        """Let one SAE's own optimizer hold views of its part of the shared moments."""
        sae, k = state.sae, next(k for k, s in enumerate(self._states) if s is state)
        own = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
        for parameter, shared in zip(own, self._stack, strict=True):
            for name in ("exp_avg", "exp_avg_sq"):
                view = self._adam.state[shared][name][k]
                state.optimizer.state[parameter][name] = view.T if parameter is sae.W_enc else view
