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
    as_tensor,
    call,
    close,
    diagnose,
    earned,
    exercise,
    guesses,
    need_shape,
)
from saelearn.exercises.trainable import call_with_torch, learns, unchanged
from saelearn.train import train


@exercise(
    "Exercise 1.1: encode and decode",
    passed="100 numbers go in, 50 pass through, 100 come back: an autoencoder is no more than that",
)
def encode_decode(encode: Callable, decode: Callable) -> None:
    """`encode(x_BD, W_enc_DH, mean_D)` and `decode(h_BH, W_dec_HD, mean_D)`."""
    cases = [_parts(*sizes) for sizes in ((6, 5, 3, 21), (4, 7, 2, 27))]
    for x_BD, mean_D, W_enc_DH, _ in cases:
        _judge_encode(encode, x_BD, W_enc_DH, mean_D)
    with earned(0.5):
        for x_BD, mean_D, W_enc_DH, W_dec_HD in cases:
            _judge_decode(decode, encoded(x_BD, W_enc_DH, mean_D), W_dec_HD, mean_D)


def _parts(B: int, D: int, H: int, seed: int) -> list[Tensor]:
    """Readings, their supposed mean, an encoder and a decoder."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draw) for shape in ((B, D), (D,), (D, H), (H, D))]


def _judge_encode(encode: Callable, x_BD: Tensor, W_enc_DH: Tensor, mean_D: Tensor) -> None:
    result, W = _trained(encode, {"x_BD": x_BD, "W_enc_DH": W_enc_DH, "mean_D": mean_D})
    h_BH = need_shape(result, (len(x_BD), W_enc_DH.shape[1]), "the code h_BH")
    right = encoded(x_BD, W_enc_DH, mean_D)
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
            "encode: the mean comes out of x, before the product.": _less_mean(x_BD @ W_enc_DH),
        },
        "encode: the shape is right, the numbers are not: (x - mean) times W_enc.",
        atol=1e-5,
    )
    learns(result, W_enc_DH=W)


def _less_mean(h_BH: Tensor) -> Tensor:
    return h_BH - h_BH.mean(0)


def _judge_decode(decode: Callable, h_BH: Tensor, W_dec_HD: Tensor, mean_D: Tensor) -> None:
    result, W = _trained(decode, {"h_BH": h_BH, "W_dec_HD": W_dec_HD, "mean_D": mean_D})
    x_hat_BD = need_shape(result, (len(h_BH), len(mean_D)), "the reconstruction x_hat_BD")
    diagnose(
        x_hat_BD,
        decoded(h_BH, W_dec_HD, mean_D),
        {
            "decode: what encode took out has to come back: + mean_D.": h_BH @ W_dec_HD,
            "decode: the mean is added, after the product.": h_BH @ W_dec_HD - mean_D,
            "decode: no ReLU: what comes back may be negative.": (
                decoded(h_BH, W_dec_HD, mean_D).relu()
            ),
        },
        "decode: the shape is right, the numbers are not: h times W_dec, plus the mean.",
        atol=1e-5,
    )
    learns(result, W_dec_HD=W)


def _trained(function: Callable, parts: dict[str, Tensor]) -> tuple[Any, Tensor]:
    """What a function makes of data, weights and a mean; and the weights, which are trained."""
    given = {name: part.clone() for name, part in parts.items()}
    W = list(given.values())[1].requires_grad_()
    result = call_with_torch(function, *given.values())
    for name, part in parts.items():
        unchanged(given[name], part, name)
    return result, W


def encoded(x_BD: Tensor, W_enc_DH: Tensor, mean_D: Tensor) -> Tensor:
    """What the lesson goes on with while exercise 1.1 is open: the code `h_BH`."""
    return (x_BD - mean_D) @ W_enc_DH


def decoded(h_BH: Tensor, W_dec_HD: Tensor, mean_D: Tensor) -> Tensor:
    """What the lesson goes on with while exercise 1.1 is open: the reconstruction `x_hat_BD`."""
    return h_BH @ W_dec_HD + mean_D


@exercise(
    "Exercise 1.2: the loss",
    passed="summed over the numbers of a row, averaged over the rows: the error of a typical row",
)
def loss(reconstruction_loss: Callable) -> None:
    """`reconstruction_loss(x_BD, x_hat_BD)` -> one number."""
    for B, D, seed in ((7, 4, 22), (5, 9, 28)):
        draw = torch.Generator().manual_seed(seed)
        _judge_loss(reconstruction_loss, *torch.randn(2, B, D, generator=draw))


def _judge_loss(reconstruction_loss: Callable, x_BD: Tensor, x_hat_BD: Tensor) -> None:
    given = {"x_BD": x_BD.clone(), "x_hat_BD": x_hat_BD.clone().requires_grad_()}
    result = call_with_torch(reconstruction_loss, *given.values())
    got = need_shape(result, (), "the loss", "One number: the mean over the rows comes last.")
    unchanged(given["x_BD"], x_BD, "x_BD")
    unchanged(given["x_hat_BD"], x_hat_BD, "x_hat_BD")
    error_BD = x_BD - x_hat_BD
    square_B = error_BD.square().sum(1)
    D = x_BD.shape[1]
    diagnose(
        got,
        square_B.mean(),
        {
            f"averaged over the {D} numbers of a row too; sum over them.": error_BD.square().mean(),
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
        f"it should be {square_B.mean():.4g} for these {tuple(x_BD.shape)} numbers, and it is "
        f"{got:.4g}: compare with the mean over rows of the sum over numbers of (x - x_hat)^2",
    )
    learns(result, x_hat_BD=given["x_hat_BD"])


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
    for B, D, H, lr, seed in ((8, 5, 3, 0.02, 23), (6, 7, 2, 0.05, 29)):
        draw = torch.Generator().manual_seed(seed)
        x_BD = torch.randn(B, D, generator=draw)
        weights = [0.5 * torch.randn(s, generator=draw) for s in ((D, H), (H, D))]
        _judge_two_steps(one_step, x_BD, weights, lr)


def stepped(x_BD: Tensor, W_enc_DH: Tensor, W_dec_HD: Tensor, lr: float) -> float:
    """What the lesson goes on with while exercise 1.3 is open: the loss before the step."""
    with torch.no_grad():
        slopes = _gradients(x_BD, W_enc_DH, W_dec_HD)
        before = (x_BD - x_BD @ W_enc_DH @ W_dec_HD).square().sum(1).mean()
        for W, slope in zip((W_enc_DH, W_dec_HD), slopes, strict=True):
            W -= lr * slope
    return float(before)


def _judge_two_steps(one_step: Callable, x_BD: Tensor, weights: list[Tensor], lr: float) -> None:
    given_BD, learned = x_BD.clone(), [w.clone().requires_grad_() for w in weights]
    before = float((x_BD - x_BD @ weights[0] @ weights[1]).square().sum(1).mean())
    value = _call_step(one_step, given_BD, learned, lr)
    unchanged(given_BD, x_BD, "x_BD")
    slopes = _gradients(x_BD, *weights)
    _judge_step(x_BD, weights, [w.detach().clone() for w in learned], slopes, lr)
    if not close(need_shape(value, (), "the loss", "One number."), before, rtol=1e-3):
        raise Mistake("the weights are right; return the loss of this step too")
    if not all(w.requires_grad for w in learned):
        raise Mistake("after it the weights no longer ask for gradients: nothing more is learned")
    second = [w.detach().clone() for w in learned]
    _call_step(one_step, given_BD, learned, lr)
    fresh = _gradients(x_BD, *second)
    if close(learned[0], second[0] - lr * (fresh[0] + slopes[0]), rtol=1e-3, atol=1e-5):
        raise Mistake(
            "the first step is right, the second is not: backward() adds to the old gradient, so "
            "set it back to None (or zero) after each step"
        )
    _judge_step(x_BD, second, [w.detach() for w in learned], fresh, lr)


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


def _judge_step(
    x_BD: Tensor, old: list[Tensor], new: list[Tensor], slopes: tuple, lr: float
) -> None:
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
    B, D = x_BD.shape
    for factor, hint in (
        (-1, "you walk uphill: the gradient points up, so subtract it"),
        (1 / D, f"the step is {D} times too short: sum the squares over a row, don't average them"),
        (B, f"the step is {B} times too long: average over the {B} rows"),
        (1 / lr, "the learning rate lr is missing"),
    ):
        if close(new[1], old[1] - factor * lr * slopes[1], rtol=1e-3, atol=1e-5):
            raise Mistake(hint)
    if close(new[1], old[1] - lr * slopes[1], rtol=1e-3, atol=1e-5) or close(
        new[0], old[0] - lr * slopes[0], rtol=1e-3, atol=1e-5
    ):
        raise Mistake(
            "one moved as it should, the other did not: both gradients belong to the weights as "
            "they were before the step"
        )
    raise Mistake("both moved, but not by lr times the gradient of the loss of exercise 1.2")


@exercise(
    "Exercise 1.4: another code, the same output",
    passed="the output is the same to the last digit that matters, and the code is another one: "
    "the loss cannot tell them apart, so single numbers of the code have no meaning",
)
def remix(mixed: Callable) -> None:
    """`mixed(W_enc_DH, W_dec_HD, M_HH)` -> two matrices with the same product."""
    for D, H, seed in ((6, 3, 24), (5, 4, 30)):
        draw = torch.Generator().manual_seed(seed)
        W_enc_DH, W_dec_HD = (torch.randn(s, generator=draw) for s in ((D, H), (H, D)))
        turns = [torch.linalg.qr(torch.randn(H, H, generator=draw)).Q for _ in range(2)]
        M_HH = turns[0] @ torch.linspace(0.5, 2.0, H).diag() @ turns[1]
        _judge_mixed(mixed, W_enc_DH, W_dec_HD, M_HH)


def _judge_mixed(mixed: Callable, W_enc_DH: Tensor, W_dec_HD: Tensor, M_HH: Tensor) -> None:
    parts = {"W_enc_DH": W_enc_DH, "W_dec_HD": W_dec_HD, "M_HH": M_HH}
    given = {name: part.clone() for name, part in parts.items()}
    answer = call(mixed, *given.values())
    for name, part in parts.items():
        unchanged(given[name], part, name)
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Mistake("return both matrices: return new_W_enc, new_W_dec")
    enc_DH = need_shape(answer[0], tuple(W_enc_DH.shape), "the new W_enc")
    dec_HD = need_shape(answer[1], tuple(W_dec_HD.shape), "the new W_dec")
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


def remixed(W_enc_DH: Tensor, W_dec_HD: Tensor, M_HH: Tensor) -> tuple[Tensor, Tensor]:
    """What the lesson goes on with while exercise 1.4 is open."""
    return W_enc_DH @ M_HH, torch.linalg.inv(M_HH) @ W_dec_HD


@exercise(
    "Exercise 1.5: a copying machine",
    passed="one unit for what is positive, one for what is negative, and everything gets through: "
    "a ReLU alone does not keep a wide code from copying",
)
def copier(machine: Callable) -> None:
    """`machine(d)` -> `W_enc_DF`, `W_dec_FD` with relu(x W_enc) W_dec = x for every x."""
    for d in (3, 1, 6):
        answer = call(machine, d)
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            raise Mistake("return both matrices: return W_enc_DF, W_dec_FD")
        F = answer[0].shape[-1] if hasattr(answer[0], "shape") else 2 * d
        hint = "x_BD @ W_enc_DF has to be possible: rows are the numbers that go in."
        W_enc_DF = need_shape(answer[0], (d, F), "W_enc_DF", hint)
        W_dec_FD = need_shape(answer[1], (F, d), "W_dec_FD", "The code has F numbers.")
        x_BD = torch.randn(9, d, generator=torch.Generator().manual_seed(25 + d)).double()
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
        otherwise = (
            f"relu(x W_enc) W_dec should be x, and with d = {d} it is not: try it on rows such as "
            "[1., -2., 3.]"
        )
        diagnose(back_BD, x_BD, wrong, otherwise, rtol=1e-4, atol=1e-5)


def copying_machine(d: int) -> tuple[Tensor, Tensor]:
    """What the lesson goes on with while exercise 1.5 is open: `W_enc_DF` and `W_dec_FD`."""
    both_DF = torch.cat([torch.eye(d), -torch.eye(d)], dim=1)
    return both_DF, both_DF.T


HIDDEN = (  # happenings, sensors, how many happen at a time, the readings' unit
    (24, 16, 2, 1.0),
    (40, 24, 3, 30.0),
)
ENOUGH = 0.8  # of the happenings


@exercise("Exercise 1.6: houses that nobody knows", passed="")
def search(find: Callable) -> str:
    """`find(x_ND, n_happenings)` -> rows `[F, D]`, F at most `2 * n_happenings`."""
    shares, told = [], []
    for i, (G, D, n_on, unit) in enumerate(HIDDEN):
        x_ND, truth_GD = house(G, D, n_on, unit, seed=2**31 + i)  # no SAE starts there
        row_FD = _rows_found(find, x_ND, G)
        n_found = found(row_FD, truth_GD)
        shares.append(n_found / G)
        told.append(f"{n_found} of {G}")
    mean = sum(shares) / len(shares)
    said = f"{' and '.join(told)} happenings found, {mean:.2f} on average"
    if mean < ENOUGH:
        with earned(mean):
            raise Mistake(f"{said}; {ENOUGH} is asked for. {_advice(shares, row_FD, x_ND)}")
    return f"{said}. Nobody told you a single one of them."


def house(G: int, D: int, n_on: int, unit: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """3,000 readings `x_ND` of a house that was never shown, and its directions `[G, D]`."""
    draw = torch.Generator().manual_seed(seed)
    truth_GD = torch.nn.functional.normalize(torch.randn(G, D, generator=draw), dim=1)
    on_NG = torch.rand(3_000, G, generator=draw) < n_on / G
    return unit * (on_NG * torch.rand(3_000, G, generator=draw)) @ truth_GD, truth_GD


def found(row_FD: Tensor, truth_GD: Tensor) -> int:
    """How many directions have a row with a cosine above 0.9, of either sign."""
    rows, truth = (torch.nn.functional.normalize(t.double(), dim=1) for t in (row_FD, truth_GD))
    return int(((truth @ rows.T).abs().max(1).values > 0.9).sum())


def find_happenings(x_ND: Tensor, n_happenings: int) -> Tensor:
    """What the lesson goes on with while exercise 1.6 is open: a sparse autoencoder's rows."""
    size = (x_ND - x_ND.mean(0)).square().sum(1).mean().sqrt()  # one price for houses of any unit
    settings = {"steps": 500, "batch_size": 256, "lr": 1e-2, "decoder_norm": "unit_norm"}
    settings |= {"normalize": False, "progress": False}
    return train(x_ND / size, 2 * n_happenings, l1_coefficient=0.4, **settings).sae.W_dec.detach()


def _rows_found(find: Callable, x_ND: Tensor, G: int) -> Tensor:
    D, given_ND = x_ND.shape[1], x_ND.clone()
    row_FD = as_tensor(call(find, given_ND, G), "what it finds")
    unchanged(given_ND, x_ND, "x_ND")
    shape = tuple(row_FD.shape)
    if row_FD.ndim != 2 or shape[1] != D:
        turned = " Rows, not columns: .T turns them." if shape[:1] == (D,) else ""
        raise Mistake(f"rows of {D} numbers are asked for, and this has shape {shape}.{turned}")
    if len(row_FD) > 2 * G:
        raise Mistake(f"{len(row_FD)} rows for {G} happenings: twice as many are allowed, no more")
    if not row_FD.isfinite().all():
        raise Mistake("some of the rows are NaN or infinite: a length of 0 was divided by?")
    return row_FD


def _advice(shares: list[float], row_FD: Tensor, x_ND: Tensor) -> str:
    small, large = shares
    rows, readings = (torch.nn.functional.normalize(t.double(), dim=1) for t in (row_FD, x_ND))
    if ((rows @ readings.T).max(1).values > 0.9999).double().mean() > 0.9:
        return "These rows are readings, and in most readings several things happen at once."
    if max(shares) < 0.1:
        return "Random directions find as many: does a price keep the code sparse?"
    if large < small - 0.3:
        return (
            "The second house's readings are 30 times as large, and a price that is right for the "
            "first is next to nothing there: measure the readings first."
        )
    if small < large - 0.3:
        return "The first house's readings are 30 times smaller: its price is too high."
    return "More rows (twice as many are allowed), more steps, another price?"


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
    "no": "Half right: with 50 labels it does not; with 200 it does, a little.",
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
