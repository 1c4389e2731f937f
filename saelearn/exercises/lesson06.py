"""Checks of lesson 06, inside a language model.

Every target is computed here, from the definitions and without the library's code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saelearn.exercises import (
    Mistake,
    Verdict,
    as_tensor,
    call,
    close,
    diagnose,
    each_earns,
    exercise,
    guesses,
)
from saelearn.exercises import need_shape as need


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- predictions ----------------------------------------------------------------------------------


def predicted_piece(guess: Any, cost: Mapping[str, float]) -> Verdict:
    """A reply to which piece of the stream is expected to cost most; `cost`: piece -> nats."""

    def answer(guess: Any) -> str:
        order = sorted(cost, key=lambda name: -cost[name])
        meant = {name.lower().replace(" ", ""): name for name in cost}
        piece = meant.get(str(guess).lower().replace(" ", ""))
        if piece is None:
            raise Mistake(f"one of {', '.join(cost)} is needed, in quotes")
        if piece == order[0]:
            return f"yes: {piece}, {cost[piece]:.1f} nats a token."
        place = f"number {order.index(piece) + 1} of {len(order)}"
        return f"{piece} is {place}. Most is lost without {order[0]}."

    return guesses.reply("the piece that costs most", guess, answer)


def predicted_spread(guess: Any, median: float, n_registers: int) -> Verdict:
    """A reply to over how many registers a typical neuron is expected to spread."""
    return guesses.reply_to_number(
        "how far a neuron spreads", guess, median, within=1.0, span=(1, n_registers),
        near=f"about right: {median:.1f}.",
        low=f"more: {median:.1f}. Even the typical neuron is not at home in one register.",
        high=f"fewer: {median:.1f}. Neurons fire rarely, and the rare are in few places.",
    )  # fmt: skip


def predicted_alone(guess: Any, share: float) -> Verdict:
    """A reply to the share of readable concepts that one neuron is expected to know alone."""
    return guesses.reply_to_number(
        "what one neuron knows", guess, share, within=0.1,
        near=f"about right: {share:.0%}.",
        low=f"more: {share:.0%}. Some neurons do stand for one concept.",
        high=f"fewer: {share:.0%}. The others are spread over many neurons.",
    )  # fmt: skip


# --- exercises ------------------------------------------------------------------------------------


@exercise(
    "Exercise 6.1",
    passed="the scores at one token are about the next one: everything is shifted by one",
)
def surprise(function: Callable) -> None:
    """`surprise(logits_TV, tokens_T)` -> nats of tokens 1 to T - 1."""
    T, V = 7, 5
    logits_TV, tokens_T = 2 * _random(T, V), torch.tensor([3, 0, 4, 1, 1, 2, 0])
    log_p_TV = logits_TV.double() - logits_TV.double().logsumexp(1, keepdim=True)
    rows = torch.arange(T - 1)
    right = -log_p_TV[rows, tokens_T[1:]]
    value = as_tensor(call(function, logits_TV, tokens_T), "the surprise")
    if value.shape == ():
        raise Mistake("one number for the whole text; keep one for each token, without the mean")
    same = -log_p_TV[torch.arange(T), tokens_T]
    not_shifted = "you ask each place for the token that stands there, which it has just read"
    if value.shape == (T,):
        why = not_shifted if close(value, same) else "nothing predicts the first one"
        raise Mistake(f"one number too many: {why}. Pair logits_TV[:-1] with tokens_T[1:]")
    wrong = {
        "the sign is lost: a probability is below 1, its logarithm below 0": -right,
        "these are probabilities; surprise is minus their logarithm": (-right).exp(),
        "in bits (log2); here we count in nats: the natural logarithm": right / math.log(2),
        "these are scores; softmax makes probabilities of them first": (
            -logits_TV[rows, tokens_T[1:]]
        ),
        f"{not_shifted}; it has to guess the next": same[:-1],
        f"{not_shifted}; the first place, logits_TV[0], guesses tokens_T[1]": same[1:],
        "shifted the wrong way: logits_TV[:-1] belongs to tokens_T[1:]": (
            -log_p_TV[rows + 1, tokens_T[:-1]]
        ),
        "this is the surprise of the word that it holds for likeliest, not of the one that "
        "came": -log_p_TV[:-1].max(1).values,
    }
    need(value, (T - 1,), "the surprise")
    diagnose(value, right, wrong, "it is -log of the probability that place t - 1 gave token t")


_NOT_ITS_INPUT = "you gave x to the module; in the model it gets what earlier layers made of x"


class _Chain(nn.Module):
    """Three layers one after another, as small as a model with an inside can be."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        with torch.no_grad():
            for seed, parameter in enumerate(self.parameters()):
                parameter.copy_(_random(*parameter.shape, seed=seed))

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x_BD).tanh()).tanh())


def _need_no_hook(model: nn.Module) -> None:
    left = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    if left:
        raise Mistake("the hook is still there afterwards: keep its handle, handle.remove()")


@exercise("Exercise 6.2", passed="it listens, and leaves nothing behind")
def read(function: Callable) -> None:
    """`read(model, module, x)` -> what the module returned while the model ran."""
    model, x_BD = _Chain(), _random(5, 6, seed=9)
    inside = model.first(x_BD).tanh()
    right, end = model.middle(inside), model(x_BD)
    value = call(function, model, model.middle, x_BD)
    _need_no_hook(model)
    if isinstance(value, list | tuple):
        full = "the output is still wrapped in a list or tuple: return the tensor in it"
        raise Mistake(full if value else "nothing was heard: did the model run under the hook?")
    wrong = {
        "this is what went into the module; the hook's third argument came out": inside,
        "this is the model's own output; what the module returned is the hook's third "
        "argument": end,
        _NOT_ITS_INPUT: model.middle(x_BD),
    }
    diagnose(value, right, wrong, "this is not what the module returned while the model ran")


@exercise("Exercise 6.3", passed="what a hook returns takes the output's place")
def replace(function: Callable) -> None:
    """`replace(model, module, x, edit)` -> the model's output with the edit made."""
    model, x_BD = _Chain(), _random(5, 6, seed=9)
    before = {name: p.detach().clone() for name, p in model.state_dict().items()}

    def edit(y: Tensor) -> Tensor:
        return 0.3 * y + 1

    inside = model.first(x_BD).tanh()
    out = model.middle(inside)
    right, clean = model.last(edit(out).tanh()), model(x_BD)
    at_input = model.last(model.middle(edit(inside)).tanh())
    value = call(function, model, model.middle, x_BD, edit)
    _need_no_hook(model)
    if any(not torch.equal(p, before[name]) for name, p in model.state_dict().items()):
        raise Mistake("the model's weights were changed: edit what passes, not the model")
    wrong = {
        "nothing has changed: does your hook return edit(output), and is it still there while "
        "the model runs?": clean,
        "the edit was made on the model's last output, not at the module": edit(clean),
        "this edits what goes into the module; a forward hook returns what comes out": at_input,
        "this is the edited output of the module; let the model run on to its end": edit(out),
        "the hook's second argument, the module's input, was edited; the output is the third": (
            model.last(edit(inside).tanh())
        ),
        _NOT_ITS_INPUT: edit(model.middle(x_BD)),
    }
    diagnose(value, right, wrong, "not what the model returns if edit(output) takes the place")


@exercise(
    "Exercise 6.4",
    passed="1 for a specialist, the number of registers for whoever is equally at home in all",
)
def spread(function: Callable) -> None:
    """`spread(a_NS, register_N)` -> effective number of registers of each neuron, `[S]`."""
    order_N = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    register_N = torch.tensor([0] * 40 + [1] * 8 + [2] * 20 + [3] * 12)[order_N]
    a_NS = _random(80, 6, seed=3).relu() * (1 + torch.arange(6) * register_N[:, None])
    a_NS[register_N == 2, 0] = 0  # a register in which it is silent: 0 log 0
    mass_RS = torch.stack([a_NS[register_N == r].double().mean(0) for r in range(4)])
    sums_RS = torch.stack([a_NS[register_N == r].double().sum(0) for r in range(4)])
    fired_RS = torch.stack([(a_NS[register_N == r] > 0).double().mean(0) for r in range(4)])
    value = as_tensor(call(function, a_NS, register_N), "the spread")
    if value.isnan().any():
        raise Mistake(
            "one neuron is silent in one register, and 0 * log(0) is nan: use torch.special.xlogy. "
            "(Or was a register counted that no token has? register_N.unique() lists them)"
        )
    if value.shape == (4,):
        raise Mistake("one number for each register; a spread is one number for each neuron")
    need(value, (6,), "the spread")
    wrong = {
        "this is the entropy; its exp is a number of registers": _number(mass_RS).log(),
        "the minus is missing: entropy is -sum p log p": 1 / _number(mass_RS),
        "sums over tokens: a common register then weighs more. Take means": _number(sums_RS),
        "this counts firings; weigh each by how strong it is": _number(fired_RS),
        "this counts the registers in which it fires at all; a trace should count little": (
            (mass_RS > 0).double().sum(0)
        ),
        "the shares of each *neuron* should add up to 1 over the registers": _number(
            mass_RS / mass_RS.sum(1, keepdim=True), normalised=True
        ),
    }
    expected = "expected exp(-sum over registers of p log p), p: shares of the mean activations"
    diagnose(value, _number(mass_RS), wrong, expected)


def _number(mass_RS: Tensor, *, normalised: bool = False) -> Tensor:
    p_RS = mass_RS if normalised else mass_RS / mass_RS.sum(0)
    return (-torch.special.xlogy(p_RS, p_RS).sum(0)).exp()


@exercise(
    "Exercise 6.5",
    passed="a chain is as strong as its weakest link: the smallest share decides",
)
def search(function: Callable) -> None:
    """`answers_to_all(share_SR, wanted)` -> the neuron with the largest smallest wanted share."""
    share_SR = torch.tensor(
        [[0.22, 0.02, 0.03, 0.03, 0.3, 0.4]] * 4  # 0 to 3: nobody that anyone looks for
        + [
            [0.15, 0.14, 0.12, 0.13, 0.01, 0.45],  # 4: the one
            [0.47, 0.40, 0.01, 0.02, 0.05, 0.05],  # 5: largest sum over the wanted
            [0.60, 0.01, 0.01, 0.01, 0.19, 0.18],  # 6: largest single share
            [0.10, 0.09, 0.11, 0.10, 0.30, 0.30],  # 7: largest smallest share over all registers
            [0.30, 0.20, 0.00, 0.10, 0.20, 0.20],  # 8: smallest smallest share
        ]
    )
    value = need(call(function, share_SR, [0, 1, 2, 3]), (), "the answer", "One neuron's number.")
    if float(value) in range(4):
        raise Mistake("columns are registers: share_SR[:, wanted]; .min(dim=1) keeps the neurons")
    wrong = {
        "its sum over the wanted registers is large, but two of them do it all: the smallest "
        "share counts": 5,
        "that neuron answers to one of them only: you took the largest share": 6,
        "you looked at all registers; only the wanted ones count: share_SR[:, wanted]": 7,
        "that one's smallest share is the smallest of all: argmax, not argmin": 8,
        "this is a share; the neuron's number is asked for: argmax": 0.12,
    }
    diagnose(value, 4, wrong, "expected the neuron whose smallest wanted share is largest")
    if int(need(call(function, share_SR.flip(1), [2, 3, 4, 5]), (), "the answer")) != 4:
        raise Mistake("with other wanted registers it is wrong: use the argument `wanted`")


TERMS = ("superposition", "polysemanticity", "both", "neither")
_CLAIMS = {
    "A": ("polysemanticity", "two neurons for two concepts: there is no crowd, only mixed neurons"),
    "B": ("both", "3 concepts in 2 dimensions is a crowd, and the neurons have to share them"),
    "C": ("neither", "one neuron for each concept, and as many dimensions as concepts"),
    "D": ("superposition", "more concepts than dimensions; about single neurons it says nothing"),
}


@exercise(
    "Exercise 6.6",
    passed="polysemanticity is about a neuron; superposition is about how many there are",
)
def terms(answers: Any) -> None:
    """`answers`: letter -> one of `TERMS`."""
    if not isinstance(answers, Mapping):
        raise Mistake(f"this needs a dictionary, but it is a {type(answers).__name__}")
    answers = {str(letter).strip().upper(): answer for letter, answer in answers.items()}
    if all(answers.get(letter, ...) is ... for letter in _CLAIMS):
        raise NotImplementedError
    each_earns(_judge_claim, [(letter, answers.get(letter, "no answer")) for letter in _CLAIMS])


def _judge_claim(letter: str, answer: Any) -> None:
    right, reason = _CLAIMS[letter]
    answer = str(answer).strip().lower()
    if answer not in TERMS:
        raise Mistake(f"{letter}: {answer!r} is none of {', '.join(TERMS)}")
    if answer != right:
        raise Mistake(f"{letter} is something else: {reason}")
