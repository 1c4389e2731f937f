"""What a large harvest takes: text into tokens, tokens into rows of several sites, loss recovered.

`python -m benchmarks.scale --json` measures each on something small, in a process of its own, and
says what that comes to for `--tokens` of a 768-wide model at 12 sites. Times are of the processor,
so a busy machine slows them less. The text is made up and the model's weights are drawn.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks import machine

LENGTH = 128
WIDTH, LAYERS = 768, 12
BYTES = 2  # of a number on disk, in half precision


def peak() -> float:
    """The most memory that this process has had, in GB; Linux counts in KiB, macOS in bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used * (1 if sys.platform == "darwin" else 1_024) / 1e9


def seconds(way: Callable[[], object], rounds: int = 3) -> float:
    """Of the processor, the best of some rounds."""
    way()
    found = []
    for _ in range(rounds):
        start = time.process_time()
        way()
        found.append(time.process_time() - start)
    return min(found)


def gpt2(layers: int, width: int):
    """A model of GPT-2's shape, with drawn weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from saelearn.lm import LM

    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64)
    return LM(GPT2LMHeadModel(config))


def made_up(path: Path, megabytes: float) -> list[str]:
    """Lines of words, the n-th word as common as 1 / n; returns some of them."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randrange(2, 10))) for _ in range(20_000)]
    weights = [1 / n for n in range(1, 1 + len(words))]
    lines = [" ".join(rng.choices(words, weights, k=200)) + ".\n" for _ in range(2_000)]
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            file.write(rng.choice(lines))
    return lines[:300]


def measure_chunk(folder: str, megabytes: float) -> dict:
    """Text from a file into documents: speed, and memory beyond the result."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from saelearn.activations import chunk

    path = Path(folder) / "text.txt"
    lines = made_up(path, megabytes)
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=16_000, special_tokens=["<end>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(lines, trainer)
    lm = gpt2(1, 64)
    lm.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<end>", eos_token="<end>"
    )
    chunk(lm, "".join(lines), length=LENGTH)
    before, start = peak(), time.process_time()
    tokens_NT = chunk(lm, path, length=LENGTH)
    spent, result = time.process_time() - start, tokens_NT.nbytes / 1e9
    return {
        "megabytes": path.stat().st_size / 1e6,
        "tokens": tokens_NT.numel(),
        "megabytes_per_s": path.stat().st_size / 1e6 / spent,
        "result_gb": result,
        "beyond_result_gb": max(0.0, peak() - before - result),
    }


def measure_passes(folder: str, documents: int, width: int) -> dict:
    """Tokens a second: one site, twelve in one pass, twelve onto the disk, the tenth of thirty."""
    from saelearn.activations import write_all

    lm, deep = gpt2(LAYERS, width), gpt2(30, 64)
    tokens_NT = torch.randint(50_000, (documents, LENGTH))
    sites = lm.residual_sites()
    half, tenth = sites[LAYERS // 2 - 1 :][:1], deep.residual_sites()[9:10]
    ways = {
        "to_the_middle": lambda: lm.capture(tokens_NT, half),
        "twelve_sites": lambda: lm.capture(tokens_NT, sites),
        "tenth_of_thirty": lambda: deep.capture(tokens_NT, tenth),
        "all_thirty": lambda: deep.capture(tokens_NT, deep.residual_sites()[-1:]),
        "thirty_and_logits": lambda: deep.logits(tokens_NT),
    }
    found = {name: tokens_NT.numel() / seconds(way) for name, way in ways.items()}
    folders = {site: Path(folder) / site.replace(":", "_") for site in sites}
    start = time.process_time()
    write_all(lm, tokens_NT, folders, pass_size=documents, shard_rows=4_096)
    found["twelve_sites_to_disk"] = tokens_NT.numel() / (time.process_time() - start)
    return {"tokens_per_s": found, "peak_gb": peak()}


def measure_loss(documents: int, layers: int, ablation: str) -> dict:
    """Loss recovered, its KL beside it, of an SAE with drawn weights: the memory that it takes."""
    from saelearn.activations import measure_loss_recovered
    from saelearn.sae import SAE

    lm, sae = gpt2(layers, WIDTH), SAE(WIDTH, 4 * WIDTH)
    site = lm.residual_sites()[layers // 2]
    tokens_NT = torch.randint(50_000, (documents, LENGTH))
    before, start = peak(), time.process_time()
    measured = measure_loss_recovered(lm, sae, site, tokens_NT, ablation_name=ablation)
    return {
        "tokens": tokens_NT.numel(),
        "layers": layers,
        "ablation": ablation,
        "peak_gb": peak(),
        "before_gb": before,
        "seconds": time.process_time() - start,
        "kl": measured.kl,
    }


def plan(tokens: float, sites: int, tokens_per_s: float, megabytes_per_s: float) -> dict:
    """What so many tokens take: each row once on disk at each site, read by one pass."""
    rows = tokens * (LENGTH - 1) / LENGTH
    return {
        "tokens": tokens,
        "sites": sites,
        "disk_tb": rows * WIDTH * BYTES * sites / 1e12,
        "text_gb": tokens * 4 / 1e9,  # of English, 4 characters a token
        "tokenizing_hours": tokens * 4 / 1e6 / megabytes_per_s / 3_600,
        "documents": tokens / LENGTH,
        "model_runs": 1,
        "core_days": tokens / tokens_per_s / 86_400,
        "writers_memory_gb": sites * 2**28 / 1e9,
        "reader_memory_gb": 2**30 / 1e9,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print nothing but one JSON object")
    parser.add_argument("--parts", nargs="+", default=["chunk", "passes", "loss"])
    parser.add_argument("--megabytes", type=float, default=200, help="of made-up text")
    parser.add_argument("--documents", type=int, default=8, help="of 128 tokens, for the passes")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the model, for the passes")
    parser.add_argument("--loss-documents", type=int, default=128)
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the model, for the loss")
    parser.add_argument("--ablation", default="mean")
    parser.add_argument("--tokens", type=float, default=5e8, help="that a harvest is planned for")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        parts = {
            "chunk": (measure_chunk, folder, arguments.megabytes),
            "passes": (measure_passes, folder, arguments.documents, arguments.width),
            "loss": (
                measure_loss, arguments.loss_documents, arguments.layers, arguments.ablation,
            ),
        }  # fmt: skip
        found = {"machine": machine.describe()}
        for name in arguments.parts:  # each in a process of its own, that had no memory before
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                found[name] = process.submit(*parts[name]).result()
    if {"chunk", "passes"} <= found.keys():
        rate = found["passes"]["tokens_per_s"]["twelve_sites_to_disk"]
        found["plan"] = plan(arguments.tokens, 12, rate, found["chunk"]["megabytes_per_s"])
    print(json.dumps(found) if arguments.json else json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
