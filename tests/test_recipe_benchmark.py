"""The recipe's study in small: figures against oracles of their own, and nothing is done twice."""

import json

import pytest
import torch

from benchmarks import recipe
from saelearn import artifacts, metrics
from saelearn.sae import SAE, l1_loss


@pytest.fixture
def data() -> recipe.Data:
    x_ND = torch.randn(600, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1
    return recipe.Data("noise", x_ND[:500], x_ND[500:], (0.5,))


def test_a_run_is_judged_in_the_units_it_was_trained_in(data):
    """The same SAE before its scale was folded in, on scaled rows, has that loss."""
    sae = SAE.from_data(data.x_ND * data.scale, 16, decoder_init_norm=0.7)
    scaled_ND = data.held_ND * data.scale
    output = sae(scaled_ND)
    expected = l1_loss(scaled_ND, output, sae.W_dec, l1_coefficient=0.5).total
    found = recipe.judge(sae.fold_scale_(data.scale), data, 0.5)
    assert found["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert found["l0"] == pytest.approx(metrics.l0(output.f))
    assert found["dead"] == pytest.approx(metrics.dead_fraction(output.f))


def test_a_finished_run_is_not_done_again(data, tmp_path, monkeypatch):
    run = recipe.Run("saelearn", data.name, 16, 0.5, 0, 400, (("batch_size", 40), ("lr", 1e-3)))
    first = recipe.Records([tmp_path / "runs.jsonl"]).get(run, data)
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"key": "cut of')  # as a kill leaves it
    monkeypatch.setitem(
        recipe.TRAINERS, "saelearn", lambda run, data, device: pytest.fail("trained")
    )
    assert recipe.Records([tmp_path / "runs.jsonl"]).get(run, data) == first


def test_parts_make_each_run_once_and_are_put_together(tmp_path, capsys, monkeypatch):
    x_ND = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    artifacts.write_tensors(tmp_path / "acts.safetensors", {"x_ND": x_ND})
    monkeypatch.setattr(recipe, "LR_GRID", (1e-3, 4e-3))
    monkeypatch.setattr(recipe.machine, "version", lambda package: None)
    study = ["--json", "--quick", "--tokens", "2048", "--data", str(tmp_path / "acts.safetensors"),
             "--study", "grid", "--study", "reach"]  # fmt: skip
    parts = [tmp_path / f"{i}.jsonl" for i in (1, 2)]
    for i, path in enumerate(parts, 1):
        recipe.main([*study, "--part", f"{i}/2", "--records", str(path)])
    assert not capsys.readouterr().out
    lines = [[json.loads(line)["key"] for line in path.read_text().splitlines()] for path in parts]
    assert len(set(lines[0] + lines[1])) == len(lines[0]) + len(lines[1])
    assert abs(len(lines[0]) - len(lines[1])) <= 1
    monkeypatch.setitem(recipe.TRAINERS, "saelearn", lambda *given: pytest.fail("trained again"))
    recipe.main([*study, *(f"--records={path}" for path in parts)])
    assert len(json.loads(capsys.readouterr().out)["results"]) == 1


@pytest.mark.parametrize("part", ["0/2", "3/2", "a", "1/0"])
def test_a_part_that_is_none_is_refused_before_anything_is_made(part, tmp_path, capsys):
    with pytest.raises(SystemExit):
        recipe.main(["--part", part, "--records", str(tmp_path / "runs.jsonl")])
    assert "I/N" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        recipe.main(["--part", "1/2"])
    assert "--records" in capsys.readouterr().err


def test_what_a_record_is_found_by_tells_runs_and_data_apart(data):
    run = recipe.Run("saelearn", "noise", 16, 0.5, 0, 400)
    others = [
        recipe.Run("sae_lens", "noise", 16, 0.5, 0, 400),
        recipe.Run("saelearn", "noise", 16, 0.5, 1, 400),
        recipe.Run("saelearn", "noise", 16, 0.5, 0, 400, (("lr", 1e-3),)),
    ]
    assert len({each.key() for each in (run, *others)}) == 4
    other_rows = recipe.Data("noise", data.x_ND, data.held_ND + 1, (0.5,))
    assert recipe._rows_name(other_rows) != recipe._rows_name(data)


def test_a_batch_of_another_size_sees_as_many_tokens(data, monkeypatch):
    seen = []
    monkeypatch.setattr(
        recipe, "train", lambda x, d, **how: seen.append(how) or pytest.fail("enough")
    )
    for batch_size in (20, 40):
        run = recipe.Run("saelearn", "noise", 16, 0.5, 0, 400, (("batch_size", batch_size),))
        with pytest.raises(pytest.fail.Exception):
            recipe.ours(run, data, "cpu")
    assert [how["steps"] * how["batch_size"] for how in seen] == [400, 400]


def test_the_study_of_a_file_prints_one_object(tmp_path, capsys, monkeypatch):
    x_ND = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    artifacts.write_tensors(tmp_path / "acts.safetensors", {"x_ND": x_ND})
    monkeypatch.setattr(recipe, "LR_GRID", (1e-3, 4e-3))
    monkeypatch.setattr(recipe.machine, "version", lambda package: None)
    recipe.main(
        ["--json", "--quick", "--tokens", "2048", "--data", str(tmp_path / "acts.safetensors"),
         "--study", "grid", "--study", "knobs", "--study", "reach", "--knob", "center"]
    )  # fmt: skip
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert {"data": "acts", "d_in": 8, "d_sae": 16, "tokens": 2_048}.items() <= result.items()
    losses = {lr: result["grid"]["saelearn"][lr]["loss"][0] for lr in ("0.001", "0.004")}
    best = f"{result['grid']['saelearn']['best_lr']:g}"
    assert losses[best] == min(losses.values())
    assert set(result["knobs"]["center"]) == {'"mean"', '"zero"', '"geometric_median"'}
    reach = result["reach"]
    assert len(reach["loss_after"]) == len(recipe.SHARES)
    assert reach["two_thirds"]["best_lr"] in recipe.LR_GRID and reach["two_thirds"]["loss"][0] > 0


def test_sae_lens_trains_on_the_same_rows_in_the_same_units(data):
    pytest.importorskip("sae_lens")
    run = recipe.Run("sae_lens", "noise", 16, 0.5, 0, 40 * recipe.BATCH, (("lr", 4e-3),))
    untrained = SAE.from_data(data.x_ND * data.scale, 16, center="zero").fold_scale_(data.scale)
    before = recipe.judge(untrained, data, 0.5)["loss"]
    assert recipe.judge(recipe.sae_lens(run, data), data, 0.5)["loss"] < before
