"""A language model from a folder or the hub: its weights and tokenizer, never its code."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from saelearn.errors import Refusal, brief

TINY = "tiny"
OURS = "saelearn/tiny"
"""What the course's own model is called in what is made of it."""
_DTYPES = ("float32", "bfloat16", "float16", "float64")


def load(name: str | Path, source: str | Path, *, device: str, dtype: str) -> tuple[nn.Module, Any]:
    """The model on its device, and its tokenizer (None if none comes with it).

    Args:
        name: what the user asked for, for messages.
        source: a folder, or a name on the hub.
        device, dtype: of the model.

    Raises:
        Refusal: there is no such model here, the hub cannot be reached, code would have to run,
            tensors are missing, or there is no such device or dtype.
    """
    if str(dtype).removeprefix("torch.") not in _DTYPES:
        raise Refusal(f"dtype as one of {', '.join(_DTYPES)}", brief(dtype))
    _check_device(device)
    # trust_remote_code=None would ask on a terminal, and run what the folder brings on a "y"
    how = {"trust_remote_code": False}
    how["local_files_only"] = Path(source).exists() or _unreachable(str(source))
    try:
        with _quiet_if(Path(source).exists()):
            model, report = AutoModelForCausalLM.from_pretrained(
                source, dtype=str(dtype).removeprefix("torch."), output_loading_info=True, **how
            )
    except pickle.UnpicklingError as error:
        raise Refusal(
            "weights that are nothing but tensors",
            f"{str(name)!r}: a file that would run code when it is read, or is damaged",
            "use a copy with .safetensors files, from a source that you trust",
        ) from error
    except Exception as error:  # transformers raises whatever its parts raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, which is never run here"
        if "weights_only" in str(error):
            reason = "a file that would run code when it is read, or is damaged"
        raise Refusal(
            f"a causal language model: {TINY!r}, a folder, or a name on the hub",
            f"{str(name)!r}: {reason}",
            "check the name; without network only folders and cached models can be loaded",
        ) from error
    _refuse_missing(name, report)
    return model.to(device), _tokenizer(source, how)


def _refuse_missing(name: str | Path, report: dict[str, Any]) -> None:
    """transformers fills in what is missing with random numbers, others at each loading."""
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise Refusal(
            "a folder with all of the model's tensors",
            f"{str(name)!r} without {', '.join(missing[:5])}{more}",
            "get it again; or it is a model of another kind (an encoder, a classifier)",
        )


def _tokenizer(source: str | Path, how: dict[str, Any]) -> Any:
    """The tokenizer; None if the folder has none.

    From a folder without one transformers makes an empty one, which knows its special tokens only.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **how)
    except Exception:  # whatever the tokenizer's parts raise: files missing, damaged, of others
        return None
    return tokenizer if len(tokenizer) > len(tokenizer.all_special_ids) else None


def refuse_other_kinds(model: nn.Module) -> None:
    """Refuse encoders, which see what comes later, and models of two parts."""
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        remedy = "load its decoder alone, or a causal language model"
        raise Refusal("a causal language model", f"{type(model).__name__}, in two parts", remedy)
    if getattr(config, "is_decoder", True):  # most say nothing: they are nothing else
        return
    with torch.no_grad():
        ids_BT = torch.tensor([[5, 6, 7], [5, 6, 8]], device=next(model.parameters()).device)
        one_TV, other_TV = model(ids_BT).logits
    if not torch.allclose(one_TV[:2], other_TV[:2], atol=1e-4, rtol=1e-3):
        remedy = "a bidirectional encoder cannot be read from left to right"
        raise Refusal("a model that sees only what comes before", type(model).__name__, remedy)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        there = ["cpu"]
        there += ["cuda"] if torch.cuda.is_available() else []
        there += ["mps"] if torch.backends.mps.is_available() else []
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Refusal(
            f"a device of this machine: {', '.join(there)}", f"{device!r}: {reason}"
        ) from error


def _unreachable(name: str) -> bool:
    """Whether the hub does not answer: then at once, without retries, only the cache is asked."""
    try:
        with contextlib.suppress(HfHubHTTPError):  # an answer, if no good one
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=10)
    except Exception:  # whatever the network library raises, or no name that a hub could know
        return True
    return False


@contextlib.contextmanager
def _quiet_if(local: bool) -> Iterator[None]:
    """No progress bar for what loads from a folder at once; it comes back afterwards."""
    if not local or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
