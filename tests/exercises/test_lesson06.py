"""The checks of lesson 06: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from every_lesson import *  # noqa: F403
from torch.nn.functional import cross_entropy

from saelearn.exercises import lesson06 as check

COST = {"attention 0": 2.0, "MLP 0": 9.0, "attention 1": 0.01, "MLP 1": 0.5}


def surprise(logits, tokens):
    return cross_entropy(logits[:-1], tokens[1:], reduction="none")


def surprise_by_numpy(logits, tokens):
    z = logits.numpy().astype(float)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return -np.log([p[t - 1, tokens[t]] for t in range(1, len(tokens))])


def picked(scores, tokens):
    return scores.gather(1, tokens[:, None])[:, 0]


class Listener:
    def __call__(self, module, inputs, output):
        self.inputs, self.output = inputs, output


def read(model, module, x):
    listener = Listener()
    handle = module.register_forward_hook(listener)
    try:
        model(x)
    finally:
        handle.remove()
    return listener.output


def read_without_gradient(model, module, x):
    found = {}
    handle = module.register_forward_hook(lambda m, i, o: found.update(it=o.detach().clone()))
    with torch.no_grad():
        model(x)
    handle.remove()
    return found["it"].numpy()


def read_input(model, module, x):
    found = []
    handle = module.register_forward_hook(lambda m, i, o: found.append(i[0]))
    model(x)
    handle.remove()
    return found[0]


def read_and_stay(model, module, x):
    found = []
    module.register_forward_hook(lambda m, i, o: found.append(o))
    model(x)
    return found[0]


def hooked(hook, *, pre=False):
    """An answer that runs the model with a hook made from the edit."""

    def answer(model, module, x, edit):
        register = module.register_forward_pre_hook if pre else module.register_forward_hook
        handle = register(hook(edit))
        try:
            return model(x)
        finally:
            handle.remove()

    return answer


def replace_and_stay(model, module, x, edit):
    module.register_forward_hook(lambda m, i, o: edit(o))
    return model(x)


def replace_too_late(model, module, x, edit):
    module.register_forward_hook(lambda m, i, o: edit(o)).remove()
    return model(x)


def replace_weights(model, module, x, edit):
    with torch.no_grad():
        module.weight.mul_(0.3)
        module.bias.mul_(0.3).add_(1)
    return model(x)


def replace_forward(model, module, x, edit):
    original = module.forward
    module.forward = lambda y: edit(original(y))
    out = model(x)
    module.forward = original
    return out


def shares(a, register, reduce=lambda x: x.mean(0)):
    mass = torch.stack([reduce(a[register == r]) for r in range(4)])
    return mass / mass.sum(0)


def entropy(p, log=torch.log):
    return -(p * log(p.clamp(min=1e-30))).sum(0)


def spread_by_loops(a, register):
    found = []
    for s in range(a.shape[1]):
        mass = [float(a[register == r, s].mean()) for r in sorted(set(register.tolist()))]
        p = [m / sum(mass) for m in mass if m > 0]
        found.append(math.exp(-sum(q * math.log(q) for q in p)))
    return found


def spread_by_index_add(a, register):
    mass = torch.zeros(4, a.shape[1]).index_add_(0, register, a)
    p = mass / register.bincount()[:, None]
    p = p / p.sum(0)
    return 2 ** entropy(p, torch.log2)


def spread_without_care(a, register):
    p = shares(a, register)
    return (-(p * p.log()).sum(0)).exp()


def spread_over_ten(a, register):
    mass = torch.stack([a[register == r].mean(0) for r in range(10)])
    return entropy(mass / mass.sum(0)).exp()


TERMS = {"A": "polysemanticity", "B": "both", "C": "neither", "D": "superposition"}

RIGHT = [
    (check.surprise, (surprise,)),
    (check.surprise, (surprise_by_numpy,)),
    (check.surprise, (lambda z, t: -picked(z.softmax(-1)[:-1], t[1:]).log(),)),
    (check.read, (read,)),
    (check.read, (read_without_gradient,)),
    (check.replace, (hooked(lambda edit: lambda m, i, o: edit(o)),)),
    (check.replace, (replace_forward,)),
    (check.spread, (spread_by_loops,)),
    (check.spread, (spread_by_index_add,)),
    (check.search, (lambda share, wanted: share[:, wanted].min(1).values.argmax(),)),
    (check.search, (lambda share, wanted: int(np.argmax(share.numpy()[:, wanted].min(1))),)),
    (
        check.search,
        (lambda share, wanted: max(range(len(share)), key=lambda s: min(share[s][wanted])),),
    ),
    (check.terms, (TERMS,)),
    (check.terms, ({name: answer.upper() + " " for name, answer in TERMS.items()},)),
    (check.terms, ({name.lower(): answer for name, answer in TERMS.items()},)),
    (check.predicted_piece, ("MLP 0", COST)),
    (check.predicted_piece, ("mlp0", COST)),
    (check.predicted_piece, ("attention 1", COST)),
    (check.predicted_spread, (1, 4.1, 10)),
    (check.predicted_spread, (9.5, 4.1, 10)),
    (check.predicted_alone, (0, 0.15)),
    (check.predicted_alone, (1.0, 0.15)),
]

WRONG = [
    (check.surprise, (lambda z, t: surprise(z, t).mean(),), "one for each token"),
    (check.surprise, (lambda z, t: cross_entropy(z, t, reduction="none"),), "has just read"),
    (check.surprise, (lambda z, t: [*surprise(z, t).tolist(), 0],), "one number too many"),
    (check.surprise, (lambda z, t: -surprise(z, t),), "the sign is lost"),
    (check.surprise, (lambda z, t: surprise(z, t).neg().exp(),), "these are probabilities"),
    (check.surprise, (lambda z, t: surprise(z, t) / math.log(2),), "in bits"),
    (check.surprise, (lambda z, t: -picked(z[:-1], t[1:]),), "these are scores"),
    (
        check.surprise,
        (lambda z, t: cross_entropy(z[:-1], t[:-1], reduction="none"),),
        "guess the next",
    ),
    (
        check.surprise,
        (lambda z, t: cross_entropy(z[1:], t[1:], reduction="none"),),
        "guesses tokens_T[1]",
    ),
    (
        check.surprise,
        (lambda z, t: cross_entropy(z[1:], t[:-1], reduction="none"),),
        "the wrong way",
    ),
    (check.surprise, (lambda z, t: -z.log_softmax(-1)[:-1].max(1).values,), "likeliest"),
    (check.read, (read_and_stay,), "handle.remove()"),
    (check.read, (read_input,), "what went into"),
    (check.read, (lambda model, module, x: model(x),), "model's own output"),
    (check.read, (lambda *args: [read(*args)],), "in a list"),
    (check.read, (lambda *args: [],), "nothing was heard"),
    (check.read, (lambda *args: 2 * read(*args),), "not what the module returned"),
    (check.read, (lambda model, module, x: module(x),), "what earlier layers made"),
    (check.replace, (hooked(lambda edit: lambda m, i, o: [edit(o)][1:] or None),), "nothing has"),
    (check.replace, (replace_too_late,), "still there while the model runs"),
    (check.replace, (hooked(lambda edit: lambda m, i, o: edit(i[0])),), "the output is the third"),
    (check.replace, (lambda model, module, x, edit: edit(module(x)),), "what earlier layers made"),
    (check.replace, (replace_and_stay,), "handle.remove()"),
    (check.replace, (replace_weights,), "weights were changed"),
    (
        check.replace,
        (hooked(lambda edit: lambda m, i: (edit(i[0]),), pre=True),),
        "goes into the module",
    ),
    (check.replace, (lambda model, module, x, edit: edit(model(x)),), "last output"),
    (
        check.replace,
        (lambda model, module, x, edit: edit(read(model, module, x)),),
        "run on to its end",
    ),
    (check.spread, (spread_without_care,), "torch.special.xlogy"),
    (check.spread, (spread_over_ten,), "register_N.unique()"),
    (check.spread, (lambda a, r: entropy(shares(a, r)),), "this is the entropy"),
    (check.spread, (lambda a, r: (-entropy(shares(a, r))).exp(),), "the minus is missing"),
    (check.spread, (lambda a, r: entropy(shares(a, r, lambda x: x.sum(0))).exp(),), "Take means"),
    (
        check.spread,
        (lambda a, r: entropy(shares((a > 0).float(), r)).exp(),),
        "weigh each by how strong",
    ),
    (check.spread, (lambda a, r: (shares(a, r) > 0).sum(0),), "a trace should"),
    (
        check.spread,
        (lambda a, r: entropy(shares(a, r, lambda x: x.mean(1).sum()[None])).exp(),),
        "(6,)",
    ),
    (check.search, (lambda share, wanted: share[:, wanted].sum(1).argmax(),), "two of them do"),
    (check.search, (lambda share, wanted: share[:, wanted].max(1).values.argmax(),), "largest sh"),
    (check.search, (lambda share, wanted: share.min(1).values.argmax(),), "share_SR[:, wanted]"),
    (check.search, (lambda share, wanted: share[:, wanted].min(1).values.max(),), "argmax"),
    (check.search, (lambda share, wanted: share[wanted].min(1).values.argmax(),), "columns are"),
    (check.search, (lambda share, wanted: share[:, wanted].min(0).values.argmax(),), "min(dim=1)"),
    (check.search, (lambda share, wanted: share[:, wanted].min(1).values.argmin(),), "not argmin"),
    (check.search, (lambda share, wanted: share[:, :4].min(1).values.argmax(),), "`wanted`"),
    (check.search, (lambda share, wanted: share[:, wanted].min(1).values,), "One neuron's number"),
    (check.terms, (TERMS | {"A": "superposition"},), "A is something else: two neurons"),
    (check.terms, (TERMS | {"D": "both"},), "about single neurons it says nothing"),
    (check.terms, (TERMS | {"B": "polysemanticity"},), "B is something else"),
    (check.terms, (TERMS | {"C": "monosemantic"},), "none of superposition"),
    (check.terms, ({"A": "polysemanticity", "B": ...},), "B: 'ellipsis'"),
    (check.terms, (list(TERMS.values()),), "a list"),
    (check.predicted_piece, ("MLP", COST), "one of attention 0, MLP 0"),
    (check.predicted_piece, (0, COST), "in quotes"),
    (check.predicted_piece, ("block 1", COST), "in quotes"),
    (check.predicted_spread, (0, 4.1, 10), "between 1 and 10"),
    (check.predicted_spread, (11, 4.1, 10), "between 1 and 10"),
    (check.predicted_spread, ("few", 4.1, 10), "a str"),
    (check.predicted_alone, (15, 0.15), "between 0 and 1"),
    (check.predicted_alone, (float("nan"), 0.15), "between 0 and 1"),
    (check.predicted_alone, (True, 0.15), "a bool"),
]

OPEN = [(check.terms, (dict.fromkeys("ABCD", ...),))]


@pytest.mark.parametrize(
    ("judge", "guesses", "measured"),
    [
        (check.predicted_piece, ("MLP 0", "attention 0", "attention 1"), (COST,)),
        (check.predicted_spread, (1, 4, 9), (4.1, 10)),
        (check.predicted_alone, (0.0, 0.3, 0.8), (0.35,)),
    ],
)
def test_a_prediction_is_answered_according_to_the_guess(judge, guesses, measured):
    assert len({judge(guess, *measured).message for guess in guesses}) == len(guesses)
