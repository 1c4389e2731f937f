"""SAEs by name from the Hugging Face hub, `owner/repository/folder`, kept in its cache.

What is said to be there is fetched once, after its size was told; without a network what was
fetched before is used.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from saelearn.errors import Refusal

WANTED = ("cfg.json", "sae_weights.safetensors", "activation_scaler.json", "params.npz",
          "params.safetensors", "config.json", "*.pt")  # fmt: skip
"""Files that some format reads; all else that lies beside them stays where it is."""
TIMEOUT = 10  # seconds until the hub counts as out of reach


class _Name(NamedTuple):
    """`owner/repository/folder` in its parts; `file` is set if the name is a file's."""

    repository: str
    folder: str
    file: str = ""


def fetch(name: str, *, revision: str | None = None) -> Path:
    """The local copy of a folder or file on the hub.

    Args:
        name: `owner/repository`, `owner/repository/folder`, or a file in one.
        revision: a branch, tag or commit; the main branch by default.

    Raises:
        Refusal: no such name, or not for everybody; or no network, and it is not in the cache.
    """
    asked = _split(name)
    try:
        commit, sizes = _listed(asked, revision)
    except GatedRepoError as error:
        remedy = "accept its conditions on its page, then `hf auth login`"
        raise Refusal("a repository that is open to you", repr(name), remedy) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        what = f"{name!r} at {revision!r}" if revision else repr(name)
        remedy = "check owner, repository, folder and revision on its page"
        raise Refusal("an SAE that is on the hub", f"{what}: no such place", remedy) from error
    except HFValidationError as error:
        raise Refusal("hub:owner/repository/folder", repr(name)) from error
    except Exception as error:  # whatever the network library raises, or the hub when it is ill
        return _kept(asked, name, revision, error)
    pickles = [path for path in sizes if path.endswith(".pt")]
    if not sizes or len(pickles) > 1:
        told = f"{name!r}, with {', '.join(pickles[:5]) or 'none of them'}"
        raise Refusal(f"one SAE there: {', '.join(WANTED)}", told, "name its folder, or its .pt")
    _tell(name, asked, commit, sizes)
    try:  # the branch, not the commit: so the cache knows it without a network
        paths = [Path(HfApi().hf_hub_download(asked.repository, p, revision=revision))
                 for p in sorted(sizes)]  # fmt: skip
    except Exception as error:
        return _kept(asked, name, revision, error)
    (folder, *others) = {path.parent for path in paths}
    if others:
        raise Refusal("a repository that stays as it is meanwhile", repr(name), "try again")
    return folder / asked.file


def _split(name: str) -> _Name:
    parts = PurePosixPath(name).parts
    if len(parts) < 2 or ".." in parts or parts[0] == "/":
        raise Refusal("hub:owner/repository/folder", repr(name))
    *inner, last = ("", *parts[2:])
    is_file = PurePosixPath(last).suffix in (".pt", ".npz") or last == "params.safetensors"
    folder = "/".join(inner[1:] if is_file else parts[2:])
    return _Name("/".join(parts[:2]), folder, last if is_file else "")


def _listed(asked: _Name, revision: str | None) -> tuple[str, dict[str, int]]:
    """The commit, and the sizes in bytes of the wanted files of a folder by their paths."""
    api = HfApi()
    found = api.repo_info(asked.repository, revision=revision, timeout=TIMEOUT)
    tree = api.list_repo_tree(asked.repository, asked.folder or None, revision=found.sha)
    files = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    wanted = {path: size for path, size in files.items() if _is_wanted(path, asked)}
    if asked.file and not any(PurePosixPath(path).name == asked.file for path in wanted):
        raise EntryNotFoundError(asked.file)
    return found.sha, wanted


def _is_wanted(path: str, asked: _Name) -> bool:
    name = PurePosixPath(path).name
    if asked.file:
        return name in (asked.file, "config.json")
    return any(fnmatch(name, pattern) for pattern in WANTED)


def _tell(name: str, asked: _Name, commit: str, sizes: dict[str, int]) -> None:
    """How much is going to be fetched, if it is not there already."""
    missing = [
        size
        for path, size in sizes.items()
        if not isinstance(try_to_load_from_cache(asked.repository, path, revision=commit), str)
    ]
    if missing:
        print(f"{name}: {sum(missing) / 1e6:,.1f} MB to fetch into {constants.HF_HUB_CACHE}")


def _kept(asked: _Name, name: str, revision: str | None, error: Exception) -> Path:
    """What an earlier call has fetched."""
    try:
        root = HfApi().snapshot_download(asked.repository, revision=revision, local_files_only=True)
        there = Path(root) / asked.folder / asked.file
        if there.is_file() or any(there.iterdir()):
            return there
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass
    reason = (str(error).strip() or "no answer").splitlines()[0]
    answered = isinstance(error, HfHubHTTPError)
    raise Refusal(
        "the hub, or an SAE that was fetched before",
        f"{name!r}, not in {constants.HF_HUB_CACHE}; {'the hub said' if answered else 'offline'}: "
        f"{reason}",
        "connect to the network once, or give the path of a folder",
    ) from error
