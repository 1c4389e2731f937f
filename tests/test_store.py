"""Each row once an epoch, well mixed, from memory and disk; resumed to the bit; no spoilt file."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from saelearn.activations import ActivationStore, shards, verify
from saelearn.activations import room as room_module
from saelearn.activations.shards import DTYPES, Shards, ShardWriter, Tokens, to_dtype
from saelearn.errors import ArtifactError, Refusal
from saelearn.train import batches, train

SETTINGS = {"made": "by a test"}


def numbered(n: int, d_in: int = 2) -> Tensor:
    """Rows that hold their own number, in a form that half precision keeps."""
    i_N = torch.arange(n)
    x_ND = torch.zeros(n, d_in)
    x_ND[:, 0], x_ND[:, 1] = i_N % 256, i_N // 256
    return x_ND


def numbers(x_BD: Tensor) -> list[int]:
    return (x_BD[:, 0].long() + 256 * x_BD[:, 1].long()).tolist()


def put(folder: Path, x_ND: Tensor, *, parts: int = 50, **arguments) -> Path:
    writer = ShardWriter(folder, SETTINGS, d_in=x_ND.shape[1], **arguments)
    mark = {}
    for i, part_ND in enumerate(x_ND.split(parts), 1):
        mark = {"batches": i}
        writer.add(part_ND, mark)
    writer.close(Tokens(len(x_ND), len(x_ND), 0, 0), mark)
    return folder


def take(store: ActivationStore, n: int) -> list[Tensor]:
    return list(itertools.islice(store, n))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10,000 rows in 8 shards, the last of them shorter."""
    return put(tmp_path_factory.mktemp("rows") / "store", numbered(10_000), shard_rows=1_300)


SMALL = 2 * 20 * 500  # two windows of 500 rows of 4 bytes, and 16 for the order


# --- each row once --------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 500),
    parts=st.integers(1, 200),
    shard_rows=st.integers(20, 300) | st.just(7),
    batch_size=st.integers(1, 120),
    window=st.integers(1, 400),
    dtype=st.sampled_from(sorted(DTYPES)),
    drop_last=st.booleans(),
    seed=st.integers(0, 2**40),
)
def test_each_row_comes_once_an_epoch(
    tmp_path_factory, n, parts, shard_rows, batch_size, window, dtype, drop_last, seed
) -> None:
    folder = tmp_path_factory.mktemp("any") / "store"
    put(folder, numbered(n), parts=parts, shard_rows=shard_rows, dtype=dtype, seed=seed)
    row = 2 * getattr(torch, dtype).itemsize + 16
    how = {"batch_size": batch_size, "epochs": 2, "seed": seed, "drop_last": drop_last}
    kept = n // batch_size * batch_size if drop_last else n
    for source, limit in ((folder, 2 * row * window), (folder, 2**30), (numbered(n), 0)):
        try:
            store = ActivationStore(source, memory_limit=limit, **how)
        except Refusal as refusal:  # too little memory for a batch, or nothing but a dropped one
            assert kept == 0 or (limit < n * row and window < max(64, 2 * batch_size))
            assert "memory_limit" in str(refusal) or "drop_last" in str(refusal)
            continue
        given_out = list(store)
        assert len(given_out) == 2 * store.batches_per_epoch
        for epoch in (given_out[: len(given_out) // 2], given_out[len(given_out) // 2 :]):
            rows = [i for x_BD in epoch for i in numbers(x_BD)]
            assert len(rows) == kept and len(set(rows)) == kept and set(rows) <= set(range(n))
            assert {len(x_BD) for x_BD in epoch[:-1]} <= {batch_size}
            assert all(x_BD.dtype == store.dtype for x_BD in epoch)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shards_are_safetensors_and_hold_what_was_given(tmp_path: Path, dtype: str) -> None:
    """safetensors' own reader as the oracle."""
    x_ND = torch.randn(1_000, 7, generator=torch.Generator().manual_seed(0))
    put(tmp_path / "s", x_ND, shard_rows=300, dtype=dtype)
    files = sorted((tmp_path / "s").glob("*.safetensors"))
    stored = [load_file(file)["x_ND"] for file in files]
    assert [len(part) for part in stored] == [300, 300, 300, 100]
    for part_ND, given_ND in zip(stored, x_ND.to(getattr(torch, dtype)).split(300), strict=True):
        assert not torch.equal(part_ND, given_ND)  # in another order
        assert sorted(part_ND.tolist()) == sorted(given_ND.tolist())
    out_ND = torch.empty(20, 7, dtype=stored[0].dtype)
    Shards.open(tmp_path / "s").read(2, [(35, len(out_ND))], out_ND)
    assert torch.equal(out_ND, stored[2][35:55])
    assert {path.name[:6] for path in (tmp_path / "s").iterdir()} == {"shard_", "index."}


def test_epochs_and_seeds_have_orders_of_their_own(folder: Path) -> None:
    for source, limit in ((folder, SMALL), (folder, 2**30), (numbered(10_000), 0)):

        def rows(seed: int, source=source, limit=limit) -> list[list[int]]:
            store = ActivationStore(source, seed=seed, batch_size=10_000 // 100, epochs=2,
                                    memory_limit=limit)  # fmt: skip
            return [numbers(x_BD) for x_BD in store]

        first = rows(0)
        assert first == rows(0)
        assert first[:100] != first[100:] and first != rows(1)


# --- mixing ---------------------------------------------------------------------------------------


def test_rows_are_mixed_far_beyond_a_window(folder: Path) -> None:
    """Against a full permutation: the correlation of places, and neighbours in a batch."""
    correlations, near = [], []
    for seed in range(8):
        store = ActivationStore(folder, batch_size=100, epochs=1, seed=seed, memory_limit=SMALL)
        order = np.concatenate([numbers(x_BD) for x_BD in store])
        correlations.append(np.corrcoef(np.arange(len(order)), order)[0, 1])
        for batch in order.reshape(100, 100):
            near.append((np.diff(np.sort(batch // 100)) == 0).sum())  # of the same 100 rows
    assert np.abs(correlations).max() < 0.1  # a block of 7 rows in 10,000: 0.026 is expected
    full = np.random.default_rng(0).permuted(np.tile(np.arange(10_000), (8, 1)), axis=1)
    expected = [(np.diff(np.sort(b // 100)) == 0).sum() for b in full.reshape(-1, 100)]
    assert np.mean(near) < 1.1 * np.mean(expected)


def test_memory_stays_below_the_limit() -> None:
    """The benchmark in small: 29 MiB through 6, each row once an epoch, resumed."""
    rows = ["--rows", "60000", "--width", "256", "--batch-size", "1000"]
    rows += ["--memory-limit", str(6 * 2**20)]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.stream", "--json", *rows],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    found = json.loads(run.stdout)
    read, mixing = found["read"], found["mixing"]
    assert read["each_row_once_an_epoch"] and read["values_intact"] and found["resume"]["equal"]
    if sys.platform == "linux":
        assert 0 < read["anonymous_gib"] * 2**10 < 6 + 12  # MiB; 12 for a thread and batches
    assert mixing["ours"]["same_document"] < 1.1 * mixing["full_permutation"]["same_document"]
    assert mixing["buffer_in_order"]["correlation"] > 0.9 > 20 * abs(mixing["ours"]["correlation"])
    assert found["model"]["same_rows"] and found["model"]["tokens"]["stored"] == 63_000


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [0, 1, 57, 139, 140, 141, 300, 419])
@pytest.mark.parametrize("drop_last", [False, True])
def test_it_goes_on_with_the_very_next_batch(folder: Path, done: int, drop_last: bool) -> None:
    how = {"batch_size": 72, "epochs": 3, "seed": 5, "drop_last": drop_last}
    for source, limit in ((folder, SMALL), (folder, 2**30), (numbered(10_000), 0)):
        whole = list(ActivationStore(source, memory_limit=limit, **how))
        assert len(whole) == 3 * (138 if drop_last else 139)
        before = ActivationStore(source, memory_limit=limit, **how)
        done = min(done, len(whole))
        assert same(take(before, done), whole[:done])
        state = json.loads(json.dumps(before.state_dict()))
        after = ActivationStore(source, memory_limit=limit, **how)
        after.load_state_dict(state)
        assert after.state_dict() == state
        assert same(list(after), whole[done:])
        after.load_state_dict(before.state_dict(batches=3))
        assert same(list(after), whole[3:])
        assert same(take(after, 2), whole[:2])  # a new loop is a new beginning


def test_going_on_reads_one_window_and_not_all(folder: Path, monkeypatch) -> None:
    store = ActivationStore(folder, batch_size=72, seed=5, memory_limit=SMALL)
    read, rows = Shards.read, []

    def count(self, shard, runs, out_ND, **how):
        rows.append(len(out_ND))
        read(self, shard, runs, out_ND, **how)

    monkeypatch.setattr(Shards, "read", count)
    store.load_state_dict(store.state_dict(batches=139 * 50 + 120))
    assert numbers(take(store, 1)[0])
    assert sum(rows) <= 2 * 500  # the window and the one read ahead


def test_a_state_of_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    state = ActivationStore(folder, memory_limit=SMALL, batch_size=72).state_dict()
    other = put(tmp_path / "other", numbered(10_000), shard_rows=1_301)
    for source, how in (
        (folder, {"seed": 1}),
        (folder, {"batch_size": 71}),
        (folder, {"memory_limit": 2 * SMALL}),
        (folder, {"memory_limit": SMALL + 20 * 2 * 20}),  # other windows or other blocks
        (folder, {"drop_last": True}),
        (other, {}),
        (numbered(10_000), {}),
        (numbered(10_000) + 1, {}),
    ):
        store = ActivationStore(source, **{"memory_limit": SMALL, "batch_size": 72} | how)
        with pytest.raises(Refusal, match="same data with the same arguments"):
            store.load_state_dict(state)
    with pytest.raises(Refusal, match="batches"):
        ActivationStore(folder, memory_limit=SMALL, batch_size=72).load_state_dict(
            state | {"batches": -1}
        )


def test_training_takes_it_and_goes_on(folder: Path) -> None:
    x_ND = torch.randn(3_000, 8, generator=torch.Generator().manual_seed(1))
    store = ActivationStore(x_ND.half(), batch_size=64, seed=3)
    given_out = [x_BD.float() for x_BD in take(store, 60)]
    how = {"l1_coefficient": 0.1, "steps": 60, "normalize": False, "progress": False}
    ours, theirs = train(store, 16, **how), train(given_out, 16, **how)
    assert torch.equal(ours.sae.W_dec, theirs.sae.W_dec)
    source, after = (
        batches.batches(ActivationStore(folder, batch_size=72, memory_limit=SMALL), 72)
        for _ in range(2)
    )
    for _ in range(150):
        next(source)
    after.load_state_dict(source.state_dict())
    assert all(torch.equal(next(source), next(after)) for _ in range(20))


# --- on a GPU, for whose memory a processor's stands here -----------------------------------------


@pytest.fixture
def far(monkeypatch) -> None:
    """Rows travel in pieces, as to a GPU."""
    monkeypatch.setattr(room_module.Room, "_near", False)
    monkeypatch.setattr(room_module, "LOT", 4 * 700)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("done", [0, 57, 140, 300])
def test_a_gpu_gives_the_same_batches(folder: Path, far, done: int, drop_last: bool) -> None:
    """Whether all rows stay there or windows take turns, from the beginning or gone on with."""
    how = {"batch_size": 72, "epochs": 3, "seed": 5, "drop_last": drop_last}
    x_ND = numbered(10_000)
    for data, limit in ((folder, SMALL), (folder, 2**30), (x_ND, 0), (x_ND.bfloat16(), 0)):
        store = ActivationStore(data, memory_limit=limit, **how)
        whole = list(ActivationStore(data, memory_limit=limit, **how))
        row = 2 * store.dtype.itemsize + 16
        for memory in (row * 10_000, 2 * row * store._window_rows):
            store.load_state_dict(store.state_dict(batches=done))
            there = store.on_device("cpu", memory)
            assert 0 < there.taken <= memory and there.state_dict()["batches"] == done
            assert same(list(there), whole[done:])
            assert store.state_dict() == there.state_dict()
            assert same(take(store, 2), whole[:2])  # its place was handed over
            there.load_state_dict(json.loads(json.dumps(there.state_dict(batches=200))))
            assert same(list(there), whole[200:])


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_rows_of_a_tensor_go_there_too(far, dtype: str) -> None:
    x_ND = numbered(5_000).to(getattr(torch, dtype)).requires_grad_()
    blocks_K3 = np.array([(0, 0, 5_000)])
    room = room_module.Room(
        room_module.Held(x_ND),
        blocks_K3,
        torch.empty_like(x_ND, requires_grad=False),
        state="keeps",
    )
    order_N = np.random.default_rng(0).permutation(5_000)
    rows_N = room.load(np.array([0]), order_N.copy, None)
    assert room.full and rows_N.tolist() == order_N.tolist()
    assert torch.equal(room.x_ND, x_ND.detach())


def test_without_memory_there_batches_come_from_here(folder: Path, far, monkeypatch) -> None:
    """Somebody took it after it was asked how much there is."""
    for limit in (SMALL, 2**30):
        store = ActivationStore(folder, batch_size=72, epochs=1, seed=3, memory_limit=limit)
        whole, there, empty = list(store), store.on_device("cpu", 2**30), torch.empty
        refused = iter([True])

        def full(*shape, refused=refused, empty=empty, **how):
            if next(refused, False):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return empty(*shape, **how)

        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", full)
            assert same(list(there), whole)
        assert there.taken == 0 and next(refused, None) is None


def test_rows_that_stay_are_read_once(folder: Path, far, monkeypatch) -> None:
    store = ActivationStore(folder, batch_size=72, memory_limit=SMALL)
    read, rows = Shards.read, []

    def count(self, shard, runs, out_ND, **how):
        rows.append(len(out_ND))
        read(self, shard, runs, out_ND, **how)

    monkeypatch.setattr(Shards, "read", count)
    for memory, times in ((2**20, 1), (SMALL + 2**12, 4)):
        rows.clear()
        there = store.on_device("cpu", memory)
        list(itertools.islice(there, 4 * there.batches_per_epoch))
        assert times * 10_000 <= sum(rows) <= times * 10_000 + 1_200 * (times > 1)  # and ahead


def test_where_rows_do_not_fit_they_stay_where_they_are(folder: Path) -> None:
    for data, memory in ((folder, SMALL // 2), (numbered(10_000), 20 * 9_999)):
        store = ActivationStore(data, batch_size=72, memory_limit=SMALL)
        assert store.on_device("cpu", memory) is store and store.taken == 0
    wide_NX = torch.zeros(100, 6)
    store = ActivationStore(wide_NX[:, :2], batch_size=10)
    assert store.on_device("cpu", 2**30) is store


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("memory", [SMALL + 2**12, 2**30])
def test_what_is_not_finite_is_found_on_a_gpu(tmp_path: Path, far, bad: float, memory: int) -> None:
    folder = put(tmp_path / "s", numbered(10_000), shard_rows=1_300)
    without_sums(folder)
    file = folder / "shard_00003.safetensors"
    word = torch.tensor([bad], dtype=torch.float16).numpy().tobytes()
    file.write_bytes(file.read_bytes()[:-4] + word + b"  ")
    store = ActivationStore(folder, batch_size=100, memory_limit=SMALL).on_device("cpu", memory)
    with pytest.raises(Refusal, match="finite activations in shard_00003"):
        take(store, 100)


def test_numbers_that_a_gpu_alone_sees_as_not_finite_are_refused(folder, far, monkeypatch) -> None:
    monkeypatch.setattr(torch.Tensor, "aminmax", lambda x_ND: (x_ND.min(), x_ND.max() / 0))
    with pytest.raises(ArtifactError, match="as they were read"):
        take(ActivationStore(folder).on_device("cpu", 2**30), 1)


def test_a_flipped_bit_is_found_on_a_gpu(tmp_path: Path, far) -> None:
    folder = put(tmp_path / "s", numbered(300_000), shard_rows=100_000)
    file = folder / "shard_00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="as they were written"):
        take(ActivationStore(folder).on_device("cpu", 2**30), 1)


# --- what is refused ------------------------------------------------------------------------------


def spoil(folder: Path, what: str) -> None:
    shard, index = folder / "shard_00001.safetensors", folder / "index.json"
    content = json.loads(index.read_text())
    if what == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif what == "longer":
        shard.write_bytes(shard.read_bytes() + b"0")
    elif what == "missing":
        shard.unlink()
    elif what == "another shape":
        shard.write_bytes(shard.read_bytes().replace(b"[40, 2]", b"[20, 4]"))
    elif what == "no index":
        index.unlink()
    elif what == "half an index":
        index.write_text(index.read_text()[:100])
    elif what == "foreign index":
        index.write_text('{"weight_map": {}}')
    elif what == "a key less":
        index.write_text(json.dumps({k: v for k, v in content.items() if k != "settings"}))
    elif what == "another count":
        content["tokens"] |= {"read": 99, "stored": 99}
        index.write_text(json.dumps(content))
    elif what == "not complete":
        index.write_text(json.dumps(content | {"tokens": None}))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("truncated", r"shard_00001.*\n.*received"), ("longer", "shard_00001"),
        ("missing", "no such file"), ("another shape", "another header"),
        ("no index", "index.json"), ("half an index", "index.json"),
        ("foreign index", "another file"), ("a key less", "a whole index"),
        ("another count", "99 rows"), ("not complete", "goes on where it stopped"),
    ],
)  # fmt: skip
def test_a_spoilt_folder_is_refused_before_use(tmp_path: Path, what: str, said: str) -> None:
    folder = put(tmp_path / "s", numbered(100), shard_rows=40)
    ActivationStore(folder)
    spoil(folder, what)
    with pytest.raises(ArtifactError, match=said):
        ActivationStore(folder)


def test_a_large_batch_is_gathered_by_several_hands(monkeypatch) -> None:
    """The same rows, whatever the number of threads; also of a tensor that is not contiguous."""
    x_ND = numbered(3_000)
    wide_NX = torch.cat([x_ND, x_ND], dim=1)
    expected = take(ActivationStore(x_ND, batch_size=700, epochs=1), 5)
    monkeypatch.setattr(room_module, "HANDFUL", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for data in (x_ND, wide_NX[:, : x_ND.shape[1]]):
        found = take(ActivationStore(data, batch_size=700, epochs=1), 5)
        assert len(found) == 5 and same(found, expected)


@pytest.mark.parametrize("system", ["posix", "nt"])
def test_a_disk_that_gives_little_at_a_time_is_asked_again(tmp_path: Path, monkeypatch, system):
    path, room = tmp_path / "some", bytearray(10)
    path.write_bytes(b"ab0123456789cd")
    with path.open("rb", buffering=0) as file:
        if system == "nt":  # there is no other way to read there
            monkeypatch.delattr(os, "preadv")
            given = SimpleNamespace(readinto=lambda part: file.readinto(part[:3]), seek=file.seek)
        else:
            read, given = os.preadv, file
            monkeypatch.setattr(os, "preadv", lambda n, parts, at: read(n, [parts[0][:3]], at))
        shards._fill(memoryview(room), given, 2)
        assert room == b"0123456789"
        with pytest.raises(OSError, match="too early"):
            shards._fill(memoryview(room), given, 6)


@pytest.mark.parametrize("length", [1, 3, 1_000, 2**20])
def test_the_sum_of_many_blocks_comes_from_those_of_each(length: int) -> None:
    for n in (0, 1, 2, 7):
        data = np.random.default_rng(n).bytes(n * length)
        parts = [data[i : i + length] for i in range(0, n * length, length)]
        assert shards._joined([zlib.crc32(part) for part in parts], length) == zlib.crc32(data)


def test_rows_that_are_not_finite_are_found_beyond_what_is_looked_at_at_once(monkeypatch) -> None:
    monkeypatch.setattr(shards, "SCRATCH", 7)
    x_M = torch.ones(40, dtype=torch.bfloat16)
    for place in (None, 0, 6, 7, 39):
        bad_M = x_M.clone()
        if place is not None:
            bad_M[place] = -torch.inf
        bits_M = bad_M.view(torch.uint8).numpy().view(np.uint16)
        assert shards._finite(bits_M, torch.bfloat16) == (place is None)


def test_who_wants_no_more_waits_for_no_window(tmp_path: Path, far, monkeypatch) -> None:
    folder = put(tmp_path / "s", numbered(10_000), shard_rows=1_300)
    store = ActivationStore(folder, batch_size=72, memory_limit=SMALL)
    first, rows, read = take(store, 3), [], shards.Shards.read

    def slowly(self, shard: int, runs, out_ND, **how) -> None:
        time.sleep(0.02)
        rows.append(len(out_ND))
        read(self, shard, runs, out_ND, **how)

    monkeypatch.setattr(shards.Shards, "read", slowly)
    monkeypatch.setattr(room_module, "READERS", 1)
    there = store.on_device("cpu", 2 * store._row_bytes * store._window_rows)
    for source in (store, there):
        rows.clear()
        given = iter(source)
        next(given)
        given.close()
        window = 10_000 / store.windows
        assert len(rows) > 5 and 0.8 * window < sum(rows) < 1.6 * window
        assert same(take(source, 3), first)


def test_a_shard_cut_short_while_it_is_used_is_an_error(tmp_path: Path) -> None:
    """A mapped file would end the process with SIGBUS."""
    folder = put(tmp_path / "s", numbered(10_000), shard_rows=1_300)
    store = ActivationStore(folder, batch_size=72, memory_limit=SMALL)
    os.truncate(folder / "shard_00003.safetensors", 1_000)
    with pytest.raises(ArtifactError, match="ends too early"):
        take(store, 200)


def without_sums(folder: Path) -> None:
    """As folders were before there were checksums."""
    index = json.loads((folder / "index.json").read_text("utf-8"))
    for shard in index["shards"]:
        del shard["crc32"]
    (folder / "index.json").write_text(json.dumps(index), "utf-8")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_rows_that_are_not_finite_are_refused(tmp_path: Path, bad: float, dtype: str) -> None:
    x_ND = numbered(100)
    folder = put(tmp_path / "s", x_ND, shard_rows=40, dtype=dtype)
    without_sums(folder)
    file = folder / "shard_00001.safetensors"
    word = torch.tensor([bad], dtype=getattr(torch, dtype)).view(torch.uint8).numpy().tobytes()
    file.write_bytes(file.read_bytes()[: -len(word)] + word)
    with pytest.raises(Refusal, match="finite activations in shard_00001"):
        list(ActivationStore(folder, batch_size=10, epochs=1))
    x_ND[50, 1] = bad
    with pytest.raises(Refusal, match="finite activations"):
        ActivationStore(x_ND)
    with pytest.raises(Refusal, match="finite activations"):
        put(tmp_path / "other", x_ND, dtype=dtype)


def test_overflow_in_half_precision_is_refused_with_the_remedy(tmp_path: Path) -> None:
    x_ND = numbered(10)
    x_ND[3, 1] = -70_000.0
    with pytest.raises(Refusal, match=r"(?s)65,504.*70,000.*bfloat16.*float32"):
        put(tmp_path / "s", x_ND)
    for dtype in ("bfloat16", "float32"):
        assert torch.isfinite(to_dtype(x_ND, dtype)).all()
    with pytest.raises(Refusal, match="float16, bfloat16, float32"):
        to_dtype(x_ND, "float8")


def test_arguments_are_refused_with_what_would_do(folder: Path) -> None:
    with pytest.raises(Refusal, match=r"memory_limit=(\d|,)+ or more") as caught:
        ActivationStore(folder, memory_limit=1_000, batch_size=300)
    enough = int(caught.value.remedy.split("=")[1].split(" ")[0].replace(",", ""))
    assert len(take(ActivationStore(folder, memory_limit=enough, batch_size=300), 40)) == 40
    for how in ({"batch_size": 0}, {"epochs": -1}, {"seed": -1}):
        with pytest.raises(Refusal, match=next(iter(how))):
            ActivationStore(folder, **how)
    with pytest.raises(Refusal, match="drop_last"):
        ActivationStore(numbered(5), batch_size=6, drop_last=True)
    with pytest.raises(Refusal, match="stored"):
        Tokens(10, 8, 1, 0)


# --- the writer -----------------------------------------------------------------------------------


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("all of it")
    with pytest.raises(ArtifactError, match="a new or empty folder"):
        put(tmp_path / "notes", numbered(10))
    folder = put(tmp_path / "s", numbered(100), shard_rows=40)
    for how in ({"dtype": "float32"}, {"shard_rows": 41}, {"seed": 1}):
        with pytest.raises(ArtifactError, match=next(iter(how))):
            put(folder, numbered(100), **{"shard_rows": 40} | how)
    with pytest.raises(ArtifactError, match="made"):
        ShardWriter(folder, {"made": "elsewhere"}, d_in=2, shard_rows=40)
    assert numbers(torch.cat(list(ActivationStore(folder, epochs=1)))) != []


def test_a_disk_that_is_too_small_is_said_before(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**20}))
    with pytest.raises(ArtifactError, match=r"GiB free"):
        put(tmp_path / "s", numbered(100))


KILLED = """
import torch
from saelearn.activations.shards import Tokens, ShardWriter
i_N = torch.arange(60_000)
x_ND = torch.stack([i_N % 256, i_N // 256], 1).float()
writer = ShardWriter({folder!r}, {settings!r}, d_in=2, shard_rows=700)
print("ready", flush=True)
at = 0
for i, part_ND in enumerate(x_ND.split(50), 1):
    at += len(part_ND)
    if (new := at - writer.rows) > 0:
        writer.add(part_ND[-new:], {{"batches": i}})
writer.close(Tokens(60_000, 60_000, 0, 0), {{"batches": i}})
print("done", flush=True)
"""


def test_a_writer_that_is_killed_goes_on_and_ends_with_the_same_files(tmp_path: Path) -> None:
    whole = put(tmp_path / "whole", numbered(60_000), shard_rows=700)
    folder = tmp_path / "killed"
    script = KILLED.format(settings=SETTINGS, folder=str(folder))
    rng = np.random.default_rng(0)
    for begun in (0, 25):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        until = begun + rng.integers(25)  # of 86 files
        while len(list(folder.glob("shard_*"))) < until and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert b"done" not in process.communicate()[0]
        with pytest.raises(ArtifactError):
            ActivationStore(folder)
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in folder.iterdir())
    assert all((whole / n).read_bytes() == (folder / n).read_bytes() for n in names)


def test_an_index_of_other_types_is_refused_or_says_the_same(tmp_path: Path) -> None:
    folder = put(tmp_path / "store", numbered(80))
    index = json.loads((folder / "index.json").read_text())
    rows = Shards.open(folder).rows_S
    others = [[], "x", 3, None, {}, True, 2.5, -1, 10**12, {"a": 1}, ["a"]]
    changed = [index | {name: other} for name in index for other in others]
    changed += [{n: v for n, v in index.items() if n != name} for name in index]
    refused = 0
    for value in [*others, *changed]:
        (folder / "index.json").write_text(json.dumps(value))
        try:
            assert Shards.open(folder).rows_S == rows
        except Refusal:
            refused += 1
    assert refused > len(others) + len(changed) - 4 * len(others)  # few of these mean the same


# --- one bit --------------------------------------------------------------------------------------


def flip(path: Path, byte: int, bit: int) -> None:
    whole = bytearray(path.read_bytes())
    whole[byte] ^= 1 << bit
    path.write_bytes(whole)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_one_flipped_bit_in_the_rows_is_found(tmp_path: Path, dtype: str) -> None:
    """By reading and by `verify`, in any row, also where the number stays finite and near."""
    folder = put(tmp_path / "s", numbered(500), dtype=dtype, shard_rows=200)
    rng = np.random.default_rng(0)
    for shard in range(3):
        path = folder / f"shard_{shard:05d}.safetensors"
        head = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        for byte in {head, path.stat().st_size - 1, *rng.integers(head, path.stat().st_size, 5)}:
            flip(path, byte, 0)  # the least that can change
            with pytest.raises(ArtifactError, match=r"^expected rows .* as they were written"):
                verify(folder)
            with pytest.raises(ArtifactError, match=path.name):
                list(ActivationStore(folder, epochs=1))
            flip(path, byte, 0)
    verify(folder)


def test_a_bit_is_found_in_any_block(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shards, "BLOCK_BYTES", 480)  # 20 rows of 8 bytes and 16 more
    folder = put(tmp_path / "s", numbered(130), dtype="float32", shard_rows=70)
    index = json.loads((folder / "index.json").read_text())
    assert [len(shard["crc32"]) for shard in index["shards"]] == [4, 3]
    path = folder / "shard_00001.safetensors"
    for row in (0, 19, 20, 59):
        flip(path, path.stat().st_size - 8 * (60 - row), 3)
        with pytest.raises(ArtifactError, match=r"rows (0 to 20|20 to 40|40 to 60) of"):
            verify(folder)
        flip(path, path.stat().st_size - 8 * (60 - row), 3)


def test_folders_without_checksums_are_read_as_before(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", numbered(80))
    index = json.loads((folder / "index.json").read_text())
    for shard in index["shards"]:
        del shard["crc32"]
    (folder / "index.json").write_text(json.dumps(index))
    verify(folder)
    assert len(torch.cat(list(ActivationStore(folder, epochs=1)))) == 80
