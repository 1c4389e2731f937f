"""The checks of lesson 04: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from every_lesson import *  # noqa: F403

from saelearn import metrics
from saelearn.exercises import lesson04 as check


def tied(x, M, b):
    c = torch.relu(x @ M.T + b)
    return c, c @ M


def tied_with_numpy(x, M, b):
    c = np.maximum(np.einsum("bd,fd->bf", x.numpy(), M.numpy()) + b.numpy(), 0)
    return [c, np.einsum("bf,fd->bd", c, M.numpy())]


def tied_as_columns(x, M, b):
    c = (M @ x.T + b[:, None]).clamp(min=0)
    return c.T, (M.T @ c).T


def tied_in_place(x, M, b):
    """On a new tensor of its own."""
    c = (x @ M.T).add_(b).clamp_(min=0)
    return c, c @ M


def tied_overwriting(x, M, b):
    M /= M.norm(dim=1, keepdim=True)
    return tied(x, M, b)


def tied_for_seven(x, M, b):
    """Only for the first sizes."""
    c = torch.relu(x @ M.T + b)[:, :7]
    return c, torch.stack([c.T[i] for i in range(7)], 1) @ M


def loss(x, y, c, alpha):
    return ((x - y).square().sum(1) + alpha * c.sum(1)).mean()


def loss_by_rows(x, y, c, alpha):
    rows = zip(x, y, c, strict=True)
    return sum((a - b).norm() ** 2 + alpha * d.norm(p=1) for a, b, d in rows) / len(x)


def loss_over_length(x, y, c, alpha):
    return (((x - y) ** 2).sum() + alpha * c.norm(p=1)) / len(x)


def loss_in_place(x, y, c, alpha):
    return x.sub_(y).square().sum(1).mean() + alpha * c.sum(1).mean()


def loss_of(M, b, x, alpha):
    c, x_hat = tied(x, M, b)
    return loss(x, x_hat, c, alpha)


def step(M, b, optimizer, x, alpha):
    value = loss_of(M, b, x, alpha)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    with torch.no_grad():
        M /= M.norm(dim=1, keepdim=True)
    return value.detach()


def step_otherwise(M, b, optimizer, x, alpha):
    optimizer.zero_grad(set_to_none=False)
    value = loss_of(M, b, x, alpha)
    value.backward()
    optimizer.step()
    M.data = torch.nn.functional.normalize(M.data, dim=1)
    return value.item()


def step_by_closure(M, b, optimizer, x, alpha):
    def closure():
        optimizer.zero_grad()
        value = loss_of(M, b, x, alpha)
        value.backward()
        return value

    value = optimizer.step(closure)
    with torch.no_grad():
        M.copy_(torch.nn.functional.normalize(M, dim=1))
    return value


def step_by_autograd(M, b, optimizer, x, alpha):
    """Slopes that are written down, where others add them up."""
    value = loss_of(M, b, x, alpha)
    M.grad, b.grad = torch.autograd.grad(value, (M, b))
    optimizer.step()
    M.data.div_(M.data.square().sum(1, keepdim=True).sqrt())
    return value.detach().numpy()


def step_without_optimizer(M, b, optimizer, x, alpha):
    slopes = torch.autograd.grad(loss_of(M, b, x, alpha), (M, b))
    with torch.no_grad():
        value = loss_of(M, b, x, alpha)
        for each, slope in zip((M, b), slopes, strict=True):
            each -= 0.05 * slope
        M /= M.norm(dim=1, keepdim=True)
    return value


def step_of_one_price(M, b, optimizer, x, alpha):
    return step(M, b, optimizer, x, 0.3)


def step_on_centred(M, b, optimizer, x, alpha):
    x -= x.mean(0)
    return step(M, b, optimizer, x, alpha)


def wrong_step(*, forget=True, walk=True, dim=1, keep=True, scale=1.0):
    def function(M, b, optimizer, x, alpha):
        value = loss_of(M, b, x, alpha)
        if forget:
            optimizer.zero_grad()
        (scale * value).backward()
        if walk:
            optimizer.step()
        with torch.no_grad():
            if keep:
                M /= M.norm() if dim is None else M.norm(dim=dim, keepdim=True)
        return value.detach()

    return function


def keep_before_the_step(M, b, optimizer, x, alpha):
    M.data /= M.data.norm(dim=1, keepdim=True)
    return wrong_step(keep=False)(M, b, optimizer, x, alpha)


def forget_too_late(M, b, optimizer, x, alpha):
    value = loss_of(M, b, x, alpha)
    value.backward()
    optimizer.zero_grad()
    optimizer.step()
    with torch.no_grad():
        M /= M.norm(dim=1, keepdim=True)
    return value


def rename_only(M, b, optimizer, x, alpha):
    value = wrong_step(keep=False)(M, b, optimizer, x, alpha)
    with torch.no_grad():
        M = M / M.norm(dim=1, keepdim=True)
    return value


def another_loss(M, b, optimizer, x, alpha):
    return step(M, b, optimizer, x, 0.0)


def translate(encoder, decoder):
    W_enc = encoder.weight.T
    return W_enc, encoder.bias + decoder.bias @ W_enc, decoder.weight.T, decoder.bias


def translate_by_running(encoder, decoder):
    zero_f = torch.zeros(encoder.out_features)
    W_enc, W_dec = encoder.weight.detach().numpy().T, decoder.weight.detach().numpy().T
    return [W_enc, encoder(decoder(zero_f)), W_dec, decoder(zero_f)]


def translate_by_solving(encoder, decoder):
    """b_enc is what the encoder says of the decoder's bias."""
    state = {name: value.double() for name, value in decoder.state_dict().items()}
    W_enc = encoder.weight.detach().double().T
    b_enc = encoder(decoder.bias).detach().double()
    return W_enc, b_enc, state["weight"].T.contiguous(), state["bias"]


def translate_in_place(encoder, decoder):
    with torch.no_grad():
        encoder.bias += decoder.bias @ encoder.weight.T
    return encoder.weight.T, encoder.bias, decoder.weight.T, decoder.bias


def translate_for_seven(encoder, decoder):
    W_enc, b_enc, W_dec, b_dec = translate(encoder, decoder)
    return W_enc, b_enc[:7] if len(b_enc) == 7 else torch.zeros(len(b_enc)), W_dec, b_dec


def translation(change):
    def function(encoder, decoder):
        return change(*translate(encoder, decoder), encoder, decoder)

    return function


def shared_once(W, V):
    """By loops: shared with the other seed, and like no row that was taken before."""
    taken = []
    for i, row in enumerate(W):
        cosine = torch.cosine_similarity(row[None], V, dim=1)
        before = torch.cosine_similarity(row[None], W[:i], dim=1)
        copies = [j for j in range(i) if taken[j] and before[j] > 0.9]
        taken.append(bool(cosine.max() > 0.9) and not copies)
    return torch.tensor(taken)


def shared_by_matching(W, V):
    """Each row of the other seed takes one row: copies are left over."""
    return shared_once(W, V).numpy().astype(int)


def shared_in_doubles(W, V):
    A, B = (torch.nn.functional.normalize(X.double(), dim=1) for X in (W, V))
    like = (A @ A.T > 0.85).float()
    return ((A @ B.T).max(1).values > 0.85) & (like.argmax(1) == torch.arange(len(W)))


def shared_with_copies(W, V):
    return metrics.cosine_matrix(W, V).amax(1) > 0.9


def shared_without_lengths(W, V):
    return (W @ V.T).amax(1) > 0.9


def of_the_other(W, V):
    return shared_once(V, W)


def overwritten(W, V):
    W /= W.norm(dim=1, keepdim=True)
    return shared_once(W, V)


def ingredients(f, W, k):
    value, index = f.topk(k)
    return index, value[:, None] * W[index]


def ingredients_by_loop(f, W, k):
    """The peak, k times, on a copy."""
    left, which = f.clone(), []
    for _ in range(k):
        which.append(int(left.argmax()))
        left[which[-1]] = -1
    return which, torch.stack([float(f[i]) * W[i] for i in which])


def ingredients_overwriting(f, W, k):
    which, parts = [], []
    for _ in range(k):
        which.append(int(f.argmax()))
        parts.append(f[which[-1]] * W[which[-1]])
        f[which[-1]] = 0
    return which, torch.stack(parts)


def ingredients_in_weights(f, W, k):
    W *= f[:, None]
    return f.topk(k).indices, W[f.topk(k).indices]


def ingredients_by_sorting(f, W, k):
    index = np.argsort(-f.numpy())[:k]
    return index, (f[:, None] * W)[index.tolist()]


RIGHT = [
    (check.predicted_found, (64,)),
    (check.predicted_found, (32.0,)),
    (check.predicted_found, (torch.tensor(50),)),
    (check.predicted_cosine, (1,)),
    (check.predicted_cosine, (np.float32(0.8),)),
    (check.predicted_cosine, (0.5,)),
    (check.predicted_shared, (0.9,)),
    (check.predicted_shared, (0,)),
    (check.predicted_shared, (torch.tensor([0.34]),)),
    (check.tied, (tied,)),
    (check.tied, (tied_as_columns,)),
    (check.tied, (tied_in_place,)),
    (check.loss, (loss,)),
    (check.loss, (loss_by_rows,)),
    (check.loss, (loss_over_length,)),
    (check.train_step, (step,)),
    (check.train_step, (step_otherwise,)),
    (check.train_step, (step_by_closure,)),
    (check.train_step, (step_by_autograd,)),
    (check.translation, (translate,)),
    (check.translation, (translate_by_running,)),
    (check.translation, (translate_by_solving,)),
    (check.real_rows, (check.shared_once,)),
    (check.real_rows, (shared_once,)),
    (check.real_rows, (shared_by_matching,)),
    (check.real_rows, (shared_in_doubles,)),
    (check.ingredients, (ingredients,)),
    (check.ingredients, (ingredients_by_sorting,)),
    (check.ingredients, (ingredients_by_loop,)),
]

WRONG = [
    *unreadable(check.predicted_found, 64),  # noqa: F405
    *unreadable(check.predicted_cosine, 1),  # noqa: F405
    *unreadable(check.predicted_shared, 1),  # noqa: F405
    (check.tied, (lambda x, M, b: (x @ M.T + b, (x @ M.T + b) @ M),), "ReLU is missing"),
    (check.tied, (lambda x, M, b: tied(x, M, 0 * b),), "bias b_F is missing"),
    (check.tied, (lambda x, M, b: ((x @ M.T).relu() + b, x),), "inside the ReLU"),
    (check.tied, (lambda x, M, b: tied(x, M, -b),), "not subtracted"),
    (check.tied, (lambda x, M, b: tied(x, M, b)[::-1],), "code comes first"),
    (check.tied, (lambda x, M, b: (tied(x, M, b)[0], tied(x, M, b)[1].relu()),), "on the way out"),
    (check.tied, (lambda x, M, b: (tied(x, M, b)[0], (x @ M.T + b) @ M),), "after the ReLU"),
    (check.tied, (lambda x, M, b: tied(x, M.T, b),), "raised RuntimeError"),
    (check.tied, (tied_overwriting,), "M_FD itself is overwritten"),
    (check.tied, (lambda x, M, b: tied(x.sub_(x.mean(0)), M, b),), "x_BD itself is overwritten"),
    (check.tied, (tied_for_seven,), "raised IndexError"),
    (check.tied, (lambda x, M, b: tied(x, M, b)[0],), "two things"),
    (check.tied, (tied_with_numpy,), "NumPy"),
    (check.tied, (lambda x, M, b: [y.detach() for y in tied(x, M, b)],), "no gradient reaches"),
    (check.tied, (lambda x, M, b: tied(x, M, b * float("nan")),), "numbers are not"),
    (check.loss, (lambda x, y, c, a: (x - y).norm(dim=1).mean() + a * c.sum(1).mean(),), "root"),
    (check.loss, (lambda x, y, c, a: ((x - y) ** 2).mean() + a * c.sum(1).mean(),), "over D"),
    (check.loss, (lambda x, y, c, a: loss(x, y, (c > 0).float(), a),), "this is L0"),
    (check.loss, (lambda x, y, c, a: loss(x, y, c.norm(dim=1, keepdim=True), a),), "L2 norm"),
    (check.loss, (lambda x, y, c, a: loss(x, y, 0 * c, a) + a * c.mean(),), "over features"),
    (check.loss, (lambda x, y, c, a: loss(x, y, 0 * c, a) + a * c.sum(),), "over the batch"),
    (check.loss, (lambda x, y, c, a: len(x) * loss(x, y, c, a),), "both terms"),
    (check.loss, (lambda x, y, c, a: loss(x, y, c, 1),), "alpha is missing"),
    (check.loss, (lambda x, y, c, a: a * loss(x, y, c, 1 / a),), "stands before the price"),
    (check.loss, (lambda x, y, c, a: ((x - y) ** 2).mean() + a * c.mean(),), "both are means"),
    (check.loss, (lambda x, y, c, a: loss(x, y, c**2, a),), "squared activations"),
    (check.loss, (lambda x, y, c, a: loss(x, y, c, 0),), "price is missing"),
    (check.loss, (lambda x, y, c, a: loss(x, y, c, -a),), "a price is added"),
    (check.loss, (lambda x, y, c, a: (x - y).square().sum(1) + a * c.sum(1),), "over the rows"),
    (check.loss, (lambda *given: loss(*given).item(),), "no gradient reaches x_hat_BD"),
    (check.loss, (lambda x, y, c, a: loss(x, y, c.detach(), a),), "no gradient reaches c_BF"),
    (check.loss, (lambda x, y, c, a: loss(x, torch.tensor(y.numpy()), c, a),), "NumPy"),
    (check.loss, (loss_in_place,), "x_BD itself is overwritten"),
    (check.loss, (lambda x, y, c, a: ((x - y).square().sum() + a * c.sum()) / 8,), "not mean over"),
    (check.train_step, (wrong_step(forget=False),), "zero_grad"),
    (check.train_step, (wrong_step(walk=False),), "nothing moved"),
    (check.train_step, (forget_too_late,), "zero_grad(), then backward()"),
    (check.train_step, (rename_only,), "in place"),
    (check.train_step, (wrong_step(dim=0),), "columns"),
    (check.train_step, (wrong_step(dim=None),), "whole matrix"),
    (check.train_step, (wrong_step(keep=False),), "divide each by its own length"),
    (check.train_step, (keep_before_the_step,), "divide each by its own length"),
    (check.train_step, (wrong_step(scale=-1.0),), "not where one step leads"),
    (check.train_step, (another_loss,), "exercise 4.2"),
    (check.train_step, (step_of_one_price,), "exercise 4.2"),
    (check.train_step, (step_without_optimizer,), "not where one step leads"),
    (check.train_step, (step_on_centred,), "x_BD itself is overwritten"),
    (check.translation, (translation(lambda W, b, V, c, *_: (W.T, b, V, c)),), ".T"),
    (check.translation, (translation(lambda W, b, V, c, *_: (W, b, V.T, c)),), ".T"),
    (check.translation, (translation(lambda W, b, V, c, e, d: (W, e.bias, V, c)),), "give it back"),
    (
        check.translation,
        (translation(lambda W, b, V, c, e, d: (W, e.bias - c @ W, V, c)),),
        "wrong sign",
    ),
    (check.translation, (translation(lambda W, b, V, c, *_: (W, c @ W, V, c)),), "own bias"),
    (
        check.translation,
        (translation(lambda W, b, V, c, e, d: (W, e.bias, V, 0 * c)),),
        "decoder's bias got lost",
    ),
    (check.translation, (translation(lambda W, b, V, c, *_: (2 * W, b, V, c)),), "insert"),
    (check.translation, (translate_in_place,), "encoder.bias itself is overwritten"),
    (check.translation, (translate_for_seven,), "insert"),
    (check.translation, (translation(lambda W, b, V, c, *_: (W, b, V)),), "four tensors"),
    (check.real_rows, (lambda W, V: torch.ones(len(W)) > 0,), "spare rows"),
    (check.real_rows, (lambda W, V: torch.zeros(len(W)) > 0,), "12 of 12 real features"),
    (check.real_rows, (shared_with_copies,), "6 second copies"),
    (check.real_rows, (shared_without_lengths,), "left out"),
    (check.real_rows, (of_the_other,), "One for each row"),
    (check.real_rows, (overwritten,), "work on a copy"),
    (check.real_rows, (lambda W, V: torch.arange(len(W)) < 12,), "real features are left out"),
    (check.real_rows, (lambda W, V: metrics.cosine_matrix(W, V).amax(1),), "no numbers between"),
    (check.real_rows, (lambda W, V: torch.full((len(W),), float("nan")),), "no numbers between"),
    (check.real_rows, (lambda W, V: shared_once(W, V).sum(),), "One for each row"),
    (check.ingredients, (lambda f, W, k: (f.topk(k).indices, W[f.topk(k).indices]),), "how much"),
    (
        check.ingredients,
        (lambda f, W, k: (f.topk(k).indices, f.topk(k).values[:, None] * W.T[f.topk(k).indices]),),
        "columns",
    ),
    (check.ingredients, (lambda f, W, k: (f.topk(k).values, W[:k]),), "topk's indices"),
    (
        check.ingredients,
        (lambda f, W, k: (f.topk(k).indices, ingredients(f, W, k)[1].sum(0)),),
        "row for each feature",
    ),
    (check.ingredients, (lambda f, W, k: (f.argsort()[-k:], W[-k:]),), "weakest first"),
    (check.ingredients, (lambda f, W, k: (f.topk(k).indices.sort().values, W[:k]),), "numbers"),
    (check.ingredients, (lambda f, W, k: (f.argsort()[:k], W[:k]),), "these are the weakest"),
    (check.ingredients, (lambda f, W, k: (torch.arange(k), W[:k]),), "in number: sort"),
    (check.ingredients, (lambda f, W, k: ingredients(f, W, 3),), "list of features has shape (3,)"),
    (check.ingredients, (ingredients_overwriting,), "f_F itself is overwritten"),
    (check.ingredients, (ingredients_in_weights,), "W_dec_FD itself is overwritten"),
]


@pytest.mark.parametrize(
    ("judge", "guesses"),
    [
        (check.predicted_found, (10, 32, 40, 55, 64)),
        (check.predicted_cosine, (0.3, 0.8, 1.0)),
        (check.predicted_shared, (0.05, 0.34, 0.9)),
    ],
)
def test_a_prediction_is_answered_according_to_the_guess(judge, guesses):
    assert len({judge(guess).message for guess in guesses}) == len(guesses)
