"""The checks of lesson 09: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from saelearn import tiny
from saelearn.exercises import NotPassed
from saelearn.exercises import lesson09 as check


def push_by_loop(x, direction, amount):
    out = x.clone()
    for b in range(len(x)):
        for t in range(x.shape[1]):
            out[b, t] = x[b, t] + amount * direction / direction.square().sum().sqrt()
    return out


def push_in_place(x, direction, amount):
    x += amount * F.normalize(direction, dim=0)
    return x


def unit_by_loop(x):
    mean = x.mean(0)
    return sum(float((row - mean).norm()) for row in x) / len(x)


def clamp_by_features(x, sae, feature, value):
    """Decode twice: the difference of the reconstructions, so that the error term stays."""
    f = sae.encode(x)
    changed = f.clone()
    changed[:, feature] = value
    return x + sae.decode(changed) - sae.decode(f)


def clamp_with_error(x, sae, feature, value):
    x_hat, f = sae(x)
    f = torch.where(torch.arange(sae.d_sae) == feature, torch.tensor(value), f)
    return sae.decode(f) + (x - x_hat)


def swap(x, sae, feature, value):
    f = sae.encode(x)
    f[:, feature] = value
    return sae.decode(f)


def f_of(x, sae, feature):
    return sae.encode(x)[:, [feature]]


def best_by_loop(rate, validity):
    scores = [sum(r * v for r, v in zip(a, b, strict=True)) for a, b in zip(rate, validity)]  # noqa: B905
    return int(np.argmax(scores))


RIGHT = [
    (check.push, lambda x, d, a: x + a * d / d.norm()),
    (check.push, lambda x, d, a: torch.add(x, F.normalize(d, dim=0), alpha=a)),
    (check.push, push_by_loop),
    (check.unit, lambda x: (x - x.mean(0)).norm(dim=1).mean()),
    (check.unit, lambda x: np.linalg.norm(x.numpy() - x.numpy().mean(0), axis=1).mean()),
    (check.unit, unit_by_loop),
    (check.direction, lambda decoder, i: decoder.weight[:, i]),
    (check.direction, lambda decoder, i: decoder.weight.T[i].detach()),
    (check.direction, lambda decoder, i: F.normalize(decoder.weight[:, i], dim=0)),
    (
        check.direction,
        lambda decoder, i: decoder(torch.eye(decoder.in_features)[i]) - decoder.bias,
    ),
    (check.clamp, lambda x, sae, i, v: x + (v - f_of(x, sae, i)) * sae.W_dec[i]),
    (check.clamp, clamp_by_features),
    (check.clamp, clamp_with_error),
    (check.choose, lambda rate, validity: (rate * validity).mean(1).argmax()),
    (check.choose, lambda rate, validity: int(np.argmax((rate * validity).numpy().sum(axis=1)))),
    (check.choose, best_by_loop),
]
WRONG = [
    (check.push, lambda x, d, a: x + a * d, "length first"),
    (check.push, lambda x, d, a: (a * d / d.norm()).expand_as(x), "x is lost"),
    (check.push, lambda x, d, a: x - a * d / d.norm(), "backwards"),
    (check.push, lambda x, d, a: x + d / d.norm(), "amount is missing"),
    (check.push, lambda x, d, a: x + a * d / (d @ d), "not by its square"),
    (check.push, push_in_place, "x itself was changed"),
    (check.push, lambda x, d, a: a * d / d.norm(), "shape (5,)"),
    (check.unit, lambda x: x.norm(dim=1).mean(), "subtract the mean vector"),
    (check.unit, lambda x: (x - x.mean()).norm(dim=1).mean(), "not x_ND.mean()"),
    (check.unit, lambda x: (x - x.mean(0)).square().sum(1).mean().sqrt(), "root of the mean"),
    (check.unit, lambda x: (x - x.mean(0)).square().sum(1).mean(), "not their squares"),
    (check.unit, lambda x: (x - x.mean(0)).norm(), "one length for each row"),
    (check.unit, lambda x: (x - x.mean(0)).norm(dim=0).mean(), "each row is a token"),
    (check.unit, lambda x: (x - x.mean(0)).norm(dim=1), "shape (50,)"),
    (check.direction, lambda decoder, i: decoder.weight[i, :], "that is a row"),
    (check.direction, lambda decoder, i: decoder.weight[:, i] + decoder.bias, "without the bias"),
    (check.direction, lambda decoder, i: decoder(torch.eye(decoder.in_features)[i]), "the bias"),
    (check.direction, lambda decoder, i: -decoder.weight[:, i], "opposite"),
    (check.direction, lambda decoder, i: decoder.weight[:, i + 1], "which slice"),
    (check.direction, lambda decoder, i: decoder.weight, "shape (6, 6)"),
    (check.clamp, swap, "reconstruction in x's place"),
    (check.clamp, lambda x, sae, i, v: x + v * sae.W_dec[i], "subtract what it is"),
    (
        check.clamp,
        lambda x, sae, i, v: x + (v - f_of(x, sae, i)) * sae.W_enc[:, i],
        "use the decoder row",
    ),
    (
        check.clamp,
        lambda x, sae, i, v: x + (v - f_of(x, sae, i)) * F.normalize(sae.W_dec[i], dim=0),
        "own length",
    ),
    (
        check.clamp,
        lambda x, sae, i, v: x + (f_of(x, sae, i) - v) * sae.W_dec[i],
        "other way round",
    ),
    (check.clamp, lambda x, sae, i, v: x - f_of(x, sae, i) * sae.W_dec[i], "puts nothing in"),
    (
        check.clamp,
        lambda x, sae, i, v: x + (v - f_of(x, sae, i)).relu() * sae.W_dec[i],
        "lowers a feature too",
    ),
    (
        check.clamp,
        lambda x, sae, i, v: x + (v - f_of(x, sae, i)) * (f_of(x, sae, i) > 0) * sae.W_dec[i],
        "where it is silent",
    ),
    (
        check.clamp,
        lambda x, sae, i, v: (
            x + (v - (x - sae.b_dec) @ sae.W_enc[:, [i]] - sae.b_enc[i]) * sae.W_dec[i]
        ),
        "after the ReLU",
    ),
    (check.choose, lambda rate, validity: (rate + validity).mean(1).argmax(), "Multiply them"),
    (check.choose, lambda rate, validity: (rate * validity).mean(0).argmax(), "best strength"),
    (check.choose, lambda rate, validity: (rate * validity).mean(1).max(), "not an index"),
    (check.choose, lambda rate, validity: rate.mean(1).argmax(), "by rate alone"),
    (check.choose, lambda rate, validity: validity.mean(1).argmax(), "by validity alone"),
    (check.choose, lambda rate, validity: (rate * validity).amax(1).argmax(), "one lucky strength"),
    (
        check.choose,
        lambda rate, validity: (rate.mean(1) * validity.mean(1)).argmax(),
        "then average",
    ),
    (check.choose, lambda rate, validity: (rate * validity).mean(1), "one index"),
]
CHECKS = [check.push, check.unit, check.direction, check.clamp, check.choose]


@pytest.mark.parametrize(("judge", "answer"), RIGHT)
def test_right_answers_pass(judge, answer):
    verdict = judge(answer)
    assert verdict.passed, verdict


@pytest.mark.parametrize(("judge", "answer", "hint"), WRONG)
def test_likely_mistakes_are_named(judge, answer, hint):
    verdict = judge(answer)
    assert verdict.state == "wrong"
    assert hint in verdict.message


@pytest.mark.parametrize("judge", CHECKS)
def test_stubs_are_open_and_errors_are_told(judge):
    assert judge(None).state == judge(...).state == "open"
    assert judge(lambda *args: None).state == "open"
    assert judge(lambda *args: ...).state == "open"
    assert judge(lambda *args: 1 / 0).state == "wrong"
    assert judge(3.0).state == "wrong"


@pytest.mark.parametrize("judge", [*CHECKS, check.bridge])
def test_the_autograder_hears_of_it(judge, monkeypatch):
    monkeypatch.setenv("SAELEARN_GRADE", "1")
    with pytest.raises(NotPassed):
        judge(None)


# --- the bridge: texts, not a function ------------------------------------------------------------


@pytest.fixture(scope="module")
def held_NT():
    return tiny.held_out(400).tokens_NT


def having(tokens_NT, name):
    return tokens_NT[tiny.mentions(tokens_NT, name)]


def shuffled(tokens_NT):
    order = torch.argsort(torch.rand(tokens_NT.shape, generator=torch.Generator().manual_seed(0)))
    return tokens_NT.gather(1, order)


def test_texts_of_the_bridge_pass_however_they_were_made(held_NT):
    texts_NT = having(held_NT, "Golden_Gate_Bridge")
    many_NT = texts_NT.repeat(-(-100 // len(texts_NT)), 1)
    assert check.bridge(many_NT).passed
    assert check.bridge(many_NT.numpy()).passed
    mixed_NT = torch.cat([many_NT, held_NT[:30]])
    assert check.bridge(mixed_NT).passed


def test_texts_that_fail_say_why(held_NT):
    bridges_NT = having(held_NT, "Golden_Gate_Bridge")
    many_NT = bridges_NT.repeat(-(-100 // len(bridges_NT)), 1)
    dogs_NT = having(held_NT, "golden_retriever")
    without_NT = dogs_NT[~tiny.mentions(dogs_NT, "Golden_Gate_Bridge")]
    cases = {
        "next feature": held_NT,
        "bridge's direction": without_NT.repeat(-(-100 // len(without_NT)), 1),
        "far too strong": shuffled(held_NT),
        "at least 100 texts": many_NT[:50],
        "40 tokens": many_NT[:, :20],
    }
    for hint, tokens_NT in cases.items():
        verdict = check.bridge(tokens_NT)
        assert verdict.state == "wrong"
        assert hint in verdict.message
    babble_NT = many_NT.clone()
    babble_NT[:, ::3] = 5
    spoken_NT = torch.cat([babble_NT[:, :30], many_NT], dim=1)[:, :64]
    spoken_NT[:, -4:] = having_phrase()
    assert "babble" in check.bridge(spoken_NT).message


def having_phrase():
    lm = tiny.load_lm()
    return lm.tokenize("the Golden Gate Bridge")[0]


def test_no_texts_yet_is_open():
    assert check.bridge(...).state == check.bridge(None).state == "open"
    assert check.bridge("texts").state == "wrong"
