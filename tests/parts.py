"""One of several processes that write a store together: `parts.py FOLDER I N [KILLED_AFTER]`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import torch
from tiny_models import make, some_tokens
from torch import Tensor

from saelearn.activations import write

SITE = "blocks.1.hook_resid_post"
DOCUMENTS = some_tokens(33, 10, seed=3).split(3)  # 11 batches of 27 rows


def documents(killed_after: int | None) -> Iterator[Tensor]:
    for number, tokens_BT in enumerate(DOCUMENTS):
        if number == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)
        yield tokens_BT


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, i, n, *killed = sys.argv[1:]
    given = documents(int(killed[0]) if killed else None)
    write(make("gpt2"), given, SITE, folder, part=(int(i), int(n)), shard_rows=20, dtype="float32")
