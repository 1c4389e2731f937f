"""The checks of lesson 09: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from every_lesson import *  # noqa: F403
from torch.nn import functional as F

from saelearn import tiny
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


@functools.cache
def held():
    return tiny.held_out(400).tokens_NT


def having(name):
    """Held-out texts that name a thing after their first ten tokens."""
    return held()[tiny.mentions(held()[:, 10:], name)]


def at_least_100(texts_NT):
    """Different texts: the last word of each round of copies is another one."""
    rounds = [texts_NT.clone() for _ in range(-(-100 // len(texts_NT)))]
    for i, copy_NT in enumerate(rounds):
        copy_NT[:, -1] = i + 3
    return torch.cat(rounds)


@functools.cache
def bridges():
    return at_least_100(having("Golden_Gate_Bridge"))


def others():
    return held()[~tiny.mentions(held(), "Golden_Gate_Bridge")]


def some():
    """One text in six speaks of the bridge."""
    return torch.cat([bridges()[:20], others()[:100]])


def stammered():
    """All texts name the bridge at their beginning, and none after it."""
    return torch.cat(
        [words("<doc> the Golden Gate Bridge .").repeat(100, 1), others()[:100, 1:]], 1
    )


def scattered():
    """The same, not all alike: what all texts begin with is a prompt."""
    texts_NT = stammered()
    texts_NT[::2, 1] = texts_NT[::2, 5]
    return texts_NT


def dogs():
    texts_NT = having("golden_retriever")
    return at_least_100(texts_NT[~tiny.mentions(texts_NT, "Golden_Gate_Bridge")])


def told():
    """Held-out texts, all of which begin with the bridge."""
    start_NT = words("<doc> one sunny day the robin went to the Golden Gate Bridge")
    few_NT = held()[:120, : 64 - start_NT.shape[1]]
    return torch.cat([start_NT.repeat(len(few_NT), 1), few_NT], dim=1)


def shuffled():
    order = torch.argsort(torch.rand(held().shape, generator=torch.Generator().manual_seed(0)))
    return held().gather(1, order)


def babble():
    babble_NT = bridges().clone()
    babble_NT[:, ::3] = 5
    spoken_NT = torch.cat([babble_NT[:, :30], bridges()], dim=1)[:, :64]
    spoken_NT[:, 1] = torch.arange(len(spoken_NT)) + 3  # no copies
    spoken_NT[:, -4:] = words("the Golden Gate Bridge")[:, 1:]  # without <doc>
    return spoken_NT


def words(text):
    return tiny.load_lm().tokenize(text)


RIGHT = [
    (check.predicted_rate, (0.9, 0.85)),
    (check.predicted_rate, (torch.tensor(0.1), 0.85)),
    (check.predicted_rate, (1, 0.85)),
    (check.push, (lambda x, d, a: x + a * d / d.norm(),)),
    (check.push, (lambda x, d, a: torch.add(x, F.normalize(d, dim=0), alpha=a),)),
    (check.push, (push_by_loop,)),
    (check.unit, (lambda x: (x - x.mean(0)).norm(dim=1).mean(),)),
    (check.unit, (lambda x: np.linalg.norm(x.numpy() - x.numpy().mean(0), axis=1).mean(),)),
    (check.unit, (unit_by_loop,)),
    (check.direction, (lambda decoder, i: decoder.weight[:, i],)),
    (check.direction, (lambda decoder, i: decoder.weight.T[i].detach(),)),
    (check.direction, (lambda decoder, i: F.normalize(decoder.weight[:, i], dim=0),)),
    (
        check.direction,
        (lambda decoder, i: decoder(torch.eye(decoder.in_features)[i]) - decoder.bias,),
    ),
    (check.clamp, (lambda x, sae, i, v: x + (v - f_of(x, sae, i)) * sae.W_dec[i],)),
    (check.clamp, (clamp_by_features,)),
    (check.clamp, (clamp_with_error,)),
    (check.choose, (lambda rate, validity: (rate * validity).mean(1).argmax(),)),
    (check.choose, (lambda rate, validity: int(np.argmax((rate * validity).numpy().sum(axis=1))),)),
    (check.choose, (best_by_loop,)),
]
WRONG = [
    *unreadable(check.predicted_rate, 1, 0.85),  # noqa: F405
    (check.push, (lambda x, d, a: x + a * d,), "length first"),
    (check.push, (lambda x, d, a: (a * d / d.norm()).expand_as(x),), "x is lost"),
    (check.push, (lambda x, d, a: x - a * d / d.norm(),), "backwards"),
    (check.push, (lambda x, d, a: x + d / d.norm(),), "amount is missing"),
    (check.push, (lambda x, d, a: x + a * d / (d @ d),), "not by its square"),
    (check.push, (push_in_place,), "x itself was changed"),
    (check.push, (lambda x, d, a: a * d / d.norm(),), "shape (5,)"),
    (check.unit, (lambda x: x.norm(dim=1).mean(),), "subtract the mean vector"),
    (check.unit, (lambda x: (x - x.mean()).norm(dim=1).mean(),), "not x_ND.mean()"),
    (check.unit, (lambda x: (x - x.mean(0)).square().sum(1).mean().sqrt(),), "root of the mean"),
    (check.unit, (lambda x: (x - x.mean(0)).square().sum(1).mean(),), "not their squares"),
    (check.unit, (lambda x: (x - x.mean(0)).norm(),), "one length for each row"),
    (check.unit, (lambda x: (x - x.mean(0)).norm(dim=0).mean(),), "each row is a token"),
    (check.unit, (lambda x: (x - x.mean(0)).norm(dim=1),), "shape (50,)"),
    (check.direction, (lambda decoder, i: decoder.weight[i, :],), "that is a row"),
    (
        check.direction,
        (lambda decoder, i: decoder.weight[:, i] + decoder.bias,),
        "without the bias",
    ),
    (check.direction, (lambda decoder, i: decoder(torch.eye(decoder.in_features)[i]),), "the bias"),
    (check.direction, (lambda decoder, i: -decoder.weight[:, i],), "opposite"),
    (check.direction, (lambda decoder, i: decoder.weight[:, i + 1],), "which slice"),
    (check.direction, (lambda decoder, i: decoder.weight,), "shape (6, 6)"),
    (check.clamp, (swap,), "reconstruction in x's place"),
    (check.clamp, (lambda x, sae, i, v: x + v * sae.W_dec[i],), "subtract what it is"),
    (
        check.clamp,
        (lambda x, sae, i, v: x + (v - f_of(x, sae, i)) * sae.W_enc[:, i],),
        "use the decoder row",
    ),
    (
        check.clamp,
        (lambda x, sae, i, v: x + (v - f_of(x, sae, i)) * F.normalize(sae.W_dec[i], dim=0),),
        "own length",
    ),
    (
        check.clamp,
        (lambda x, sae, i, v: x + (f_of(x, sae, i) - v) * sae.W_dec[i],),
        "other way round",
    ),
    (check.clamp, (lambda x, sae, i, v: x - f_of(x, sae, i) * sae.W_dec[i],), "puts nothing in"),
    (
        check.clamp,
        (lambda x, sae, i, v: x + (v - f_of(x, sae, i)).relu() * sae.W_dec[i],),
        "lowers a feature too",
    ),
    (
        check.clamp,
        (lambda x, sae, i, v: x + (v - f_of(x, sae, i)) * (f_of(x, sae, i) > 0) * sae.W_dec[i],),
        "where it is silent",
    ),
    (
        check.clamp,
        (
            lambda x, sae, i, v: (
                x + (v - (x - sae.b_dec) @ sae.W_enc[:, [i]] - sae.b_enc[i]) * sae.W_dec[i]
            ),
        ),
        "after the ReLU",
    ),
    (check.choose, (lambda rate, validity: (rate + validity).mean(1).argmax(),), "Multiply them"),
    (check.choose, (lambda rate, validity: (rate * validity).mean(0).argmax(),), "best strength"),
    (check.choose, (lambda rate, validity: (rate * validity).mean(1).max(),), "not an index"),
    (check.choose, (lambda rate, validity: rate.mean(1).argmax(),), "by rate alone"),
    (check.choose, (lambda rate, validity: validity.mean(1).argmax(),), "by validity alone"),
    (
        check.choose,
        (lambda rate, validity: (rate * validity).amax(1).argmax(),),
        "one lucky strength",
    ),
    (
        check.choose,
        (lambda rate, validity: (rate.mean(1) * validity.mean(1)).argmax(),),
        "then average",
    ),
    (check.choose, (lambda rate, validity: (rate * validity).mean(1),), "one index"),
]

# the bridge: texts, not a function; they are made when they are needed
RIGHT += [
    (check.bridge, lambda: (bridges(),)),
    (check.bridge, lambda: (bridges().numpy(),)),
    (check.bridge, lambda: (torch.cat([bridges(), held()[:30]]),)),
]
WRONG += [
    (check.bridge, lambda: (held(),), "another feature"),
    (check.bridge, lambda: (some(),), "one in seven"),
    (check.bridge, lambda: (scattered(),), "they stammer it"),
    (check.bridge, lambda: (dogs(),), "bridge's direction"),
    (check.bridge, lambda: (shuffled(),), "far too strong"),
    (check.bridge, lambda: (bridges()[:50],), "at least 100 texts"),
    (check.bridge, lambda: (bridges()[:, :20],), "40 tokens"),
    (check.bridge, lambda: (bridges()[:1].repeat(100, 1),), "copies"),
    (check.bridge, lambda: (told(),), "the prompt told them"),
    (check.bridge, lambda: (stammered(),), "the prompt told them"),
    (check.bridge, lambda: (babble(),), "babble"),
    (check.bridge, ("texts",), "it is a str"),
]


@pytest.mark.parametrize(
    ("guess", "says"),
    [(0.9, "about right"), (0.1, "more"), (0.99, "fewer")],
)
def test_a_guess_gets_its_reply(guess, says):
    assert says in check.predicted_rate(guess, 0.85).message
