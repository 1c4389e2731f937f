"""Activations from disk: speed, memory, mixing, and each row exactly once an epoch.

`python -m benchmarks.stream --json` writes 4 million made-up rows of width 768 in half precision
(6 GB), reads them for an epoch or two, and deletes them. Each row holds its own number.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine
from saelearn.activations import MEMORY_LIMIT, ActivationStore
from saelearn.activations.room import Room
from saelearn.activations.shards import DTYPES, Shards, ShardWriter, Tokens

DOCUMENT = 127  # rows of one made-up document: 128 tokens without the first
BASE = 256  # the digits of a row's number: whole numbers that bfloat16 holds too
PART = 16_384  # rows made at once


class AnonymousMemory:
    """The most anonymous memory of this process inside the block, beyond that at its start.

    Files that the system keeps in its own memory do not count: it gives them up when asked. Only
    Linux tells; elsewhere 0.
    """

    def __enter__(self) -> AnonymousMemory:
        self.start = self.peak = _anonymous()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.01):
            self.peak = max(self.peak, _anonymous())

    @property
    def gib(self) -> float:
        return (self.peak - self.start) / 2**30


def _anonymous() -> int:
    if sys.platform != "linux":
        return 0
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1_024


def noise(width: int) -> Tensor:
    return torch.randn(PART, width, generator=torch.Generator().manual_seed(0))


def made_up(rows: int, width: int) -> Iterator[Tensor]:
    """Rows whose first four values are their number in base 256, the others the same noise."""
    noise_ND = noise(width)
    for start in range(0, rows, PART):
        number_N = torch.arange(start, min(start + PART, rows))
        x_ND = noise_ND[: len(number_N)].clone()
        for digit in range(4):
            x_ND[:, digit] = (number_N // BASE**digit % BASE).float()
        yield x_ND


def numbers(x_BD: Tensor) -> np.ndarray:
    digits_B4 = x_BD[:, :4].long()
    return (digits_B4 * BASE ** torch.arange(4)).sum(1).numpy()


def mixing(order_N: np.ndarray, batch_size: int) -> dict[str, float]:
    """How far an epoch's order is from that of the store.

    correlation: of a row's place in the store with its place in the epoch; 0 is perfect.
    same_document: pairs of one document in a batch, as a share of all pairs.
    spread: the standard deviation of a batch's mean place in the store, over what it is for
        independent draws; 1 is perfect.
    """
    n = len(order_N) // batch_size * batch_size
    places = np.arange(len(order_N))
    batches = order_N[:n].reshape(-1, batch_size)
    documents = np.sort(batches // DOCUMENT, axis=1)
    pairs = 0
    for gap in range(1, DOCUMENT):
        if not (same := int((documents[:, gap:] == documents[:, :-gap]).sum())):
            break
        pairs += same
    expected = order_N.std() / np.sqrt(batch_size)
    return {
        "correlation": float(np.corrcoef(places, order_N)[0, 1]),
        "same_document": pairs / (len(batches) * batch_size * (batch_size - 1) / 2),
        "spread": float(batches.mean(1).std() / expected),
    }


def controls(rows: int, batch_size: int, window: int) -> dict[str, dict[str, float]]:
    """A full permutation, and a buffer that is filled in order, half given out, and refilled."""
    rng = np.random.default_rng(0)
    given_out, held = [], np.empty(0, np.int64)
    for start in range(0, rows, max(1, window // 2)):
        new = np.arange(start, min(start + max(1, window // 2), rows))
        held = rng.permutation(np.concatenate([held, new]))
        half = max(0, len(held) - window // 2)
        given_out.append(held[:half])
        held = held[half:]
    buffered = np.concatenate([*given_out, held])
    return {
        "full_permutation": mixing(rng.permutation(rows), batch_size),
        "buffer_in_order": mixing(buffered, batch_size),
    }


def forget(folder: Path) -> bool:
    """Ask the system to drop the files from its memory, so that reading is from the disk."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def disk_speed(folder: Path) -> float:
    """GiB a second of the same files read from end to end, one after the other: the limit."""
    paths, size = sorted(folder.glob("*.safetensors"))[:4], 0
    room, start = bytearray(2**22), time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while n := file.readinto(room):
                size += n
    return size / (time.perf_counter() - start) / 2**30


def measure_write(folder: Path, rows: int, width: int, dtype: str) -> dict:
    seconds = 0.0
    with AnonymousMemory() as memory:
        writer = ShardWriter(folder, {"made": "up"}, d_in=width, dtype=dtype)
        writer.reserve(rows)
        for number, x_ND in enumerate(made_up(rows, width), 1):
            start = time.perf_counter()
            writer.add(x_ND, {"batches": number})
            seconds += time.perf_counter() - start
        start = time.perf_counter()
        writer.close(Tokens(rows, rows, 0, 0), {"batches": number})
        seconds += time.perf_counter() - start
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {"rows_per_s": rows / seconds, "bytes": size, "anonymous_gib": memory.gib}


def measure_read(store: ActivationStore, epochs: int) -> tuple[dict, np.ndarray]:
    """Speed, memory and the count of each row, over whole epochs; the order of the last."""
    counts, order_N = np.zeros(store.rows, np.uint8), np.zeros(store.rows, np.int64)
    smaller, intact, done = 0, True, 0
    noise_ND = noise(store.d_in)[:, 4:].to(store.dtype)
    with AnonymousMemory() as memory:
        start, cpu = time.perf_counter(), time.process_time()
        for n, x_BD in enumerate(store):
            number_B = numbers(x_BD)
            counts[number_B] += 1
            order_N[done % store.rows : done % store.rows + len(x_BD)] = number_B
            done += len(x_BD)
            if n == 0:
                first = time.perf_counter() - start
            smaller += len(x_BD) != store.batch_size
            intact &= torch.equal(x_BD[:64, 4:], noise_ND[number_B[:64] % PART])
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    found = {
        "rows_per_s": epochs * store.rows / seconds,
        "rows_per_cpu_s": epochs * store.rows / cpu,
        "gib_per_s": epochs * store.rows * store.d_in * store.dtype.itemsize / seconds / 2**30,
        "first_batch_s": first,
        "anonymous_gib": memory.gib,
        "epochs": epochs,
        "each_row_once_an_epoch": bool((counts == epochs).all()),
        "values_intact": intact,
        "smaller_batches": smaller,
    }
    return found, order_N


class _Sent(Room):
    """The processor's part where rows go to a GPU: to read and compare them, a piece at a time."""

    _near = False

    def _send(self, shard: int, runs: list, out_ND: Tensor) -> Tensor:
        piece_ND, sent = self._piece()
        self._source.read(shard, runs, piece_ND[: len(out_ND)], finite=False)
        self._pieces.append((piece_ND, sent))
        return out_ND.new_zeros(2)


def measure_sending(folder: Path) -> float:
    """Rows a processor's second sends to a GPU, each read and compared once."""
    shards = Shards.open(folder)
    x_ND = torch.empty(sum(shards.rows_S), shards.d_in, dtype=shards.dtype)  # never touched
    blocks_K3 = np.array([(s, 0, n) for s, n in enumerate(shards.rows_S)])
    every_K, draw = np.arange(len(blocks_K3)), partial(np.arange, len(x_ND))
    start = time.process_time()
    _Sent(shards, blocks_K3, x_ND, state="keeps").load(every_K, draw, None)
    return len(x_ND) / (time.process_time() - start)


def measure_resume(store: ActivationStore, epochs: int, order_N: np.ndarray) -> dict:
    """From the middle of the last epoch: the rows that came then, and how long until the first."""
    middle = store.batches_per_epoch // 2
    batches = (epochs - 1) * store.batches_per_epoch + middle
    store.load_state_dict(json.loads(json.dumps(store.state_dict(batches=batches))))
    start = time.perf_counter()
    going_on = iter(store)
    found = [numbers(next(going_on))]
    seconds = time.perf_counter() - start
    found += [numbers(next(going_on)) for _ in range(min(20, middle - 1))]
    found = np.concatenate(found)
    first = middle * store.batch_size
    return {
        "first_batch_s": seconds,
        "equal": bool((found == order_N[first : first + len(found)]).all()),
    }


def measure_model(folder: Path) -> dict:
    """The course's model: the same rows from memory and from disk, each once, all accounted for."""
    from saelearn import activations, tiny  # seconds: not for the process that only writes

    lm, tokens_NT = tiny.load_lm(), tiny.held_out().tokens_NT
    start = time.perf_counter()
    whole = activations.gather(lm, tokens_NT, tiny.SITE, epochs=1, batch_size=512)
    in_memory = time.perf_counter() - start
    start = time.perf_counter()
    account = activations.write(lm, tokens_NT, tiny.SITE, folder, shard_rows=20_000)
    on_disk = time.perf_counter() - start
    n_bytes = whole.rows * (whole.d_in * 2 + 16)
    streamed = ActivationStore(folder, epochs=1, batch_size=512, memory_limit=n_bytes // 4)
    sums = [sum(x_BD.double().sum(0) for x_BD in store) for store in (whole, streamed)]
    return {
        "tokens": {name: getattr(account, name) for name in account.__dataclass_fields__},
        "tokens_per_s_in_memory": account.read / in_memory,
        "tokens_per_s_to_disk": account.read / on_disk,
        "same_rows": whole.rows == streamed.rows and torch.allclose(*sums, rtol=1e-9, atol=1e-6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print nothing but one JSON object")
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--batch-size", type=int, default=4_096)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--memory-limit", type=int, default=MEMORY_LIMIT, help="bytes")
    parser.add_argument("--folder", type=Path, default=None, help="where to make a scratch folder")
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="stream-", dir=arguments.folder))
    try:
        result = run(scratch, arguments)
    finally:
        shutil.rmtree(scratch)
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=1))


def run(scratch: Path, arguments: argparse.Namespace) -> dict:
    rows, width, folder = arguments.rows, arguments.width, scratch / "rows"
    folder.mkdir()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        # of its own: what a process once had from the system it keeps, and would not show again
        written = process.submit(measure_write, folder, rows, width, arguments.dtype).result()
    how = {"batch_size": arguments.batch_size, "memory_limit": arguments.memory_limit}
    cold = forget(folder)
    limit = disk_speed(folder)
    forget(folder)
    store = ActivationStore(folder, epochs=arguments.epochs, **how)
    read, order_N = measure_read(store, arguments.epochs)
    load = os.getloadavg() if hasattr(os, "getloadavg") else [None]
    resumed = measure_resume(ActivationStore(folder, **how), arguments.epochs, order_N)
    return {
        "machine": machine.describe() | {"load": load[0]},
        "rows": rows,
        "width": width,
        "dtype": arguments.dtype,
        **how,
        "write": written,
        "read": {
            "from_disk_at_first": cold,
            "file_after_file_gib_per_s": limit,
            "windows": store.windows,
            **read,
        },
        "sent_rows_per_cpu_s": measure_sending(folder),
        "resume": resumed,
        "mixing": {
            "ours": mixing(order_N, arguments.batch_size),
            **controls(rows, arguments.batch_size, rows // store.windows),
        },
        "model": measure_model(scratch / "model"),
    }


if __name__ == "__main__":
    main()
