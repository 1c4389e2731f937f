"""The checks of lesson 03: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from every_lesson import *  # noqa: F403
from scipy.optimize import nnls

from saelearn.exercises import lesson03 as check


def soft(a, t):
    return a.sign() * torch.relu(a.abs() - t)


def soft_by_two_relus(a, t):
    return torch.relu(a - t) - torch.relu(-a - t)


def soft_with_numpy(a, t):
    return np.sign(a.numpy()) * np.maximum(np.abs(a.numpy()) - t, 0)


def soft_by_cutting(a, t):
    return a - a.clamp(-t, t)


def step(x, f, W, l1, c):
    return soft(f + (x - f @ W) @ W.T / c, l1 / (2 * c))


def step_by_autograd(x, f, W, l1, c):
    f = f.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((x - f @ W).square().sum(), f)
    return torch.nn.functional.softshrink(f.detach() - gradient / (2 * c), l1 / (2 * c))


def step_in_place(x, f, W, l1, c):
    x -= f @ W
    f += x @ W.T / c
    return soft(f, l1 / (2 * c))


def step_with_its_own_curvature(x, f, W, l1, c):
    return step(x, f, W, l1, torch.linalg.matrix_norm(W, 2) ** 2)


def unit(W):
    return W / W.norm(dim=1, keepdim=True)


def atoms(W, x, f, rate):
    used = f.square().sum(0).clamp(min=1e-12)
    return unit(W + rate * f.T @ (x - f @ W) / used[:, None])


def atoms_one_by_one(W, x, f, rate):
    r, new = x - f @ W, W.clone()
    for i in range(len(W)):
        if f[:, i].any():
            new[i] += rate * sum(f[b, i] * r[b] for b in range(len(x))) / sum(f[:, i] ** 2)
            new[i] /= new[i].square().sum().sqrt()
    return new


def atoms_with_epsilon(W, x, f, rate):
    move = torch.einsum("bf,bd->fd", f, x - f @ W) / (f.pow(2).sum(0) + 1e-9).unsqueeze(1)
    return torch.nn.functional.normalize(W + rate * move, dim=1)


def atoms_in_place(W, x, f, rate):
    x -= f @ W
    W += rate * f.T @ x / f.square().sum(0).clamp(min=1e-12)[:, None]
    W /= W.norm(dim=1, keepdim=True)
    return W


def soft_in_place(a, t):
    sign = a.sign()
    a.abs_().sub_(t).clamp_(min=0).mul_(sign)
    return a


def soft_with_if(a, t):
    if a > t:
        return a - t
    return 0 * a


def soft_with_max(a, t):
    return a.sign() * max(a.abs() - t, 0)


def soft_with_numpy_if(a, t):
    a = a.numpy()
    return a - t if a > t else 0 * a


def soft_for_eight(a, t):
    """Knows its numbers by heart."""
    return soft(a, t) if a.numel() == 8 else soft(a, 0.5)


def soft_backwards(a, t):
    return soft_with_numpy(a, t)[..., ::-1][..., ::-1]  # a negative stride, twice


def step_for_unit_price(x, f, W, l1, c):
    """Right for the first case alone."""
    return soft(f + (x - f @ W) @ W.T / c, 0.4 / (2 * c))


def step_with_numpy(x, f, W, l1, c):
    x, f, W = (each.numpy() for each in (x, f, W))
    moved = f + (x - f @ W) @ W.T / c
    return np.sign(moved) * np.maximum(np.abs(moved) - l1 / (2 * c), 0)


def step_that_leaves_its_residual(x, f, W, l1, c):
    result = step(x, f, W, l1, c)
    x -= f @ W
    return result


def atoms_normed_before(W, x, f, rate):
    """The input's atoms are normalised in place, which their length of 1 hides."""
    W *= 1.5
    return atoms(W / 1.5, x, f, rate)


def atoms_at_half_rate(W, x, f, rate):
    return atoms(W, x, f, 0.5)


def best_by_cases(x, W, l1):
    cosine, seen = float(W[0] @ W[1]), W @ x - l1 / 2
    both = torch.stack([seen[0] - cosine * seen[1], seen[1] - cosine * seen[0]]) / (1 - cosine**2)
    if both.min() > 0:
        return both
    only = seen.relu()
    keep = int(only[1] > only[0])  # alone, an atom saves the square of its strength
    return torch.stack([only[0] * (1 - keep), only[1] * keep])


def best_by_descent(x, W, l1):
    """Coordinate descent, until nothing moves."""
    f = torch.zeros(2)
    for _ in range(3_000):
        f[0] = torch.relu(W[0] @ (x - f[1] * W[1]) - l1 / 2)
        f[1] = torch.relu(W[1] @ (x - f[0] * W[0]) - l1 / 2)
    return f


def best_by_nnls(x, W, l1):
    """Up to a constant the whole cost is a least squares of another target."""
    gram = (W @ W.T).double().numpy()
    root = np.linalg.cholesky(gram)
    target = np.linalg.solve(root, (W @ x).double().numpy() - l1 / 2)
    return nnls(root.T, target)[0]


def unpriced(x, W, l1):
    return torch.linalg.solve(W @ W.T, W @ x)


def priced(x, W, l1):
    return torch.linalg.solve(W @ W.T, W @ x - l1 / 2)


def best_in_place(x, W, l1):
    result = best_by_cases(x, W, l1)
    x -= result @ W
    return result


def best_in_two_dimensions(x, W, l1):
    return best_by_cases(x, W, l1) if len(x) == 2 else torch.zeros(2)


def encoder(W, l1, c):
    return W.T / c, -l1 / (2 * c)


def encoder_with_a_bias_each(W, l1, c):
    return [W.T * (1 / c), torch.full((len(W),), -0.5 * l1 / c)]


def encoder_with_numpy(W, l1, c):
    return W.numpy().T / c, np.array([-l1 / c / 2])


def encoder_in_place(W, l1, c):
    W /= c
    return W.T, -l1 / (2 * c)


def use(f):
    return f.square().sum(0)[:, None]


RIGHT = [
    (check.predicted_on, (64, 64)),
    (check.predicted_on, (3, 64)),
    (check.predicted_on, (torch.tensor(32), 64)),
    (check.soft_threshold, (soft,)),
    (check.soft_threshold, (soft_by_two_relus,)),
    (check.soft_threshold, (soft_with_numpy,)),
    (check.soft_threshold, (soft_backwards,)),
    (check.soft_threshold, (soft_by_cutting,)),
    (check.ista_step, (step,)),
    (check.ista_step, (step_with_numpy,)),
    (check.ista_step, (step_by_autograd,)),
    (check.two_atoms, (best_by_cases,)),
    (check.two_atoms, (best_by_descent,)),
    (check.two_atoms, (best_by_nnls,)),
    (check.two_atoms, (check.lowest,)),
    (check.dictionary_step, (atoms,)),
    (check.dictionary_step, (atoms_one_by_one,)),
    (check.dictionary_step, (atoms_with_epsilon,)),
    (check.shuffled_pixels, ("edges",)),
    (check.shuffled_pixels, ("Edges, as before",)),
    (check.shuffled_pixels, ("the same",)),
    (check.first_step_encoder, (encoder,)),
    (check.first_step_encoder, (encoder_with_a_bias_each,)),
    (check.first_step_encoder, (encoder_with_numpy,)),
    (check.predicted_steps, (30, 29)),
    (check.predicted_steps, (90.0, 29)),
    (check.predicted_steps, (np.int64(3), 29)),
    (check.predicted_gap, (1.05, 1.4)),
    (check.predicted_gap, (1.4, 1.4)),
    (check.predicted_gap, (2, torch.tensor(1.4))),
]

WRONG = [
    *unreadable(check.predicted_on, 64, 64),  # noqa: F405
    *unreadable(check.predicted_steps, 10_000, 29),  # noqa: F405
    *unreadable(check.predicted_gap, 100, 1.4),  # noqa: F405
    (check.soft_threshold, (soft_in_place,), "argument 1 of your function itself is overwritten"),
    (check.soft_threshold, (soft_for_eight,), "expected"),
    (check.soft_threshold, (lambda a, t: (a - t).relu(),), "negative numbers all became 0"),
    (check.soft_threshold, (lambda a, t: torch.where(a.abs() > t, a, 0.0),), "don't only cut"),
    (check.soft_threshold, (lambda a, t: (a.abs() - t).relu(),), "sign is lost"),
    (check.soft_threshold, (lambda a, t: a.sign() * (a.abs() - t),), "other side"),
    (check.soft_threshold, (lambda a, t: a - t,), "moves everything down"),
    (check.soft_threshold, (lambda a, t: a * (1 - t),), "scales"),
    (check.soft_threshold, (lambda a, t: a.clamp(-t, t),), "cut away"),
    (check.soft_threshold, (lambda a, t: soft(a, t / 2),), "half the threshold"),
    (check.soft_threshold, (lambda a, t: a / a.abs() * (a.abs() - t).relu(),), "NaN"),
    (check.soft_threshold, (lambda a, t: soft(a, t).sum(),), "shape"),
    (check.soft_threshold, (lambda a, t: a,), "not it"),
    (check.soft_threshold, (soft_with_if,), "torch.relu"),
    (check.soft_threshold, (soft_with_if,), "at: if a > t:"),
    (check.soft_threshold, (soft_with_max,), "whole tensor"),
    (check.soft_threshold, (soft_with_numpy_if,), "whole tensor"),
    (check.soft_threshold, (lambda a, t: torch.where(a > t, a - t, a + t),), "small numbers"),
    (check.soft_threshold, (lambda a, t: torch.where(a > 0, a - t, a + t),), "two cases"),
    (check.soft_threshold, (lambda a, t: torch.where(a.abs() > t, a - t, 0.0),), "a + threshold"),
    (check.ista_step, (lambda x, f, W, l1, c: f + (x - f @ W) @ W.T / c,), "threshold is missing"),
    (
        check.ista_step,
        (lambda x, f, W, l1, c: soft(f - (x - f @ W) @ W.T / c, l1 / (2 * c)),),
        "uphill",
    ),
    (
        check.ista_step,
        (lambda x, f, W, l1, c: soft(f + (x - f @ W) @ W.T / c, l1 / c),),
        "mind the 2",
    ),
    (
        check.ista_step,
        (lambda x, f, W, l1, c: soft(f + (x - f @ W) @ W.T / c, l1 / 2),),
        "so is the threshold",
    ),
    (check.ista_step, (lambda x, f, W, l1, c: soft(f + (x - f @ W) @ W.T / c, l1),), "λ itself"),
    (
        check.ista_step,
        (lambda x, f, W, l1, c: soft(f + (x - f @ W) @ W.T, l1 / (2 * c)),),
        "too long",
    ),
    (
        check.ista_step,
        (lambda x, f, W, l1, c: soft(f + 2 * (x - f @ W) @ W.T / c, l1 / (2 * c)),),
        "twice too long",
    ),
    (check.ista_step, (lambda x, f, W, l1, c: soft(f + x @ W.T / c, l1 / (2 * c)),), "residual"),
    (
        check.ista_step,
        (lambda x, f, W, l1, c: soft((x - f @ W) @ W.T / c, l1 / (2 * c)),),
        "old code is lost",
    ),
    (
        check.ista_step,
        (lambda x, f, W, l1, c: (f + (x - f @ W) @ W.T / c - l1 / (2 * c)).relu(),),
        "not ReLU",
    ),
    (
        check.ista_step,
        (lambda x, f, W, l1, c: soft(f, l1 / (2 * c)) + (x - f @ W) @ W.T / c,),
        "threshold last",
    ),
    (check.ista_step, (lambda x, f, W, l1, c: (x - f @ W) / c,), "shape"),
    (
        check.ista_step,
        (lambda x, f, W, l1, c: soft(f + (x - f @ W) @ W.T / c, l1 / 2 * c),),
        "2 * c",
    ),
    (
        check.ista_step,
        (lambda x, f, W, l1, c: f + soft((x - f @ W) @ W.T / c, l1 / (2 * c)),),
        "whole new code",
    ),
    (check.ista_step, (lambda x, f, W, l1, c: f + (x - f @ W) @ W / c,), "raised RuntimeError"),
    (check.ista_step, (lambda x, f, W, l1, c: f + (x - f @ W) @ W / c,), "times W_dec_FD.T"),
    (check.ista_step, (step_with_its_own_curvature,), "handed in"),
    (check.ista_step, (step_in_place,), "argument 1 of your function itself is overwritten"),
    (check.ista_step, (step_that_leaves_its_residual,), "argument 1 of your function itself"),
    (check.ista_step, (step_for_unit_price,), "On our input at"),
    (check.two_atoms, (unpriced,), "λ / 2 is missing"),
    (check.two_atoms, (priced,), "never negative"),
    (check.two_atoms, (lambda x, W, l1: priced(x, W, l1).relu(),), "the other atom then changes"),
    (check.two_atoms, (lambda x, W, l1: (W @ x - l1 / 2).relu(),), "on its own"),
    (check.two_atoms, (lambda x, W, l1: best_by_cases(x, W, 2 * l1),), "has a 2"),
    (check.two_atoms, (lambda x, W, l1: best_by_cases(x, W, 0.1),), "the right atoms are on"),
    (check.two_atoms, (lambda x, W, l1: best_by_cases(x, W, 0.0),), "λ / 2 is missing"),
    (check.two_atoms, (lambda x, W, l1: best_by_cases(x, W, l1).flip(0),), "swapped"),
    (check.two_atoms, (lambda x, W, l1: torch.zeros(2),), "other atoms are on"),
    (check.two_atoms, (lambda x, W, l1: best_by_cases(x, W, l1)[:, None],), "shape (2, 1)"),
    (check.two_atoms, (lambda x, W, l1: W @ x / torch.zeros(2) * 0,), "a NaN in the code"),
    (check.two_atoms, (best_in_place,), "x_D itself is overwritten"),
    (check.two_atoms, (best_in_two_dimensions,), "other atoms are on"),
    (
        check.dictionary_step,
        (lambda W, x, f, rate: W + rate * f.T @ (x - f @ W) / use(f),),
        "other lengths than 1",
    ),
    (
        check.dictionary_step,
        (lambda W, x, f, rate: unit(W - rate * f.T @ (x - f @ W) / use(f)),),
        "wrong way",
    ),
    (
        check.dictionary_step,
        (lambda W, x, f, rate: unit(W + rate * f.T @ (x - f @ W)),),
        "how much it was used",
    ),
    (
        check.dictionary_step,
        (lambda W, x, f, rate: unit(W + rate * f.T @ (x - f @ W) / len(x)),),
        "mean over the batch",
    ),
    (
        check.dictionary_step,
        (lambda W, x, f, rate: unit(W + rate * f.T @ (x - f @ W) / f.abs().sum(0)[:, None]),),
        "not of |f|",
    ),
    (
        check.dictionary_step,
        (lambda W, x, f, rate: unit(W + f.T @ (x - f @ W) / use(f)),),
        "rate is missing",
    ),
    (
        check.dictionary_step,
        (lambda W, x, f, rate: unit(W + rate * f.T @ x / use(f)),),
        "not x",
    ),
    (
        check.dictionary_step,
        (
            lambda W, x, f, rate: torch.nn.functional.normalize(
                W + rate * f.T @ (x - f @ W) / use(f), dim=0
            ),
        ),
        "dim=0",
    ),
    (
        check.dictionary_step,
        (lambda W, x, f, rate: unit(W + rate * f.T @ (x - f @ W) / use(f)),),
        "no row uses",
    ),
    (check.dictionary_step, (lambda W, x, f, rate: f.T @ f,), "shape"),
    (check.dictionary_step, (lambda W, x, f, r: W + r * f.T @ x / f.pow(2).sum(0),), "[:, None]"),
    (check.dictionary_step, (lambda W, x, f, r: W / W.norm(dim=1),), "keepdim=True"),
    (check.dictionary_step, (lambda W, x, f, r: W + f @ (x - f @ W),), "is [F, D]"),
    (
        check.dictionary_step,
        (lambda W, x, f, r: unit(W + r * f.T @ (x - f @ W) / f.sum(0).clamp(min=1e-12)[:, None]),),
        "signs would cancel",
    ),
    (check.dictionary_step, (atoms_in_place,), "argument 1 of your function itself"),
    (check.dictionary_step, (atoms_normed_before,), "argument 1 of your function itself"),
    (check.dictionary_step, (atoms_at_half_rate,), "On our input at"),
    (check.shuffled_pixels, ("noise",), "from the method"),
    (check.shuffled_pixels, ("edges or noise",), "choose one"),
    (check.shuffled_pixels, ("no edges",), "choose one"),
    (check.shuffled_pixels, ("no idea",), "choose one"),
    (check.shuffled_pixels, ("blobs",), "take"),
    (check.shuffled_pixels, ("cats",), "choose one"),
    (check.shuffled_pixels, (3,), "word"),
    (check.first_step_encoder, (lambda W, l1, c: (W / c, -l1 / (2 * c)),), "transpose"),
    (check.first_step_encoder, (lambda W, l1, c: (W.T, -l1 / (2 * c)),), "divide by the curvature"),
    (check.first_step_encoder, (lambda W, l1, c: (2 * W.T / c, -l1 / (2 * c)),), "make 1/c"),
    (
        check.first_step_encoder,
        (lambda W, l1, c: (W.T / (2 * c), -l1 / (2 * c)),),
        "threshold only",
    ),
    (check.first_step_encoder, (lambda W, l1, c: (W.T / c, l1 / (2 * c)),), "negative"),
    (check.first_step_encoder, (lambda W, l1, c: (W.T / c, -l1 / c),), "mind the 2"),
    (check.first_step_encoder, (lambda W, l1, c: (W.T / c, -l1 / 2),), "so is the threshold"),
    (check.first_step_encoder, (lambda W, l1, c: (W.T / c, -l1),), "λ itself"),
    (check.first_step_encoder, (lambda W, l1, c: (W.T / c, 0.0),), "nothing asks for zeros"),
    (check.first_step_encoder, (lambda W, l1, c: encoder(W, l1, c)[::-1],), "the order is"),
    (
        check.first_step_encoder,
        (lambda W, l1, c: encoder_with_a_bias_each(W, l1, c)[::-1],),
        "the order is",
    ),
    (
        check.first_step_encoder,
        (lambda W, l1, c: encoder(W, l1, torch.linalg.matrix_norm(W, 2) ** 2),),
        "handed in",
    ),
    (check.first_step_encoder, (lambda W, l1, c: W.T / c,), "two things"),
    (check.first_step_encoder, (encoder_in_place,), "argument 1 of your function itself"),
    (check.first_step_encoder, (lambda W, l1, c: (W.T / c, -0.3 / (2 * c)),), "which number"),
    (check.first_step_encoder, (lambda W, l1, c: (W.T / c, torch.zeros(4)),), "one for each atom"),
]

OPEN = [(check.shuffled_pixels, ("...",)), (check.first_step_encoder, (lambda *_: (..., ...),))]


@pytest.mark.parametrize(
    ("judge", "truth", "guesses"),
    [
        (check.predicted_on, 64, (3, 17, 32, 64)),
        (check.predicted_steps, 29, (10, 30, 100)),
        (check.predicted_gap, 1.4, (1.05, 1.4, 2)),
    ],
)
def test_a_prediction_is_answered_according_to_the_guess(judge, truth, guesses):
    assert len({judge(guess, truth).message for guess in guesses}) == len(guesses)
