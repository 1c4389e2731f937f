"""Make the small files by which the tests compare this library with SAELens.

SAELens needs an environment of its own (torch 2.13.0, sae-lens 6.54.12); saelearn needs its own,
too. From the root of the repository:

    python tests/data/make_saelens_fixture.py here     # where saelearn is installed
    python tests/data/make_saelens_fixture.py there    # where sae-lens is installed

`here` saves SAEs of every architecture with this library. `there` makes some with SAELens, and
writes beside all of them, as example.safetensors, an input `x` and the features `f` and the
reconstruction `x_hat` that SAELens computes from it. `there` can be run again on files that anybody
saved: it prints how far its reconstruction is from the one that is there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

DATA = Path(__file__).resolve().parent
D_IN, D_SAE, D_OUT, K, ROWS = 8, 16, 6, 3, 12
ABOUT = {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post"}

HERE: dict[str, tuple[str, dict[str, Any]]] = {  # folder -> class, its arguments
    "saved_here": ("SAE", {}),
    "saved_here_uncentred": ("SAE", {"apply_b_dec_to_input": False}),
    "saved_here_topk": ("TopK", {"k": K}),
    "saved_here_batchtopk": ("BatchTopK", {"k": K}),
    "saved_here_jumprelu": ("JumpReLU", {}),
    "saved_here_gated": ("Gated", {}),
    "saved_here_transcoder": ("Transcoder", {"d_out": D_OUT}),
    "saved_here_skip_transcoder": ("SkipTranscoder", {"d_out": D_OUT}),
    "saved_here_jumprelu_transcoder": ("JumpReLUTranscoder", {"d_out": D_OUT}),
    "saved_here_matching_pursuit": ("MatchingPursuit", {"max_iterations": 5}),
    "saved_here_jumprelu_skip_transcoder": ("JumpReLUSkipTranscoder", {"d_out": D_OUT}),
}
TRANSCODER = {"d_out": D_OUT, "apply_b_dec_to_input": False}
THERE: dict[str, tuple[str, dict[str, Any]]] = {
    "saelens_standard": ("StandardSAE", {}),
    "saelens_standard_uncentred": ("StandardSAE", {"apply_b_dec_to_input": False}),
    "saelens_topk": ("TopKSAE", {"k": K}),
    "saelens_topk_rescaled": ("TopKSAE", {"k": K, "rescale_acts_by_decoder_norm": True}),
    "saelens_batchtopk": ("BatchTopKTrainingSAE", {"k": K}),
    "saelens_matryoshka": (
        "MatryoshkaBatchTopKTrainingSAE",
        {"k": K, "matryoshka_widths": [4, 16]},
    ),
    "saelens_jumprelu": ("JumpReLUSAE", {}),
    "saelens_gated": ("GatedSAE", {}),
    "saelens_transcoder": ("Transcoder", TRANSCODER),
    "saelens_skip_transcoder": ("SkipTranscoder", TRANSCODER),
    "saelens_jumprelu_transcoder": ("JumpReLUTranscoder", TRANSCODER),
    "saelens_jumprelu_skip_transcoder": ("JumpReLUSkipTranscoder", TRANSCODER),
    "saelens_matching_pursuit": (
        "MatchingPursuitSAE",
        {"residual_threshold": 1.5, "apply_b_dec_to_input": False},
    ),
    "saelens_abstopk": ("AbsTopKSAE", {"k": K, "rescale_acts_by_decoder_norm": True}),
    "saelens_topk_layer_norm": ("TopKSAE", {"k": K, "normalize_activations": "layer_norm"}),
    "saelens_constant_norm": (
        "StandardSAE",
        {"normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False},
    ),
    "saelens_jumprelu_hook_z": ("JumpReLUSAE", {"reshape_activations": "hook_z"}),
}


def fill(sae: torch.nn.Module, seed: int) -> None:
    """Random numbers in every part; features 0 and 1 never active, 2 and 3 nearly always."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(sae.state_dict(keep_vars=True).items()):
            value.copy_(torch.randn(value.shape, generator=generator))
            if "threshold" in name:
                value.abs_()
            if name in ("b_enc", "b_gate", "b_mag"):
                value[:2], value[2:4] = -100, 9
        if "Pursuit" in type(sae).__name__:  # which goes up and up if its rows are long
            sae.W_dec.copy_(sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True))
            sae.W_dec[:2] *= 1e-3


def here() -> None:
    """Save with this library."""
    from saelearn import sae as room

    for seed, (name, (kind, arguments)) in enumerate(HERE.items()):
        if (DATA / name).exists():  # what an earlier version has written is to be read by all later
            continue
        sae = getattr(room, kind)(D_IN, D_SAE, metadata=ABOUT, **arguments)
        fill(sae, seed)
        sae.save(DATA / name)


def there() -> None:
    """Make with SAELens, and let it compute."""
    import sae_lens
    from safetensors.torch import load_file, save_file

    for seed, (name, (kind, arguments)) in enumerate(THERE.items()):
        if (DATA / name).exists():
            continue
        config = getattr(sae_lens, f"{kind}Config")(d_in=D_IN, d_sae=D_SAE, **arguments)
        sae = getattr(sae_lens, kind)(config)
        fill(sae, 50 + seed)
        save = sae.save_inference_model if "Training" in kind else sae.save_model
        save(DATA / name)
    for seed, name in enumerate([*HERE, *THERE]):
        sae = sae_lens.SAE.load_from_disk(DATA / name)
        sae.turn_off_forward_pass_hook_z_reshaping()  # rows here are flat
        example = DATA / name / "example.safetensors"
        x = 2 * torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(100 + seed))
        if example.exists():
            x = load_file(example)["x"]
        with torch.no_grad():
            result = {"x": x, "f": sae.encode(x).to_dense(), "x_hat": sae(x)}
        if example.exists():
            change = (load_file(example)["x_hat"] - result["x_hat"]).abs().max().item()
            print(f"{name}: differs by {change:.1e}; metadata {sae.cfg.metadata.to_dict()}")
        else:
            save_file(result, example)
            print(f"{name}: written; metadata {sae.cfg.metadata.to_dict()}")


if __name__ == "__main__":
    {"here": here, "there": there}[sys.argv[1]]()
