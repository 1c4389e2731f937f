"""The checks of lesson 01: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from every_lesson import *  # noqa: F403

from saelearn import exercises, sae, train
from saelearn.exercises import lesson01 as check
from saelearn.toy import linear, sparse_coding


def encode(x, W, mean):
    return (x - mean) @ W


def encode_with_numpy(x, W, mean):
    return np.einsum("bd,dh->bh", x.numpy(), W.numpy()) - mean.numpy() @ W.numpy()


def encode_by_rows(x, W, mean):
    return torch.stack([sum(v * w for v, w in zip(row - mean, W, strict=True)) for row in x])


def encode_as_sum(x, W, mean):
    return torch.einsum("bd,dh->bh", x, W) - mean @ W


def encode_in_place(x, W, mean):
    x -= mean
    return x @ W


def encode_and_scale(x, W, mean):
    with torch.no_grad():
        W /= W.norm(dim=0)
    return (x - mean) @ W


@torch.no_grad()
def encode_without_gradient(x, W, mean):
    return (x - mean) @ W


def decode(h, W, mean):
    return h @ W + mean


def decode_as_linear(h, W, mean):
    return torch.nn.functional.linear(h, W.T, mean)


def decode_with_addmm(h, W, mean):
    return torch.addmm(mean, h, W)


def loss(x, x_hat):
    return ((x - x_hat) ** 2).sum(dim=1).mean()


def loss_by_rows(x, x_hat):
    return sum(torch.dist(a, b) ** 2 for a, b in zip(x, x_hat, strict=True)) / len(x)


def loss_from_mse(x, x_hat):
    return torch.nn.functional.mse_loss(x, x_hat) * x.shape[1]


def loss_in_place(x, x_hat):
    x -= x_hat
    return x.square().sum(1).mean()


def step(x, W_enc, W_dec, lr):
    value = loss(x, x @ W_enc @ W_dec)
    value.backward()
    with torch.no_grad():
        for W in (W_enc, W_dec):
            W -= lr * W.grad
            W.grad = None
    return value


def step_with_sgd(x, W_enc, W_dec, lr):
    optimizer = torch.optim.SGD([W_enc, W_dec], lr=lr)
    optimizer.zero_grad()
    value = loss(x, x @ (W_enc @ W_dec))
    value.backward()
    optimizer.step()
    return value.item()


def step_by_hand(x, W_enc, W_dec, lr):
    """Gradients by the chain rule, without autograd."""
    with torch.no_grad():
        h = x @ W_enc
        error = h @ W_dec - x
        for_dec, for_enc = h.T @ error, x.T @ error @ W_dec.T
        W_enc.sub_(2 * lr / len(x) * for_enc)
        W_dec.sub_(2 * lr / len(x) * for_dec)
    return error.square().sum(1).mean()


def step_on_data(x, W_enc, W_dec, lr):
    value = loss(x, x @ W_enc @ W_dec)
    grads = torch.autograd.grad(value, (W_enc, W_dec))
    for W, grad in zip((W_enc, W_dec), grads, strict=True):
        W.data -= lr * grad
    return value


def step_after_centring_in_place(x, W_enc, W_dec, lr):
    x -= x.mean(0)
    return step(x, W_enc, W_dec, lr)


def step_one_after_the_other(x, W_enc, W_dec, lr):
    """The second matrix is moved by the gradient after the first has moved."""
    for W in (W_enc, W_dec):
        value = loss(x, x @ W_enc @ W_dec)
        (slope,) = torch.autograd.grad(value, W)
        W.data -= lr * slope
    return value


def step_at_one_rate(x, W_enc, W_dec, lr):
    return step(x, W_enc, W_dec, 0.02)


def step_that_ends_learning(x, W_enc, W_dec, lr):
    value = step_by_hand(x, W_enc, W_dec, lr)
    W_enc.requires_grad_(False)
    return value


def faulty(*, sign=-1, clear=True, both=True, scale=1.0, rate=True, error=loss):
    """A step with one thing wrong."""

    def one_step(x, W_enc, W_dec, lr):
        value = error(x, x @ W_enc @ W_dec)
        value.backward()
        with torch.no_grad():
            for W in (W_enc, W_dec) if both else (W_dec,):
                W += sign * scale * (lr if rate else 1) * W.grad
        if clear:
            W_enc.grad = W_dec.grad = None
        return value

    return one_step


def rebinding(x, W_enc, W_dec, lr):
    value = loss(x, x @ W_enc @ W_dec)
    value.backward()
    W_enc = W_enc - lr * W_enc.grad
    W_dec = W_dec - lr * W_dec.grad
    return value


def recorded(x, W_enc, W_dec, lr):
    value = loss(x, x @ W_enc @ W_dec)
    value.backward()
    W_enc -= lr * W_enc.grad
    return value


def no_backward(x, W_enc, W_dec, lr):
    value = loss(x, x @ W_enc @ W_dec)
    with torch.no_grad():
        W_enc -= lr * W_enc.grad
    return value


def silent(x, W_enc, W_dec, lr):
    loss(x, x @ W_enc @ W_dec).backward()


def silent_but_right(x, W_enc, W_dec, lr):
    step(x, W_enc, W_dec, lr)


def wrong_value(x, W_enc, W_dec, lr):
    return step(x, W_enc, W_dec, lr) + 1


def summed(x, x_hat):
    return (x - x_hat).square().sum()


def mixed(W_enc, W_dec, M):
    return W_enc @ M, torch.linalg.inv(M) @ W_dec


def mixed_by_solving(W_enc, W_dec, M):
    return [W_enc @ M, torch.linalg.solve(M, W_dec)]


def mixed_by_least_squares(W_enc, W_dec, M):
    new_enc = W_enc @ M
    return new_enc, torch.linalg.pinv(new_enc) @ (W_enc @ W_dec)


def mixed_in_place(W_enc, W_dec, M):
    W_dec.copy_(torch.linalg.inv(M) @ W_dec)
    return W_enc @ M, W_dec


def mixed_by_heart(W_enc, W_dec, M):
    """Mixes, but always in the same way."""
    M = torch.eye(len(M)).flip(0) + 0.5 * torch.eye(len(M))
    return W_enc @ M, torch.linalg.inv(M) @ W_dec


def machine(d):
    eye = torch.eye(d)
    return torch.cat([eye, -eye], dim=1), torch.cat([eye, -eye])


def machine_in_pairs(d):
    """Another order, other lengths, doubles."""
    W_enc = torch.zeros(d, 2 * d, dtype=torch.double)
    W_dec = torch.zeros(2 * d, d, dtype=torch.double)
    for i in range(d):
        W_enc[i, 2 * i], W_enc[i, 2 * i + 1] = 2.0, -0.5
        W_dec[2 * i, i], W_dec[2 * i + 1, i] = 0.5, -2.0
    return W_enc, W_dec


def machine_turned(d):
    turn, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.double))
    return torch.cat([turn, -turn], 1), torch.cat([turn.T, -turn.T])


def machine_with_numpy(d):
    return np.hstack([np.eye(d), -np.eye(d)]), np.vstack([np.eye(d), -np.eye(d)])


def find_by_hand(x_ND, n, steps=700, price=0.4):
    """The lesson's own loop."""
    x_ND = x_ND / (x_ND - x_ND.mean(0)).square().sum(1).mean().sqrt()
    model = sae.SAE(x_ND.shape[1], 2 * n, decoder_init_norm=1.0, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x_BD = x_ND[torch.randint(len(x_ND), (256,), generator=draw)]
        x_hat_BD, f_BF = model(x_BD)
        optimizer.zero_grad()
        (loss(x_BD, x_hat_BD) + price * f_BF.sum(1).mean()).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.W_dec /= model.W_dec.norm(dim=1, keepdim=True)
    return model.W_dec


def find_by_dictionary(x_ND, n):
    """Without an encoder, as numpy, with lengths and signs of its own."""
    size = (x_ND - x_ND.mean(0)).square().sum(1).mean().sqrt()
    batches = sparse_coding.random_batches(x_ND / size, 256)
    atoms = sparse_coding.learn_dictionary(batches, 2 * n, 0.2, steps=200, nonnegative=True).W_dec
    return -3 * atoms.numpy()[::-1]


def find_at_one_price(x_ND, n):
    """The price is right for the first house alone."""
    how = {"steps": 500, "batch_size": 256, "lr": 1e-2, "decoder_norm": "unit_norm"}
    how |= {"normalize": False, "progress": False}
    return train.train(x_ND, 2 * n, l1_coefficient=0.3, **how).sae.W_dec


def find_in_place(x_ND, n):
    x_ND -= x_ND.mean(0)
    return x_ND[:n]


EYE = torch.eye
RIGHT = [
    (check.encode_decode, (encode, decode)),
    (check.encode_decode, (encode_by_rows, decode_as_linear)),
    (check.encode_decode, (encode_as_sum, decode_with_addmm)),
    (check.loss, (loss,)),
    (check.loss, (loss_by_rows,)),
    (check.loss, (loss_from_mse,)),
    (check.step, (step,)),
    (check.step, (step_with_sgd,)),
    (check.step, (step_by_hand,)),
    (check.step, (step_on_data,)),
    (check.remix, (mixed,)),
    (check.remix, (mixed_by_solving,)),
    (check.remix, (mixed_by_least_squares,)),
    (check.copier, (machine,)),
    (check.copier, (machine_in_pairs,)),
    (check.copier, (machine_turned,)),
    (check.copier, (machine_with_numpy,)),
    (check.search, (check.find_happenings,)),
    (check.search, (find_by_hand,)),
    (check.search, (find_by_dictionary,)),
]

WRONG = [
    (check.encode_decode, (lambda x, W, m: x @ W, decode), "take the mean out"),
    (check.encode_decode, (lambda x, W, m: (x + m) @ W, decode), "subtracted here"),
    (check.encode_decode, (lambda x, W, m: ((x - m) @ W).relu(), decode), "no ReLU"),
    (check.encode_decode, (lambda x, W, m: (x - x.mean(0)) @ W, decode), "handed in"),
    (check.encode_decode, (lambda x, W, m: (x - m) @ W.T, decode), "raised RuntimeError"),
    (check.encode_decode, (lambda x, W, m: x - m, decode), "shape (6, 5)"),
    (check.encode_decode, (encode_with_numpy, decode), "use torch throughout"),
    (check.encode_decode, (lambda x, W, m: encode(x, W, m).detach(), decode), "no gradient"),
    (check.encode_decode, (encode_without_gradient, decode), "no gradient"),
    (check.encode_decode, (encode_in_place, decode), "x_BD itself is overwritten"),
    (check.encode_decode, (encode_and_scale, decode), "W_enc_DH itself is overwritten"),
    (check.encode_decode, (lambda x, W, m: encode(x, W, m) * float("nan"), decode), "numbers"),
    (check.encode_decode, (lambda x, W, m: torch.ones(6, 3), decode), "the numbers are not"),
    (check.encode_decode, (encode, lambda h, W, m: decode(h, W, m).relu()), "no ReLU"),
    (check.encode_decode, (encode, lambda h, W, m: decode(h, W, m).detach()), "no gradient"),
    (check.encode_decode, (encode, lambda h, W, m: h @ W), "has to come back"),
    (check.encode_decode, (encode, lambda h, W, m: h @ W - m), "mean is added"),
    (check.encode_decode, (encode, lambda h, W, m: 2 * h @ W + m), "h times W_dec"),
    (check.loss, (lambda x, y: (x - y).square().mean(),), "sum over them"),
    (check.loss, (summed,), "grows with its size"),
    (check.loss, (lambda x, y: (x - y).sum(1).mean(),), "cancel"),
    (check.loss, (lambda x, y: (x - y).abs().sum(1).mean(),), "another loss"),
    (check.loss, (lambda x, y: (x - y).norm(dim=1).mean(),), "no root"),
    (check.loss, (lambda x, y: (x - y).sum(1).square().mean(),), "each error first"),
    (check.loss, (lambda x, y: (x - y).square().sum(1),), "shape (7,)"),
    (check.loss, (lambda x, y: (x - y).square().sum(1),), "mean over the rows comes last"),
    (check.loss, (lambda x, y: loss(x, y).sqrt(),), "no root at the end"),
    (check.loss, (lambda x, y: (x - y).square().sum() / 7,), "it should be"),
    (check.loss, (lambda x, y: (x - y).square().mean() * 4,), "it should be"),
    (check.loss, (lambda x, y: loss(x, y).item(),), "no gradient"),
    (check.loss, (lambda x, y: np.square(x.numpy() - y.numpy()).sum(1).mean(),), "NumPy"),
    (check.loss, (loss_in_place,), "x_BD itself is overwritten"),
    (check.loss, (lambda x, y: loss(x, y) * float("nan"),), "it should be"),
    (check.loss, (lambda x, y: (x - y).square().sum(0).mean(),), "other way round"),
    (check.step, (faulty(sign=1),), "uphill"),
    (check.step, (faulty(clear=False),), "adds to the old gradient"),
    (check.step, (faulty(both=False),), "only one"),
    (check.step, (faulty(error=lambda x, y: (x - y).square().mean()),), "5 times too short"),
    (check.step, (faulty(error=summed),), "8 times too long"),
    (check.step, (faulty(rate=False),), "learning rate"),
    (check.step, (faulty(scale=0.3),), "not by lr times"),
    (check.step, (step_after_centring_in_place,), "x_BD itself is overwritten"),
    (check.step, (step_one_after_the_other,), "as they were before the step"),
    (check.step, (step_at_one_rate,), "not by lr times"),
    (check.step, (rebinding,), "in place"),
    (check.step, (recorded,), "torch.no_grad"),
    (check.step, (no_backward,), "loss.backward() comes first"),
    (check.step, (silent,), "return the loss"),
    (check.step, (silent_but_right,), "return the loss"),
    (check.step, (wrong_value,), "return the loss of this step"),
    (check.remix, (lambda E, D, M: (E @ M, M @ D),), "M works twice"),
    (check.remix, (lambda E, D, M: (E @ M, M.T @ D),), "rotation"),
    (check.remix, (lambda E, D, M: (E @ M, D),), "only one of the two"),
    (check.remix, (lambda E, D, M: (E, M @ D),), "only one of the two"),
    (check.remix, (lambda E, D, M: (E, D),), "nothing has been mixed"),
    (check.remix, (lambda E, D, M: (-E, -D),), "not that by M"),
    (check.remix, (lambda E, D, M: (E @ M.inverse(), M.inverse() @ D),), "put M inv(M)"),
    (check.remix, (lambda E, D, M: (E @ M.inverse(), M @ D),), "change places"),
    (check.remix, (lambda E, D, M: E @ D,), "both matrices"),
    (check.remix, (mixed_in_place,), "W_dec_HD itself is overwritten"),
    (check.remix, (mixed_by_heart,), "not that by M"),
    (check.remix, (lambda E, D, M: (E @ M, D * float("nan")),), "put M inv(M)"),
    (check.copier, (lambda d: (EYE(d), EYE(d)),), "what is negative gets lost"),
    (
        check.copier,
        (lambda d: (torch.cat([EYE(d), -EYE(d)], 1), torch.cat([EYE(d), EYE(d)])),),
        "-1 comes back as 1",
    ),
    (check.copier, (lambda d: (-EYE(d), -EYE(d)),), "what is positive gets lost"),
    (check.copier, (lambda d: (machine(d)[0], -machine(d)[1]),), "wrong sign"),
    (check.copier, (lambda d: (machine(d)[0], 2 * machine(d)[1]),), "doubled"),
    (check.copier, (lambda d: (machine(d)[0], machine(d)[1] / 2),), "halved"),
    (check.copier, (lambda d: (machine(d)[0].T, machine(d)[1].T),), "shape (6, 3)"),
    (check.copier, (lambda d: (machine(d)[0], EYE(d)),), "The code has F numbers"),
    (check.copier, (lambda d: EYE(d),), "both matrices"),
    (check.copier, (lambda d: (EYE(d).flip(0), EYE(d)),), "try it on rows"),
    (check.copier, (lambda d: machine(3),), "rows are the numbers that go in"),
    (check.copier, (lambda d: (machine(d)[0], machine(d)[1] * float("nan")),), "try it on rows"),
    (check.search, (lambda x, n: torch.randn(2 * n, x.shape[1]),), "Random directions find as"),
    (check.search, (lambda x, n: linear.pca(x).components_DD,), "Random directions find as"),
    (
        check.search,
        (lambda x, n: find_by_hand(x, n, steps=200, price=0.0),),
        "keep the code sparse",
    ),
    (check.search, (lambda x, n: x[: 2 * n],), "rows are readings"),
    (check.search, (find_at_one_price,), "30 times as large"),
    (check.search, (lambda x, n: x,), "rows for 24 happenings"),
    (check.search, (lambda x, n: x[:n].T,), "Rows, not columns"),
    (check.search, (find_in_place,), "x_ND itself is overwritten"),
    (check.search, (lambda x, n: x[:n] * float("nan"),), "NaN"),
    (check.search, (lambda x, n: [["a"]],), "number or a tensor"),
]

OPEN = [(check.encode_decode, (encode, lambda *_: ...))]


def test_weights_that_no_longer_learn_are_told():
    """In the lesson alone: when a class is graded, the flag stays behind in the sandbox."""
    verdict = check.step(step_that_ends_learning)
    assert verdict.state == "wrong"
    assert "ask for gradients" in verdict.message


@pytest.mark.parametrize(
    ("guess", "words"),
    [
        (0.5, "not half of the variance"),
        (50, "you said 50%"),
        (torch.tensor(0.2), "Well guessed"),
        (0.0, "Too hopeful"),
    ],
)
def test_a_guess_of_the_share_is_answered(guess, words):
    verdict = check.guess_lost(guess, 0.196)
    assert verdict.state == "noted"
    assert "it is 20%" in verdict.message
    assert words in verdict.message


@pytest.mark.parametrize(
    ("answer", "guess", "words"),
    [
        (check.guess_wide, "copy", "room for all 100"),
        (check.guess_wide, " Features ", "copying is easier"),
        (check.guess_wide, "blurry", "That was the bottleneck"),
        (check.guess_helps, "Yes!", "from how many labels"),
        (check.guess_helps, "no", "a little"),
    ],
)
def test_a_word_is_answered(answer, guess, words):
    verdict = answer(guess)
    assert verdict.state == "noted"
    assert words in verdict.message


@pytest.mark.parametrize("answer", [check.guess_wide, check.guess_helps])
@pytest.mark.parametrize(
    ("guess", "state"),
    [(..., "open"), (None, "open"), ("", "wrong"), ("a lot", "wrong"), (7, "wrong")],
)
def test_no_guess_or_an_unreadable_one_is_said(answer, guess, state, monkeypatch):
    monkeypatch.setattr(exercises, "GRADING", True)  # a prediction is never graded
    assert answer(guess).state == state
    for unread in ("half", -0.2, 250):
        assert check.guess_lost(unread, 0.2).state == "wrong"
