"""Make the small files by which tests/test_sae.py compares this library with SAELens.

SAELens needs an environment of its own (torch 2.13.0, sae-lens 6.54.12); saelearn needs its own,
too. From the root of the repository:

    python tests/data/make_saelens_fixture.py here     # where saelearn is installed
    python tests/data/make_saelens_fixture.py there    # where sae-lens is installed

`here` saves two SAEs with this library. `there` makes two with SAELens, and writes beside all
four, as example.safetensors, an input `x` and the features `f` and reconstruction `x_hat` that
SAELens computes from it. `there` can be run again on files that anybody saved: it prints how far
its reconstruction is from the one that is there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

DATA = Path(__file__).resolve().parent
FOLDERS = {  # name -> whether b_dec is subtracted from the input
    "saved_here": True,
    "saved_here_uncentred": False,
    "saelens_standard": True,
    "saelens_standard_uncentred": False,
}
D_IN, D_SAE, ROWS = 8, 16, 12


def weights(seed: int) -> dict[str, torch.Tensor]:
    """Random weights with every part of them different from zero."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def here() -> None:
    """Save with this library."""
    from saelearn.sae import SAE

    for seed, (name, centred) in enumerate(FOLDERS.items()):
        if name.startswith("saved_here"):
            metadata = {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post"}
            sae = SAE(D_IN, D_SAE, apply_b_dec_to_input=centred, metadata=metadata)
            sae.load_state_dict(weights(seed))
            (DATA / name / "example.safetensors").unlink(missing_ok=True)
            sae.save(DATA / name)


def there() -> None:
    """Make with SAELens, and let it compute."""
    from sae_lens import SAE, StandardSAE, StandardSAEConfig
    from safetensors.torch import load_file, save_file

    for seed, (name, centred) in enumerate(FOLDERS.items()):
        if name.startswith("saelens"):
            config = StandardSAEConfig(d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=centred)
            sae = StandardSAE(config)
            sae.load_state_dict(weights(seed))
            sae.save_model(DATA / name)
        sae = SAE.load_from_disk(DATA / name)
        x = 2 * torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(100 + seed))
        with torch.no_grad():
            f = sae.encode(x)
            result = {"x": x, "f": f, "x_hat": sae.decode(f)}
        example = DATA / name / "example.safetensors"
        if example.exists():
            change = (load_file(example)["x_hat"] - result["x_hat"]).abs().max().item()
            print(f"{name}: differs by {change:.1e}; metadata {sae.cfg.metadata.to_dict()}")
        else:
            save_file(result, example)
            print(f"{name}: written; metadata {sae.cfg.metadata.to_dict()}")


if __name__ == "__main__":
    {"here": here, "there": there}[sys.argv[1]]()
