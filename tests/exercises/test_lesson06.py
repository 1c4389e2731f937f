"""The checks of lesson 06: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch
from every_lesson import *  # noqa: F403
from torch.nn.functional import cross_entropy

from saelearn.exercises import lesson06 as check


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


def surprise_by_loop(logits, tokens):
    return [float(-logits[t].log_softmax(0)[tokens[t + 1]]) for t in range(len(tokens) - 1)]


def surprise_backwards(logits, tokens):
    """Computed from the end, and turned round: a NumPy view with a negative stride."""
    return np.array(surprise_by_loop(logits, tokens)[::-1])[::-1]


def surprise_in_place(logits, tokens):
    logits -= logits.logsumexp(1, keepdim=True)
    return -picked(logits[:-1], tokens[1:])


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


def swap_with_context(model, module, x, edit):
    with contextlib.ExitStack() as stack:
        handle = module.register_forward_hook(lambda *passed: edit(passed[-1]))
        stack.callback(handle.remove)
        return model(x).detach()


def swap_forward(model, module, x, edit):
    original = module.forward
    module.forward = lambda y: edit(original(y))
    try:
        return model(x)
    finally:
        module.forward = original


def swap_and_stay(model, module, x, edit):
    module.register_forward_hook(lambda m, i, o: edit(o))
    return model(x)


def swap_without_finally(model, module, x, edit):
    handle = module.register_forward_hook(lambda m, i, o: edit(o))
    result = model(x)
    handle.remove()
    return result


def swap_and_sweep(model, module, x, edit):
    module.register_forward_hook(lambda m, i, o: edit(o))
    result = model(x)
    for each in model.modules():
        each._forward_hooks.clear()
    return result


def swap_too_late(model, module, x, edit):
    module.register_forward_hook(lambda m, i, o: edit(o)).remove()
    return model(x)


def swap_weights(model, module, x, edit):
    with torch.no_grad():
        module.weight.mul_(0.3)
        module.bias.mul_(0.3).add_(1)
    return model(x)


def swap_the_middle(model, module, x, edit):
    return hooked(lambda edit: lambda m, i, o: edit(o))(model, model.middle, x, edit)


def listens(model, module, x):
    found = []
    handle = module.register_forward_hook(lambda m, i, o: found.append(o))
    model(x)
    handle.remove()
    return found[0]


def patches(put, *, of=lambda donor, into: donor, on=lambda donor, into: into):
    """An answer that makes `put(own y, other x, position)` at each place."""

    def answer(lm, donor, into, sites, measure):
        x, runs_on = lm.capture(of(donor, into), sites), on(donor, into)
        rows = []
        for site in sites:
            row = []
            for t in range(into.shape[1]):
                edit = {site: lambda y, _, t=t, site=site: put(y, x[site], t)}
                row.append(measure(lm.logits(runs_on, edit)))
            rows.append(row)
        return torch.tensor(rows)

    return answer


def one(y, x, t):
    y = y.clone()
    y[:, t] = x[:, t]
    return y


def in_place(y, x, t):
    y[:, t] = x[:, t]
    return y


def by_where(y, x, t):
    return torch.where((torch.arange(y.shape[1]) == t)[:, None], x, y)


def summed(y, x, t):
    y = y.clone()
    y[:, t] += x[:, t]
    return y


def up_to(y, x, t):
    return torch.cat([x[:, :t], y[:, t:]], 1)


def patched_by_numpy(lm, donor, into, sites, measure):
    return patches(one)(lm, donor, into, sites, measure).numpy()[::-1][::-1]


def patched_late(lm, donor, into, sites, measure):
    """Edits made first and run later: all see the last position."""
    x, T = lm.capture(donor, sites), into.shape[1]
    edits = []
    for site in sites:
        row = []
        for t in range(T):
            row.append({site: lambda y, _, site=site: one(y, x[site], t)})  # noqa: B023
        edits.append(row)
    return torch.tensor([[measure(lm.logits(into, e)) for e in row] for row in edits])


def patched_words(lm, donor, into, sites, measure):
    """Exchanges words, in the token ids that it was given."""
    rows = []
    for _ in sites:
        for t in range(into.shape[1]):
            into[:, t] = donor[:, t]
            rows.append(measure(lm.logits(into)))
    return torch.tensor(rows).reshape(len(sites), -1)


def changes(lm, donor, into, sites, measure):
    return patches(one)(lm, donor, into, sites, measure) - measure(lm.logits(into))


def shares(a, register, reduce=lambda x: x.mean(0)):
    mass = torch.stack([reduce(a[register == r]) for r in range(int(register.max()) + 1)])
    return mass / mass.sum(0).clamp(min=1e-9)


def search(a, register, wanted):
    return shares(a, register)[wanted].amin(0).argmax()


def search_by_loops(a, register, wanted):
    best, found = -1.0, 0
    for s in range(a.shape[1]):
        means = [float(a[register == r, s].mean()) for r in sorted(set(register.tolist()))]
        least = min(means[w] / max(sum(means), 1e-9) for w in wanted)
        best, found = (least, s) if least > best else (best, found)
    return found


def search_by_numpy(a, register, wanted):
    a, register = a.numpy(), register.numpy()
    mass = np.stack([a[register == r].mean(0) for r in range(register.max() + 1)])
    share = np.nan_to_num(mass / np.maximum(mass.sum(0), 1e-12))
    return np.array([share[wanted].min(0).argmax()])  # one number in a list of one


def search_in_place(a, register, wanted):
    a /= a.sum(0).clamp(min=1e-9)
    return search(a, register, wanted)


def search_without_care(a, register, wanted):
    mass = torch.stack([a[register == r].mean(0) for r in range(int(register.max()) + 1)])
    return (mass / mass.sum(0))[wanted].amin(0).argmax()


def search_by_mass(a, register, wanted):
    mass = torch.stack([a[register == r].mean(0) for r in range(int(register.max()) + 1)])
    return mass[wanted].amin(0).argmax()


RIGHT = [
    (check.surprise, (surprise,)),
    (check.surprise, (surprise_by_numpy,)),
    (check.surprise, (surprise_by_loop,)),
    (check.surprise, (surprise_backwards,)),
    (check.surprise, (lambda z, t: -picked(z.softmax(-1)[:-1], t[1:]).log(),)),
    (check.swap, (hooked(lambda edit: lambda m, i, o: edit(o)),)),
    (check.swap, (swap_with_context,)),
    (check.swap, (swap_forward,)),
    (check.patching, (patches(one),)),
    (check.patching, (patches(in_place),)),
    (check.patching, (patches(by_where),)),
    (check.patching, (patched_by_numpy,)),
    (check.search, (search,)),
    (check.search, (search_by_loops,)),
    (check.search, (search_by_numpy,)),
    (check.predicted_places, (0, 4, 56)),
    (check.predicted_places, (56.0, 4, 56)),
    (check.predicted_places, (4, 4, 56)),
    (check.predicted_alone, (0, 0.15)),
    (check.predicted_alone, (1.0, 0.15)),
    (check.predicted_alone, (0.2, 0.15)),
]

WRONG = [
    (check.surprise, (lambda z, t: surprise(z, t).mean(),), "one for each token"),
    (check.surprise, (lambda z, t: cross_entropy(z, t, reduction="none"),), "has just read"),
    (check.surprise, (lambda z, t: [*surprise(z, t).tolist(), 0],), "one number too many"),
    (check.surprise, (lambda z, t: -surprise(z, t),), "the sign is lost"),
    (check.surprise, (lambda z, t: surprise(z, t).neg().exp(),), "these are probabilities"),
    (check.surprise, (lambda z, t: surprise(z, t) / math.log(2),), "in bits"),
    (check.surprise, (lambda z, t: -picked(z[:-1], t[1:]),), "these are scores"),
    (check.surprise, (lambda z, t: -picked(z[:-1].log_softmax(0), t[1:]),), "over the positions"),
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
    (check.surprise, (surprise_in_place,), "overwritten"),
    (check.surprise, (lambda z, t: surprise(z, t)[:6] if len(t) > 5 else [1.0] * 3,), "expected"),
    (check.surprise, (lambda z, t: surprise(z, t) * float("nan"),), "came nan"),
    (check.swap, (hooked(lambda edit: lambda m, i, o: [edit(o)][1:] or None),), "nothing has"),
    (check.swap, (swap_too_late,), "still there while the model runs"),
    (check.swap, (hooked(lambda edit: lambda m, i, o: edit(i[0])),), "the output is the third"),
    (check.swap, (lambda model, module, x, edit: edit(module(x)),), "what earlier layers made"),
    (check.swap, (swap_and_stay,), "handle.remove()"),
    (check.swap, (swap_without_finally,), "finally"),
    (check.swap, (swap_and_sweep,), "somebody else"),
    (check.swap, (swap_weights,), "weights were changed"),
    (check.swap, (swap_the_middle,), "use the argument `module`"),
    (check.swap, (hooked(lambda edit: lambda m, i: (edit(i[0]),), pre=True),), "goes into the mod"),
    (check.swap, (lambda model, module, x, edit: edit(model(x)),), "last output"),
    (
        check.swap,
        (lambda model, module, x, edit: edit(listens(model, module, x)),),
        "run on to its end",
    ),
    (check.swap, (hooked(lambda edit: lambda m, i, o: edit(edit(o))),), "twice"),
    (check.swap, (hooked(lambda edit: lambda m, i, o: 0.3 * o + 1),), "expected"),
    (check.patching, (patches(lambda y, x, t: y),), "nothing has changed"),
    (check.patching, (patches(one, of=lambda d, i: i),), "nothing has changed"),
    (
        check.patching,
        (patches(one, of=lambda d, i: i, on=lambda d, i: d),),
        "the wrong way round",
    ),
    (check.patching, (patches(lambda y, x, t: x),), "all positions were exchanged"),
    (check.patching, (patches(up_to),), "only t"),
    (check.patching, (patches(summed),), "was added"),
    (check.patching, (patched_late,), "sees t as it is then"),
    (check.patching, (changes,), "this is the change"),
    (check.patching, (lambda *given: patches(one)(*given).T,), "turned"),
    (check.patching, (patched_words,), "into_BT itself is overwritten"),
    (check.patching, (lambda *given: patches(one)(*given).mean(0),), "shape"),
    (check.patching, (lambda *given: patches(one)(*given) + 0.1,), "expected"),
    (check.search, (lambda a, r, w: shares(a, r)[w].sum(0).argmax(),), "two of them do"),
    (check.search, (lambda a, r, w: shares(a, r)[w].amax(0).argmax(),), "largest share"),
    (check.search, (lambda a, r, w: shares(a, r).amin(0).argmax(),), "all registers"),
    (check.search, (lambda a, r, w: shares(a, r)[w].amin(0).max(),), "argmax"),
    (check.search, (lambda a, r, w: shares(a, r)[w].amin(0).argmin(),), "not argmin"),
    (check.search, (lambda a, r, w: shares(a, r)[:4].amin(0).argmax(),), "neuron"),
    (check.search, (lambda a, r, w: shares(a, r)[w].amin(0),), "One neuron's number"),
    (check.search, (lambda a, r, w: shares(a, r, lambda x: x.sum(0))[w].amin(0).argmax(),), "Take"),
    (check.search, (search_by_mass,), "loud everywhere"),
    (check.search, (search_without_care,), "never fires"),
    (check.search, (search_in_place,), "overwritten"),
    (check.search, (lambda a, r, w: 4,), "neuron 4 again"),
    *unreadable(check.predicted_places, 56, 4, 56),  # noqa: F405
    *unreadable(check.predicted_alone, 1, 0.15),  # noqa: F405
]


@pytest.mark.parametrize(
    ("judge", "guesses", "measured"),
    [
        (check.predicted_places, (0, 4, 20), (4, 56)),
        (check.predicted_alone, (0.0, 0.3, 0.8), (0.35,)),
    ],
)
def test_a_prediction_is_answered_according_to_the_guess(judge, guesses, measured):
    assert len({judge(guess, *measured).message for guess in guesses}) == len(guesses)
