"""The commands as a person types them."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from servers import printed_address, start_kernel, stop, wait_for

import saelearn
from saelearn import artifacts, course, metrics
from saelearn.cli import commands as cli
from saelearn.cli import jobs
from saelearn.errors import Refusal
from saelearn.sae import SAE, load
from saelearn.tiny import build
from saelearn.toy import PlantedFeatures
from saelearn.train import checkpoint, train


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "saelearn.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_help_names_every_command_and_is_quick():
    start = time.perf_counter()
    done = run("--help")
    assert time.perf_counter() - start < 1.0  # torch alone takes longer
    assert done.returncode == 0
    for command in ("lab", "train", "student", "release", "grade", "report", "doctor", "data"):
        assert re.search(rf"(?m)^ +{command} ", done.stdout)


def test_version():
    assert run("--version").stdout.strip() == f"saelearn {saelearn.__version__}"
    assert importlib.metadata.version("saelearn") == saelearn.__version__


def test_doctor():
    done = run("doctor")
    assert done.returncode == 0, done.stdout
    assert "Against the CPU in float64" in done.stdout


def test_student(tmp_path):
    done = run("student", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == sorted(path.name for path in course.lessons() + course.pages())


def test_a_refusal_is_three_lines_and_not_a_traceback(tmp_path):
    (tmp_path / "file").touch()
    done = run("student", "--out", str(tmp_path / "file" / "out"))
    assert done.returncode == 1
    assert done.stderr.startswith("saelearn student: expected")
    assert "Traceback" not in done.stderr


def test_data_builds_what_is_named_and_refuses_what_is_unknown(monkeypatch, capsys, tmp_path):
    built = []
    steps = {name: build.Step(built.append, 0.1, f"a {name}") for name in ("toy", "model")}
    monkeypatch.setattr(build, "STEPS", steps)
    monkeypatch.setenv("SAELEARN_DATA", str(tmp_path))
    assert cli.main(["data", "--list"]) == 0
    assert "a model" in capsys.readouterr().out
    assert not built
    assert cli.main(["data", "model"]) == 0
    assert cli.main(["data"]) == 0
    assert built == [tmp_path] * 3
    assert cli.main(["data", "nonsense"]) == 1
    assert "toy, model" in capsys.readouterr().err
    assert len(built) == 3


# --- train ----------------------------------------------------------------------------------------

SMALL = ["--d-sae", "32", "--batch-size", "64", "--l1", "0.3", "--quiet"]


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Planted features in a .npy, and the folder it lies in as the working one."""
    toy = PlantedFeatures.make(24, 16, 0.1)
    x_ND = toy.sample(4_000, generator=torch.Generator().manual_seed(0))[0]
    np.save(tmp_path / "x.npy", x_ND.numpy())
    monkeypatch.chdir(tmp_path)
    return x_ND


def test_train_help_says_how_to_use_several_processes():
    start = time.perf_counter()
    done = run("train", "--help")
    assert time.perf_counter() - start < 1.0
    assert done.returncode == 0
    assert "torchrun --nproc-per-node 2 -m saelearn.cli train" in re.sub(r"\s+", " ", done.stdout)


def test_train_is_train_and_its_report_is_true(rows, tmp_path, capsys):
    """Equal to the library's call; the report is computed once more, from what was saved."""
    assert (
        cli.main(["train", "--activations", "x.npy", "--out", "out", "--steps", "50", *SMALL]) == 0
    )
    printed = capsys.readouterr().out
    kept, held_out = rows[:-200], rows[-200:]  # one row in twenty is held out
    direct = train(kept, 32, l1_coefficient=0.3, steps=50, batch_size=64, progress=False)
    saved = SAE.load("out")
    for ours, theirs in zip(saved.parameters(), direct.sae.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    output = saved(held_out)
    l0, explained = metrics.l0(output.f), metrics.explained_variance(held_out, output.x_hat)
    assert f"on 200 rows held out: L0 {l0:.1f}, explained variance {explained:.3f}" in printed
    assert re.search(r"data +3,800 rows of width 16, each used about 0\.8 times", printed)
    assert re.search(r"memory +\S+ .B \(weights 4\.29 kB, .*moments 8\.58 kB", printed)
    assert re.search(r"time +about 0:00:\d\d more, at \S+ steps a second", printed)
    assert saved.metadata["saelearn"]["report"]["l0"] == pytest.approx(l0)
    assert saved.metadata["l1_coefficient"] == 0.3 and saved.metadata["scale"] == direct.scale
    assert len(artifacts.read_json("out.history.json")) == 50
    assert {p.name for p in tmp_path.iterdir()} == {"x.npy", "out", "out.history.json"}


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["topk", "--k", "4"], "TopK"),
        (["batchtopk", "--k", "4"], "JumpReLU"),
        (["jumprelu", "--target-l0", "4"], "JumpReLU"),
        (["gated"], "Gated"),
    ],
)
def test_train_other_kinds(words, kind, rows):
    command = ["train", "--activations", "x.npy", "--out", "out", "--steps", "20", "--kind", *words]
    assert cli.main([*command, *SMALL]) == 0
    assert type(load("out")).__name__ == kind
    assert cli.main([*command, *SMALL]) == 0  # finished before


def test_train_again_is_done_at_once_and_another_is_refused(rows, capsys, monkeypatch):
    command = ["train", "--activations", "x.npy", "--out", "out", "--steps", "20", *SMALL]
    assert cli.main(command) == 0
    before = artifacts.sha256(cli.Path("out/sae_weights.safetensors"))
    monkeypatch.setattr(jobs, "train", lambda *_, **__: pytest.fail("trained again"))
    assert cli.main(command) == 0
    assert "finished before" in capsys.readouterr().out
    assert cli.main([*command, "--seed", "1"]) == 1
    assert "SAE made otherwise" in capsys.readouterr().err
    np.save("x.npy", rows.numpy() + 1)
    assert cli.main(command) == 1  # the same name, other numbers
    cli.Path("mine").mkdir()
    assert cli.main(["train", "--activations", "x.npy", "--out", "mine", *SMALL]) == 1
    assert artifacts.sha256(cli.Path("out/sae_weights.safetensors")) == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--activations", "none.npy"], "No such file"),
        (["--activations", "x.txt"], r"\.npy, \.safetensors"),
        (["--activations", "broken.npy"], "readable array"),
        (["--activations", "two.safetensors"], "one tensor"),
        (["--activations", "flat.npy"], r"\[N, D\]"),
        (["--activations", "x.npy", "--l1", "-1"], "l1_coefficient"),
        (["--activations", "x.npy", "--precision", "fp8"], "fp32, tf32, bf16"),
        (["--activations", "x.npy", "--kind", "topk"], "--k for topk"),
        (["--activations", "x.npy", "--kind", "transformer"], "standard, topk"),
        (["--activations", "x.npy", "--d-sae", "100000000"], "free memory.*d_sae="),
        (["--activations", "x.npy", "--device", "tpu"], "cpu, cuda, mps"),
        (["--activations", "empty"], "index.json|store|folder"),
        (["--site", "nowhere"], "a site of this model"),
        (["--model", "nowhere"], "language model"),
        (["--text", "none.txt"], "readable text"),
    ],
)
def test_train_refuses_in_words(more, words, rows, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.txt").touch()
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY and no more")
    np.save("flat.npy", rows.numpy().ravel())
    artifacts.write_tensors("two.safetensors", {"a": rows, "b": rows + 1})
    assert cli.main(["train", "--out", "out", "--steps", "5", *SMALL, *more]) == 1
    assert re.search(f"(?s){words}", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_train_reads_safetensors_and_half_precision(rows):
    artifacts.write_tensors("x.safetensors", {"x_ND": rows.half()})
    np.save("half.npy", rows.half().numpy())
    for name in ("x.safetensors", "half.npy"):
        command = ["train", "--activations", name, "--out", f"{name}.sae", "--steps", "20"]
        assert cli.main([*command, *SMALL]) == 0
    a, b = (SAE.load(f"{name}.sae").W_dec for name in ("x.safetensors", "half.npy"))
    assert torch.equal(a, b)


def test_train_on_the_courses_model_and_on_a_text(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = ["train", "--steps", "6", *SMALL]
    assert cli.main([*common, "--out", "corpus", "--documents", "60"]) == 0
    assert "3,591 rows of width 128" in capsys.readouterr().out  # 60 * 63, one in twenty held out
    about = SAE.load("corpus").metadata
    assert about["model_name"] == "saelearn/tiny" and about["site"] == "transformer.h.1:out"
    assert about["hook_name"] == "blocks.1.hook_resid_post"
    assert (
        "max_norm" not in about
        and cli.main(
            [
                *common,
                "--out",
                "near",
                "--documents",
                "60",
                "--max-norm",
                "2",
                "--leave-tokens",
                "5",
            ]
        )
        == 0
    )
    assert "3,591 rows" not in capsys.readouterr().out
    near = SAE.load("near").metadata
    assert near["leave_tokens"] == [5] and near["max_norm"] == 2
    docs = " ".join(d.text for d in jobs.job_data.corpus.documents(40))
    cli.Path("text.txt").write_text(docs, "utf-8")
    assert cli.main([*common, "--out", "text", "--text", "text.txt", "--length", "32"]) == 0
    assert SAE.load("text").d_in == 128


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_train_asked_to_end_keeps_what_there_is_and_goes_on(number, code, rows, tmp_path, capsys):
    """Ended in the middle and called again: the same bits as if never ended."""
    command = ["train", "--activations", "x.npy", "--steps", "600", "--resample-at", "0.5", *SMALL]
    start = [sys.executable, "-m", "saelearn.cli", *command, "--out", "out"]
    process = subprocess.Popen(start, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("time"):
            process.send_signal(number)
            break
    rest = process.stdout.read()
    assert process.wait() == code
    assert "the same command goes on from there" in rest and not (tmp_path / "out").exists()
    step = checkpoint.load("out.checkpoint").record["step"]
    assert 0 < step < 600 and f"stopped after step {step:,}" in rest
    assert cli.main([*command, "--out", "out"]) == 0
    assert "goes on  from its checkpoint" in capsys.readouterr().out
    assert cli.main([*command, "--out", "whole"]) == 0
    assert "goes on" not in capsys.readouterr().out
    for ours, theirs in zip(
        SAE.load("out").parameters(), SAE.load("whole").parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("text", "steps"), [("500", 500), ("90s", 90.0), ("0.5s", 0.5)])
def test_steps_or_seconds(text, steps):
    value = cli.steps_or_seconds(text)
    assert (value if isinstance(value, int) else value.total_seconds()) == steps


def test_a_taken_port_is_passed_over():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.free_port(port) > port
        with pytest.raises(Refusal, match="--port"):
            cli.free_port(port, tries=1)


@pytest.mark.parametrize(
    ("cores", "said", "threads"), [(2, None, "1"), (4, "3", "3"), (8, None, None)]
)
def test_a_lab_on_few_cores_computes_with_one_thread(cores, said, threads, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    for name, value in (("OMP_NUM_THREADS", said), ("OMP_WAIT_POLICY", None)):
        monkeypatch.setenv(name, "to be put back")
        os.environ.pop(name)
        if value:
            os.environ[name] = value
    cli._share_cores()
    assert os.environ.get("OMP_NUM_THREADS") == threads
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


def test_two_labs_that_start_at_once_take_different_ports():
    """Neither listens yet when the other looks."""
    (first, claim), (second, other) = cli.claimed_port(), cli.claimed_port()
    with claim, other:
        assert first != second
        with pytest.raises(Refusal, match="no lab has"):
            cli.claimed_port(first)
    port, claim = cli.claimed_port(first)  # free again
    claim.close()
    assert port == first


@pytest.mark.parametrize("port", ["80000", "0", "-1", "65536"])
def test_what_is_no_port_is_refused_before_anything_is_written(port, tmp_path, capsys):
    assert cli.main(["lab", "--port", port, "--folder", str(tmp_path / "mine")]) == 1
    assert "--port between 1 and 65535" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_lab_serves_the_first_lesson_on_loopback_with_a_token(tmp_path):
    """The user's own settings, which would take the token away, do not matter."""
    home = tmp_path / "home"
    (home / ".jupyter").mkdir(parents=True)
    (home / ".jupyter" / "jupyter_server_config.py").write_text(
        "c.IdentityProvider.token = ''\nc.ServerApp.ip = '0.0.0.0'\n"
    )
    drop = {"DISPLAY", "WAYLAND_DISPLAY", "JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR"}
    environment = {k: v for k, v in os.environ.items() if k not in drop} | {"HOME": str(home)}
    folder, log = tmp_path / "mine", tmp_path / "log"
    command = [sys.executable, "-m", "saelearn.cli", "lab", "--folder", str(folder)]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        address = printed_address(process, log)
        assert address.startswith("http://127.0.0.1:")
        page = wait_for(address, process, log).decode()
        assert "JupyterLab" in page
        server = address.partition("/lab")[0]
        lesson = re.search(r"/lab/tree/(.*)\?", address)[1]
        assert lesson.startswith(("00_", "02_"))
        token = address.partition("token=")[2]
        api = f"{server}/api/contents/{lesson}?content=0"
        assert lesson in wait_for(f"{api}&token={token}", process, log).decode()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(api)
        api = f"{server}/lab/api/settings?token={token}"
        known = {s["id"]: s for s in json.loads(wait_for(api, process, log))["settings"]}
        news = known["@jupyterlab/apputils-extension:notification"]["schema"]["properties"]
        assert news["fetchNews"]["default"] == "false"  # no question about news
        assert not list((home / ".jupyter").glob("lab/**/*.jupyterlab-settings"))
        assert token not in processes()
        wait_for(f"{server}/api/contents/{lesson}?token={token}", process, log)  # opened
        kernel = start_kernel(server, token, Path(environment["JUPYTER_RUNTIME_DIR"]))
        assert kernel["curve_publickey"], "what it says is encrypted"
        for noise in ("not trusted", "eavesdropping", "encryption"):
            assert noise not in log.read_text()
    finally:
        stop(process)
    assert sorted(path.name for path in folder.glob("*.ipynb")) == [
        path.name for path in course.lessons()
    ]


def test_the_log_keeps_what_is_not_harmless(caplog):
    cli._quiet_log()
    server = logging.getLogger("ServerApp")
    with caplog.at_level(logging.WARNING):
        server.warning("Notebook %s is not trusted", "00.ipynb")
        server.warning("WebSocket ping timeout after %i ms.", 90_000)
        server.warning("the disk is full")
    assert [record.getMessage() for record in caplog.records] == ["the disk is full"]


def processes() -> str:
    """The command lines that any user of this machine may read."""
    return subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True).stdout
