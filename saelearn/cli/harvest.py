"""`saelearn harvest`: a model's activations over texts, onto the disk, for `saelearn train`.

Several processes share the work with `--part`; each goes on where it was stopped.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from saelearn.activations import write_all
from saelearn.cli import job_data
from saelearn.train.settings import check_device

PASS = 32  # documents in one pass of the model


def run(
    out: Path,
    *,
    model: str,
    sites: Sequence[str],
    text: Path | None,
    documents: int,
    length: int,
    part: tuple[int, int] | None,
    bos: bool | None,
    skip: int,
    max_norm: float | None,
    leave_tokens: Sequence[int],
    dtype: str,
    device: str,
    progress: bool,
) -> None:
    """Write the rows of one site into `out`, or those of several into folders in it.

    Args:
        out: the folder; what an earlier, equal call left there is gone on with.
        model, text, documents, length, bos, device: as for `jobs.run`.
        sites: places in the model, all read in one pass.
        part, skip, max_norm, leave_tokens, dtype: as for `activations.write`.
        progress: show a progress bar.
    """
    check_device(device)
    lm, (site, *others) = job_data.model_at(model, sites, device=device, bos=bos)
    batches = job_data.batches(lm, text, documents, length, PASS)
    folders = {each: out / re.sub(r"[^\w.-]+", "_", each) for each in (site, *others)}
    started = time.monotonic()
    accounts = write_all(
        lm, batches, folders if others else {site: out}, dtype=dtype, skip=skip,
        leave_tokens=leave_tokens, max_norm=max_norm, part=part, progress=progress,
    )  # fmt: skip
    seconds = time.monotonic() - started
    for each, account in accounts.items():
        print(f"{each}: {account.stored:,} rows of {account.read:,} tokens")
    read = max(account.read for account in accounts.values())
    print(f"{seconds:,.1f} s, {read / seconds:,.0f} tokens a second on {device}; in {out}")
