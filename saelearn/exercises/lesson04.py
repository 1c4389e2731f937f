"""Checks of lesson 04, the first sparse autoencoder.

Shapes: B batch, D activation width, F features, K ingredients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from saelearn import metrics
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
    (-1, "closer than that, on these data. (In a language model you may be right.)"),
)
SHARED: Replies = (
    (0.6, "fewer: about a third. Both found all that was planted; the spare rows differ."),
    (0.2, "about right. What they share is what was planted; the spare rows differ."),
    (-1, "more: about a third. What was planted is found by every seed."),
)


@guesses.prediction
def predicted_found(guess: Any) -> Verdict:
    """A reply to how many of 64 planted directions the reader expects to be found."""
    return _prediction("how many are found", guess, 64, FOUND)


@guesses.prediction
def predicted_cosine(guess: Any) -> Verdict:
    """A reply to the expected cosine between a feature's encoder column and decoder row."""
    return _prediction("reading and writing", guess, 1, COSINE)


@guesses.prediction
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
    cases = []
    for b, d, f in ((5, 3, 7), (4, 6, 2)):
        given = [torch.randn(*size, generator=draw) for size in ((b, d), (f, d), (f,))]
        result = call(function, *(handed := [each.clone() for each in given]))
        for name, now, before in zip(("x_BD", "M_FD", "b_F"), handed, given, strict=True):
            unchanged(now, before, name)
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise Mistake("two things are to be returned: return c_BF, x_hat_BD")
        _judge_code(result[0], *given)
        cases.append((result[1], given))
    with earned(0.5):
        for x_hat_BD, given in cases:
            _judge_reconstruction(x_hat_BD, *given)
        x_BD, *weights = cases[0][1]
        trained = dict(zip(("M_FD", "b_F"), (w.requires_grad_() for w in weights), strict=True))
        for part in range(2):  # called for each: the second would find the first one's graph gone
            learns(call_with_torch(function, x_BD, *weights)[part], **trained)


def coded(x_BD: Tensor, M_FD: Tensor, b_F: Tensor) -> tuple[Tensor, Tensor]:
    """What the lesson goes on with while exercise 4.1 is open: code `[B, F]` and x̂ `[B, D]`."""
    c_BF = torch.relu(x_BD @ M_FD.T + b_F)
    return c_BF, c_BF @ M_FD


def _judge_code(answer: Any, x_BD: Tensor, M_FD: Tensor, b_F: Tensor) -> None:
    if tuple(as_tensor(answer, "c_BF").shape) == x_BD.shape:
        raise Mistake("the code comes first: return c_BF, x_hat_BD")
    before_BF = x_BD @ M_FD.T + b_F
    diagnose(
        need_shape(answer, tuple(before_BF.shape), "c_BF"),
        before_BF.relu(),
        {
            "c: some are negative; ReLU is missing.": before_BF,
            "c: the bias b_F is missing.": (x_BD @ M_FD.T).relu(),
            "c: the bias belongs inside the ReLU.": (x_BD @ M_FD.T).relu() + b_F,
            "c: the bias is added, not subtracted.": (x_BD @ M_FD.T - b_F).relu(),
        },
        "c: the shape is right, the numbers are not; compare with ReLU(M x + b).",
    )


def _judge_reconstruction(answer: Any, x_BD: Tensor, M_FD: Tensor, b_F: Tensor) -> None:
    before_BF = x_BD @ M_FD.T + b_F
    right_BD = before_BF.relu() @ M_FD
    diagnose(
        need_shape(answer, tuple(x_BD.shape), "x_hat_BD"),
        right_BD,
        {
            "x̂: a reconstruction may be negative; no ReLU on the way out.": right_BD.relu(),
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
    for b, d, f, alpha in ((8, 3, 5, 0.7), (5, 7, 4, 0.2)):
        x_BD, x_hat_BD = torch.randn(2, b, d, generator=draw)
        _judge_loss(function, x_BD, x_hat_BD, torch.randn(b, f, generator=draw).relu(), alpha)


def _judge_loss(
    function: Callable, x_BD: Tensor, x_hat_BD: Tensor, c_BF: Tensor, alpha: float
) -> None:
    (b, d), f = x_BD.shape, c_BF.shape[1]
    trained = {"x_hat_BD": x_hat_BD.clone().requires_grad_(), "c_BF": c_BF.clone().requires_grad_()}
    result = call_with_torch(function, given := x_BD.clone(), *trained.values(), alpha)
    total = need_shape(result, (), "the loss", ONE)
    error_B, price_B = (x_BD - x_hat_BD).square().sum(1), c_BF.sum(1)
    error, price = error_B.mean(), alpha * price_B.mean()
    counted = alpha * (c_BF > 0).sum(1).double().mean()
    wrong = {
        "the little 2 at the top squares the length: no root.": error_B.sqrt().mean() + price,
        "the error is averaged over D: a squared length is a sum over D.": error / d + price,
        "both are means over a row: sum over D and F, mean over B.": error / d + price / f,
        "that counts the active features: this is L0. L1 is their sum.": error + counted,
        "squared activations: L1 adds them up as they are.": error
        + alpha * (c_BF**2).sum(1).mean(),
        "the price is missing: add alpha times the mean of ||c||₁.": error,
        "a price is added: the loss is what should become small.": error - price,
        "that is c's length, its L2 norm: L1 is the sum.": error + alpha * c_BF.norm(dim=1).mean(),
        "the price is a mean over features: sum over F, mean over B.": error + alpha * c_BF.mean(),
        "the price is summed over the batch: take means over it.": error + alpha * c_BF.sum(),
        "both terms are summed over the batch: take means.": b * (error + price),
        "alpha is missing.": error + price_B.mean(),
        "alpha stands before the price, not before the error.": alpha * error + price_B.mean(),
    }
    otherwise = "not mean over B of ||x - x̂||₂², plus alpha times the mean over B of ||c||₁."
    diagnose(total, error + price, wrong, otherwise)
    unchanged(given, x_BD, "x_BD")
    learns(result, **trained)


@exercise(
    "Exercise 4.3: one step of training",
    passed="loss, gradient, step, lengths: repeated a thousand times, this is the training.",
)
def train_step(function: Callable) -> None:
    """`train_step(M_FD, b_F, optimizer, x_BD, alpha)` changes M and b, and returns the loss."""
    draw = torch.Generator().manual_seed(43)
    for f, d, b, lr, alpha in ((6, 4, 16, 0.05, 0.3), (5, 3, 9, 0.2, 0.8)):
        start_FD = nn.functional.normalize(torch.randn(f, d, generator=draw), dim=1)
        _judge_steps(function, start_FD, torch.rand(2, b, d, generator=draw), lr, alpha)


def stepped(
    M_FD: Tensor, b_F: Tensor, optimizer: torch.optim.Optimizer, x_BD: Tensor, alpha: float
) -> Tensor:
    """What the lesson goes on with while exercise 4.3 is open: M and b after one step."""
    c_BF, x_hat_BD = coded(x_BD, M_FD, b_F)
    value = (x_BD - x_hat_BD).square().sum(1).mean() + alpha * c_BF.sum(1).mean()
    return step_down(value, optimizer, M_FD)


def step_down(value: Tensor, optimizer: torch.optim.Optimizer, W_dec_FD: Tensor) -> Tensor:
    """Exercise 4.3's step for any model: down the slope of `value`, then rows of length 1."""
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    with torch.no_grad():
        W_dec_FD.div_(W_dec_FD.norm(dim=1, keepdim=True))
    return value.detach()


def _judge_steps(
    function: Callable, start_FD: Tensor, x_SBD: Tensor, lr: float, alpha: float
) -> None:
    """Two steps: what the first leaves behind is seen at the second."""
    M_FD = start_FD.clone().requires_grad_()
    b_F = torch.zeros(len(start_FD), requires_grad=True)
    optimizer = torch.optim.SGD([M_FD, b_F], lr=lr)
    first = call(function, M_FD, b_F, optimizer, given := x_SBD[0].clone(), alpha)
    unchanged(given, x_SBD[0], "x_BD")
    right = _steps(start_FD, x_SBD[:1], lr, alpha)
    _judge_step(M_FD, b_F, need_shape(first, (), "the loss"), right, start_FD)
    call(function, M_FD, b_F, optimizer, x_SBD[1].clone(), alpha)
    if close(M_FD, _steps(start_FD, x_SBD, lr, alpha)[0], atol=1e-5):
        return
    if close(M_FD, _steps(start_FD, x_SBD, lr, alpha, forget=False)[0], atol=1e-5):
        raise Mistake("the second step still contains the first one's gradient: zero_grad.")
    raise Mistake("the first step is right, the second is not: what is left from the first?")


def _steps(
    start_FD: Tensor, x_SBD: Tensor, lr: float, alpha: float, *, forget: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """M, b and the last loss after plain gradient steps, by a way of its own."""
    M_FD, b_F, moved = start_FD.clone(), torch.zeros(len(start_FD)), [0.0, 0.0]
    for x_BD in x_SBD:
        M_FD, b_F = M_FD.requires_grad_(), b_F.requires_grad_()
        with torch.enable_grad():
            c_BF = (x_BD @ M_FD.T + b_F).relu()
            total = ((x_BD - c_BF @ M_FD) ** 2).sum(1).mean() + alpha * c_BF.sum(1).mean()
            slopes = torch.autograd.grad(total, (M_FD, b_F))
        moved = [s if forget else s + m for s, m in zip(slopes, moved, strict=True)]
        M_FD, b_F = M_FD.detach() - lr * moved[0], b_F.detach() - lr * moved[1]
        M_FD = M_FD / M_FD.norm(dim=1, keepdim=True)
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
    for d, f in ((3, 7), (5, 2)):
        encoder, decoder = nn.Linear(d, f), nn.Linear(f, d)
        given = [each.detach().clone() for m in (encoder, decoder) for each in m.parameters()]
        result = call(function, encoder, decoder)
        now = [each for m in (encoder, decoder) for each in m.parameters()]
        for name, after, before in zip(LAYERS, now, given, strict=True):
            unchanged(after, before, name)
        if not isinstance(result, tuple | list) or len(result) != 4:
            raise Mistake("four tensors are to be returned: W_enc_DF, b_enc_F, W_dec_FD, b_dec_D")
        turn = "nn.Linear keeps [out, in]: turn it with .T"
        answer = (
            need_shape(result[0], (d, f), "W_enc_DF", turn),
            need_shape(result[1], (f,), "b_enc_F"),
            need_shape(result[2], (f, d), "W_dec_FD", turn),
            need_shape(result[3], (d,), "b_dec_D"),
        )
        _judge_translation(answer, [each.double() for each in given], torch.randn(20, d).double())


def translated(encoder: nn.Linear, decoder: nn.Linear) -> tuple[Tensor, ...]:
    """What the lesson goes on with while exercise 4.4 is open: W_enc, b_enc, W_dec, b_dec."""
    W_enc_DF, b_dec_D = encoder.weight.T, decoder.bias
    return W_enc_DF, encoder.bias + b_dec_D @ W_enc_DF, decoder.weight.T, b_dec_D


LAYERS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")


def _judge_translation(answer: tuple, given: list[Tensor], x_BD: Tensor) -> None:
    """Whether four tensors in the pre-bias form are the function of two linear layers."""
    W_enc_DF, b_enc_F, W_dec_FD, b_dec_D = answer
    into_FD, into_F, out_DF, out_D = given
    shift_F, right_BF = out_D @ into_FD.T, x_BD @ into_FD.T + into_F
    received_BF = (x_BD - b_dec_D) @ W_enc_DF + b_enc_F
    wrong = {
        "b_enc: the pre-bias form takes b_dec away; b_enc has to give it back.": right_BF - shift_F,
        "b_enc: the right correction with the wrong sign.": right_BF - 2 * shift_F,
        "b_enc: the encoder's own bias got lost.": right_BF - into_F,
    }
    wrong = {hint: before_BF.relu() for hint, before_BF in wrong.items()}
    otherwise = "the features are not the same: insert your tensors into both equations."
    diagnose(received_BF.relu(), right_BF.relu(), wrong, otherwise)
    summed_BD = right_BF.relu() @ out_DF.T
    wrong = {"b_dec: the decoder's bias got lost.": summed_BD}
    otherwise = "the features are right, the reconstruction is not: look at W_dec and b_dec."
    diagnose(right_BF.relu() @ W_dec_FD + b_dec_D, summed_BD + out_D, wrong, otherwise)


@exercise(
    "Exercise 4.5: which rows are real?",
    passed="what two seeds share, each once: where there is room for the truth, a good judge.",
)
def real_rows(function: Callable) -> str:
    """`real_rows(W_FD, other_KD)`: `[F]` True for each row that is a feature, copies once."""
    scores = []
    for n_features, width, sizes in ((12, 24, (40, 31)), (30, 40, (70, 90))):
        true_GD, W_FD, other_KD = _two_seeds(n_features, width, sizes)
        given = W_FD.clone(), other_KD.clone()
        answer = need_shape(call(function, *given), (sizes[0],), "the answer", "One for each row.")
        if not (torch.equal(given[0], W_FD) and torch.equal(given[1], other_KD)):
            raise Mistake("a dictionary that was handed over is changed: work on a copy.")
        if not ((answer == 0) | (answer == 1)).all():
            raise Mistake("True or False (1 or 0) for each row, no numbers between or beyond.")
        scores.append(value := score(answer > 0, W_FD, true_GD))
        if value < ENOUGH:
            raise Mistake(f"F1 {value:.2f} on dictionaries of {sizes[0]} and {sizes[1]} rows: "
                          f"{_missed(answer > 0, W_FD, true_GD)}")  # fmt: skip
    return f"F1 {scores[0]:.2f} and {scores[1]:.2f}: what two seeds share, each feature once."


def score(taken_F: Tensor, W_FD: Tensor, true_GD: Tensor) -> float:
    """F1 of rows taken for real: right is the first row above 0.9 with a feature of its own.

    Args:
        taken_F: True for each row that is taken.
        W_FD: the dictionary.
        true_GD: the features that are there to find; those that no row shows are missed.
    """
    hits_FG = metrics.cosine_matrix(W_FD.float(), true_GD.float()) > 0.9
    n_right = int(hits_FG[taken_F].any(0).sum())  # a second copy adds nothing but to the count
    return 2 * n_right / max(int(taken_F.sum()) + len(true_GD), 1)


def shared_once(W_FD: Tensor, other_KD: Tensor) -> Tensor:
    """What the lesson goes on with while exercise 4.5 is open: shared rows, no copies. `[F]`."""
    shared_F = metrics.cosine_matrix(W_FD, other_KD).amax(1) > 0.9
    like_FF = (metrics.cosine_matrix(W_FD, W_FD) > 0.9) & shared_F
    return shared_F & (like_FF.int().argmax(1) == torch.arange(len(W_FD)))


ENOUGH = 0.9  # the F1 that exercise 4.5 asks for


def _two_seeds(n_features: int, width: int, sizes: tuple[int, int]) -> tuple[Tensor, ...]:
    """Features, and two shuffled dictionaries that hold them with noise, copies and spare rows."""
    draw = torch.Generator().manual_seed(1_000 * n_features + width)
    true_GD = nn.functional.normalize(torch.randn(n_features, width, generator=draw), dim=1)
    found = []
    for size in sizes:
        of = torch.cat([torch.arange(n_features), torch.randperm(n_features, generator=draw)[:6]])
        noise_RD = 0.2 * torch.randn(len(of), width, generator=draw) / width**0.5
        spare_SD = torch.randn(size - len(of), width, generator=draw) / width**0.5
        rows_FD = torch.cat([true_GD[of] + noise_RD, spare_SD])
        length_F1 = 0.3 + 2 * torch.rand(size, 1, generator=draw)
        found.append((length_F1 * rows_FD)[torch.randperm(size, generator=draw)])
    return true_GD, *found


def _missed(taken_F: Tensor, W_FD: Tensor, true_GD: Tensor) -> str:
    """What an answer does wrong most."""
    hits_FG = metrics.cosine_matrix(W_FD, true_GD) > 0.9
    n_spare = int((taken_F & ~hits_FG.any(1)).sum())
    n_lost = int((~hits_FG[taken_F].any(0)).sum())
    n_copies = int((hits_FG[taken_F].sum(0) - 1).clamp(min=0).sum())
    return (
        f"{n_lost} of {len(true_GD)} real features are left out, {n_spare} spare rows and "
        f"{n_copies} second copies are in."
    )


@exercise(
    "Exercise 4.6: the list of ingredients",
    passed="a reconstruction is a short list: which rows, and how much of each.",
)
def ingredients(function: Callable) -> None:
    """`ingredients(f_F, W_dec_FD, k)`: indices of the k strongest, and what each adds [k, D]."""
    draw = torch.Generator().manual_seed(47)
    for f, d, k in ((6, 6, 3), (9, 4, 5)):  # where columns for rows give no error, and others
        f_F = torch.rand(f, generator=draw) * torch.tensor([0.2, 1.0, 3.0]).repeat(f)[:f]
        W_dec_FD = torch.randn(f, d, generator=draw)
        result = call(function, *(given := (f_F.clone(), W_dec_FD.clone())), k)
        unchanged(given[0], f_F, "f_F")
        unchanged(given[1], W_dec_FD, "W_dec_FD")
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise Mistake("two things are to be returned: which features, and what each adds")
        first_K = f_F.topk(k).indices.tolist()
        _judge_order(need_shape(result[0], (k,), "the list of features"), f_F, first_K)
        parts_KD = need_shape(result[1], (k, d), "the table of parts", "One row for each feature.")
        f_K1, rows_KD = f_F[first_K, None], W_dec_FD[first_K]
        wrong = {"these are the rows; how much of each? Multiply by its activation.": rows_KD}
        if f == d:
            columns_KD = f_K1 * W_dec_FD.T[first_K]
            wrong["those are columns of W_dec; what i writes is row i."] = columns_KD
        otherwise = "a part is the feature's activation times its row of W_dec."
        diagnose(parts_KD, f_K1 * rows_KD, wrong, otherwise)


def strongest(f_F: Tensor, W_dec_FD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What the lesson goes on with while exercise 4.6 is open: indices `[k]`, parts `[k, D]`."""
    f_K, which_K = f_F.topk(k)
    return which_K, f_K[:, None] * W_dec_FD[which_K]


def _judge_order(which_K: Tensor, f_F: Tensor, first: list[int]) -> None:
    k, weakest = len(first), f_F.argsort()[: len(first)].tolist()
    if close(which_K, f_F.topk(k).values):
        raise Mistake("these are the activations; their numbers are asked for: topk's indices.")
    if (got := which_K.tolist()) == first:
        return
    if got == first[::-1]:
        raise Mistake(f"the right {k}, weakest first: turn the order round.")
    if sorted(got) == sorted(first):
        raise Mistake(f"the right {k}, but not strongest first: in the order of their numbers?")
    if sorted(got) == sorted(weakest):
        raise Mistake("these are the weakest: sort in falling order.")
    if got == list(range(k)):
        raise Mistake(f"the first {k} in number: sort by activation.")
    raise Mistake(f"not the {k} strongest, strongest first.")
