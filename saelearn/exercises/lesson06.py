"""Checks of lesson 06, inside a language model.

Every target is computed here, from the definitions and without the library's code.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
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
    earned,
    exercise,
    guesses,
)
from saelearn.exercises import need_shape as need
from saelearn.exercises.trainable import unchanged
from saelearn.features import register_shares


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- predictions ----------------------------------------------------------------------------------


@guesses.prediction
def predicted_places(guess: Any, flips: int, places: int) -> Verdict:
    """A reply to at how many places one exchanged vector is expected to turn the mood."""
    return guesses.reply_to_number(
        "where a fact can be exchanged", guess, flips, within=1, span=(0, places),
        near=f"about right: {flips} of {places}.",
        low=f"more: {flips} of {places}. It has to be somewhere after every block.",
        high=f"fewer: {flips} of {places}. Elsewhere the stream moves, but nothing depends on it.",
    )  # fmt: skip


@guesses.prediction
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
    "Exercise 6.1: surprise",
    passed="the scores at one token are about the next one: everything is shifted by one",
)
def surprise(function: Callable) -> None:
    """`surprise(logits_TV, tokens_T)` -> nats of tokens 1 to T - 1."""
    for T, V, seed in ((7, 5, 0), (4, 9, 1)):
        logits_TV, tokens_T = 2 * _random(T, V, seed=seed), _some(V, T, seed=seed)
        _judge_surprise(function, logits_TV, tokens_T)


def _some(V: int, *shape: int, seed: int) -> Tensor:
    """Token ids; no two neighbours are equal, so that a shift shows."""
    steps = torch.randint(1, V, shape, generator=torch.Generator().manual_seed(seed))
    return steps.cumsum(-1) % V


def _judge_surprise(function: Callable, logits_TV: Tensor, tokens_T: Tensor) -> None:
    T = len(tokens_T)
    log_p_TV = logits_TV.double() - logits_TV.double().logsumexp(1, keepdim=True)
    rows = torch.arange(T - 1)
    right = -log_p_TV[rows, tokens_T[1:]]
    value = as_tensor(call(function, given := logits_TV.clone(), tokens_T.clone()), "the surprise")
    unchanged(given, logits_TV, "logits_TV")
    if value.shape == ():
        raise Mistake("one number for the whole text; keep one for each token, without the mean")
    same = -log_p_TV[torch.arange(T), tokens_T]
    not_shifted = "you ask each place for the token that stands there, which it has just read"
    if value.shape == (T,):
        why = not_shifted if close(value, same) else "nothing predicts the first one"
        raise Mistake(f"one number too many: {why}. Pair logits_TV[:-1] with tokens_T[1:]")
    p_TV = log_p_TV.exp()
    wrong = {
        "the sign is lost: a probability is below 1, its logarithm below 0": -right,
        "these are probabilities; surprise is minus their logarithm": (-right).exp(),
        "in bits (log2); here we count in nats: the natural logarithm": right / math.log(2),
        "these are scores; softmax makes probabilities of them first": (
            -logits_TV[rows, tokens_T[1:]]
        ),
        "the softmax runs over the positions; it belongs over the words, dim=-1": (
            -logits_TV.double()[:-1].log_softmax(0)[rows, tokens_T[1:]]
        ),
        f"{not_shifted}; it has to guess the next": same[:-1],
        f"{not_shifted}; the first place, logits_TV[0], guesses tokens_T[1]": same[1:],
        "shifted the wrong way: logits_TV[:-1] belongs to tokens_T[1:]": (
            -log_p_TV[rows + 1, tokens_T[:-1]]
        ),
        "this is the surprise of the word that it holds for likeliest, not of the one that "
        "came": -log_p_TV[:-1].max(1).values,
        "this is the mean over all words (entropy); asked is the one that came": (
            -(p_TV * log_p_TV).sum(1)[:-1]
        ),
    }
    need(value, (T - 1,), "the surprise")
    diagnose(value, right, wrong, "it is -log of the probability that place t - 1 gave token t. "
             f"{differs(value, right)}")  # fmt: skip


def differs(value: Tensor, right: Tensor) -> str:
    """Where an answer first differs, what was expected there and what came."""
    value, right = value.detach(), right.detach().double()
    far = ~torch.isclose(value, right, rtol=1e-4, atol=1e-6)
    for at in far.nonzero().tolist():
        place = tuple(at)
        return f"At {at}: expected {float(right[place]):.4g}, came {float(value[place]):.4g}"
    return ""


_NOT_ITS_INPUT = "you gave x to the module; in the model it gets what earlier layers made of x"


class _Chain(nn.Module):
    """Three layers one after another, as small as a model with an inside can be."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.middle, self.last = (nn.Linear(width, width) for _ in range(3))
        with torch.no_grad():
            for seed, parameter in enumerate(self.parameters()):
                parameter.copy_(_random(*parameter.shape, seed=seed + width))
        self.first._forward_hooks[-1] = _bystander  # a number that no handle has, anywhere

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x_BD).tanh()).tanh())


def _bystander(module: nn.Module, inputs: Any, output: Any) -> None:
    """A hook that somebody else has left, and wants to find again."""


def _hooks(model: nn.Module) -> int:
    own = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return own + len(_EVERY_MODULES_HOOKS)


_EVERY_MODULES_HOOKS = nn.modules.module._global_forward_hooks


def _need_hooks_as_before(model: nn.Module, before: int, when: str) -> None:
    left = _hooks(model) - before
    if left > 0:
        raise Mistake(f"the hook is still there {when}: keep its handle, handle.remove()")
    if left < 0:
        raise Mistake("a hook that somebody else had left is gone: remove your own handle alone")


@exercise("Exercise 6.2: replace", passed="what a hook returns takes the output's place")
def swap(function: Callable) -> None:
    """`swap(model, module, x, edit)` -> the model's output with the edit made."""
    for width, B, name in ((6, 5, "middle"), (4, 3, "first"), (5, 2, "last")):
        _judge_swap(function, _Chain(width), name, _random(B, width, seed=9))
    model = _Chain(4)
    before = _hooks(model)

    def fails(y: Tensor) -> Tensor:
        raise ValueError("an edit that fails")

    with earned(0.5):
        with contextlib.suppress(Exception):
            call(function, model, model.middle, _random(3, 4), fails)
        _need_hooks_as_before(
            model, before, "if the edit fails; try: ... finally: removes it in any case"
        )


def _judge_swap(function: Callable, model: _Chain, name: str, x_BD: Tensor) -> None:
    module, before = getattr(model, name), _hooks(model)
    weights = {name: p.detach().clone() for name, p in model.state_dict().items()}

    def edit(y: Tensor) -> Tensor:
        return 0.3 * y * y + 1

    def run(at: dict[str, Callable], into: dict[str, Callable] | None = None) -> Tensor:
        """The model with functions at the outputs and inputs of its layers, without hooks."""
        y = x_BD
        for layer in ("first", "middle", "last"):
            y = y if layer == "first" else y.tanh()
            y = getattr(model, layer)((into or {}).get(layer, _same)(y))
            y = at.get(layer, _same)(y)
        return y

    right, clean, seen = run({name: edit}), run({}), {}
    run({name: lambda y: seen.setdefault("out", y)})
    run({}, {name: lambda y: seen.setdefault("in", y)})
    value = call(function, model, module, given := x_BD.clone(), edit)
    _need_hooks_as_before(model, before, "afterwards")
    if any(not torch.equal(p, weights[key]) for key, p in model.state_dict().items()):
        raise Mistake("the model's weights were changed: edit what passes, not the model")
    unchanged(given, x_BD, "x")
    wrong = {
        "nothing has changed: does your hook return edit(output), and is it still there while "
        "the model runs?": clean,
        "the edit was made on the model's last output, not at the module": edit(clean),
        "this edits what goes into the module; a forward hook returns what comes out": (
            run({}, {name: edit})
        ),
        "this is the edited output of the module; let the model run on to its end": (
            edit(seen["out"])
        ),
        "the hook's second argument, the module's input, was edited; the output is the third": (
            run({name: lambda _: edit(seen["in"])})
        ),
        _NOT_ITS_INPUT: edit(module(x_BD)),
        "the edit was made twice: was the hook registered twice?": (
            run({name: lambda y: edit(edit(y))})
        ),
        "the edit was made at another module: use the argument `module`": (
            run({"middle" if name != "middle" else "first": edit})
        ),
    }
    value = need(value, tuple(right.shape), "what the model returns")
    diagnose(value, right, wrong, "not what the model returns if edit(output) takes the place. "
             f"{differs(value, right)}")  # fmt: skip


def _same(y: Tensor) -> Tensor:
    return y


class _Reader(nn.Module):
    """A language model in miniature with the two calls of `LM` that patching needs.

    Each block adds to every position something of those before it, so that order matters.
    """

    def __init__(self, n_blocks: int, V: int, D: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(61)
        shapes = ((V, D), (n_blocks, D, D), (D, V))
        self.table, self.blocks, self.unembed = (
            nn.Parameter(torch.randn(shape, generator=draw), requires_grad=False)
            for shape in shapes
        )

    @property
    def sites(self) -> list[str]:
        return [f"block.{b}:out" for b in range(len(self.blocks))]

    def _run(self, tokens_BT: Tensor, edits: Mapping[str, Callable]) -> dict[str, Tensor]:
        x_BTD, passed = self.table[tokens_BT], {}
        positions_T = torch.arange(tokens_BT.shape[1])
        for site, block_DD in zip(self.sites, self.blocks, strict=True):
            before_BTD = x_BTD.cumsum(1) / (positions_T + 1)[:, None]
            x_BTD = x_BTD + (before_BTD @ block_DD).tanh()
            x_BTD = edits[site](x_BTD, positions_T) if site in edits else x_BTD
            passed[site] = x_BTD.clone()
        return passed | {"logits": x_BTD @ self.unembed}

    def capture(self, tokens_BT: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        passed = self._run(tokens_BT, {})
        return {site: passed[site] for site in sites}

    def logits(self, tokens_BT: Tensor, edits: Mapping[str, Callable] | None = None) -> Tensor:
        return self._run(tokens_BT, edits or {})["logits"]


@exercise("Exercise 6.3: patching", passed="one vector at a time: now you see where a fact is")
def patching(function: Callable) -> None:
    """`patch_map(lm, donor_BT, into_BT, sites, measure)` -> `[L, T]`."""
    for B, T, n_blocks, used in ((1, 5, 3, (0, 2)), (3, 4, 4, (1, 2, 3))):
        lm, tokens_BT = _Reader(n_blocks, 11, 6), _some(11, 2 * B, T, seed=B)
        sites = [lm.sites[i] for i in used]
        word, other = int(tokens_BT[0, 1]), int(tokens_BT[0, 0])

        def measure(logits_BTV: Tensor, word: int = word, other: int = other) -> float:
            return float((logits_BTV[:, -1, word] - logits_BTV[:, -1, other]).mean())

        _judge_patching(function, lm, tokens_BT[:B], tokens_BT[B:], sites, measure)


def _judge_patching(
    function: Callable,
    lm: _Reader,
    donor_BT: Tensor,
    into_BT: Tensor,
    sites: list[str],
    measure: Callable,
) -> None:
    given = (donor_BT.clone(), into_BT.clone())
    value = as_tensor(call(function, lm, *given, list(sites), measure), "the map")
    for now, before, name in zip(given, (donor_BT, into_BT), ("donor_BT", "into_BT"), strict=True):
        unchanged(now, before, name)
    shape = (len(sites), donor_BT.shape[1])
    if value.shape == shape[::-1]:
        raise Mistake("sites are rows and positions columns; yours is turned: .T turns it back")
    need(value, shape, "the map", "One number for each site (row) and each position (column).")

    def mapped(donor_BT: Tensor, into_BT: Tensor, put: Callable) -> Tensor:
        x = lm.capture(donor_BT, sites)
        return torch.tensor(
            [
                [
                    measure(lm.logits(into_BT, {s: lambda y, _, s=s, t=t: put(y, x[s], t)}))
                    for t in range(shape[1])
                ]
                for s in sites
            ]
        ).double()

    def one(y: Tensor, x: Tensor, t: int) -> Tensor:
        return torch.where((torch.arange(shape[1]) == t)[:, None], x, y)

    right = mapped(donor_BT, into_BT, one)
    clean = measure(lm.logits(into_BT))
    wrong = {
        "nothing has changed anywhere: does the edit return what it has made, and is it the "
        "donor's vector that it puts in?": torch.full(shape, clean).double(),
        "the wrong way round: capture the donor, and run on into_BT": (
            mapped(into_BT, donor_BT, one)
        ),
        "all positions were exchanged at once; one at a time: y_BTD[:, t] = ...": (
            mapped(donor_BT, into_BT, lambda y, x, t: x)
        ),
        "all positions up to t were exchanged; only t: y_BTD[:, t], without a colon after t": (
            mapped(donor_BT, into_BT, lambda y, x, t: torch.cat([x[:, :t], y[:, t:]], 1))
        ),
        "the donor's vector was added; it takes the other's place": (
            mapped(donor_BT, into_BT, lambda y, x, t: y + one(torch.zeros_like(y), x, t))
        ),
        "every column is the last position's: an edit that is made in a loop and run later sees "
        "t as it is then. Run it at once, or write def edit(x_BTD, positions_T, t=t)": (
            mapped(donor_BT, into_BT, lambda y, x, t: one(y, x, shape[1] - 1))
        ),
        "this is the change; return what `measure` says itself": right - clean,
        "exchanged positions stay exchanged: clone x_BTD, and set one position of the clone": (
            mapped(donor_BT, into_BT, lambda y, x, t: torch.cat([x[:, : t + 1], y[:, t + 1 :]], 1))
        ),
    }
    diagnose(value, right, wrong, "not what `measure` says after one vector was exchanged. "
             f"{differs(value, right)}", rtol=1e-3, atol=1e-4)  # fmt: skip


@exercise(
    "Exercise 6.4: the search",
    passed="a chain is as strong as its weakest link: the smallest share decides",
)
def search(function: Callable) -> None:
    """`answers_to_all(a_NS, register_N, wanted)` -> the neuron with the largest smallest share."""
    share_SR = torch.tensor(_SHARES)
    loud_S = torch.ones(len(share_SR))
    loud_S[9] = 20.0
    _judge_search(function, share_SR, loud_S, (10, 40, 40, 40, 20, 60), [0, 1, 2, 3])
    rows = [3, 4, 5, 6, 0, 7, 8, 9, 10]
    other_SR = torch.cat([share_SR[rows].flip(1), torch.full((len(rows), 1), 0.02)], 1)
    loud_S = loud_S[rows]
    loud_S[0] = 0.0  # in the second case one neuron never fires
    counts = (30, 12, 25, 9, 40, 17, 8)
    _judge_search(function, other_SR, loud_S, counts, [4, 2, 3], before=4)


_SHARES = [[0.22, 0.02, 0.03, 0.03, 0.3, 0.4]] * 4 + [  # 0 to 3: nobody that anyone looks for
    [0.15, 0.14, 0.12, 0.13, 0.01, 0.45],  # 4: the one
    [0.47, 0.40, 0.01, 0.02, 0.05, 0.05],  # 5: largest sum over the wanted
    [0.60, 0.01, 0.01, 0.01, 0.19, 0.18],  # 6: largest single share
    [0.10, 0.09, 0.11, 0.10, 0.30, 0.30],  # 7: largest smallest share over all registers
    [0.30, 0.20, 0.00, 0.10, 0.20, 0.20],  # 8: smallest smallest share
    [0.08, 0.30, 0.30, 0.20, 0.06, 0.06],  # 9: so loud that its smallest mass is the largest
    [0.30, 0.08, 0.08, 0.08, 0.16, 0.30],  # 10: by sums, the common registers count for more
]


def _judge_search(
    function: Callable,
    share_SR: Tensor,
    loud_S: Tensor,
    count_R: tuple[int, ...],
    wanted: list[int],
    before: int | None = None,
) -> None:
    register_N = torch.arange(len(count_R)).repeat_interleave(torch.tensor(count_R))
    noise_NS = 0.2 + _random(len(register_N), len(share_SR), seed=64).abs()
    for r in range(len(count_R)):  # so that means are exactly the shares, times the loudness
        noise_NS[register_N == r] /= noise_NS[register_N == r].mean(0)
    order_N = torch.randperm(len(register_N), generator=torch.Generator().manual_seed(65))
    a_NS = (noise_NS * share_SR.T[register_N] * loud_S)[order_N]
    register_N = register_N[order_N]
    answer = as_tensor(call(function, given := a_NS.clone(), register_N.clone(), [*wanted]), "it")
    unchanged(given, a_NS, "a_NS")
    answer = need(answer.squeeze() if answer.numel() == 1 else answer, (), "the answer",
                  "One neuron's number.")  # fmt: skip
    mass_RS = share_SR.T * loud_S
    sums_RS = mass_RS * torch.tensor(count_R)[:, None]
    share_RS, sum_share_RS = (m / m.sum(0).clamp(min=1e-9) for m in (mass_RS, sums_RS))
    right = int(share_RS[wanted].amin(0).argmax())
    value = float(answer)
    if value != int(value) if math.isfinite(value) else True:
        raise Mistake("this is a share; the neuron's number is asked for: argmax")
    if value == before:
        raise Mistake(
            f"neuron {before} again, although activations and wanted registers are others: use "
            "the arguments `a_NS`, `register_N` and `wanted`"
        )
    if loud_S[min(max(int(value), 0), len(loud_S) - 1)] == 0:
        raise Mistake(
            f"neuron {value:g} never fires: its shares are 0 / 0, which is nan, and argmax takes "
            "nan for the largest. Divide by the sum, but by no less than 1e-9: .clamp(min=1e-9)"
        )
    wrong = {
        "sums over tokens: a common register then weighs more. Take means": (
            sum_share_RS[wanted].amin(0).argmax()
        ),
        "that one is loud everywhere: divide its mass by the sum over the registers": (
            mass_RS[wanted].amin(0).argmax()
        ),
        "you looked at all registers; only the wanted ones count": share_RS.amin(0).argmax(),
        "the wanted registers only were counted as its whole; shares are of all registers": (
            (mass_RS[wanted] / mass_RS[wanted].sum(0)).amin(0).argmax()
        ),
        "its sum over the wanted registers is large, but two of them do it all: the smallest "
        "share counts": share_RS[wanted].sum(0).argmax(),
        "that neuron answers to one of them only: you took the largest share": (
            share_RS[wanted].amax(0).argmax()
        ),
        "that one's smallest share is the smallest of all: argmax, not argmin": (
            share_RS[wanted].amin(0).argmin()
        ),
    }
    diagnose(answer, right, wrong, "not the neuron whose smallest wanted share is largest: "
             f"expected number {right}, came {value:g}")  # fmt: skip


def searched(a_NS: Tensor, register_N: Tensor, wanted: Sequence[int]) -> int:
    """What the lesson goes on with while exercise 6.4 is open."""
    return int(register_shares(a_NS, register_N)[list(wanted)].amin(0).argmax())
