"""What the steering console writes, against the library's plain calls and a planted direction."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from saelearn import activations, features, steer, tiny
from saelearn.errors import Refusal
from saelearn.tiny import console
from saelearn.tiny.console import Console


@pytest.fixture(scope="module")
def tokens_NT():
    return tiny.held_out(200).tokens_NT


@pytest.fixture(scope="module")
def lm():
    return tiny.load_lm()


@pytest.fixture(scope="module")
def the_console(lm, tokens_NT):
    """A console of two random directions: nothing is chosen."""
    a_D, b_D = features.random_directions(2, 128, seed=5)
    return Console(lm, "golden_retriever", {"a": a_D, "b": b_D}, 40.0, tokens_NT[0, :1])


def test_without_a_push_the_model_writes_as_it_would(the_console, lm):
    plain_NT = lm.generate("<doc>", max_new_tokens=console.NEW, n=6, seed=3)
    written = the_console.write("a", 0.0, n=6, seed=3)
    assert written.texts == [lm.text(row[1:]) for row in plain_NT]
    assert written.rate == tiny.mention_rate(plain_NT)
    assert written.validity == tiny.validity(plain_NT)
    assert the_console.write("b", 0.0, n=6, seed=3) == written


def test_a_push_moves_eight_positions_by_its_length(the_console, lm):
    a_D, b_D = the_console.directions.values()
    seen = {}

    def watch(x_BTD, positions_T):
        y_BTD = x_BTD.clone()
        for i, position in enumerate(positions_T.tolist()):
            if 1 <= position <= 8:
                y_BTD[:, i] += 0.9 * 40.0 * a_D
            seen[position] = float((y_BTD - x_BTD)[:, i].norm(dim=-1).mean())
        return y_BTD

    by_hand_NT = lm.generate(
        "<doc>", max_new_tokens=console.NEW, n=5, seed=4, edits={tiny.SITE: watch}
    )
    assert sum(length > 0 for length in seen.values()) == console.PUSHED
    written = the_console.write("a", 0.9, n=5, seed=4)
    assert written.texts == [lm.text(row[1:]) for row in by_hand_NT]
    longer = replace(the_console, directions={"a": 7 * a_D, "b": b_D})
    assert longer.write("a", 0.9, n=5, seed=4) == written, "only where it points counts"


def test_a_planted_direction_is_chosen_among_random_ones(lm, tokens_NT):
    held = tiny.held_out(200)
    x_ND = activations.collect(lm, held.tokens_NT, tiny.SITE).x_ND
    labels_NC, _ = held.flat()
    about_N = labels_NC[:, held.names.index("about:golden_retriever")]
    row_FD = features.random_directions(24, 128, seed=9)
    row_FD[17] = 0.01 * steer.difference_of_means(x_ND, about_N)
    unit = steer.typical_norm(x_ND)
    chosen = console.choose_writer(lm, row_FD, tokens_NT, unit=unit, name="golden_retriever")
    assert chosen == 17


def test_the_luckiest_is_the_best_of_its_random_rivals(the_console):
    rivals_FD = features.random_directions(6, 128, seed=6)
    lucky_D = the_console.luckiest(6, seed=6)
    assert (rivals_FD == lucky_D).all(1).sum() == 1

    def score(direction_D):
        written = the_console.write(direction_D, 1.0, n=32, seed=0)
        return written.rate * written.validity

    assert score(lucky_D) == max(map(score, rivals_FD)) > 0


def test_the_effect_of_each_row_is_that_of_one_push(lm, tokens_NT):
    row_FD = 3 * features.random_directions(300, 128, seed=3)
    prompt_T = tokens_NT[4, :7]
    effect_F = console._effect_on(lm, row_FD, 20, prompt_T, 30.0)
    assert effect_F.shape == (300,)
    for feature in (0, 255, 256, 299):
        edit = steer.add(row_FD[feature], 30.0, positions=range(6, 7))
        pushed_V, plain_V = (
            lm.logits(prompt_T[None], edits)[0, -1].log_softmax(-1)
            for edits in ({tiny.SITE: edit}, {})
        )
        expected = float(pushed_V[20] - plain_V[20])
        assert float(effect_F[feature]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("phrase", [[7, 8], [7]])
def test_places_before_a_phrase(phrase):
    tokens_NT = torch.tensor(
        [[1, 3, 7, 8, 2, 7], [1, 7, 8, 2, 2, 2], [1, 4, 7, 8, 7, 8], [1, 2, 2, 7, 8, 3], [1] * 6]
    )
    places = console._places_before(tokens_NT, phrase)
    assert [place.tolist() for place in places] == [[1, 3], [1, 2, 2]], "the first of each length"
    with pytest.raises(Refusal, match="text in which the thing occurs"):
        console._places_before(tokens_NT, [9, 9])


def test_the_rows_of_a_dose_are_pushed_each_by_its_own(the_console, lm):
    a_D, b_D = the_console.directions.values()
    push_ND = torch.stack([0.9 * 40 * a_D, 0.9 * 40 * b_D, 0 * a_D])
    seen = {}

    def generate(prompt_1T, *, max_new_tokens, n, seed, edits):
        (edit,) = edits.values()
        x_NTD = torch.zeros(n, 40, 128)
        seen["moved"] = edit(x_NTD, torch.arange(40))
        return torch.zeros(n, 40)

    watched = replace(the_console, lm=type("Watch", (), {"generate": staticmethod(generate)}))
    watched._rows(push_ND, seed=0)
    expected_NTD = torch.zeros(3, 40, 128)
    expected_NTD[:, 1:9] = push_ND[:, None]
    torch.testing.assert_close(seen["moved"], expected_NTD)


def test_a_dose_without_a_push_and_with_one(the_console, lm):
    found = the_console.dose([0.0, 1.2], n=6, n_controls=3, seed=5)
    assert list(found) == ["a", "random direction"]
    plain_NT = lm.generate("<doc>", max_new_tokens=console.NEW, n=24, seed=5)
    for name, part_NT in (("a", plain_NT[:6]), ("random direction", plain_NT[6:])):
        assert found[name]["rate"][0] == tiny.mention_rate(part_NT)
        assert found[name]["validity"][0] == tiny.validity(part_NT)
        assert found[name]["validity"][1] < found[name]["validity"][0]


def test_other_texts_while_a_dose_is_measured(the_console):
    """Two threads, one model: each gets what it gets alone."""
    alone = the_console.write("a", 0.9, n=4, seed=4), the_console.dose([0.8], n=4, n_controls=2)
    found = {}
    thread = threading.Thread(
        target=lambda: found.update(dose=the_console.dose([0.8], n=4, n_controls=2))
    )
    thread.start()
    found["texts"] = [the_console.write("a", 0.9, n=4, seed=4) for _ in range(3)]
    thread.join(60)
    assert found == {"texts": 3 * [alone[0]], "dose": alone[1]}


def test_what_cannot_be_is_refused(the_console):
    with pytest.raises(Refusal, match="one of 'a', 'b'"):
        the_console.write("c", 1.0)
    with pytest.raises(Refusal, match="strength"):
        the_console.write("a", -1.0)


def test_the_shipped_one_steers_and_its_control_does_not():
    shipped = Console.load()
    toward, control = shipped.directions
    assert (toward, control) == ("golden retriever", "random direction")
    found = {title: shipped.write(title, 1.3) for title in shipped.directions}
    assert found[toward].rate > 0.6 > found[control].rate + 0.2
    assert found[toward].validity > 0.4
