"""Checks of lesson 01, autoencoders.

Every target is computed here, from the definitions and without the library's autoencoder.
Shapes: B batch, D width of the data, H numbers in the code, F numbers in a wide code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saelearn.exercises import (
    Mistake,
    Verdict,
    call,
    close,
    diagnose,
    earned,
    exercise,
    guesses,
    need_shape,
)


@exercise(
    "Exercise 1.1: encode and decode",
    passed="100 numbers go in, 50 pass through, 100 come back: an autoencoder is no more than that",
)
def encode_decode(encode: Callable, decode: Callable) -> None:
    """`encode(x_BD, W_enc_DH, mean_D)` and `decode(h_BH, W_dec_HD, mean_D)`."""
    draw = torch.Generator().manual_seed(21)
    x_BD, mean_D = torch.randn(6, 5, generator=draw), torch.randn(5, generator=draw)
    W_enc_DH = torch.randn(5, 3, generator=draw)
    W_dec_HD = torch.randn(3, 5, generator=draw)
    h_BH = need_shape(call(encode, x_BD, W_enc_DH, mean_D), (6, 3), "the code h_BH")
    right = (x_BD - mean_D) @ W_enc_DH
    diagnose(
        h_BH,
        right,
        {
            "encode: take the mean out first: (x_BD - mean_D) is multiplied.": x_BD @ W_enc_DH,
            "encode: the mean is subtracted here; decode adds it.": (x_BD + mean_D) @ W_enc_DH,
            "encode: no ReLU in this lesson's first half; a code may be negative.": right.relu(),
            "encode: the mean is handed in as mean_D; do not take that of the batch.": (
                (x_BD - x_BD.mean(0)) @ W_enc_DH
            ),
        },
        "encode: the shape is right, the numbers are not: (x - mean) times W_enc.",
        atol=1e-5,
    )
    with earned(0.5):
        _judge_decode(decode, right, W_dec_HD, mean_D)


def _judge_decode(decode: Callable, h_BH: Tensor, W_dec_HD: Tensor, mean_D: Tensor) -> None:
    x_hat_BD = need_shape(
        call(decode, h_BH, W_dec_HD, mean_D), (6, 5), "the reconstruction x_hat_BD"
    )
    diagnose(
        x_hat_BD,
        h_BH @ W_dec_HD + mean_D,
        {
            "decode: what encode took out has to come back: + mean_D.": h_BH @ W_dec_HD,
            "decode: the mean is added, after the product.": h_BH @ W_dec_HD - mean_D,
        },
        "decode: the shape is right, the numbers are not: h times W_dec, plus the mean.",
        atol=1e-5,
    )


@exercise(
    "Exercise 1.2: the loss",
    passed="summed over the numbers of a row, averaged over the rows: the error of a typical row",
)
def loss(reconstruction_loss: Callable) -> None:
    """`reconstruction_loss(x_BD, x_hat_BD)` -> one number."""
    draw = torch.Generator().manual_seed(22)
    x_BD, x_hat_BD = torch.randn(2, 7, 4, generator=draw)
    hint = "One number: the mean over the rows comes last."
    got = need_shape(call(reconstruction_loss, x_BD, x_hat_BD), (), "the loss", hint)
    error_BD = x_BD - x_hat_BD
    square_B = error_BD.square().sum(1)
    diagnose(
        got,
        square_B.mean(),
        {
            "averaged over the 4 numbers of a row too; sum over them.": error_BD.square().mean(),
            "summed over the batch, so it grows with its size: mean over rows.": square_B.sum(),
            "square the errors; without it too high and too low cancel.": error_BD.sum(1).mean(),
            "square the errors; absolute values are another loss.": error_BD.abs().sum(1).mean(),
            "no root: the squares themselves are added up.": square_B.sqrt().mean(),
            "no root at the end either: the mean of the sums as it is.": square_B.mean().sqrt(),
            "summed over the rows, averaged over a row's numbers: the other way round.": (
                error_BD.square().sum(0).mean()
            ),
            "that squares the sum of a row's errors: square each error first.": (
                error_BD.sum(1).square().mean()
            ),
        },
        "compare with: mean over rows of the sum over numbers of (x - x_hat)^2",
    )


def _gradients(x_BD: Tensor, W_enc_DH: Tensor, W_dec_HD: Tensor) -> tuple[Tensor, Tensor]:
    """By hand: with h = x W_enc and error e = x_hat - x, 2/B x^T e W_dec^T and 2/B h^T e."""
    h_BH = x_BD @ W_enc_DH
    error_BD = 2 / len(x_BD) * (h_BH @ W_dec_HD - x_BD)
    return x_BD.T @ error_BD @ W_dec_HD.T, h_BH.T @ error_BD


@exercise(
    "Exercise 1.3: one step downhill",
    passed="forward, backward, a small step, and the slate wiped clean: all training is this",
)
def step(one_step: Callable) -> None:
    """`one_step(x_BD, W_enc_DH, W_dec_HD, lr)` changes both weights in place, returns the loss."""
    draw = torch.Generator().manual_seed(23)
    x_BD, lr = torch.randn(8, 5, generator=draw), 0.02
    weights = [0.5 * torch.randn(s, generator=draw) for s in ((5, 3), (3, 5))]
    learned = [w.clone().requires_grad_() for w in weights]
    before = float((x_BD - x_BD @ weights[0] @ weights[1]).square().sum(1).mean())
    value = _call_step(one_step, x_BD, learned, lr)
    slopes = _gradients(x_BD, *weights)
    _judge_step(weights, [w.detach().clone() for w in learned], slopes, lr)
    if not close(value, before, rtol=1e-3):
        raise Mistake("the weights are right; return the loss of this step too")
    second = [w.detach().clone() for w in learned]
    _call_step(one_step, x_BD, learned, lr)
    fresh = _gradients(x_BD, *second)
    if close(learned[0], second[0] - lr * (fresh[0] + slopes[0]), rtol=1e-3, atol=1e-5):
        raise Mistake(
            "the first step is right, the second is not: backward() adds to the old gradient, so "
            "set it back to None (or zero) after each step"
        )
    _judge_step(second, [w.detach() for w in learned], fresh, lr)


def _call_step(one_step: Callable, x_BD: Tensor, learned: list[Tensor], lr: float) -> Any:
    before = [w.detach().clone() for w in learned]
    try:
        return call(one_step, x_BD, *learned, lr)
    except NotImplementedError:  # also a RuntimeError
        if any(w.grad is not None or not close(w, b) for w, b in zip(learned, before, strict=True)):
            raise Mistake("the function returns nothing: return the loss at the end") from None
        raise
    except RuntimeError as error:
        if "leaf" in str(error):
            raise Mistake("the update itself must not be recorded: with torch.no_grad():") from None
        raise
    except TypeError:
        if any(w.grad is None for w in learned):
            raise Mistake("there is no gradient yet: loss.backward() comes first") from None
        raise


def _judge_step(old: list[Tensor], new: list[Tensor], slopes: tuple, lr: float) -> None:
    same = [close(a, b) for a, b in zip(new, old, strict=True)]
    trios = zip(new, old, slopes, strict=True)
    if all(close(n, o - lr * g, rtol=1e-3, atol=1e-5) for n, o, g in trios):
        return
    if all(same):
        raise Mistake(
            "the weights have not changed: change them in place with W -= ...; W = W - ... only "
            "gives a name to a new tensor"
        )
    if any(same):
        raise Mistake("only one of the two matrices has moved; both are learned")
    for factor, hint in (
        (-1, "you walk uphill: the gradient points up, so subtract it"),
        (1 / 5, "the step is 5 times too short: sum the squares over a row, don't average them"),
        (8, "the step is 8 times too long: average over the 8 rows"),
        (1 / lr, "the learning rate lr is missing"),
    ):
        if close(new[1], old[1] - factor * lr * slopes[1], rtol=1e-3, atol=1e-5):
            raise Mistake(hint)
    raise Mistake("both moved, but not by lr times the gradient of the loss of exercise 1.2")


@exercise(
    "Exercise 1.4: another code, the same output",
    passed="the output is the same to the last digit that matters, and the code is another one: "
    "the loss cannot tell them apart, so single numbers of the code have no meaning",
)
def remix(mixed: Callable) -> None:
    """`mixed(W_enc_DH, W_dec_HD, M_HH)` -> two matrices with the same product."""
    draw = torch.Generator().manual_seed(24)
    W_enc_DH, W_dec_HD = (torch.randn(s, generator=draw) for s in ((6, 3), (3, 6)))
    M_HH = torch.randn(3, 3, generator=draw) + 2 * torch.eye(3)
    answer = call(mixed, W_enc_DH.clone(), W_dec_HD.clone(), M_HH.clone())
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Mistake("return both matrices: return new_W_enc, new_W_dec")
    enc_DH = need_shape(answer[0], (6, 3), "the new W_enc")
    dec_HD = need_shape(answer[1], (3, 6), "the new W_dec")
    inverse_HH = torch.linalg.inv(M_HH)
    product_DD = enc_DH @ dec_HD
    if not close(product_DD, W_enc_DH @ W_dec_HD, rtol=1e-3, atol=1e-4):
        if close(dec_HD, M_HH @ W_dec_HD, rtol=1e-3) and close(enc_DH, W_enc_DH @ M_HH, rtol=1e-3):
            raise Mistake("M works twice: W_enc M M W_dec. One of the two has to undo the other")
        if close(dec_HD, M_HH.T @ W_dec_HD, rtol=1e-3):
            raise Mistake("M.T undoes M only if M is a rotation; here it takes torch.linalg.inv(M)")
        if close(dec_HD, W_dec_HD, rtol=1e-3) or close(enc_DH, W_enc_DH, rtol=1e-3):
            raise Mistake("only one of the two is mixed; what M does, the other has to undo")
        raise Mistake("the product W_enc W_dec has changed: put M inv(M) between the two")
    if close(dec_HD, inverse_HH @ W_dec_HD, rtol=1e-3, atol=1e-4):
        return
    if close(dec_HD, M_HH @ W_dec_HD, rtol=1e-3, atol=1e-4):
        raise Mistake("nearly: this code is h inv(M). For h M let the two change places")
    if close(dec_HD, W_dec_HD, rtol=1e-3):
        raise Mistake("nothing has been mixed: the code should be h M instead of h")
    raise Mistake("the product is the same, but the mixing is not that by M")


@exercise(
    "Exercise 1.5: a copying machine",
    passed="one unit for what is positive, one for what is negative, and everything gets through: "
    "a ReLU alone does not keep a wide code from copying",
)
def copier(machine: Callable) -> None:
    """`machine(d)` -> `W_enc_DF`, `W_dec_FD` with relu(x W_enc) W_dec = x for every x."""
    for d in (3, 4):
        answer = call(machine, d)
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            raise Mistake("return both matrices: return W_enc_DF, W_dec_FD")
        F = answer[0].shape[-1] if hasattr(answer[0], "shape") else 2 * d
        hint = "x_BD @ W_enc_DF has to be possible: rows are the numbers that go in."
        W_enc_DF = need_shape(answer[0], (d, F), "W_enc_DF", hint)
        W_dec_FD = need_shape(answer[1], (F, d), "W_dec_FD", "The code has F numbers.")
        x_BD = torch.randn(9, d, generator=torch.Generator().manual_seed(25)).double()
        back_BD = (x_BD @ W_enc_DF).relu() @ W_dec_FD
        wrong = {
            "what is negative gets lost in the ReLU: a second unit for -x could carry it.": (
                x_BD.relu()
            ),
            "-1 comes back as 1: what the unit for -x carries has to be subtracted again.": (
                x_BD.abs()
            ),
            "what is positive gets lost: two units are needed, for x and for -x.": -(-x_BD).relu(),
            "everything comes back with the wrong sign.": -x_BD,
            "everything comes back doubled.": 2 * x_BD,
            "everything comes back halved; the two units never work at the same time.": x_BD / 2,
        }
        otherwise = "relu(x W_enc) W_dec should be x; try it on a row such as [1., -2., 3.]"
        diagnose(back_BD, x_BD, wrong, otherwise, rtol=1e-4, atol=1e-5)


def guess_lost(guess: Any, measured: float) -> Verdict:
    """Answer a guess of the share of variance that 50 of 100 numbers lose."""

    def answer(guess: Any) -> str:
        share = guesses.number(guess, 0, 100)
        share /= 100 if share > 1 else 1
        said = f"you said {share:.0%}, it is {measured:.0%}. "
        if abs(share - measured) < 0.06:
            return said + "Well guessed!"
        if share > measured:
            return said + (
                "Half of the numbers is not half of the variance: the data lean more to some "
                "directions than to others, and the code keeps those."
            )
        return said + (
            "Too hopeful: 200 happenings leave their mark in all 100 directions, and what lies "
            "in the 50 directions left out is gone."
        )

    return guesses.reply("what 50 numbers lose", guess, answer)


WIDE = {
    "copy": "Yes. With 200 numbers there is room for all 100, and copying costs nothing.",
    "features": "One would hope so: 200 happenings, 200 numbers in the code. But nothing in the "
    "loss asks for it, and copying is easier.",
    "blur": "That was the bottleneck. Here there is room for everything, so nothing needs to go.",
}
HELPS = {
    "yes": "Half right: look from how many labels on, and at what the controls do.",
    "no": "Half right: with few labels it does not; with 200 and more it does, a little.",
}


def guess_wide(guess: Any) -> Verdict:
    """Answer a guess of what a 100 -> 200 -> 100 autoencoder learns: one of `WIDE`."""
    return _reply_to_word("what 200 numbers learn", guess, WIDE)


def guess_helps(guess: Any) -> Verdict:
    """Answer a guess of whether sparse codes help a classifier of digits: one of `HELPS`."""
    return _reply_to_word("does sparsity help a classifier", guess, HELPS)


def _reply_to_word(name: str, guess: Any, words: dict[str, str]) -> Verdict:
    def answer(guess: Any) -> str:
        start = str(guess).strip().lower()[:3]
        found = next((word for word in words if start and word.startswith(start)), None)
        if found is None:
            raise Mistake(f"{guess!r} cannot be read: one of {', '.join(words)} is needed")
        return f"you said {found}. {words[found]}"

    return guesses.reply(name, guess, answer)
