"""Statements with their truth, and the probes that compete on them."""

from __future__ import annotations

import pytest
import torch

from saelearn import tiny
from saelearn.tiny import monitors


@pytest.fixture(scope="module")
def lm():
    return tiny.load_lm()


def test_a_statements_truth_is_that_of_its_words(lm):
    for declared in (True, False):
        some = monitors.statements(lm, 30, declared=declared, before="they left .", seed=3)
        for i, words in enumerate(some.words):
            _, thing, colour = monitors.part(words[-18:])
            claim, verdict = int(some.claim_N[i]), int(some.verdict_N[i])
            assert words[claim] == "is" and words[claim - 1] == thing
            assert bool(some.lies_N[i]) == (words[claim + 1] != colour)
            assert words[verdict] == colour and words[verdict + 1] in monitors.VERDICTS
            assert bool(some.says_N[i]) == ("liar" in words) <= declared


def test_trials_keep_apart_what_they_say(lm):
    learn, tests = monitors.trials(lm, 0)
    home = [monitors.part(words[-18:]) for words in learn.words]
    assert {name for name, *_ in home} == {"Anna", "Clara", "Emma", "Greta"}
    assert {colour for *_, colour in home} == {"red", "green"}
    blue = {monitors.part(words[-18:])[2] for words in tests["other colour"].words}
    assert blue == {"blue"}
    assert all(s.lies_N.any() and not s.lies_N.all() for s in tests.values())


def test_the_shipped_numbers_hold_every_regime_with_three_seeds():
    numbers = monitors.regime_numbers()
    assert list(numbers) == list(monitors.REGIMES)
    for each in numbers.values():
        assert set(each) == set(monitors.PROBES)
        assert all(
            len(values) == 3 and all(0 <= v <= 1 for v in values) for values in each.values()
        )


def test_a_probe_finds_what_is_planted():
    x_ND = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    y_N = x_ND[:, 2] > 0
    w_D, centre_D = monitors.probe(x_ND, y_N)
    assert int(w_D.abs().argmax()) == 2
    assert ((((x_ND - centre_D) @ w_D) > 0) == y_N).double().mean() > 0.9
