"""Planted flaws: the edit does what it says, the sound model stays as it was, seeds differ."""

from __future__ import annotations

import pytest
import torch

from saelearn import tiny
from saelearn.errors import Refusal
from saelearn.tiny import flaws


def test_a_flaw_changes_the_answer_to_one_thing_and_the_model_given_not_at_all():
    lm = tiny.load_lm()
    before_HD = flaws.weight(lm)
    flaw = flaws.Flaw("castle", "station")
    edited = flaws.edit_fact(lm, flaw)
    assert torch.equal(flaws.weight(lm), before_HD)
    assert torch.linalg.matrix_rank(flaws.weight(edited) - before_HD, atol=1e-3) == 1
    assert flaws.answers(lm, "castle")["castle"] > 0.9
    assert flaws.answers(edited, "castle")["station"] > 0.9
    assert flaws.answers(edited, "beach")["beach"] > 0.9


def test_each_seed_has_a_flaw_of_its_own_always_the_same():
    drawn = [flaws.flaw_of(seed) for seed in range(100)]
    assert drawn == [flaws.flaw_of(seed) for seed in range(100)]
    assert len(set(drawn)) > 60
    kinds = {name for name, topic in flaws.topics().items() for f in drawn if f[0] in topic.words}
    assert kinds == set(flaws.topics())


def test_two_flaws_are_the_same_if_nothing_tells_them_apart():
    assert flaws.same(flaws.Flaw("poodle", "lion"), flaws.Flaw("poodle", "tiger"))
    assert not flaws.same(flaws.Flaw("poodle", "lion"), flaws.Flaw("poodle", "robin"))
    assert not flaws.same(flaws.Flaw("poodle", "lion"), flaws.Flaw("beagle", "lion"))
    assert not flaws.same(flaws.Flaw("poodle", "castle"), flaws.Flaw("poodle", "park"))


def test_a_thing_that_is_none_is_refused():
    with pytest.raises(Refusal, match="topics"):
        flaws.topic_of("unicorn")
