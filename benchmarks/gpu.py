"""Training on a GPU: throughput against SAELens and against the GPU's own limit, and agreement.

    python -m benchmarks.gpu --json [--tokens 100000000] [--out curves.json]

d_in 768, d_sae 24,576, batches of 8,192 rows that are on the GPU already. A dense L1 step counts
10 B D F operations; the limit is the largest bf16 product of the same size, measured in the same
run. SAELens runs with autocast and torch.compile. With `--tokens`, two whole trainings follow,
fp32 and bf16 from the same start on the same rows, with their loss curves.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import machine
from saelearn.sae import AT_FULL, L1, SAE
from saelearn.toy import PlantedFeatures
from saelearn.train import step, train
from saelearn.train.fast import Plan, SparseL1

B, D, F = 8_192, 768, 24_576
DENSE = Plan("plain", 0.0)


def seconds(way: Callable[[], object], *, n: int = 30) -> float:
    """Of one call: the GPU works ahead, so it is waited for before and after."""
    for _ in range(5):
        way()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(n):
        way()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / n


def product_flops() -> float:
    """Operations a second of the best bf16 product: the encoder's size and a large square."""
    best = 0.0
    for m, k, n in ((B, D, F), (8_192, 8_192, 8_192)):
        a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        b = torch.randn(k, n, device="cuda", dtype=torch.bfloat16)
        best = max(best, 2 * m * k * n / seconds(lambda a=a, b=b: a @ b))
    return best


def ours(x_BD: Tensor, precision: str, compile: bool) -> Callable[[], object]:
    sae = SAE(D, F).to("cuda")
    adam = torch.optim.Adam(sae.parameters(), lr=1e-5, fused=True)
    engine = SparseL1(DENSE, precision=precision, compile=compile)
    return lambda: step(sae, x_BD, adam, L1(1.0), engine=engine)


def sae_lens(x_BD: Tensor) -> Callable[[], object]:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = StandardTrainingSAEConfig(d_in=D, d_sae=F, l1_coefficient=1.0, device="cuda")
    sae = StandardTrainingSAE(config)
    sae.training_forward_pass = torch.compile(sae.training_forward_pass)
    trainer_config = SAETrainerConfig(
        total_training_samples=10**10, train_batch_size_samples=B, lr=1e-5, lr_end=1e-5,
        autocast=True, device="cuda",
    )  # fmt: skip
    trainer = SAETrainer(cfg=trainer_config, sae=sae, data_provider=iter([]))
    return lambda: trainer.step(x_BD)


def agreement() -> dict[str, float]:
    """Relative difference of the gradient from the CPU's in fp32, for each precision."""
    x_BD = torch.randn(512, D)
    found = {}
    for device, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16")):
        sae = SAE(D, 4_096).to(device)
        SparseL1(DENSE, precision=precision)(sae, x_BD.to(device), L1(1.0), AT_FULL)
        found[device, precision] = torch.cat([p.grad.flatten().cpu() for p in sae.parameters()])
    right = found["cpu", "fp32"]
    return {
        precision: float((gradient - right).norm() / right.norm())
        for (device, precision), gradient in found.items()
        if device == "cuda"
    }


def rows() -> Iterator[Tensor]:
    """Planted features, 30 of 12,288 on, drawn on the GPU."""
    directions_GD = PlantedFeatures.make(12_288, D).directions_GD.cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    while True:
        on_BG = torch.rand(B, 12_288, generator=generator, device="cuda") < 30 / 12_288
        yield (torch.rand(B, 12_288, generator=generator, device="cuda") * on_BG) @ directions_GD


def curves(tokens: int) -> dict[str, list]:
    """Loss, L0 and dead features of a whole training, in fp32 and in bf16."""
    found = {}
    for precision in ("fp32", "bf16"):
        started = time.perf_counter()
        trained = train(
            rows(), F, l1_coefficient=5.0, steps=tokens // B, lr=3e-4, device="cuda",
            precision=precision, log_every=100, progress=False,
        )  # fmt: skip
        found[precision] = {
            "seconds": round(time.perf_counter() - started, 1),
            **{name: trained.column(name) for name in ("step", "loss", "l0", "dead")},
        }
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--tokens", type=int, default=0, help="of two whole trainings")
    parser.add_argument("--out", type=Path, help="where the curves go")
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("benchmarks.gpu: expected a CUDA GPU, found none on this machine", file=sys.stderr)
        return 1
    limit, x_BD = product_flops(), torch.randn(B, D, device="cuda")
    ways = {f"saelearn {p}{' compiled' * c}": ours(x_BD, p, c)
            for p in ("fp32", "bf16") for c in (False, True)}  # fmt: skip
    if machine.version("sae-lens"):
        ways["sae_lens bf16 compiled"] = sae_lens(x_BD)
    times = {name: seconds(way) for name, way in ways.items()}
    best = min(t for name, t in times.items() if name.startswith("saelearn bf16"))
    report = {
        "machine": machine.describe() | {"gpu": torch.cuda.get_device_name()},
        "rows_per_s": {name: round(B / t) for name, t in times.items()},
        "bf16_product_tflops": round(limit / 1e12, 1),
        "share_of_limit": round(10 * B * D * F / best / limit, 3),
        "agreement_with_cpu_fp32": agreement(),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }
    if "sae_lens bf16 compiled" in times:
        report["ratio"] = {"sae_lens": round(times["sae_lens bf16 compiled"] / best, 2)}
    if arguments.tokens:
        report["curves"] = curves(arguments.tokens)
        if arguments.out:
            arguments.out.write_text(json.dumps(report["curves"]), "utf-8")
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
