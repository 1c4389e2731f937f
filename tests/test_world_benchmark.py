"""The measures of benchmarks.world against oracles of their own, in small."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import mannwhitneyu

from benchmarks.world import detectors, hierarchy, lies
from benchmarks.world.__main__ import rounded
from benchmarks.world.sample import Sample, mean_sd
from saelearn import artifacts, features, metrics, tiny


def test_mean_and_deviation_over_seeds():
    found = mean_sd("x", [1.0, 2.0, 4.0])
    assert found["x"] == pytest.approx(7 / 3) and found["x_sd"] == pytest.approx(1.5275, abs=1e-4)
    assert mean_sd("x", [3.0]) == {"x": 3.0, "x_sd": 0.0}


def test_auroc_is_the_mann_whitney_statistic():
    generator = torch.Generator().manual_seed(0)
    f_PF = torch.randint(4, (60, 3), generator=generator).float()
    positive_P = torch.rand(60, generator=generator) < 0.4
    for column, area in zip(f_PF.T, lies.auroc(f_PF, positive_P), strict=True):
        u = mannwhitneyu(column[positive_P], column[~positive_P]).statistic
        assert area == pytest.approx(u / (positive_P.sum() * (~positive_P).sum()))


def test_claims_stand_where_a_speaker_is_about_to_name_the_colour():
    claims = lies.Claims(Sample(400), slice(None))
    named_P = claims.tokens_NT[claims.row_P, claims.at_P + 1]
    assert len(named_P) > 10 and claims.lies_P.any() and not claims.lies_P.all()
    assert torch.equal(claims.ids[claims.true_P] != named_P, claims.lies_P)
    p_true_P, p_lie_P = claims.p()
    assert p_true_P[~claims.lies_P].mean() > 0.9 and p_lie_P[claims.lies_P].mean() > 0.9


def test_a_push_moves_its_places_alone():
    claims = lies.Claims(Sample(400), slice(None))
    p_true_P, p_lie_P = claims.p()
    honest_P, push = ~claims.lies_P, lies.Push(tiny.SITE, torch.ones(128))
    still = claims.pushed(push, 1.0)
    assert still == pytest.approx(
        (float(p_true_P[honest_P].mean()), float(p_lie_P[honest_P].mean()))
    )
    seen, few, logits = [], claims.with_honest, claims.lm.logits
    few.lm = SimpleNamespace(logits=lambda *args: seen.append(args[1]) or logits(*args))
    claims.pushed(push._replace(strength=1.0), 50.0)
    moved_NTD = seen[0][tiny.SITE](torch.zeros(*few.tokens_NT.shape, 128), torch.arange(64))
    assert torch.allclose(moved_NTD.norm(dim=-1), 50.0 * few.last_NT)
    assert len(few.tokens_NT) < len(claims.tokens_NT)


def planted(n=4_000):
    """A concept that is the union of features 3, 5 and 8, each on a part of it, with noise."""
    generator = torch.Generator().manual_seed(1)
    label_N = torch.rand(n, generator=generator) < 0.1
    part_N = torch.randint(3, (n,), generator=generator)
    f_NF = torch.rand(n, 12, generator=generator) * (torch.rand(n, 12, generator=generator) < 0.02)
    for part, feature in enumerate((3, 5, 8)):
        f_NF[:, feature] = torch.where(label_N & (part_N == part), 2.0, 0.0)
    return f_NF, label_N


def test_the_or_of_three_finds_a_union():
    f_NF, label_N = planted()
    one = detectors.best_or(f_NF, label_N[:, None], n=1)
    three = detectors.best_or(f_NF, label_N[:, None], n=3)
    assert three == pytest.approx(1.0) and 0.4 < one < 0.6
    alone = metrics.best_f1(f_NF, label_N[:, None]).f1_C
    assert one == pytest.approx(float(alone), abs=0.05)


def test_the_greedy_or_is_as_good_as_all_pairs():
    """Against all pairs of features and a few thresholds, scored on the choosing half."""
    generator = torch.Generator().manual_seed(3)
    f_NF = torch.relu(torch.randn(600, 5, generator=generator))
    label_N = (f_NF[:, 1] > 1.2) | (f_NF[:, 4] > 0.8)
    found = float(detectors.best_or(f_NF, label_N[:, None], n=2))
    best = 0.0
    for (a, b), s, t in itertools.product(
        itertools.combinations(range(5), 2), (0.4, 0.8, 1.2), (0.4, 0.8, 1.2)
    ):
        fires_N = (f_NF[300:, a] > s) | (f_NF[300:, b] > t)
        best = max(best, float(metrics.f1(fires_N[:, None], label_N[300:, None])[0]))
    assert found > 0.85 and found > best - 0.15


def test_main_features_are_the_parts_and_no_more():
    f_NF, label_N = planted()
    assert set(features.main_features(f_NF, label_N)) == {3, 5, 8}


def absorbing_sample(absorbed: bool):
    """Feature 0 is the parent, 1 a rare child that, if absorbed, carries and silences it."""
    generator = torch.Generator().manual_seed(2)
    parent_D, child_D = torch.eye(8)[0], torch.eye(8)[1]
    label_N = torch.rand(6_000, generator=generator) < 0.3
    child_N = label_N & (torch.rand(6_000, generator=generator) < 0.04)
    x_ND = label_N[:, None] * 3 * parent_D + child_N[:, None] * 3 * child_D
    x_ND = x_ND + 0.05 * torch.randn(6_000, 8, generator=generator)
    fires_NF = torch.stack([label_N & ~child_N if absorbed else label_N, child_N], dim=1)
    rows_FD = torch.stack([parent_D, child_D + parent_D if absorbed else child_D])
    return SimpleNamespace(
        acts=lambda: SimpleNamespace(x_ND=x_ND),
        sae=lambda name: SimpleNamespace(W_dec=rows_FD),
        encoded=lambda name: fires_NF * 3.0,
        held=SimpleNamespace(names=("class:dog",)),
        holds=lambda name: label_N,
    )


def test_absorption_is_found_where_it_was_planted_and_only_there():
    found = hierarchy.absorption(absorbing_sample(True), "")["class:dog"]
    assert found == pytest.approx(0.04, abs=0.015)
    assert hierarchy.absorption(absorbing_sample(False), "")["class:dog"] == 0


def test_the_probes_direction_is_the_one_it_reads():
    generator = torch.Generator().manual_seed(4)
    x_ND = torch.randn(3_000, 6, generator=generator)
    true_D = torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0, 1.0])
    found_D = features.probe_direction(x_ND, x_ND @ true_D - 3)
    assert torch.cosine_similarity(found_D, true_D, dim=0) == pytest.approx(1.0, abs=1e-4)
    score_N = features.linear_probe(x_ND, (x_ND @ true_D > 1.5)[:, None])[:, 0]
    fitted_D = features.probe_direction(x_ND, score_N)
    assert torch.cosine_similarity(fitted_D, true_D, dim=0) > 0.99


def test_rounding_keeps_words_and_counts():
    assert rounded({"a": 0.123456, "b": {"c": 3, "d": "x"}}) == {
        "a": 0.1235,
        "b": {"c": 3, "d": "x"},
    }


def test_the_page_says_of_what_is_shipped_what_was_measured():
    """Its figures were once of SAEs that were no longer there."""
    page = Path(__file__).parent.parent / "benchmarks" / "README.md"
    section = re.search(r"### world\n(.*?)\n### ", page.read_text("utf-8"), re.S)[1]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:2] == "| "]
    said = {name.split(",")[0].strip("*"): shipped.replace("*", "") for name, shipped, *_ in rows}
    found = artifacts.read_json(artifacts.data_dir() / "world.json")["figures"]
    lie, small = found["lie"], ("small", "middle", "large")
    assert (
        said["best feature's F1** over them"] == f"{found['f1_sae']:.3f} ± {found['f1_sae_sd']:.3f}"
    )
    assert said["its L0"] == f"{found['sae_l0']:.1f}"
    assert said["best SAE of any kind"] == f"{found['f1_best_any']:.3f} `{found['best_sae']}`"
    assert said["features over the best of these"] == f"{found['f1_over_best_control']:.2f}"
    assert said["P(a lie) then"] == f"{lie['p_lie_steered']:.3f}"
    assert said["an honest speaker's P(true)"].endswith(f"→ {lie['p_true_steered']:.3f}")
    assert said["gap in P(she) between professions"].endswith(f"{found['bias']['after']:.3f}")
    split = [said[name] for name in said if name.startswith("features for one class")]
    assert split == [", ".join(str(found["splitting"][size]) for size in small)]
    for name, steered in found["steering"].items():
        concept, everywhere = name.removesuffix("_everywhere"), name.endswith("_everywhere")
        (row,) = (r for r in rows if r[0].replace(" ", "_") == concept)
        figures = f"{steered['rate']:.3f}, {steered['validity']:.3f}"
        assert row[1 + everywhere].replace("*", "") == figures
