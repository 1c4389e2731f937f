"""Checks of lesson 00, the first steps.

Every target is computed here, from the questions' own words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from saelearn import artifacts, tiny
from saelearn.exercises import Mistake, as_tensor, call, diagnose, each_earns, exercise, need_shape
from saelearn.tiny import console

MINUTES = {"km": 12.0, "climb": 10.0, "stops": 5.0}  # what the lesson's data are made of


@exercise(
    "Exercise 0.1: what did the slider change?",
    passed="none. The push is added to what flows through the model; the weights stay as they are",
)
def weights_changed(number: Any) -> None:
    """How many of the model's weights the slider changed: 0."""
    value = as_tensor(_unquoted(number), "the answer")
    if value.numel() != 1:
        raise Mistake("one number is enough")
    value = float(value)
    if value == 0:
        return
    if value == artifacts.read_json(artifacts.find("lm/config.json"))["n_embd"]:
        raise Mistake(
            "so many numbers has the vector that we push with. It is added to what flows through; "
            "is a weight among them?"
        )
    if value == tiny.D_SAE:
        raise Mistake("so many directions had the SAE to offer; the question asks for weights")
    if value == console.PUSHED:
        raise Mistake("at so many words we push; the question asks for the model's weights")
    if 0 < value <= 1:
        raise Mistake("a number of weights is asked for, not a share or a strength")
    if value < 0:
        raise Mistake("a number of things cannot be negative")
    raise Mistake(
        "set the slider back to 0: the old texts return. Would they, if weights had changed?"
    )


def _unquoted(answer: Any) -> Any:
    """The answer, or a `Mistake` in words that a beginner knows if it is a string."""
    if isinstance(answer, str):
        raise Mistake(f"a number is asked for, without quotes; this is the string {answer!r}")
    if isinstance(answer, bool):
        raise Mistake(f"a number is asked for, not yes or no; this is {answer}")
    return answer


_TEXTS = (  # so that each mistake gives another number
    "the golden retriever barked . the golden retriever ate . who saw the golden retriever",
    "the golden husky ate the bone .",
    "Anna saw the golden retriever .",
    "the retriever was golden .",
    "the owl flew .",
    "the golden eagle flew .",
    "a golden day",
    "one golden retriever",
    "it rained .",
)
_OTHER = ("tea and rice", "rice", "rice and rice and rice", "tea")


@exercise(
    "Exercise 0.2: the share of texts",
    passed="each text counts once, however often it says it: so the number above the slider's "
    "texts is made (there for the name in both languages)",
)
def share(function: Callable) -> None:
    """`share(texts, phrase)` -> share of the texts in which the phrase stands."""
    for texts, phrase in ((_TEXTS, "golden retriever"), (_OTHER, "rice")):
        found = [phrase in text for text in texts]
        words = phrase.split()
        some = sum(any(word in text for word in words) for text in texts) / len(texts)
        every = sum(all(word in text for word in words) for text in texts) / len(texts)
        count = sum(text.count(phrase) for text in texts)
        wrong = {
            "that is how many texts; the share is that number over len(texts)": sum(found),
            "you count every mention; a text that says it twice is still one text": count,
            "a text that says it twice is counted twice: ask whether, not how often": (
                count / len(texts)
            ),
            "in percent; a share lies between 0 and 1": 100 * sum(found) / len(texts),
            "that is the share of texts without it": 1 - sum(found) / len(texts),
            "one of the words is not the phrase: a golden husky is no golden retriever": some,
            "both words, but not side by side: look for the whole phrase in the text": every,
            "this counts no text at all. text.split() gives single words, `phrase in texts` asks "
            "for a text that equals it: look inside each text, anywhere in it": 0.0,
            "that says whether any text has it; how many of them do?": 1.0,
            "divide by the number of texts given, len(texts), not always by 32": sum(found) / 32,
            "do not round: the share itself is asked for": round(sum(found) / len(texts), 2),
        }
        right = sum(found) / len(texts)
        diagnose(_share_of(function, texts, phrase), right, wrong, _differs(texts, phrase, right))
    for seed in (1, 2):
        texts, phrase = _drawn(seed)
        right = sum(phrase in text for text in texts) / len(texts)
        diagnose(_share_of(function, texts, phrase), right, {}, _differs(texts, phrase, right))


def _drawn(seed: int) -> tuple[tuple[str, ...], str]:
    """Texts of a few signs, such as programs have, and two that stand side by side in some."""
    draw = torch.Generator().manual_seed(seed)
    signs = ("x", "(", "y", "*", "+", ")")
    n_texts, longest = 5 + 8 * seed, 9

    def some(n: int) -> str:
        return " ".join(signs[i] for i in torch.randint(len(signs), (n,), generator=draw).tolist())

    phrase = some(2)
    return (*(some(longest) for _ in range(n_texts)), f"{phrase} {phrase}", some(1)), phrase


def _share_of(function: Callable, texts: Sequence[str], phrase: str) -> Tensor:
    try:
        got = call(function, tuple(texts), phrase)  # a tuple: in grading, lists do not come back
    except Exception as error:
        if "tuple" not in str(error):
            raise
        raise Mistake("it changes the list of texts, which whoever calls `share` needs") from None
    return need_shape(got, (), "the share", "One number for all the texts.")


def _differs(texts: Sequence[str], phrase: str, right: float) -> str:
    return (
        f"it should be {right:.4g} for {phrase!r} in {len(texts)} texts, of which the first is "
        f"{texts[0]!r}: count the texts with the phrase in them, and divide"
    )


def share_of_texts(texts: Sequence[str], phrase: str) -> float:
    """What the lesson goes on with while exercise 0.2 is open."""
    return sum(phrase in text for text in texts) / len(texts)


@exercise(
    "Exercise 0.3: read it off",
    passed="a calculation on the back of an envelope: that is what a transparent model is for",
)
def extra_minutes(minutes: Any) -> None:
    """3 km more, 200 m of climb less, one stop more: 3 * 12 - 2 * 10 + 1 * 5 minutes."""
    km, climb, stop = MINUTES.values()
    got = need_shape(_unquoted(minutes), (), "the answer", "One number of minutes.")
    wrong = {
        "less climb is quicker: that term is subtracted": 3 * km + 2 * climb + stop,
        "the climb is counted in hundreds of metres: 200 m are 2": 3 * km - 200 * climb + stop,
        "one more stop is missing": 3 * km - 2 * climb,
        "the climb is missing": 3 * km + stop,
        "the kilometres are missing": stop - 2 * climb,
        "the stop takes time as well: that term is added": 3 * km - 2 * climb - stop,
        "one kilometre counted, but there are three more": km - 2 * climb + stop,
        "100 m less counted, but there are 200 m": 3 * km - climb + stop,
        "the sign is turned round: how much longer is asked": -(3 * km - 2 * climb + stop),
    }
    otherwise = "add up, term by term: change of the input times its weight"
    diagnose(got, 3 * km - 2 * climb + stop, wrong, otherwise, rtol=0, atol=1.0)


def _bent(x_ND: Tensor) -> Tensor:
    """A function that no straight line fits in any column, so that shortcuts give another value."""
    columns = range(x_ND.shape[1])
    return sum(x_ND[:, j] * x_ND[:, j - 1] + (j + 1) * x_ND[:, j] ** 2 for j in columns)


@exercise(
    "Exercise 0.4: ask from outside",
    passed="it works for any model, as you never look inside. That is its strength and its limit",
)
def nudge(function: Callable) -> None:
    """`nudge(predict, x_ND, column)`: mean change of the prediction if a column grows by 1."""
    for N, D, column in ((40, 3, 0), (40, 3, 2), (23, 5, 3)):
        x_ND = torch.randn(N, D, generator=torch.Generator().manual_seed(5 + N)) + 1
        given_ND, step_D = x_ND.clone(), torch.zeros(D)
        step_D[column] = 1.0
        before_N, after_N = _bent(x_ND), _bent(x_ND + step_D)
        got = need_shape(
            call(function, _bent, given_ND, column),
            (),
            "the effect",
            "One number: average over the rows.",
        )
        if not torch.equal(given_ND, x_ND):
            raise Mistake("x itself was changed: work on a copy, x_ND.clone()")
        right = (after_N - before_N).mean()
        wrong = {
            "backwards: after less before": -right,
            "that is the mean prediction after the nudge: subtract the one before": after_N.mean(),
            "the sum over rows; take the mean": (after_N - before_N).sum(),
            "every column was raised; raise only the one that is asked for": (
                _bent(x_ND + 1) - before_N
            ).mean(),
            "a row was raised, not a column: x_ND[:, column]": (
                _bent(x_ND + (torch.arange(N) == column)[:, None].float()) - before_N
            ).mean(),
            "the column was set to 1, not raised by 1": (
                _bent(torch.where(step_D > 0, 1.0, x_ND)) - before_N
            ).mean(),
            "lowered by 1, not raised": (_bent(x_ND - step_D) - before_N).mean(),
            "doubled, not raised by 1": (_bent(x_ND * (1 + step_D)) - before_N).mean(),
            "the sizes of the changes, without their signs: no abs() is needed": (
                (after_N - before_N).abs().mean()
            ),
            "the first row alone; average over all rows": (after_N - before_N)[0],
            "raised by the column's spread, not by 1": (
                _bent(x_ND + x_ND.std(0) * step_D) - before_N
            ).mean(),
            "that is the slope where the rows are; what is asked for is a whole step of 1": (
                _slope_ND(x_ND)[:, column].mean()
            ),
            "nothing has changed: predict once more, on the copy": 0.0,
        }
        otherwise = (
            f"it should be {right:.4g} for column {column} of {D}, and it is {got:.4g}: compare "
            "with the mean of predict(x with the column + 1) - predict(x)"
        )
        diagnose(got, right, wrong, otherwise, rtol=1e-4, atol=1e-5)


def _slope_ND(x_ND: Tensor) -> Tensor:
    x_ND = x_ND.clone().requires_grad_()
    return torch.autograd.grad(_bent(x_ND).sum(), x_ND)[0]


def mean_change(predict: Callable, x_ND: Tensor, column: int) -> Tensor:
    """What the lesson goes on with while exercise 0.4 is open."""
    moved_ND = x_ND.clone()
    moved_ND[:, column] += 1
    return (predict(moved_ND) - predict(x_ND)).mean()


_SHAPES: dict[str, tuple[tuple[int, ...], dict[tuple[int, ...], str]]] = {
    "x_BTD[0]": (
        (5, 4),
        {
            (2, 5, 4): "an index takes one item, and its dimension disappears",
            (1, 5, 4): "x[0:1] would keep the dimension, x[0] drops it",
            (4,): "only one index was given: T and D are both left",
            (2, 4): "an index alone counts from the left: B goes, T and D are left",
        },
    ),
    "x_BTD @ W_DF": (
        (2, 5, 12),
        {
            (2, 5, 4): "the last letter of x meets the first of W and both disappear; F is left",
            (2, 5, 4, 12): "the D that they share is summed over, and disappears",
            (2, 12): "B and T are both kept: every token of every text is multiplied",
            (5, 12): "B is kept too: every text has its own result",
            (10, 12): "B and T are kept apart: @ does not flatten",
        },
    ),
    "x_BTD.mean(1)": (
        (2, 4),
        {
            (5, 4): "dimension 1 is the second one, since counting starts at 0: T",
            (2, 5): "dimension 1 is T; the last one, D, would be 2 or -1",
            (2, 1, 4): "only with keepdim=True does the averaged dimension stay",
            (2, 5, 4): "a mean over a dimension takes it away",
        },
    ),
    "x_BTD.flatten(0, 1)": (
        (10, 4),
        {
            (2, 20): "dimensions 0 and 1, B and T, are joined; D stays",
            (40,): "only dimensions 0 and 1 are joined; D stays",
            (7, 4): "joining multiplies: 2 texts of 5 tokens are 10 rows",
            (5, 8): "joining multiplies B and T, and leaves D alone",
        },
    ),
}


@exercise(
    "Exercise 0.5: shapes",
    passed="the letters do the work: what is shared or summed disappears, the others stay",
)
def shapes(answers: Mapping[str, Sequence[int]]) -> None:
    """Shapes of four expressions, x_BTD being [2, 5, 4] and W_DF [4, 12]."""
    if not isinstance(answers, Mapping):
        raise Mistake("keep the dictionary: one tuple of numbers for each expression")
    if all(answers.get(name) in (..., None) for name in _SHAPES):
        raise NotImplementedError
    each_earns(_judge_shape, [(name, answers.get(name, ...)) for name in _SHAPES])


def _judge_shape(name: str, given: Any) -> None:
    right, hints = _SHAPES[name]
    if given is ... or given is None:
        raise Mistake(f"{name}: no answer yet (the others may be right)")
    try:
        if isinstance(given, str | bytes | Mapping | Set):
            raise TypeError  # "24" has no sizes, {2, 4} no order
        shape = tuple(_size(size) for size in islice(given, 9))  # islice: it may have no end
    except Exception:
        raise Mistake(f"{name}: a tuple of whole numbers is asked for, such as (3, 7)") from None
    if shape != right:
        otherwise = "write the letters first, then put the sizes in their places"
        raise Mistake(f"{name}: not {shape}: {hints.get(shape, otherwise)}")


def _size(value: Any) -> int:
    """A whole number, be it a float or a tensor; 2.9 is none, nor is "2"."""
    if isinstance(value, str | bytes | bool) or int(value) != value:
        raise ValueError
    return int(value)
