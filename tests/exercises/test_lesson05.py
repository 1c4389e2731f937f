"""The checks of lesson 05: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import numpy as np
import torch
from every_lesson import *  # noqa: F403

from saelearn import exercises
from saelearn.exercises import lesson05 as check


def encode(x, W, b, c):
    return torch.relu((x - c) @ W + b)


def encode_with_numpy(x, W, b, c):
    return np.maximum(np.einsum("bd,df->bf", (x - c).numpy(), W.numpy()) + b.numpy(), 0)


def encode_by_row(x, W, b, c):
    rows = [torch.einsum("d,df->f", row - c, W) + b for row in x]
    return torch.stack(rows).clamp(min=0)


def encode_in_place(x, W, b, c):
    return torch.relu(x.sub_(c) @ W + b)


def decode_in_place(f, W, c):
    x_hat = f @ W + c
    f.zero_()
    return x_hat


def decode(f, W, c):
    return f @ W + c


def decode_as_linear(f, W, c):
    return torch.nn.functional.linear(f, W.T, c)


def best_by_search(a, l1):
    z = torch.linspace(0, 2, 400_001, dtype=torch.double)
    return torch.stack([z[((v - z) ** 2 + l1 * z).argmin()] for v in a.double()])


def price(f, W):
    return (f * W.norm(dim=1)).sum(1).mean()


def price_by_rows(f, W):
    return sum(f[:, i].mean() * W[i].square().sum().sqrt() for i in range(len(W)))


def mean_loss(x, y, f, l1):
    return ((x - y) ** 2).sum(1).mean() + l1 * f.sum(1).mean()


def loss_over_length(x, y, f, l1):
    return (((x - y) ** 2).sum() + l1 * f.norm(p=1)) / len(x)


def loss_in_place(x, y, f, l1):
    return x.sub_(y).square().sum(1).mean() + l1 * f.sum(1).mean()


PREDICTED = {
    "L0": "falls",
    "variance missed": "rises",
    "gamma": "falls",
    "planted found": "rises, then falls",
}
TERSE = {"L0": "down", "variance missed": "up", "gamma": "decreases", "planted found": "both"}

RIGHT = [
    (check.encode_decode, (encode, decode)),
    (check.encode_decode, (encode_by_row, decode_as_linear)),
    (check.prediction, (PREDICTED,)),
    (check.prediction, (TERSE,)),
    (check.prediction, ({name.upper(): word.upper() for name, word in PREDICTED.items()},)),
    (check.best_activation, (lambda a, l1: torch.relu(a - l1 / 2),)),
    (check.best_activation, (lambda a, l1: (a - 0.5 * l1).clamp(min=0),)),
    (check.best_activation, (best_by_search,)),
    (check.fair_penalty, (price,)),
    (check.fair_penalty, (price_by_rows,)),
    (check.l1_loss, (mean_loss,)),
    (check.l1_loss, (loss_over_length,)),
    (check.translations, (0.3 * 5.6, 0.3 / 32, 0.3 * 128 / 32)),
    (check.translations, (1.68, torch.tensor(0.009375), 1.2)),
    (check.translations, (1.7, 0.0094, 0.3 * 4)),
    (check.translations, (np.float32(1.68), np.array(0.009375), torch.tensor([1.2]))),
]

WRONG = [
    (check.encode_decode, (lambda x, W, b, c: (x - c) @ W + b, decode), "ReLU"),
    (check.encode_decode, (lambda x, W, b, c: (x @ W + b).relu(), decode), "centred"),
    (check.encode_decode, (lambda x, W, b, c: ((x + c) @ W + b).relu(), decode), "not added"),
    (check.encode_decode, (lambda x, W, b, c: ((x - c) @ W).relu(), decode), "b_enc_F is missing"),
    (check.encode_decode, (lambda x, W, b, c: ((x - c) @ W).relu() + b, decode), "after the bias"),
    (check.encode_decode, (encode, lambda f, W, c: f @ W), "decode: what was subtracted"),
    (check.encode_decode, (encode, lambda f, W, c: (f @ W + c).relu()), "encoder only"),
    (check.encode_decode, (encode, lambda f, W, c: f @ W.T + c), "raised RuntimeError"),
    (check.encode_decode, (encode, lambda f, W, c: f @ W - c), "not subtracted"),
    (check.encode_decode, (encode_with_numpy, decode), "use torch throughout"),
    (
        check.encode_decode,
        (lambda *given: torch.as_tensor(encode(*(g.detach() for g in given))).numpy(), decode),
        "no gradient reaches W_enc_DF",
    ),
    (
        check.encode_decode,
        (lambda x, W, b, c: encode(x, W, b.detach(), c), decode),
        "reaches b_enc",
    ),
    (check.encode_decode, (encode, lambda f, W, c: decode(f, W.data, c)), "reaches W_dec_FD"),
    (check.encode_decode, (encode_in_place, decode), "x_BD itself is overwritten"),
    (check.encode_decode, (encode, decode_in_place), "f_BF itself is overwritten"),
    (check.prediction, (dict.fromkeys(PREDICTED, ...),), "no answer for 'L0' yet"),
    (check.prediction, (PREDICTED | {"gamma": None},), "no answer for 'gamma' yet"),
    (check.prediction, ({"L0": "...", "variance missed": "..."},), "no answer for 'L0' yet"),
    (check.prediction, (PREDICTED | {"L0": "rises"},), "L0: not quite"),
    (check.prediction, (PREDICTED | {"L0": "falls, then rises"},), "L0: not quite"),
    (check.prediction, (PREDICTED | {"gamma": "rises"},), "pulls every activation"),
    (check.prediction, (PREDICTED | {"planted found": "falls"},), "both ends"),
    (check.prediction, ({"L0": "falls"},), "no answer for"),
    (check.prediction, ("falls",), "dictionary"),
    (check.best_activation, (lambda a, l1: a - l1 / 2,), "cannot be negative"),
    (check.best_activation, (lambda a, l1: (a - l1).relu(),), "mind the 2"),
    (check.best_activation, (lambda a, l1: (a - 2 * l1).relu(),), "2λ"),
    (check.best_activation, (lambda a, l1: (a * (1 - l1 / 2)).relu(),), "scales"),
    (check.best_activation, (lambda a, l1: torch.where(a > l1 / 2, a, 0),), "shortened too"),
    (
        check.best_activation,
        (lambda a, l1: a.sign() * (a.abs() - l1 / 2).relu(),),
        "for a negative a",
    ),
    (check.best_activation, (lambda a, l1: max(0, a - l1 / 2),), "compare single numbers"),
    (check.best_activation, (lambda a, l1: a.relu(),), "not the minimum"),
    (check.best_activation, (lambda a, l1: a.relu().sum(),), "shape"),
    (check.fair_penalty, (lambda f, W: f.sum(1).mean(),), "decoder is not in it"),
    (check.fair_penalty, (lambda f, W: (f * W.norm(dim=1)).sum(),), "batch size"),
    (check.fair_penalty, (lambda f, W: (f * W.norm(dim=1)).mean(),), "over the features"),
    (check.fair_penalty, (lambda f, W: (f * W.square().sum(1)).sum(1).mean(),), "squared"),
    (check.fair_penalty, (lambda f, W: (f * W.norm(dim=0)).sum(1).mean(),), "columns"),
    (check.fair_penalty, (lambda f, W: (f / W.norm(dim=1)).sum(1).mean(),), "cheaper still"),
    (check.fair_penalty, (lambda f, W: f * W.norm(dim=1),), "shape"),
    (check.fair_penalty, (lambda f, W: price(f, W).item(),), "no gradient reaches f_BF"),
    (check.fair_penalty, (lambda f, W: price(f, W.detach()),), "no gradient reaches W_dec_FD"),
    (check.l1_loss, (lambda *given: mean_loss(*given).item(),), "no gradient reaches x_hat_BD"),
    (check.l1_loss, (lambda x, y, f, c: mean_loss(x, y, f.data, c),), "gradient reaches f_BF"),
    (check.l1_loss, (loss_in_place,), "x_BD itself is overwritten"),
    (
        check.l1_loss,
        (lambda x, y, f, c: (x - y).square().sum(1).mean() + c * f.sum(),),
        "grows",
    ),
    (
        check.l1_loss,
        (lambda x, y, f, c: (x - y).square().sum(1).mean() + c * f.mean(),),
        "d_sae",
    ),
    (
        check.l1_loss,
        (lambda x, y, f, c: (x - y).square().mean() + c * f.sum(1).mean(),),
        "by D",
    ),
    (check.l1_loss, (lambda x, y, f, c: (x - y).square().sum() + c * f.sum(),), "two means"),
    (
        check.l1_loss,
        (lambda x, y, f, c: (x - y).square().sum(1).mean() + c * f.sum() / 128,),
        "its own size",
    ),
    (check.l1_loss, (lambda x, y, f, c: mean_loss(x, y, f, 1),), "coefficient is missing"),
    (
        check.l1_loss,
        (lambda x, y, f, c: (x - y).square().sum(1).mean() + c * f.sum(0).mean(),),
        "dimension 1",
    ),
    (
        check.l1_loss,
        (lambda x, y, f, c: (x - y).square().sum(1).mean() + c * f.sum() / 256,),
        "fixed 256",
    ),
    (check.translations, (0.3 / 5.6, 0.3 / 32, 1.2), "`scaled` is the wrong way round"),
    (check.translations, (0.3 * 5.6**2, 0.3 / 32, 1.2), "one s is left"),
    (check.translations, (0.3 * 5.6, 0.3 * 32, 1.2), "`averaged` is the wrong way round"),
    (check.translations, (0.3 * 5.6, 0.3, 1.2), "`averaged` is unchanged"),
    (check.translations, (0.3 * 5.6, "small", 1.2), "number"),
    (check.translations, (0.3 * 5.6, "0.009375", 1.2), "number, but it is a str"),
    (check.translations, ((1.68, 0.0094, 1.2),) * 3, "number, but it is a tuple"),
    (check.translations, (0.3 * 5.6, 0.3 / 32, float("nan")), "number"),
    (check.translations, (0.3 * 5.6, 0.3 / 32, 0.3 * 128), "`both` is one of two steps"),
    (check.translations, (0.3 * 5.6, 0.3 / 32, 0.3 / 32), "`both` is one of two steps"),
    (check.translations, (0.3 * 5.6, 0.3 / (32 * 256), 1.2), "was there before"),
    (check.translations, (0.3 * 5.6, 0.3 / 128, 1.2), "32 dimensions"),
    (check.translations, (0.3 * 5.6, 0.008, 1.2), "nearly right"),
    (check.translations, (7.0, 0.3 / 32, 1.2), "multiply the whole loss"),
    (check.translations, (0.3 * 5.6, 0.3 / 32, 0.3 * 32 / 128), "upside down"),
    (check.translations, (0.3 * 5.6, 0.3 / 32, 0.3 / 32), "penalty too"),
    (check.translations, (0.3 * 5.6, 0.3 / 32, 0.3 * 128), "error too"),
    (check.translations, (0.3 * 5.6, 0.3 / 32, 0.3 / 32 / 128), "divided twice"),
    (check.translations, (0.3 * 5.6, 0.3 / 32, 0.3 * 256 * 4), "batch means already"),
]

OPEN = [(check.encode_decode, (encode, lambda *_: ...))]


def test_what_passes_is_used_and_nothing_else():
    """The lesson goes on with the reader's code, or, while that is open or wrong, with its own."""
    assert check.or_ours(check.encode_decode, encode_by_row, decode) == (encode_by_row, decode)
    assert check.or_ours(check.l1_loss, loss_over_length) is loss_over_length
    for judge, wrong in (
        (check.encode_decode, (encode, lambda *_: ...)),
        (check.l1_loss, (lambda x, y, f, c: mean_loss(x, y, f, 1),)),
        (check.best_activation, (lambda a, c: a - c,)),
        (check.translations, (..., ..., ...)),
    ):
        ours = check.or_ours(judge, *wrong)
        ours = ours if isinstance(ours, tuple) else (ours,)
        assert len(ours) == len(wrong)
        assert judge(*ours).passed


def test_going_on_does_not_raise_for_the_autograder(monkeypatch):
    monkeypatch.setattr(exercises, "GRADING", True)
    assert callable(check.or_ours(check.best_activation, ...))
