"""Make the small files by which the tests compare this library with others than today's SAELens.

Each needs an environment of its own. From the root of the repository:

    python tests/data/make_published_fixture.py saelens
    python tests/data/make_published_fixture.py dictionary_learning     # its version 0.1.0, einops
    python tests/data/make_published_fixture.py documented    # numpy, torch

The first is for sae-lens 2.1.3, 3.22.2, 4.4.5 and 5.11.0, one after the other. It and the second
make files with the original library and let it compute; the third writes Gemma Scope's and OpenAI's
files by their published layout, and computes by the published equations. Beside each lies
example.safetensors: an input `x`, features `f`, the reconstruction `x_hat`.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_saelens_fixture import D_IN, D_SAE, DATA, ROWS, K, fill
from safetensors.torch import save_file
from torch import Tensor

PLACE = {"model_name": "gpt2-small", "hook_name": "blocks.1.hook_resid_pre", "context_size": 64,
         "prepend_bos": True, "dataset_path": "some/text"}  # fmt: skip


def example(folder: Path, seed: int, compute: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Write what the original computes."""
    x = 2 * torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(seed)) + 0.5
    with torch.no_grad():
        f, x_hat = (value.detach().contiguous() for value in compute(x))
    save_file({"x": x, "f": f, "x_hat": x_hat}, folder / "example.safetensors")
    print(f"{folder.name}: {len(list(folder.iterdir()))} files, L0 {(f > 0).sum(1).float().mean()}")


# --- SAELens before version 6 ---------------------------------------------------------------------

OLD: dict[str, tuple[str, dict[str, Any]]] = {  # folder -> version, its settings
    "saelens2_standard": ("2", {}),
    "saelens2_scaled": ("2", {"apply_b_dec_to_input": False}),
    "saelens3_standard": ("3", {"architecture": "standard"}),
    "saelens3_topk": ("3", {
        "architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K},
    }),
    "saelens3_gated": ("3", {"architecture": "gated"}),
    "saelens3_jumprelu": ("3", {"architecture": "jumprelu", "apply_b_dec_to_input": False}),
    "saelens3_scaled": ("3", {"architecture": "standard", "finetuning_scaling_factor": True}),
    "saelens3_layer_norm": ("3", {
        "architecture": "jumprelu", "normalize_activations": "layer_norm",
    }),
    "saelens5_topk": ("5", {
        "architecture": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K},
        "normalize_activations": "layer_norm",
    }),
    "saelens5_constant_norm": ("5", {
        "architecture": "standard", "normalize_activations": "constant_norm_rescale",
    }),
    "saelens4_gated": ("4", {"architecture": "gated", "hook_name": "blocks.1.hook_mlp_out"}),
}  # fmt: skip


def saelens() -> None:
    """With the version that is installed."""
    import sae_lens

    major = sae_lens.__version__.split(".")[0]
    for seed, (name, (version, settings)) in enumerate(OLD.items()):
        if version != major or (DATA / name).exists():
            continue
        sae = _version_2(sae_lens, settings) if major == "2" else _later(sae_lens, settings)
        fill(sae, 200 + seed)
        if hasattr(sae, "scaling_factor") and not name.endswith("scaled"):
            sae.scaling_factor.data.fill_(1.0)
        (DATA / name).mkdir(exist_ok=True)
        sparsity = torch.full((D_SAE,), -2.0)
        sae.save_model(str(DATA / name), sparsity)
        example(DATA / name, 300 + seed, lambda x, sae=sae: _of(sae, x))


def _of(sae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    f = sae.encode(x)
    return f, sae.decode(f)


def _version_2(sae_lens: Any, settings: dict[str, Any]) -> Any:
    about = {"hook_point": PLACE["hook_name"], "hook_point_layer": 1} | PLACE
    about.pop("hook_name")
    sys.modules["wandb"].util.generate_id = lambda: "run"  # it names a run, whether there is one
    cfg = sae_lens.LanguageModelSAERunnerConfig(
        d_in=D_IN, expansion_factor=D_SAE // D_IN, log_to_wandb=False, verbose=False,
        device="cpu", dtype="torch.float32", **about, **settings,
    )  # fmt: skip
    cfg.checkpoint_path = "checkpoints"  # it draws one
    return sae_lens.SparseAutoencoder(cfg)


def _later(sae_lens: Any, settings: dict[str, Any]) -> Any:
    common = {"d_in": D_IN, "d_sae": D_SAE, "activation_fn_str": "relu", "dtype": "float32",
              "apply_b_dec_to_input": True, "finetuning_scaling_factor": False, "hook_layer": 1,
              "hook_head_index": None, "normalize_activations": "none", "device": "cpu",
              "dataset_trust_remote_code": True}  # fmt: skip
    training = {"sae_lens_training_version": sae_lens.__version__}
    return sae_lens.SAE(sae_lens.SAEConfig(**common | training | PLACE | settings))


# --- dictionary_learning --------------------------------------------------------------------------


def dictionary_learning() -> None:
    """With dictionary-learning 0.1.0: settings are those that its trainers write."""
    absent = types.ModuleType("nnsight")  # only its buffer of a model's activations needs it
    absent.LanguageModel = object
    sys.modules.setdefault("nnsight", absent)
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k as batch
    from dictionary_learning.trainers import gdm, jumprelu, standard, top_k
    from dictionary_learning.trainers import matryoshka_batch_top_k as nested

    common = {"activation_dim": D_IN, "dict_size": D_SAE, "layer": 3, "steps": 9_999,
              "lm_name": "EleutherAI/pythia-70m-deduped", "device": "cpu",
              "warmup_steps": 1}  # fmt: skip
    trainers = {
        "standard": lambda: standard.StandardTrainer(**common),
        "new": lambda: standard.StandardTrainerAprilUpdate(
            dict_class=dictionary.AutoEncoderNew, **common
        ),
        "gated": lambda: gdm.GatedSAETrainer(**common),
        "topk": lambda: top_k.TopKTrainer(k=K, **common),
        "batchtopk": lambda: batch.BatchTopKTrainer(k=K, **common),
        "matryoshka": lambda: nested.MatryoshkaBatchTopKTrainer(
            k=K, group_fractions=[0.25, 0.75], **common
        ),
        "jumprelu": lambda: jumprelu.JumpReluTrainer(**common),
    }
    for seed, (name, make) in enumerate(trainers.items()):
        trainer = make()
        weights = {n: t for n, t in trainer.ae.state_dict(keep_vars=True).items()
                   if n not in ("k", "group_sizes")}  # fmt: skip
        _fill(weights, 400 + seed)
        folder = DATA / f"dictionary_learning_{name}"
        folder.mkdir(exist_ok=True)
        torch.save(trainer.ae.state_dict(), folder / "ae.pt")
        config = {"trainer": trainer.config, "buffer": {"ctx_len": 128, "d_submodule": D_IN}}
        if name == "new":  # this trainer writes AutoEncoder, whichever class it was given
            config["trainer"]["dict_class"] = "AutoEncoderNew"
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        example(folder, 500 + seed, lambda x, ae=trainer.ae: _of(ae, x))


def _fill(weights: dict[str, Tensor], seed: int) -> None:
    """Random numbers in every part; features 0 and 1 never active, 2 and 3 nearly always."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(weights.items()):
            value.copy_(torch.randn(value.shape, generator=generator))
            if "threshold" in name:
                value.abs_()
            if name in ("encoder.bias", "b_enc", "gate_bias", "mag_bias", "latent_bias"):
                value[:2], value[2:4] = -100, 9


# --- by their published layout --------------------------------------------------------------------


def documented() -> None:
    """Gemma Scope's params.npz, OpenAI's .pt."""
    _gemma_scope()
    for seed, activation in enumerate(("ReLU", "TopK")):
        _openai(activation, 620 + seed)


def _gemma_scope() -> None:
    shapes = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,),
              "threshold": (D_SAE,)}  # fmt: skip
    w = {name: torch.empty(shape) for name, shape in shapes.items()}
    _fill(w, 600)
    folder = DATA / "gemma_scope" / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in w.items()})

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = x @ w["W_enc"] + w["b_enc"]
        f = torch.where(pre > w["threshold"], pre, 0.0).relu()
        return f, f @ w["W_dec"] + w["b_dec"]

    example(folder, 610, compute)


def _openai(activation: str, seed: int) -> None:
    shapes = {"encoder.weight": (D_SAE, D_IN), "latent_bias": (D_SAE,), "pre_bias": (D_IN,),
              "decoder.weight": (D_IN, D_SAE)}  # fmt: skip
    w = {name: torch.empty(shape) for name, shape in shapes.items()}
    _fill(w, seed)
    folder = DATA / f"openai_{activation.lower()}"
    folder.mkdir(exist_ok=True)
    how = {"k": K, "postact_fn": "ReLU"} if activation == "TopK" else {}
    seen = {"stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long)}
    told = {"activation": activation, "activation_state_dict": how}
    torch.save(w | seen | told, folder / "7.pt")

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = torch.zeros(1), torch.ones(1)
        if activation == "TopK":
            mean = x.mean(1, keepdim=True)
            std = (x - mean).std(1, keepdim=True)
            x = (x - mean) / (std + 1e-5)
        pre = (x - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
        if activation == "TopK":
            kept = pre.topk(K, dim=1)
            pre = torch.zeros_like(pre).scatter(1, kept.indices, kept.values)
        f = pre.relu()
        return f, (f @ w["decoder.weight"].T + w["pre_bias"]) * std + mean

    example(folder, 630 + seed, compute)


if __name__ == "__main__":
    makers = {"saelens": saelens, "dictionary_learning": dictionary_learning}
    (makers | {"documented": documented})[sys.argv[1]]()
