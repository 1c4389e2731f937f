"""The benchmarks run, print one JSON object, and their figures are what they say; no speed here."""

import json
import os
import time

import psutil
import pytest
import torch

from benchmarks import (
    architectures,
    end_to_end,
    frontier,
    gpu,
    grading,
    machine,
    peers,
    scale,
    sweep,
    train_step,
)
from saelearn.sae import SAE


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def printed(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", ["l1", "topk"])
def test_train_step_prints_what_was_agreed(kind, capsys, monkeypatch):
    monkeypatch.setitem(train_step.SIZES, "S", (64, 16, 128))
    monkeypatch.setattr(train_step, "SECONDS", 0.001)
    monkeypatch.setattr(train_step, "CALLS", 10)
    train_step.main(
        ["--json", "--kind", kind, "--size", "S", "--l0", "0.02", "--threads", "1",
         "--peers", "none", "--rounds", "2", "--busy"]
    )  # fmt: skip
    report = printed(capsys)
    assert report["machine"]["threads"] == 1 and report["machine"]["versions"]["torch"]
    result, beside_another = report["results"]
    assert not result["busy"] and beside_another["busy"]
    assert result["slowest_tenth"] >= 1
    assert {"kind": kind, "size": "S", "l0": 0.02, "threads": 1}.items() <= result.items()
    assert set(result["samples_per_s"]) == {"saelearn", "textbook"}
    assert set(result["ratio"]) == {"textbook"} and result["share_of_limit"] > 0
    assert result["copy_gb_per_s"] > 0


@pytest.mark.parametrize("l0", [0.002, 0.01, 0.5])
def test_the_problem_has_the_share_of_active_features_that_it_names(l0):
    problem = peers.Problem.make(500, 64, 1_000, l0, n=1)
    f_BF = torch.relu(problem.x_NBD[0] @ problem.W_enc_DF + problem.b_enc_F)
    assert float((f_BF > 0).float().mean()) == pytest.approx(l0, rel=0.1)


def test_ours_and_the_textbook_take_the_same_step():
    """From the same weights, with the same loss: the bench would compare apples with pears."""
    from saelearn.sae import AT_FULL, L1, l1_loss
    from saelearn.train.fast import SparseL1

    problem = peers.Problem.make(50, 16, 64, 0.1, n=1)
    sae = SAE(16, 64)
    sae.load_state_dict({"W_enc": problem.W_enc_DF, "b_enc": problem.b_enc_F,
                         "W_dec": problem.W_dec_FD, "b_dec": problem.b_dec_D})  # fmt: skip
    x_BD = problem.batches()()
    loss = SparseL1()(sae, x_BD, L1(problem.l1), AT_FULL).loss
    expected = l1_loss(x_BD, sae(x_BD), sae.W_dec, l1_coefficient=problem.l1)
    assert float(loss.total) == pytest.approx(float(expected.total.detach()), rel=1e-5)
    textbook = peers.textbook(problem)
    textbook()  # takes its step without an error


def test_topk_has_its_k_active_features_in_each_row():
    from saelearn.sae import TopK

    problem = peers.Problem.make(50, 16, 256, 0.05, n=1).unbiased()
    sae = TopK(16, 256, k=problem.k)
    sae.load_state_dict(problem.weights())
    assert problem.k == 13 and ((sae.encode(problem.batches()()) > 0).sum(1) == 13).all()
    peers.textbook_topk(problem)()  # takes its step without an error


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system cannot pin")
def test_a_neighbour_has_a_core_of_its_own_and_goes():
    cores = os.sched_getaffinity(0)
    before = set(psutil.Process().children())
    with machine.neighbour():
        (process,) = set(psutil.Process().children()) - before
        if len(cores) > 1:
            assert not set(process.cpu_affinity()) & os.sched_getaffinity(0)
    assert not process.is_running() and os.sched_getaffinity(0) == cores


def test_the_slowest_tenth_is_counted():
    pauses = iter([0.002] * 18 + [0.02, 0.02])
    assert 3 < machine.slowest_tenth(lambda: time.sleep(next(pauses)), calls=20) < 30


def test_turns_are_interleaved():
    calls = []
    ways = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = machine.interleaved(ways, rounds=3)
    assert "".join(calls[4:]) == "ababab" and all(len(t) == 3 for t in times.values())
    assert machine.ratio([2.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == 3.0


def test_a_sweep_is_measured_with_its_distance_from_separate_trainings(capsys, monkeypatch):
    monkeypatch.setattr(sweep, "COEFFICIENTS", [0.1, 1.0])
    monkeypatch.setattr(sweep, "K", 2)
    sweep.main(["--json", "--steps", "3", "--rounds", "1"])
    for result in printed(capsys)["results"]:
        assert result["apart"]["largest"] <= 1e-4 and result["ratio"] > 0


def test_architectures_are_trained_and_go_on_from_their_log(capsys, tmp_path):
    """Every kind by every tool that is here, on planted features; a second call trains nothing."""
    log = tmp_path / "log.jsonl"
    given = ["--json", "--quick", "--data", "planted", "--tool", "saelearn", "--log", str(log)]
    architectures.main(given)
    first, lines = printed(capsys), log.read_text("utf-8").splitlines()
    assert [row["kind"] for row in first["results"]] == list(architectures.KINDS)
    assert len(lines) == sum(
        len(architectures.strengths("planted", kind)) for kind in architectures.KINDS
    )
    for row in first["results"]:
        assert len(row["l0"]) == len(architectures.strengths("planted", row["kind"]))
    architectures.main(given)
    assert printed(capsys)["results"] == first["results"]
    assert log.read_text("utf-8").splitlines() == lines
    architectures.main([*given, "--kind", "topk", "--steps", "5", "--lr", "0.001"])
    (other,) = log.read_text("utf-8").splitlines()[len(lines) :]  # one of the log is another
    assert json.loads(other)["steps"] == 5 and json.loads(other)["lr"] == 0.001


def test_figures_are_compared_at_equal_l0():
    runs = [{"l0": l0, "error": error} for l0, error in ((16.0, 0.1), (4.0, 0.3), (1.0, 0.9))]
    assert architectures.at_equal_l0(runs, 8) == {"error": pytest.approx(0.2)}
    assert architectures.at_equal_l0(runs, 32) is None
    assert architectures.at_equal_l0(runs[:1], 8) == {"error": 0.1}


def test_a_frontier_is_measured_and_goes_on_from_its_log(capsys, tmp_path):
    log = tmp_path / "runs.jsonl"
    given = ["--quick", "--json", "--tool", "saelearn", "--d-sae", "32", "--l0", "6"]
    given += ["--kind", "TopK", "--kind", "JumpReLU", "--log", str(log)]
    frontier.main(given)
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row["kind"] for row in rows if row["strength"]] == ["TopK", "JumpReLU"]
    assert set(frontier.FIGURES) <= set(rows[0]) and rows[0]["l0"][0] <= 6
    at_six = [row for row in rows if row["strength"] is None]
    assert all(abs(row["l0"][0] / 6 - 1) < 0.11 for row in at_six)
    frontier.main(given)
    assert json.loads(capsys.readouterr().out)["results"] == rows
    assert len(log.read_text("utf-8").splitlines()) == 2


def test_end_to_end_trains_as_plainly_as_its_peer(monkeypatch):
    """Whatever else `train` does by default, the comparison goes without."""
    for name, value in {"D": 16, "F": 64, "B": 128}.items():
        monkeypatch.setattr(end_to_end, name, value)
    x_ND = end_to_end.rows(4 * 128)
    history, stream = end_to_end.ours(x_ND, 40, log_every=1), end_to_end.batches(x_ND)
    sae = SAE(16, 64, seed=0)
    optimizer = torch.optim.Adam(sae.parameters(), lr=end_to_end.LR)
    for record in history:
        x_BD = next(stream)
        f_BF = sae.encode(x_BD)
        error = (x_BD - sae.decode(f_BF)).square().sum(1).mean()
        loss = error + end_to_end.L1 * (f_BF * sae.W_dec.norm(dim=1)).sum(1).mean()
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()


def test_end_to_end_prints_seconds_loss_and_l0(capsys, monkeypatch):
    monkeypatch.setattr(end_to_end.machine, "version", lambda package: None)
    end_to_end.main(["--json", "--steps", "3", "--rounds", "1"])
    report = printed(capsys)
    assert report["l0_at_start"] == pytest.approx(end_to_end.F / 2, rel=0.1)
    assert set(report["seconds"]) == set(report["loss"]) == set(report["l0"]) == {"saelearn"}


@pytest.mark.skipif(os.name == "nt", reason="students' code runs on POSIX alone")
def test_a_class_is_graded_with_what_it_takes(capsys):
    grading.main(["00", "--students", "2", "--workers", "1", "--json"])
    (result,) = printed(capsys)["results"]
    assert result["lesson"] == "00_start_here" and result["students"] == 2
    assert result["all_answered_got_all"] and result["processor_seconds"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 1
    assert "expected a CUDA GPU" in capsys.readouterr().err


def test_scale_measures_a_small_harvest_and_plans_a_large_one(capsys):
    small = ["--megabytes", "0.3", "--documents", "1", "--width", "64"]
    scale.main(["--json", "--parts", "chunk", "passes", "--tokens", "1e6", *small])
    report = printed(capsys)
    assert report["chunk"]["tokens"] > 50_000 and report["chunk"]["megabytes_per_s"] > 0
    rates = report["passes"]["tokens_per_s"]
    assert rates["tenth_of_thirty"] > rates["all_thirty"]
    plan = report["plan"]
    assert plan["disk_tb"] == pytest.approx(1e6 * 127 / 128 * 768 * 2 * 12 / 1e12)
    assert plan["core_days"] == pytest.approx(1e6 / rates["twelve_sites_to_disk"] / 86_400)
