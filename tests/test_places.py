"""Where things are put: links are followed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from saelearn import artifacts
from saelearn.sae import SAE, load


@pytest.mark.skipif(os.name == "nt", reason="making links needs a right there")
def test_a_link_goes_on_leading_where_it_led(tmp_path: Path) -> None:
    """An SAE, a file of JSON, tensors: what is replaced is what the link leads to."""
    (tmp_path / "elsewhere").mkdir()
    for name, write in (
        ("sae", lambda path: SAE(3, 4, seed=1).save(path)),
        ("text", lambda path: artifacts.write_json(path, {"a": 1})),
        ("numbers", lambda path: artifacts.write_tensors(path, {"a": torch.ones(2)})),
    ):
        real, link = tmp_path / "elsewhere" / name, tmp_path / name
        link.symlink_to(real)  # first it leads nowhere, then to an earlier version
        for _ in range(2):
            write(link)
            assert link.is_symlink() and link.readlink() == real and real.exists()
    assert torch.equal(load(tmp_path / "sae").W_dec, SAE(3, 4, seed=1).W_dec)
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == ["numbers", "sae", "text"]
