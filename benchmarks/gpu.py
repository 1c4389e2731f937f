"""The training step on a GPU: sparse and dense, against the peers and against the GPU's own limit.

    python -m benchmarks.gpu --json [--train 20000000] [--disk 8] [--out gpu.json]

d_in 768, d_sae 24,576, batches of 8,192 rows that are on the GPU already, in bf16. A dense L1 step
counts 10 B D F operations; the limit is the largest bf16 product measured in the same run. All ways
start from the same weights, whose biases give each feature its frequency; the learning rate is so
small that it stays. Each is timed by events of the GPU, in turns, the median of the rounds counts.
SAELens runs with autocast and torch.compile, sparsify with its own kernels, where installed.

With `--train`, whole trainings on planted features, the way chosen at each step or dense, in bf16
and fp32, and how many features each finds; with `--disk`, trainings on rows of the GPU and from
shards on disk, in three ways, beside the step alone and plain reading.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.peers import Problem
from saelearn import artifacts
from saelearn.activations import ActivationStore
from saelearn.activations.room import READERS
from saelearn.activations.shards import ShardWriter, Tokens
from saelearn.sae import AT_FULL, L1, SAE, Squared, TopK
from saelearn.toy import PlantedFeatures
from saelearn.train import Adam, engine_for, step, train
from saelearn.train.fast import Plan, SparseL1, gpu

B, D, F = 8_192, 768, 24_576
SIZES = {
    "gpt2": (B, D, F),
    "gemma-2-2b": (4_096, 2_304, 65_536),
    "llama-3-8b": (4_096, 4_096, 131_072),
}
L0S = (25, 50, 120, 250)
SPARSE, DENSE = Plan("triton", 1.1), Plan("triton", 0.0)
TRIED = [
    *({"feature_warps": w, "at_once": j} for w, j in ((1, 2), (1, 4), (2, 2), (2, 8), (4, 4))),
    {"words": 32, "turned": 4}, {"rows": 32, "columns": 256}, {"decode_warps": 2}, {"chunk": 128},
]  # fmt: skip
"""Of `gpu.Tiles`, what else was tried."""
Step = Callable[[], object]


def seconds(ways: dict[str, Step], *, rounds: int = 5, n: int = 12) -> dict[str, float]:
    """Of one call of each: all take turns, the median of the rounds' means counts."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        for _ in range(4):
            way()
    for _ in range(rounds):
        for name, way in ways.items():
            way()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(n):
                way()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) / 1_000 / n)
    return {name: statistics.median(t) for name, t in times.items()}


def product_flops() -> float:
    """Operations a second of the best bf16 product: the encoder's size and a large square."""
    best = 0.0
    for m, k, n in ((B, D, F), (8_192, 8_192, 8_192)):
        a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        b = torch.randn(k, n, device="cuda", dtype=torch.bfloat16)
        best = max(best, 2 * m * k * n / seconds({"": lambda a=a, b=b: a @ b})[""])
    return best


def copied() -> float:
    """Bytes a second that a plain copy reads and writes."""
    a = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.numel() / seconds({"": lambda: b.copy_(a)})[""]


def problem(l0: float, *, skewed: bool = False, size: str = "gpt2") -> Problem:
    """Weights of which `l0` features are active in a row; if skewed, some far more often."""
    rows, width, features = SIZES[size]
    made = Problem.make(rows, width, features, l0 / features, n=2)
    if skewed:  # frequencies over three decades, one feature in 55 % of the rows
        share_F = torch.exp(torch.randn(features, generator=torch.Generator().manual_seed(1)) * 1.5)
        share_F = (share_F * l0 / share_F.sum()).clamp(max=0.5).double()
        share_F[features // 2] = 0.55
        made.b_enc_F.copy_(torch.special.ndtri(share_F).float())
    return Problem(*(t.cuda() for t in (made.x_NBD, made.W_enc_DF, made.b_enc_F, made.W_dec_FD,
                                        made.b_dec_D)), made.l0)  # fmt: skip


def ours(
    problem: Problem, precision: str, plan: Plan | None, *, k: int | None = None,
    engine_kind: type | None = None, **more,
) -> Step:  # fmt: skip
    """What `train` does in a step."""
    shape = problem.W_enc_DF.shape
    sae = (TopK(*shape, k=k) if k else SAE(*shape)).to("cuda")
    sae.load_state_dict(problem.weights())
    objective = Squared() if k else L1(problem.l1)
    kind = engine_kind or type(engine_for(sae, objective, device="cuda", precision=precision))
    engine = kind(plan, precision=precision, **more)
    adam, following = Adam(sae.parameters(), lr=problem.lr), problem.batches()

    def one() -> object:
        return step(sae, following(), adam, objective, engine=engine)

    one.engine = engine
    return one


def sae_lens(problem: Problem, *, k: int | None = None) -> Step:
    """SAELens' trainer with autocast, its forward pass compiled."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    shape = dict(zip(("d_in", "d_sae"), problem.W_enc_DF.shape, strict=True)) | {"device": "cuda"}
    if k:
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(k=k, **shape))
    else:
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(l1_coefficient=problem.l1, **shape))
    sae.load_state_dict(problem.weights())
    sae.training_forward_pass = torch.compile(sae.training_forward_pass)
    trainer_config = SAETrainerConfig(
        total_training_samples=10**10, train_batch_size_samples=problem.x_NBD.shape[1],
        lr=problem.lr, lr_end=problem.lr, autocast=True, device="cuda",
    )  # fmt: skip
    trainer, following = (
        SAETrainer(cfg=trainer_config, sae=sae, data_provider=iter([])),
        problem.batches(),
    )
    return lambda: trainer.step(following())


def sparsify(problem: Problem, k: int) -> Step:
    """EleutherAI's TopK coder, its own kernels, under autocast as its trainer runs it."""
    from sparsify import SparseCoder, SparseCoderConfig

    width, features = problem.W_enc_DF.shape
    sae = SparseCoder(width, SparseCoderConfig(num_latents=features, k=k), device="cuda",
                      dtype=torch.float32)  # fmt: skip
    with torch.no_grad():
        sae.encoder.weight.copy_(problem.W_enc_DF.T)
        sae.encoder.bias.copy_(problem.b_enc_F)
        sae.W_dec.copy_(problem.W_dec_FD)
    optimizer = torch.optim.Adam(sae.parameters(), lr=problem.lr, fused=True)
    following = problem.batches()

    def one() -> None:
        sae.set_decoder_norm_to_unit_norm()
        with torch.autocast("cuda", torch.bfloat16):
            fvu = sae(following()).fvu
        fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return one


def added(ways: dict[str, Step], name: str, package: str, make: Callable[[], Step]) -> None:
    """A peer among the ways, if it is installed and runs here; else why not, said aloud."""
    if not machine.version(package):
        return
    try:
        way = make()
        way()
        ways[name] = way
    except Exception as error:
        print(f"{name} is left out: {error!r:.300}", file=sys.stderr, flush=True)


def kernel_times(way: Step, *, n: int = 10) -> dict[str, float]:
    """Milliseconds a step of each kernel on the GPU, the slowest first."""
    way()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(n):
            way()
        torch.cuda.synchronize()
    times = {e.key[:60]: e.self_device_time_total / 1_000 / n for e in profile.key_averages()}
    return {
        name: round(t, 4) for name, t in sorted(times.items(), key=lambda p: -p[1]) if t > 0.002
    }


def measure_steps(limit: float, *, peers: bool) -> list[dict]:
    """Every density, even and skewed: seconds, share of the limit, ratios."""
    found = []
    for l0, skewed in [*((l0, False) for l0 in L0S), (50, True), (120, True), (F // 2, False)]:
        given = problem(l0, skewed=skewed)
        ways = {"sparse": ours(given, "bf16", SPARSE), "dense": ours(given, "bf16", DENSE)}
        if l0 > F // 10:  # the lists would be slow: only what is chosen
            ways["sparse"] = ours(given, "bf16", None)
        if l0 == 50 and not skewed:
            ways |= {
                f"{way} {precision}": ours(given, precision, plan)
                for way, plan in (("sparse", SPARSE), ("dense", DENSE))
                for precision in ("fp32", "tf32")
            }
        if peers and not skewed:
            added(ways, "sae_lens", "sae-lens", lambda given=given: sae_lens(given))
        times = seconds(ways)
        seen = ways["sparse"]()
        rows = {name: round(B / t) for name, t in times.items()}
        best = min(times["sparse"], times["dense"])
        found.append({
            "l0": round(float(seen.count_F.sum()) / B, 1), "skewed": skewed,
            "most_frequent": round(float(seen.count_F.max()) / B, 3),
            "ms": {name: round(1_000 * t, 3) for name, t in times.items()}, "rows_per_s": rows,
            "chosen": ours_choice(given),
            "share_of_limit": {
                n: round(10 * B * D * F / times[n] / limit, 3) for n in ("sparse", "dense")
            },
            "ratio_sae_lens": round(times["sae_lens"] / best, 2) if "sae_lens" in times else None,
        })  # fmt: skip
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        del ways, given
        torch.cuda.empty_cache()
    return found


def ours_choice(given: Problem) -> str:
    """Which way the engine takes by itself."""
    way = ours(given, "bf16", None)
    for _ in range(gpu.AGO + 1):
        way()
    return way.engine.way


def measure_topk(k: int = 50) -> dict[str, float]:
    """TopK's step: ours, SAELens', sparsify's; milliseconds."""
    given = problem(k).unbiased()
    ways = {"saelearn": ours(given, "bf16", None, k=k)}
    added(ways, "sae_lens", "sae-lens", lambda: sae_lens(given, k=k))
    added(ways, "sparsify", "eai-sparsify", lambda: sparsify(given, k))
    return {name: round(1_000 * t, 3) for name, t in seconds(ways).items()}


def measure_sizes(limit: float) -> dict[str, dict]:
    """Larger models, where they fit; L0 50."""
    found = {}
    for size in list(SIZES)[1:]:
        torch.cuda.empty_cache()
        rows, width, features = SIZES[size]
        try:
            given = problem(50, size=size)
            times = seconds({"sparse": ours(given, "bf16", SPARSE)}, rounds=3, n=5)
            times |= seconds({"dense": ours(given, "bf16", DENSE)}, rounds=3, n=5)
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            found[size] = {"left out": str(error).splitlines()[0]}
            continue
        share = {n: round(10 * rows * width * features / t / limit, 3) for n, t in times.items()}
        ms = {n: round(1_000 * t, 3) for n, t in times.items()}
        found[size] = {"shape": SIZES[size], "ms": ms, "share_of_limit": share}
        del given
    return found


def agreement() -> dict[str, float]:
    """Relative difference of the gradient from the CPU's in fp32, for each precision and way."""
    x_BD = torch.randn(512, D)
    found = {}
    for precision in ("fp32", "tf32", "bf16"):
        for name, plan in (("sparse", SPARSE), ("dense", DENSE)):
            torch.manual_seed(0)
            sae = SAE(D, 4_096)
            sae.b_enc.data -= 2 * sae.W_enc.norm(dim=0).mean()
            SparseL1(Plan("plain", 0.0))(sae, x_BD, L1(1.0), AT_FULL)
            right = torch.cat([p.grad.flatten() for p in sae.parameters()])
            there = sae.to("cuda")
            gpu.GpuL1(plan, precision=precision)(there, x_BD.cuda(), L1(1.0), AT_FULL)
            gradient = torch.cat([p.grad.flatten().cpu() for p in there.parameters()])
            found[f"{name} {precision}"] = float((gradient - right).norm() / right.norm())
    return found


def planted(n: int, features: int, active: float) -> tuple[Tensor, Iterator[Tensor]]:
    """Directions, and rows in which about `active` of them are on, drawn on the GPU.

    The i-th most frequent is on 1 / i as often as the first, as words are, but for those that
    would be on more than once a row: of 8,192 with `active` = 20 the first two are on in every row,
    some 19 in a row together, and the last in one of 3,900. Some are found, others missed.
    """
    directions_GD = PlantedFeatures.make(features, D).directions_GD.cuda()
    share_G = 1 / torch.arange(1, features + 1, device="cuda")
    share_G = (share_G * active / share_G.sum()).clamp(max=1)
    generator = torch.Generator("cuda").manual_seed(0)

    def rows() -> Iterator[Tensor]:
        while True:
            on_BG = torch.rand(n, features, generator=generator, device="cuda") < share_G
            size_BG = torch.rand(n, features, generator=generator, device="cuda") + 0.5
            yield (size_BG * on_BG) @ directions_GD

    return directions_GD, rows()


def trainings(
    rows: int, *, n_planted: int = 8_192, active: float = 20.0, lambdas: Sequence[float] = (2.0,),
    ways: Sequence[str] = ("chosen bf16", "dense bf16", "chosen fp32", "dense fp32"),
    seeds: Sequence[int] = (0, 1),
) -> dict[str, dict]:  # fmt: skip
    """Whole trainings on planted features: seconds, the end, and how many features were found."""
    directions_GD, stream = planted(4_096, n_planted, active)
    x_ND = filled(rows, stream)
    found: dict[str, dict] = {}
    for name, seed, l1_coefficient in itertools.product(ways, seeds, lambdas):
        way, precision = name.split()
        started = time.perf_counter()
        trained = train(
            x_ND, n_planted, l1_coefficient=l1_coefficient, steps=rows // 4_096, batch_size=4_096,
            device="cuda", precision=precision, plan=None if way == "chosen" else DENSE,
            seed=seed, log_every=200, progress=False,
        )  # fmt: skip
        took = time.perf_counter() - started
        W_dec_FD = torch.nn.functional.normalize(trained.sae.W_dec.detach().cuda())
        cosine_G = torch.cat([(d_D @ W_dec_FD.T).amax(1) for d_D in directions_GD.split(1_024)])
        every = max(1, len(trained.history) // 20)
        name = f"{name}, lambda {l1_coefficient:g}, seed {seed}"
        found[name] = {
            "seconds": round(took, 1), "found": int((cosine_G > 0.9).sum()), "of": n_planted,
            **{key: round(trained.column(key)[-1], 4) for key in ("loss", "l0", "dead")},
            "curve": [round(loss, 3) for loss in trained.column("loss")[::every]],
        }  # fmt: skip
        print(name, found[name], file=sys.stderr, flush=True)
    return found


def filled(rows: int, stream: Iterator[Tensor]) -> Tensor:
    """So many rows of a stream, in bf16 on the GPU."""
    x_ND = torch.empty(rows, D, device="cuda", dtype=torch.bfloat16)
    for part_BD in x_ND.split(4_096):
        part_BD.copy_(next(stream)[: len(part_BD)])
    return x_ND


def from_disk(gigabytes: float) -> dict[str, object]:
    """Trainings of 20 million rows or two epochs in bf16: of a tensor on the GPU; and of shards on
    disk, read in windows of 2 GB that stay on the GPU, take turns there, or are fetched from the
    CPU.

    Milliseconds a step: of the whole call to `train`; in the first epoch, from its first record on;
    and later. Beside them the step alone at the same L0, which a training has only later, and plain
    reading of a batch's bytes from the same files.
    """
    rows = int(gigabytes * 1e9 / (2 * D)) // 65_536 * 65_536
    steps = max(20_000_000, 2 * rows) // B
    how = {
        "l1_coefficient": 5.0, "batch_size": B, "l1_warmup": 0.0, "device": "cuda",
        "precision": "bf16", "progress": False,
    }  # fmt: skip
    x_ND = filled(rows, planted(4_096, 8_192, 20.0)[1])
    train(x_ND, F, steps=40, **how)  # compiles
    found: dict[str, object] = {"gigabytes": gigabytes, "steps": steps}
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(folder, {"rows": "made up"}, d_in=D, dtype="bfloat16")
        for number, part_ND in enumerate(x_ND.split(65_536)):
            writer.add(part_ND, {"batches": number})
        writer.close(Tokens(rows, rows, 0, 0), {"batches": number})
        found["read_ms"] = round(B / rows * 1_000 * plain_reading(Path(folder)), 3)
        store = ActivationStore(folder, batch_size=B, memory_limit=2**32)
        found["windows"] = store.windows
        del x_ND, part_ND
        ways: dict[str, Callable[[], Tensor | Fetched | ActivationStore]] = {
            "on_gpu": partial(filled, rows, planted(4_096, 8_192, 20.0)[1]),
            "stays": lambda: store,
            "turns": lambda: store.on_device("cuda", 2**32 + 2**26),
            "fetched": partial(Fetched, store),
        }
        for name, data in ways.items():
            found[name] = paced(data(), steps, rows // B, how)
            print(name, found[name], file=sys.stderr, flush=True)
            torch.cuda.empty_cache()
    found["l0"] = found["on_gpu"]["l0"]
    step_ms = 1_000 * seconds({"": ours(problem(max(1.0, found["l0"])), "bf16", None)})[""]
    found["step_ms"] = round(step_ms, 3)
    for name in ways:
        found[name]["share_of_step"] = round(step_ms / found[name]["later_ms"], 3)
        share = found["on_gpu"]["whole_ms"] / found[name]["whole_ms"]
        found[name]["share_of_on_gpu"] = round(share, 3)
    return found


class Fetched:
    """A store that no GPU asks for room: a processor gathers its batches."""

    finite = fresh = True

    def __init__(self, store: ActivationStore):
        self._store = store

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._store)


def paced(
    data: Tensor | Fetched | ActivationStore, steps: int, epoch: int, how: dict
) -> dict[str, float]:
    """A training's milliseconds a step, as a whole, and in its first epoch and later ones."""
    at: dict[int, float] = {}

    def watch(record: dict, so_far: Callable) -> None:
        torch.cuda.synchronize()
        at[record["step"]] = time.perf_counter()

    began = time.perf_counter()
    trained = train(data, F, steps=steps, log_every=max(1, epoch // 8), callback=watch, **how)
    torch.cuda.synchronize()
    found = {"whole_ms": (time.perf_counter() - began) / steps}
    for name, part in (
        ("first_ms", sorted(n for n in at if n <= epoch)),
        ("later_ms", sorted(n for n in at if n > epoch)),
    ):
        if len(part) > 1:
            found[name] = (at[part[-1]] - at[part[0]]) / (part[-1] - part[0])
    found = {key: round(1_000 * value, 3) for key, value in found.items()}
    return found | {"l0": round(trained.column("l0")[-1], 1)}


def plain_reading(folder: Path) -> float:
    """Seconds to read all files of a folder, a mebibyte at a time into one buffer each.

    As a training reads them: files that were just written come from the system's cache.
    """

    def read(path: Path) -> None:
        room = bytearray(2**20)
        with path.open("rb", buffering=0) as file:
            while file.readinto(room):
                pass

    started = time.perf_counter()
    with ThreadPoolExecutor(READERS) as readers:
        list(readers.map(read, folder.glob("*.safetensors")))
    return time.perf_counter() - started


def tune() -> list[dict]:
    """Sizes of blocks, one changed at a time, at L0 50 and 250."""
    found = []
    for l0 in (50, 250):
        given, usual = problem(l0), gpu.Tiles()
        tried = {"usual": usual}
        for fields in TRIED:
            tried[" ".join(f"{n}={v}" for n, v in fields.items())] = usual._replace(**fields)
        times = {}
        for name, tiles in tried.items():
            times[name] = round(
                1_000 * seconds({"": ours(given, "bf16", SPARSE, tiles=tiles)}, rounds=3)[""], 4
            )
        found.append({"l0": l0, "ms": times})
    return found


def record(report: dict) -> dict:
    """What the course shows of a report."""
    steps = [
        {"l0": s["l0"], "ms": {n: s["ms"][n] for n in ("sparse", "dense", "sae_lens")}}
        for s in report["steps"]
        if not s["skewed"] and s["l0"] < F // 10 and "sae_lens" in s["ms"]
    ]
    return {
        "gpu": report["machine"]["gpu"], "date": report["date"], "shape": [B, D, F],
        "limit_ms": report["dense_limit_ms"], "steps": steps,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--train", type=int, default=0, help="rows of whole trainings")
    parser.add_argument("--disk", type=float, default=0, help="gigabytes of activations on disk")
    parser.add_argument("--tune", action="store_true", help="sizes of blocks")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--out", type=Path, help="where the figures go, too")
    parser.add_argument("--write", action="store_true", help="keep the steps in data/gpu.json")
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("benchmarks.gpu: expected a CUDA GPU, found none on this machine", file=sys.stderr)
        return 1
    started, limit = time.perf_counter(), product_flops()
    report = {
        "machine": machine.describe() | {"gpu": torch.cuda.get_device_name()},
        "date": datetime.date.today().isoformat(),
        "bf16_product_tflops": round(limit / 1e12, 1),
        "copy_tb_per_s": round(copied() / 1e12, 2),
        "dense_limit_ms": round(10 * B * D * F / limit * 1_000, 3),
    }

    def add(name: str, part: object) -> None:
        report[name] = part
        print(name, round(time.perf_counter() - started), "s", file=sys.stderr, flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(report, indent=1), "utf-8")
        torch.cuda.empty_cache()

    add("agreement_with_cpu_fp32", agreement())
    peers = not arguments.no_peers
    add("steps", measure_steps(limit, peers=peers))
    add("topk_ms", measure_topk())
    if arguments.disk:
        add("from_disk", from_disk(arguments.disk))
    if arguments.train:
        add("trainings", trainings(arguments.train))
    add("kernels_ms", {l0: kernel_times(ours(problem(l0), "bf16", SPARSE)) for l0 in (50, 250)})
    add("kernels_ms_dense", kernel_times(ours(problem(50), "bf16", DENSE)))
    add("sizes", measure_sizes(limit))
    if arguments.tune:
        add("tiles", tune())
    add("peak_memory_gb", round(torch.cuda.max_memory_allocated() / 2**30, 2))
    if arguments.write:
        artifacts.write_json(artifacts.data_dir() / "gpu.json", record(report))
        artifacts.write_manifest(artifacts.data_dir())
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
