"""Files are found, verified and written whole or not at all, whatever happens in the middle."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from saelearn import artifacts
from saelearn.errors import ArtifactError
from saelearn.sae import SAE

OLD, NEW = {"value": torch.zeros(4)}, {"value": torch.ones(4)}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def old_and_new() -> tuple[SAE, SAE]:
    """Two SAEs that can be told apart, and a half of one from a whole one."""
    saes = SAE(8, 16), SAE(8, 16)
    for value, sae in enumerate(saes, start=1):
        for parameter in sae.parameters():
            parameter.data.fill_(value)
        sae.metadata["version"] = value
    return saes


def version(folder: Path) -> int:
    """Which of the two SAEs lies there; fails if it is a mixture."""
    sae = SAE.load(folder)
    values = {v for p in sae.parameters() for v in p.flatten().tolist()}
    assert values == {float(sae.metadata["version"])}
    return sae.metadata["version"]


WRITERS: dict[str, Callable[[Path, bool], None]] = {
    "json": lambda path, new: artifacts.write_json(path, {"value": int(new)}),
    "tensors": lambda path, new: artifacts.write_tensors(path, NEW if new else OLD),
    "folder": lambda path, new: old_and_new()[new].save(path),
}
by_kind = pytest.mark.parametrize("kind", WRITERS)


@by_kind
def test_what_is_written_replaces_what_was_there_and_leaves_nothing_else(
    kind: str, tmp_path: Path
) -> None:
    WRITERS[kind](tmp_path / "deep" / "thing", False)
    before = contents(tmp_path)
    WRITERS[kind](tmp_path / "deep" / "thing", True)
    after = contents(tmp_path)
    assert set(after) == set(before) and after != before
    assert os.listdir(tmp_path / "deep") == ["thing"]


def test_json_and_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    value = {"수": [1, 2.5, None, True], "nested": {"a": "ü"}}
    artifacts.write_json(tmp_path / "a.json", value)
    assert artifacts.read_json(tmp_path / "a.json") == value
    tensors = {"x": torch.arange(6.0).reshape(2, 3).T, "y": torch.ones(2, dtype=torch.bfloat16)}
    artifacts.write_tensors(tmp_path / "a.safetensors", tensors)
    back = artifacts.read_tensors(tmp_path / "a.safetensors")
    assert set(back) == {"x", "y"}
    for name, tensor in tensors.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0)


def test_an_exception_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    for error in (KeyError("mistake"), KeyboardInterrupt()):
        with pytest.raises(type(error)), artifacts.replacing(target) as temporary:
            temporary.write_text("half of the n")
            raise error
        assert contents(tmp_path) == {"file": b"old"}


@by_kind
@pytest.mark.parametrize("place", ["save_file", "replace", "mkdtemp"])
def test_a_full_disk_leaves_the_old_and_says_what_to_do(
    kind: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[kind](tmp_path / "thing", False)
    before = contents(tmp_path)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def half_then_full(tensors: object, path: Path, **kwargs: object) -> None:
        path.write_bytes(b"half of it")
        full()

    if place == "save_file":
        monkeypatch.setattr(artifacts, "save_file", half_then_full)
        monkeypatch.setattr(artifacts.json, "dumps", full)
    elif place == "replace":
        monkeypatch.setattr(artifacts.os, "replace", full)
    else:
        monkeypatch.setattr(artifacts.tempfile, "mkdtemp", full)
    with pytest.raises(ArtifactError, match=r"(?s)No space left.*free some space"):
        WRITERS[kind](tmp_path / "thing", True)
    monkeypatch.undo()
    assert contents(tmp_path) == before


def test_a_folder_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = old_and_new()
    old.save(tmp_path / "sae")
    really = os.replace

    def replace(source: Path, target: Path) -> None:
        arriving = Path(target) == tmp_path / "sae"
        if arriving and SAE.load(source).metadata["version"] == 2:
            raise OSError(errno.EIO, "broken disk")
        really(source, target)

    monkeypatch.setattr(artifacts.os, "replace", replace)
    monkeypatch.setattr(artifacts, "exchange", lambda *_: False)  # as on most systems
    with pytest.raises(ArtifactError, match="broken disk"):
        new.save(tmp_path / "sae")
    assert version(tmp_path / "sae") == 1
    assert os.listdir(tmp_path) == ["sae"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux can")
def test_two_folders_change_places_at_once(tmp_path: Path) -> None:
    """So that a folder is there at every moment."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    assert artifacts.exchange(tmp_path / "a", tmp_path / "b")
    assert [(tmp_path / name / "file").read_text() for name in "ab"] == ["b", "a"]
    assert not artifacts.exchange(tmp_path / "a", tmp_path / "none")


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX's")
def test_a_really_limited_disk_leaves_the_old(tmp_path: Path) -> None:
    """The kernel itself refuses to let a file grow beyond 100 bytes."""
    for kind, write in WRITERS.items():
        write(tmp_path / kind, False)
    before = contents(tmp_path)
    script = (
        "import os, resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from saelearn import artifacts\n"
        "from saelearn.errors import ArtifactError\n"
        "from saelearn.sae import SAE\n"
        "os.chdir(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "for write in (\n"
        "    lambda: artifacts.write_json('json', ['long'] * 100),\n"
        "    lambda: artifacts.write_tensors('tensors', {'x': torch.ones(1000)}),\n"
        "    lambda: SAE(8, 16).save('folder'),\n"
        "):\n"
        "    try:\n"
        "        write()\n"
        "    except ArtifactError as error:\n"
        "        print('refused', error.remedy)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True
    )
    assert result.stdout.count("refused free some space") == 3, result.stderr
    assert contents(tmp_path) == before


def test_a_missing_or_forbidden_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match=r"folder you may write to"):
        artifacts.write_json(tmp_path / "file" / "a.json", 1)
    assert contents(tmp_path) == {"file": b"in the way"}


def test_a_folder_with_other_things_in_it_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "data").write_text("precious")
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, ".", "sub", "sub/..", "./sub/../sub"):
        with pytest.raises(ArtifactError, match=r"thesis\.txt|data"):
            SAE(8, 16).save(folder)
        assert contents(tmp_path) == before
    with pytest.raises(ArtifactError):
        artifacts.write_json("sub", 1)
    with pytest.raises(ArtifactError):
        SAE(8, 16).save("thesis.txt")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["old", "new", "sae.0", ".hidden", "cfg.json"])
def test_any_name_can_be_saved_to_twice(name: str, tmp_path: Path) -> None:
    for number, sae in enumerate(old_and_new(), start=1):
        sae.save(tmp_path / name)
        assert version(tmp_path / name) == number
    assert os.listdir(tmp_path) == [name]


def test_an_empty_folder_may_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "sae").mkdir()
    old_and_new()[0].save(tmp_path / "sae")
    assert version(tmp_path / "sae") == 1


SAVE_FOR_EVER = """
import os
import sys
from pathlib import Path
parent = os.getppid()
sys.path.insert(0, sys.argv[2])
from test_artifacts import old_and_new
saes = old_and_new()
print("ready", flush=True)
while os.getppid() == parent:  # a stopped test leaves nobody behind
    for sae in saes:
        sae.save(Path(sys.argv[1]))
"""


@contextlib.contextmanager
def saving(target: Path) -> Iterator[subprocess.Popen]:
    """A process that saves the two SAEs in turn, and is killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOR_EVER, target, Path(__file__).parent],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            yield process
        finally:
            process.kill()


def kill_while_saving(target: Path, after: float) -> None:
    with saving(target):
        time.sleep(after)


def check_whole(target: Path) -> None:
    """What is there is the one or the other, or, between two renames, nothing at all."""
    if target.exists():
        assert version(target) in (1, 2)
    else:
        with pytest.raises(ArtifactError):
            SAE.load(target)


def test_a_killed_writer_leaves_a_whole_sae(tmp_path: Path) -> None:
    for number, after in enumerate((0.03, 0.2)):
        target = tmp_path / f"sae{number}"
        kill_while_saving(target, after)
        check_whole(target)
        old_and_new()[1].save(target)  # and its leftovers are in nobody's way
        assert version(target) == 2


@pytest.mark.slow
def test_many_killed_writers_leave_whole_saes(tmp_path: Path) -> None:
    for number in range(60):
        kill_while_saving(tmp_path / "sae", 0.02 + 0.0037 * number)
        check_whole(tmp_path / "sae")


def test_two_writers_at_once_leave_one_whole_sae(tmp_path: Path) -> None:
    target = tmp_path / "sae"
    seen = set()
    with saving(target) as one, saving(target) as other:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            try:
                weights = artifacts.read_tensors(target / "sae_weights.safetensors")
            except ArtifactError as error:
                assert "No such file" in str(error)  # between the two renames
                continue
            values = {v for tensor in weights.values() for v in tensor.flatten().tolist()}
            assert values in ({1.0}, {2.0})
            seen |= values
        assert one.poll() is None and other.poll() is None  # neither was refused
    assert seen == {1.0, 2.0}
    check_whole(target)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a file and a folder in it, listed in its manifest."""
    artifacts.write_json(tmp_path / "numbers.json", [1, 2])
    old_and_new()[0].save(tmp_path / "sae")
    (tmp_path / "README.md").write_text("how it was made")
    artifacts.write_manifest(tmp_path)
    monkeypatch.setenv("SAELEARN_DATA", str(tmp_path))
    return tmp_path


def test_shipped_files_are_found(shipped: Path) -> None:
    assert artifacts.find("numbers.json") == shipped / "numbers.json"
    assert version(artifacts.find("sae")) == 1
    listed = json.loads((shipped / "manifest.json").read_text())
    assert set(listed) == {"numbers.json", "sae/cfg.json", "sae/sae_weights.safetensors"}
    for name, digest in listed.items():
        assert digest == hashlib.sha256((shipped / name).read_bytes()).hexdigest()


def test_tampered_and_truncated_and_missing_files_are_refused(shipped: Path) -> None:
    weights = shipped / "sae" / "sae_weights.safetensors"
    whole = weights.read_bytes()
    flipped = bytes([*whole[:-1], whole[-1] ^ 1])
    for damaged in (whole[: len(whole) // 2], flipped, b""):
        weights.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"(?s)sha256.*changed or cut.*git checkout") as e:
            artifacts.find("sae")
        assert "saelearn data" in e.value.remedy
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"(?s)no such file.*git checkout"):
        artifacts.find("sae")
    assert artifacts.find("numbers.json").exists()  # the others still can be used
    weights.write_bytes(whole)
    assert version(artifacts.find("sae")) == 1  # and it too, once it is restored


@pytest.mark.parametrize("name", ["sa", "sae/", "unknown", "../numbers.json", ""])
def test_unknown_names_are_refused_with_the_known_ones(shipped: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match=r"numbers\.json, sae"):
        artifacts.find(name)


def test_damaged_files_of_a_user_are_refused(tmp_path: Path) -> None:
    artifacts.write_tensors(tmp_path / "a", NEW)
    whole = (tmp_path / "a").read_bytes()
    for damaged in (whole[:-3], whole[:5], b"", b"\xff" * 100):
        (tmp_path / "a").write_bytes(damaged)
        with pytest.raises(ArtifactError, match="fetched or built again"):
            artifacts.read_tensors(tmp_path / "a")
        with pytest.raises(ArtifactError, match="fetched or built again"):
            artifacts.read_json(tmp_path / "a")
    with pytest.raises(ArtifactError, match="No such file"):
        artifacts.read_json(tmp_path / "b")


@pytest.mark.parametrize("listed", [[], "text", 3, None, {"a": 3}, {"a": ["b"]}])
def test_a_manifest_of_another_kind_is_refused(
    listed: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(listed))
    monkeypatch.setenv("SAELEARN_DATA", str(tmp_path))
    with pytest.raises(ArtifactError, match="manifest"):
        artifacts.find("a")
