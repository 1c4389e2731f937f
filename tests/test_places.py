"""Where things are put: links are followed, homes may be read-only, full disks lose nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from saelearn import artifacts, progress
from saelearn.sae import SAE, load
from saelearn.train import train


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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, as a user without rights")
@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root becomes another user")
def test_a_home_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch) -> None:
    """As a user to whom nothing belongs, in a folder that cannot be written, umask 077."""
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("SAELEARN_CACHE", "/nonexistent/cache")
    x_ND = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    how = {"l1_coefficient": 0.1, "steps": 3, "batch_size": 64, "progress": False}
    expected = train(x_ND, 16, **how)  # and imports what is imported late
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.umask(0o077)
            os.chdir("/")
            trained = train(x_ND, 16, **how)
            progress.keep("02", "exercise", 1)
            code = 0 if torch.equal(trained.sae.W_dec, expected.sae.W_dec) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
