"""Checks of lesson 04, the first sparse autoencoder.

Shapes: B batch, D activation width, F features, K ingredients.
"""

from __future__ import annotations

from collections.abc import Callable
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
    need_shape,
)

ONE = "One number: average over the rows."
Replies = tuple[tuple[float, str], ...]  # a guess above the number gets the reply

FOUND: Replies = (
    (62, "nearly, but not all: a few rows end up between two planted directions."),
    (48, "well judged: most, and not all."),
    (32, "more than there are dimensions, you said, rightly; it is more still."),
    (31, "so many a matrix alone could tell apart. ReLU and sparsity get much further."),
    (-1, "more: a matrix alone could tell 32 apart, and ReLU and sparsity get further."),
)
COSINE: Replies = (
    (0.95, "they began equal, and nothing forbade it; yet training turned them apart."),
    (0.65, "about right: related, not equal."),
    (-1, "closer than that, on these data. (In language models a half is common.)"),
)
SHARED: Replies = (
    (0.6, "fewer: about a third. Both found all that was planted; the spare rows differ."),
    (0.2, "about right. What they share is what was planted; the spare rows differ."),
    (-1, "more: about a third. What was planted is found by every seed."),
)


def predicted_found(guess: Any) -> Verdict:
    """A reply to how many of 64 planted directions the reader expects to be found."""
    return _prediction("how many are found", guess, 64, FOUND)


def predicted_cosine(guess: Any) -> Verdict:
    """A reply to the expected cosine between a feature's encoder column and decoder row."""
    return _prediction("reading and writing", guess, 1, COSINE)


def predicted_shared(guess: Any) -> Verdict:
    """A reply to the share of 256 features that two seeds are expected to have in common."""
    return _prediction("what two seeds share", guess, 1, SHARED)


def _prediction(name: str, guess: Any, highest: int, replies: Replies) -> Verdict:
    """The reply of the first bound that the guess is above."""

    def answer(guess: Any) -> str:
        value = guesses.number(guess, 0, highest)
        return next(text for above, text in replies if value > above)

    return guesses.reply(name, guess, answer)


@exercise(
    "Exercise 4.1: one matrix, used twice",
    passed="rows of M are compared with x, and the rows that answered are added up again.",
)
def tied(function: Callable) -> None:
    """`tied(x_BD, M_FD, b_F)` gives the code `c_BF` and the reconstruction `x_hat_BD`."""
    draw = torch.Generator().manual_seed(41)
    x_BD, M_FD = torch.randn(5, 3, generator=draw), torch.randn(7, 3, generator=draw)
    b_F = torch.randn(7, generator=draw)
    result = call(function, x_BD, M_FD, b_F)
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Mistake("two things are to be returned: return c_BF, x_hat_BD")
    if tuple(as_tensor(result[0], "c_BF").shape) == (5, 3):
        raise Mistake("the code comes first: return c_BF, x_hat_BD")
    before_BF = x_BD @ M_FD.T + b_F
    c_BF = before_BF.relu()
    diagnose(
        need_shape(result[0], (5, 7), "c_BF"),
        c_BF,
        {
            "c: some are negative; ReLU is missing.": before_BF,
            "c: the bias b_F is missing.": (x_BD @ M_FD.T).relu(),
            "c: the bias belongs inside the ReLU.": (x_BD @ M_FD.T).relu() + b_F,
            "c: the bias is added, not subtracted.": (x_BD @ M_FD.T - b_F).relu(),
        },
        "c: the shape is right, the numbers are not; compare with ReLU(M x + b).",
    )
    with earned(0.5):
        diagnose(
            need_shape(result[1], (5, 3), "x_hat_BD"),
            c_BF @ M_FD,
            {
                "x̂: a reconstruction may be negative; no ReLU on the way out.": (
                    c_BF @ M_FD
                ).relu(),
                "x̂: it is made of c, which is after the ReLU.": before_BF @ M_FD,
            },
            "x̂: the shape is right, the numbers are not; compare with Mᵀ c.",
        )


@exercise(
    "Exercise 4.2: the loss as a paper writes it",
    passed="a squared length for the error, a sum for the price, both averaged over the batch.",
)
def loss(function: Callable) -> None:
    """`loss(x_BD, x_hat_BD, c_BF, alpha)`: mean ||x - x_hat||_2^2 + alpha * mean ||c||_1."""
    draw = torch.Generator().manual_seed(42)
    x_BD, x_hat_BD = torch.randn(8, 3, generator=draw), torch.randn(8, 3, generator=draw)
    c_BF, alpha = torch.randn(8, 5, generator=draw).relu(), 0.7
    total = need_shape(call(function, x_BD, x_hat_BD, c_BF, alpha), (), "the loss", ONE)
    error_B, price_B = (x_BD - x_hat_BD).square().sum(1), c_BF.sum(1)
    error, price = error_B.mean(), alpha * price_B.mean()
    counted = alpha * (c_BF > 0).sum(1).double().mean()
    wrong = {
        "the little 2 at the top squares the length: no root.": error_B.sqrt().mean() + price,
        "the error is averaged over D: a squared length is a sum over D.": error / 3 + price,
        "both are means over a row: sum over D and F, mean over B.": error / 3 + price / 5,
        "that counts the active features: this is L0. L1 is their sum.": error + counted,
        "squared activations: L1 adds them up as they are.": error
        + alpha * (c_BF**2).sum(1).mean(),
        "the price is missing: add alpha times the mean of ||c||₁.": error,
        "a price is added: the loss is what should become small.": error - price,
        "that is c's length, its L2 norm: L1 is the sum.": error + alpha * c_BF.norm(dim=1).mean(),
        "the price is a mean over features: sum over F, mean over B.": error + alpha * c_BF.mean(),
        "the price is summed over the batch: take means over it.": error + alpha * c_BF.sum(),
        "both terms are summed over the batch: take means.": 8 * (error + price),
        "alpha is missing.": error + price_B.mean(),
        "alpha stands before the price, not before the error.": alpha * error + price_B.mean(),
    }
    otherwise = "not mean over B of ||x - x̂||₂², plus alpha times the mean over B of ||c||₁."
    diagnose(total, error + price, wrong, otherwise)


@exercise(
    "Exercise 4.3: one step of training",
    passed="loss, gradient, step, lengths: repeated a thousand times, this is the training.",
)
def train_step(function: Callable) -> None:
    """`train_step(M_FD, b_F, optimizer, x_BD, alpha)` changes M and b, and returns the loss."""
    start = torch.randn(6, 4, generator=torch.Generator().manual_seed(43))
    start /= start.norm(dim=1, keepdim=True)
    M_FD, b_F = start.clone().requires_grad_(), torch.zeros(6, requires_grad=True)
    optimizer = torch.optim.SGD([M_FD, b_F], lr=0.05)
    x_SBD = torch.rand(2, 16, 4, generator=torch.Generator().manual_seed(44))
    first = need_shape(call(function, M_FD, b_F, optimizer, x_SBD[0], 0.3), (), "the loss")
    _judge_step(M_FD, b_F, first, _steps(start, x_SBD[:1]), start)
    call(function, M_FD, b_F, optimizer, x_SBD[1], 0.3)
    if close(M_FD, _steps(start, x_SBD)[0], atol=1e-5):
        return
    if close(M_FD, _steps(start, x_SBD, forget=False)[0], atol=1e-5):
        raise Mistake("the second step still contains the first one's gradient: zero_grad.")
    raise Mistake("the first step is right, the second is not: what is left from the first?")


def _steps(start: Tensor, x_SBD: Tensor, *, forget: bool = True, keep: bool = True) -> tuple:
    """M, b and the last loss after plain gradient steps, by a way of its own."""
    M_FD, b_F, moved = start.clone(), torch.zeros(len(start)), [0.0, 0.0]
    for x_BD in x_SBD:
        M_FD, b_F = M_FD.requires_grad_(), b_F.requires_grad_()
        with torch.enable_grad():
            c_BF = (x_BD @ M_FD.T + b_F).relu()
            total = ((x_BD - c_BF @ M_FD) ** 2).sum(1).mean() + 0.3 * c_BF.sum(1).mean()
            slopes = torch.autograd.grad(total, (M_FD, b_F))
        moved = [s if forget else s + m for s, m in zip(slopes, moved, strict=True)]
        M_FD, b_F = M_FD.detach() - 0.05 * moved[0], b_F.detach() - 0.05 * moved[1]
        M_FD = M_FD / M_FD.norm(dim=1, keepdim=True) if keep else M_FD
    return M_FD, b_F, total.detach()


def _judge_step(M_FD: Tensor, b_F: Tensor, first: Tensor, right: tuple, start: Tensor) -> None:
    if close(M_FD, start) and not b_F.any():
        raise Mistake("nothing moved: zero_grad(), then backward(), then optimizer.step() walks.")
    if not close(first, right[2], rtol=1e-4):
        raise Mistake("the loss is not that of exercise 4.2 for this batch.")
    if close(M_FD, right[0], atol=1e-5) and close(b_F, right[1], atol=1e-5):
        return
    length_F, width_D = M_FD.detach().norm(dim=1), M_FD.detach().norm(dim=0)
    if close(width_D, torch.ones(len(width_D))):
        raise Mistake("columns have length 1; a feature is a row: norm(dim=1, keepdim=True).")
    if close(M_FD.detach().norm(), 1.0):
        raise Mistake("the whole matrix has length 1; each row should: dim=1, keepdim=True.")
    if not close(length_F, torch.ones(len(length_F)), atol=1e-5):
        raise Mistake("rows are not of length 1: divide each by its own length, in place: M /= ...")
    raise Mistake("rows have length 1, but they are not where one step leads to.")


@exercise(
    "Exercise 4.4: from two linear layers to the pre-bias form",
    passed="the same function in other clothes: whatever one of them can do, the other can.",
)
def translation(function: Callable) -> None:
    """`translate(encoder, decoder)` gives W_enc [D, F], b_enc [F], W_dec [F, D], b_dec [D]."""
    torch.manual_seed(45)  # the reader's draws are kept: `exercise` forks the generator
    encoder, decoder, x_BD = nn.Linear(3, 7), nn.Linear(7, 3), torch.randn(20, 3)
    result = call(function, encoder, decoder)
    if not isinstance(result, tuple | list) or len(result) != 4:
        raise Mistake("four tensors are to be returned: W_enc_DF, b_enc_F, W_dec_FD, b_dec_D")
    turn = "nn.Linear keeps [out, in]: turn it with .T"
    W_enc_DF = need_shape(result[0], (3, 7), "W_enc_DF", turn)
    b_enc_F = need_shape(result[1], (7,), "b_enc_F")
    W_dec_FD = need_shape(result[2], (7, 3), "W_dec_FD", turn)
    b_dec_D = need_shape(result[3], (3,), "b_dec_D")
    x_BD, shift_F = x_BD.double(), decoder.bias.double() @ encoder.weight.double().T
    right_BF = x_BD @ encoder.weight.double().T + encoder.bias.double()
    received_BF = (x_BD - b_dec_D) @ W_enc_DF + b_enc_F
    lost_BF, short_BF = right_BF - encoder.bias.double(), right_BF - shift_F
    wrong = {
        "b_enc: the pre-bias form takes b_dec away; b_enc has to give it back.": short_BF.relu(),
        "b_enc: the right correction with the wrong sign.": (right_BF - 2 * shift_F).relu(),
        "b_enc: the encoder's own bias got lost.": lost_BF.relu(),
    }
    otherwise = "the features are not the same: insert your tensors into both equations."
    diagnose(received_BF.relu(), right_BF.relu(), wrong, otherwise)
    summed_BD = right_BF.relu() @ decoder.weight.double().T
    wrong = {"b_dec: the decoder's bias got lost.": summed_BD}
    otherwise = "the features are right, the reconstruction is not: look at W_dec and b_dec."
    diagnose(right_BF.relu() @ W_dec_FD + b_dec_D, summed_BD + decoder.bias, wrong, otherwise)


@exercise(
    "Exercise 4.5: bug hunt, the price on the wrong thing",
    passed="the price is on activations: silence is what is rewarded, not thin weights.",
)
def mended_loss(function: Callable) -> None:
    """`mended_loss(x_BD, M_FD, b_F, l1_coefficient)`: the tied SAE's loss, L1 on activations."""
    draw = torch.Generator().manual_seed(46)
    x_BD, M_FD = torch.randn(8, 3, generator=draw), torch.randn(5, 3, generator=draw)
    b_F, l1 = torch.randn(5, generator=draw), 0.7
    before_BF = x_BD @ M_FD.T + b_F
    c_BF = before_BF.relu()
    error, price = (x_BD - c_BF @ M_FD).square().sum(1).mean(), c_BF.sum(1).mean()
    total = need_shape(call(function, x_BD, M_FD, b_F, l1), (), "the loss", ONE)
    raw, rebuilt = before_BF.abs().sum(1).mean(), (c_BF @ M_FD).abs().sum(1).mean()
    both, decay = price + M_FD.abs().sum(), M_FD.square().sum()
    wrong = {
        "the price is still on the weights.": error + l1 * M_FD.abs().sum(),
        "squared weights are weight decay: still a price on weights.": error + l1 * decay,
        "activations are priced now, but the weights still are too.": error + l1 * both,
        "the price is on what stands before the ReLU: the silent would pay.": error + l1 * raw,
        "the price is on the reconstruction: it belongs on the code c.": error + l1 * rebuilt,
        "sum over the batch: the price should be a mean over it.": error + l1 * c_BF.sum(),
        "mean over the features too: sum over F, mean over B.": error + l1 * c_BF.mean(),
        "the coefficient is missing.": error + price,
        "the price is gone altogether; it belongs on the code c.": error,
        "a bias is a weight too: the price belongs on the code c.": error + l1 * b_F.abs().sum(),
    }
    otherwise = "not the mean squared length of the error plus l1_coefficient times mean Σ c."
    diagnose(total, error + l1 * price, wrong, otherwise)


@exercise(
    "Exercise 4.6: what is it made of?",
    passed="a reconstruction is a short list: which rows, and how much of each.",
)
def ingredients(function: Callable) -> None:
    """`ingredients(f_F, W_dec_FD, k)`: indices of the k strongest, and what each adds [k, D]."""
    draw = torch.Generator().manual_seed(47)
    f_F, W_dec_FD = torch.tensor([0.0, 0.3, 0.0, 1.9, 0.8, 0.1]), torch.randn(6, 6, generator=draw)
    result = call(function, f_F, W_dec_FD, 3)
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Mistake("two things are to be returned: which features, and what each adds")
    which_K = need_shape(result[0], (3,), "the list of features").tolist()
    if close(which_K, f_F.topk(3).values):
        raise Mistake("these are the activations; their numbers are asked for: topk's indices.")
    if which_K != (strongest := [3, 4, 1]):
        raise Mistake(_WRONG_ORDER.get(tuple(which_K), "not the three strongest, strongest first."))
    parts_KD = need_shape(result[1], (3, 6), "the table of parts", "One row for each feature.")
    f_K1, rows_KD = f_F[strongest, None], W_dec_FD[strongest]
    wrong = {
        "these are the rows; how much of each? Multiply by its activation.": rows_KD,
        "those are columns of W_dec; what i writes is row i.": f_K1 * W_dec_FD.T[strongest],
    }
    otherwise = "a part is the feature's activation times its row of W_dec."
    diagnose(parts_KD, f_K1 * rows_KD, wrong, otherwise)


_WRONG_ORDER = {
    (1, 4, 3): "the right three, weakest first: turn the order round.",
    (1, 3, 4): "the right three, but in the order of their numbers: strongest first.",
    (0, 2, 5): "these are the weakest: sort in falling order.",
    (2, 0, 5): "these are the weakest: sort in falling order.",
    (0, 1, 2): "the first three in number: sort by activation.",
}
