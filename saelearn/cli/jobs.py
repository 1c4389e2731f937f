"""`saelearn train`: from a file, or from a model and text, to a saved SAE with a report.

Says what it will take before it starts, goes on where it was stopped, and refuses to overwrite.
Under `torchrun` several processes do it together; the first one speaks and writes.

Shapes: N rows, B batch, D activation width, F features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from saelearn import artifacts, metrics
from saelearn.cli import job_data
from saelearn.cli.job_data import Data
from saelearn.errors import Refusal
from saelearn.lm import TINY
from saelearn.sae import (
    CONFIG_FILE,
    L1,
    SAE,
    BatchTopK,
    Gated,
    GatedL1,
    JumpL0,
    JumpReLU,
    Squared,
    TopK,
)  # fmt: skip
from saelearn.train import Record, Trained, memory, parallel, train
from saelearn.train.settings import Settings, check_device

STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143}  # a shell's numbers for them


def run(
    out: Path,
    *,
    activations: Path | None = None,
    model: str = TINY,
    site: str | None = None,
    text: Path | None = None,
    documents: int = 4_000,
    length: int = 128,
    max_norm: float | None = None,
    leave_tokens: Sequence[int] = (),
    bos: bool | None = None,
    d_sae: int | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int | timedelta = timedelta(minutes=1),
    device: str = "cpu",
    timeout: float = parallel.TIMEOUT,
    progress: bool = True,
    **training,
) -> int:
    """Train one SAE and save it in SAELens' layout; returns the process's exit code.

    Args:
        out: the folder to write; one that is there is only accepted if this run made it.
        activations: .npy or .safetensors with `x_ND`, or a folder that `activations.write` made.
        model, site, text, documents, length: otherwise these: a model ("tiny", a folder, a name),
            a place in it, a text file (default: `documents` of the course's corpus), and how
            many tokens one document has.
        max_norm, leave_tokens: rows to leave out, as for `activations.collect`.
        d_sae: F; 16 times the width by default.
        checkpoint, checkpoint_every: as for `train`; by default a folder beside `out`, which is
            removed when the SAE is saved.
        timeout: seconds after which a process that hears nothing from the others ends.
        training: the other arguments of `train`.

    Raises:
        Refusal: something that cannot be trained on, or an `out` that would be overwritten.
    """
    _refuse_foreign(out)
    check_device(device)
    Settings(d_sae=d_sae or training["k"] or 1, **_in_training(training))
    with parallel.started(device, timeout=timeout) as device, _terminated_like_ctrl_c() as caught:
        say = partial(print, flush=True) if parallel.rank() == 0 else (lambda _: None)
        batch_size, seed = training["batch_size"], training["seed"]
        if activations is None:
            data = job_data.from_model(
                out,
                model,
                site,
                text,
                documents,
                length,
                batch_size,
                seed,
                progress,
                max_norm=max_norm,
                leave_tokens=leave_tokens,
                device=device,
                bos=bos,
            )
        else:
            if max_norm is not None or leave_tokens:
                raise Refusal("rows of a model, some of which can be left out", str(activations))
            data = job_data.from_file(activations, batch_size, seed)
        d_sae = d_sae or 16 * data.d_in
        training |= {"d_sae": d_sae, "device": torch.device(device).type}
        identity = _digest(training | data.about)
        if out.exists():
            say(_finished(out, identity))
            return 0
        _announce(say, data, training)
        training |= {"device": device, "log_every": max(1, training["steps"] // 200)}
        reporter = _Reporter(say, training["steps"], training["log_every"])
        how = _in_training(training)
        kept = checkpoint or out.with_name(f"{out.name}.checkpoint")
        started = time.monotonic()
        trained = train(
            data.source, checkpoint=kept, checkpoint_every=checkpoint_every, progress=progress,
            callback=reporter, **how,
        )  # fmt: skip
        if trained.steps < training["steps"]:
            say(f"stopped after step {trained.steps:,}; the same command goes on from there")
            return STOPPED[caught[0] if caught else signal.SIGINT]
        if parallel.rank() == 0:
            report = _report(trained, data) | {"seconds": round(time.monotonic() - started, 1)}
            report["resumed_after"] = reporter.resumed_after
            _save(out, trained, training | data.about, report, identity)
            say(_in_words(report, out))
            if checkpoint is None:
                shutil.rmtree(kept, ignore_errors=True)
    return 0


def _in_training(training: dict[str, Any]) -> dict[str, Any]:
    """`train`'s arguments, with the kind of SAE and what it is trained for as objects."""
    l1, k, target_l0 = (training[name] for name in ("l1_coefficient", "k", "target_l0"))
    kinds = {
        "standard": lambda: (SAE, L1(l1)),
        "topk": lambda: (TopK, Squared()),
        "batchtopk": lambda: (BatchTopK, Squared()),
        "jumprelu": lambda: (JumpReLU, JumpL0(target_l0=target_l0) if target_l0 else JumpL0(l1)),
        "gated": lambda: (Gated, GatedL1(l1)),
    }
    if training["kind"] not in kinds:
        raise Refusal(f"a kind of {', '.join(kinds)}", repr(training["kind"]))
    if (k is None) == training["kind"].endswith("topk"):
        raise Refusal("--k for topk and batchtopk, and for these alone", f"{training['kind']}, {k}")
    kind, objective = kinds[training["kind"]]()
    rest = {n: v for n, v in training.items() if n not in ("l1_coefficient", "target_l0")}
    return rest | {"kind": kind, "objective": objective}


# --- words ----------------------------------------------------------------------------------------


def _announce(say, data: Data, training: dict[str, Any]) -> None:
    parts = memory.needed(
        data.d_in, training["d_sae"], training["batch_size"], device=training["device"],
        precision=training["precision"], processes=parallel.size(), checkpoint=True,
    )  # fmt: skip
    room = memory.free(training["device"])
    epochs = training["steps"] * training["batch_size"] / data.rows
    say(f"data     {data.rows:,} rows of width {data.d_in}, each used about {epochs:.1f} times")
    say(f"SAE      {training['d_sae']:,} features; {parallel.size()} process(es), "
        f"{torch.get_num_threads()} thread(s) on {training['device']}")  # fmt: skip
    say(f"memory   {memory.in_units(sum(parts.values()))} ({memory.describe(parts)})")
    say(f"         of {memory.in_units(room) if room else 'an unknown amount'} that is free")


class _Reporter:
    """Says where a run goes on, and how long it will take once the first steps are through."""

    def __init__(self, say, steps: int, log_every: int):
        self._say, self._steps, self._log_every = say, steps, log_every
        self._seen: list[tuple[float, int]] = []
        self.resumed_after = 0

    def __call__(self, record: Record, sae: SAE) -> None:
        step, seen = int(record["step"]), self._seen
        seen.append((time.monotonic(), step))
        if len(seen) == 1 and step > self._log_every:
            self.resumed_after = step - self._log_every
            self._tell(f"goes on  from its checkpoint, near step {self.resumed_after:,}")
        if len(seen) == 3:
            rate = (seen[2][1] - seen[1][1]) / max(1e-9, seen[2][0] - seen[1][0])
            left = timedelta(seconds=round((self._steps - step) / rate))
            self._tell(f"time     about {left} more, at {rate:.3g} steps a second now")

    def _tell(self, words: str) -> None:
        with tqdm.external_write_mode():
            self._say(words)


def _report(trained: Trained, data: Data) -> dict[str, Any]:
    found = [trained.sae(x_BD.float()) for x_BD in data.test_ND.split(2_048)]
    f_NF = torch.cat([output.f for output in found]).detach()
    x_hat_ND = torch.cat([output.x_hat for output in found])
    return {
        "steps": trained.steps,
        "loss": trained.history[-1]["loss"],
        "l0": metrics.l0(f_NF),
        "explained_variance": metrics.explained_variance(data.test_ND.float(), x_hat_ND),
        "dead": metrics.dead_fraction(f_NF),
        "rows": len(data.test_ND),
        "held_out": data.held_out,
    }


def _in_words(report: dict[str, Any], out: Path) -> str:
    where = "held out" if report["held_out"] else "that training saw"
    those = f", those after {report['resumed_after']:,}" if report["resumed_after"] else ""
    spent = timedelta(seconds=round(report["seconds"]))
    return (
        f"trained  {report['steps']:,} steps{those} in {spent}, "
        f"last loss {report['loss']:.4g}\n"
        f"report   on {report['rows']:,} rows {where}: L0 {report['l0']:.1f}, explained variance "
        f"{report['explained_variance']:.3f}, dead {report['dead']:.1%}\n"
        f"saved    {out}"
    )


# --- out ------------------------------------------------------------------------------------------


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not (out / CONFIG_FILE).is_file():
        raise Refusal("a new folder to save the SAE in", str(out), "another --out")


def _finished(out: Path, identity: str) -> str:
    about = artifacts.read_json(out / CONFIG_FILE)
    for name in ("metadata", "saelearn"):
        about = about.get(name) if isinstance(about, dict) else None
    if not isinstance(about, dict) or about.get("run") != identity:
        raise Refusal(
            "a new folder, or the SAE of this very run",
            f"{out}, which holds an SAE made otherwise",
            "another --out, or move that one away",
        )
    return f"finished before\n{_in_words(about['report'], out)}"


def _save(out: Path, trained: Trained, about: dict, report: dict, identity: str) -> None:
    trained.sae.metadata |= json.loads(json.dumps(about, default=str))
    trained.sae.metadata |= {"scale": trained.scale}
    trained.sae.metadata |= {"saelearn": {"run": identity, "report": report}}
    artifacts.write_json(out.with_name(f"{out.name}.history.json"), trained.history)
    trained.sae.save(out)


@contextlib.contextmanager
def _terminated_like_ctrl_c() -> Iterator[list[int]]:
    """A request to end is obeyed as Ctrl-C is: after the step, with a checkpoint."""
    caught: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        caught.append(number)
        parallel.told_to_end()
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield caught
    finally:
        if signal.getsignal(signal.SIGTERM) is pass_on:  # not when a process was lost (`parallel`)
            signal.signal(signal.SIGTERM, before)
