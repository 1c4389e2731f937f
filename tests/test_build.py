"""`saelearn data` in small: every step runs, in order, and what it writes can be used."""

from functools import partial

import pytest
import torch

from saelearn import artifacts, tiny
from saelearn.errors import Refusal
from saelearn.lm import LM
from saelearn.sae import TopK
from saelearn.tiny import beyond, build, controls, dial, monitors, pretrain, shipped


def test_all_steps_in_small(tmp_path, monkeypatch, capsys):
    small = partial(pretrain.train_model, steps=2, batch_size=4, log_every=1)
    monkeypatch.setattr(pretrain, "train_model", small)
    training = {"steps": 3, "batch_size": 64, "log_every": 1}
    monkeypatch.setattr(build, "SAE_TRAINING", training)
    monkeypatch.setattr(shipped, "D_SAE", 16)
    monkeypatch.setattr(dial, "L1_COEFFICIENTS", (0.3,))
    small = {"D_SAE": 16, "K": 2, "DOCUMENTS": 40, "HELD_OUT": 12, "STEPS": 2, "TEXTS": 2}
    for name, value in (small | {"SEEDS": (0,), "REPRESENTED": 0.0}).items():
        monkeypatch.setattr(controls, name, value)
    small = {"D_SAE": 32, "STEPS": 2, "BATCH_SIZE": 128, "SEEDS": (0,), "DOCUMENTS": 40}
    small |= {"HELD_OUT": 12, "SPLICED": 4, "TRANSCODER_DOCUMENTS": 40, "AT": 4, "TUNED": ()}
    small |= {"LONGER": 3}
    for name, value in (small | {"TRANSCODER": {"d_sae": 16, "steps": 2}}).items():
        monkeypatch.setattr(beyond, name, value)
    monkeypatch.setattr(monitors, "REGIMES", {})
    for name in ("HELD_OUT", "FOURGRAM", "SAE", "PROBE"):
        monkeypatch.setattr(build, f"{name}_DOCUMENTS", 40)

    build.build(root=tmp_path)
    said = capsys.readouterr().out
    assert "about" in said and said.index("\nlm:") < said.index("\nsaes:") < said.index("\ndial:")

    monkeypatch.setenv("SAELEARN_DATA", str(tmp_path))  # the manifest holds all of it
    record = tiny.training_record()
    assert record["held_out"] > record["entropy_bound"] > 0
    assert LM.load(artifacts.find("lm")).residual_sites()[1] == tiny.SITE
    for name, recipe in tiny.recipes().items():
        sae = tiny.load_named(name)
        assert sae.d_sae == (recipe.d_sae or 16) and sae.metadata["site"] == recipe.site
        assert isinstance(sae, TopK) == bool(recipe.k)
    assert len(tiny.recipes()) == 20
    assert set(tiny.probe_f1()) == set(tiny.held_out(2).names)
    assert len(dial.load_sweep()) == 1
    for kind, scores in controls.scores().items():
        assert controls.load_control(kind).d_sae == 16 and len(scores) == 1
    runs = beyond.scores() + beyond.scores(beyond.LONGER)
    assert len(runs) == len(list(beyond.trainings()))
    assert {run["kind"] for run in runs if "left" in run} == {*beyond.KINDS, beyond.END_TO_END}
    assert set(beyond.twins()) == {beyond.END_TO_END, "another seed"}
    for kind in (*beyond.KINDS, beyond.END_TO_END):
        assert beyond.load_kind(kind).d_sae == 32
    assert beyond.load_transcoder().d_sae == 16
    assert monitors.regime_numbers() == {}


def test_seeds_are_tried_until_the_site_holds_what_was_said(monkeypatch, capsys):
    untrained, trained = tiny.load_random_lm(), tiny.load_lm()

    def train_model(vocabulary, *, seed, callback):
        model = trained.model if seed == 3 else untrained.model
        callback(build.MEMORY_AFTER, model)
        return model, [(1, 0.5)]

    monkeypatch.setattr(pretrain, "train_model", train_model)
    model, history, seed = build.train_until_remembered(trained.tokenizer)
    assert (model, history, seed) == (trained.model, [(1, 0.5)], 3)
    assert capsys.readouterr().out.count("memories apart after 500 steps") == 3


def test_one_thread_computes_and_as_many_as_before_afterwards(tmp_path, monkeypatch):
    seen, before = [], torch.get_num_threads()
    step = build.Step(lambda root: seen.append(torch.get_num_threads()), 1, "a look")
    monkeypatch.setitem(build.STEPS, "probes", step)
    try:
        torch.set_num_threads(2)
        build.build(["probes"], root=tmp_path)
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_an_unknown_step_is_refused_before_any_work(tmp_path):
    with pytest.raises(Refusal, match="fourgrams"):
        build.build(["lmm"], root=tmp_path)
    assert list(tmp_path.iterdir()) == []
