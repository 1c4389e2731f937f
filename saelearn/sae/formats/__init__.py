"""Whose files an SAE can come in: one file for each format, and the hub that many lie on.

A format says which paths it `recognises` and how to `read` one, in the terms that `described`
holds all to. Another one is another entry of `FORMATS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from saelearn.errors import ArtifactError, Refusal
from saelearn.sae.formats import dictionary_learning, gemma_scope, openai, saelens
from saelearn.sae.formats.described import WRONG, Published, check_settings, check_weights
from saelearn.sae.formats.saelens import BY_ROW, CONFIG_FILE, WEIGHTS_FILE

HUB = "hub:"
"""How the name of an SAE on the hub begins."""


class Format(NamedTuple):
    """A way in which SAEs are published.

    Args:
        name: whose it is.
        files: what marks it, in words.
        recognises: whether a path is of it, from the names of its files alone.
        read: (path, scale) -> `Published`.
    """

    name: str
    files: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, float | None], Published]


FORMATS = [
    Format("SAELens", "cfg.json and sae_weights.safetensors", saelens.recognises, saelens.read),
    Format("Gemma Scope", "params.npz or .safetensors", gemma_scope.recognises, gemma_scope.read),
    Format(
        "dictionary_learning", "ae.pt and config.json",
        dictionary_learning.recognises, dictionary_learning.read,
    ),
    Format("OpenAI", "one other .pt file", openai.recognises, openai.read),
]  # fmt: skip


def read(
    path: str | os.PathLike, *, scale: float | None = None, revision: str | None = None
) -> Published:
    """What a file, a folder, or a folder on the hub holds.

    Args:
        path: where it lies; `hub:owner/repository/folder` on the hub.
        scale: what the activations were multiplied by in training, for files that need it and do
            not say.
        revision: of a repository on the hub: a branch, tag or commit.

    Raises:
        ArtifactError: a file is missing, damaged, or would run code.
        Refusal: nothing that is known lies there, or something that it holds cannot be read
            without changing what it computes; the hub cannot be reached.
    """
    if isinstance(path, str) and path.startswith(HUB):
        from saelearn.sae.formats import hub  # which takes long to import, and most SAEs lie here

        path = hub.fetch(path.removeprefix(HUB), revision=revision)
    elif revision is not None:
        raise Refusal("no revision for what lies here", repr(revision), "hub:owner/repo/folder")
    try:
        path = Path(path)
        there = path.exists()
    except (TypeError, ValueError, OSError) as error:
        raise Refusal("a path of an SAE, or hub:owner/repo/folder", repr(path)) from error
    if not there:
        raise ArtifactError(f"an SAE at {path}", "No such file or directory", "check the path")
    fitting = [format for format in FORMATS if format.recognises(path)]
    if len(fitting) == 1:
        return fitting[0].read(path, scale)
    known = "; ".join(f"{format.files} ({format.name})" for format in FORMATS)
    if fitting:
        names = " and ".join(format.name for format in fitting)
        raise Refusal("an SAE in one format", f"{names} in {path}", "name its file, or part them")
    held = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else [path.name]
    raise ArtifactError(f"an SAE: {known}", f"{path} with {', '.join(held) or 'No such file'}")


__all__ = [
    "BY_ROW", "CONFIG_FILE", "FORMATS", "WEIGHTS_FILE", "WRONG", "Format", "Published",
    "check_settings", "check_weights", "read",
]  # fmt: skip
