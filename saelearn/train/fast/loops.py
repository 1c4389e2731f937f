"""The loops of a training step on a CPU, compiled by numba the first time that they run.

Everything that stands between two products of matrices is bound by memory in PyTorch: each
operation writes a matrix that the next one reads. A loop does all that a row needs while the row
lies in the core's own cache, and writes only what stays.

Every sum has one order: the same bits whatever proposed an entry and however many threads there
are.

Shapes: K SAEs, B batch, C chunks of its rows, N rows of a chunk or several, D width, F features,
A entries of a chunk, G = K F features of all.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from saelearn.compiled import loop

BLOCK = 64  # features whose sums are added up by themselves, whichever thread has them
STRETCH = 64  # numbers of a row whose products with a feature's are added in 16 bits (`shorts`)
f32 = np.float32
EVEN_S = np.tile(np.array([1, 1, 0, 0], f32), STRETCH // 4)  # 1 at a stretch's even pairs


@intrinsic
def _larger(_typing, a, b):
    """Of two numbers, or NaN if one is: unlike Python's `max` LLVM vectorises it."""

    def generate(_context, b: ir.IRBuilder, _signature, arguments):
        kind = ir.FloatType()
        function = ir.FunctionType(kind, [kind, kind])
        return b.call(b.module.declare_intrinsic("llvm.maximum", [kind], function), arguments)

    return types.float32(types.float32, types.float32), generate


@loop()
def _longest(x_D, per):
    """The length of the even or the odd pairs of a stretch, times `per`, where it is largest, or a
    bit more."""
    D, square = len(x_D), f32(0)
    for begin in range(0, D, STRETCH):
        x = x_D[begin : begin + STRETCH]
        whole = len(x) // 4 * 4
        full = even = rest = f32(0)
        for d in range(whole):
            v = x[d] * per  # neither so large nor so small that its square is not a number
            full += v * v
            even += v * v * EVEN_S[d]
        for d in range(whole, len(x)):  # of a last quad, as if all were of one kind
            rest += x[d] * per * (x[d] * per)
        square = max(square, even + rest, full - even + rest)
    return np.sqrt(square * f32(1 + 2.0**-16))  # a difference of sums is less exact than a sum


@loop()
def rounded(x_ND, q_NE, side_4N, most, longest, offset, low, high):
    """Rows as whole numbers up to `most` times a scale, of which the last row holds: 1 / scale, the
    length of what rounding took, of what is left and of all, the latter three over the scale.

    Whole numbers are made in fp32: those of 32 bits that numba adds have 64 afterwards, which AVX2
    cannot turn into fp32.

    Args:
        q_NE: may be wider than x: what is beyond it is 0.
        longest: of each stretch the even pairs are no longer, nor the odd, before rounding; 0 for
            any length.
        offset: added to each number.
    """
    D = x_ND.shape[1]
    for n in range(low, high):
        x, q = x_ND[n], q_NE[n]
        top = full = lost = kept = f32(0)
        for d in range(D):
            top = _larger(abs(x[d]), top)
        per = most / max(top, f32(1e-10))
        if longest > f32(0):
            per *= min(f32(1), longest / max(_longest(x, per), f32(1)))
        q[D:] = offset
        for d in range(D):
            v = x[d] * per
            whole = np.floor(v + f32(0.5))
            q[d] = np.int32(whole + f32(offset))
            lost += (v - whole) * (v - whole)
            kept += whole * whole
            full += v * v
        side_4N[0, n], side_4N[1, n] = per, np.sqrt(lost)
        side_4N[2, n], side_4N[3, n] = np.sqrt(kept), np.sqrt(full)


@loop()
def propose(u_KFN, first, w_K3F, x_K3B, chunk, starts_KCF, row_KCA, full_KC, low, high):
    """List where u + w_0 x_0 + w_1 x_1 + w_2 x_2 > 0; where u > 0 if there are no such sides.

    Args:
        first: the batch's row that is u's first.
        chunk: rows of a chunk.
        full_KC: set to what a list would have to hold if it holds less.
    """
    _, F, N = u_KFN.shape
    sided, room = w_K3F.shape[0] > 0, row_KCA.shape[2]
    per = (N + chunk - 1) // chunk
    mark_N = np.zeros((chunk + 7) // 8 * 8, np.uint8)
    eight_N = mark_N.view(np.int64)
    for task in range(low, high):
        k, c = task // per, task % per
        begin = c * chunk
        n_rows = min(chunk, N - begin)
        row0 = first + begin
        c += first // chunk
        starts, row = starts_KCF[k, c], row_KCA[k, c]
        if sided:
            last = row0 + n_rows
            x0, x1, x2 = x_K3B[k, 0, row0:last], x_K3B[k, 1, row0:last], x_K3B[k, 2, row0:last]
        mark_N[:] = 0
        n = 0
        full_KC[k, c] = 0
        starts[0] = 0
        for f in range(F):
            u = u_KFN[k, f, begin : begin + n_rows]
            if n + chunk + 8 > room:
                full_KC[k, c] = max(F * chunk * n // (f * chunk + 1), n) + 2 * chunk
                break
            if sided:
                w0, w1, w2 = w_K3F[k, 0, f], w_K3F[k, 1, f], w_K3F[k, 2, f]
                for j in range(n_rows):
                    margin = w0 * x0[j] + w1 * x1[j] + w2 * x2[j]
                    mark_N[j] = f32(u[j]) + margin > f32(0)
            else:
                for j in range(n_rows):
                    mark_N[j] = u[j] > 0
            for i in range((n_rows + 7) // 8):
                if eight_N[i] != 0:
                    for j in range(8 * i, 8 * i + 8):
                        row[n] = row0 + j
                        n += mark_N[j]
            starts[f + 1] = n


@loop()
def _rows(row_A, a, end):
    """Those of entry a and of the next three, or the last again."""
    last = end - 1
    return row_A[a], row_A[min(a + 1, last)], row_A[min(a + 2, last)], row_A[min(a + 3, last)]


@loop()
def _products(x_ND, rows, w_D):
    """x.w of four rows, so that each number of w is fetched once for four and four rows of x are on
    their way at a time."""
    x0, x1, x2, x3 = x_ND[rows[0]], x_ND[rows[1]], x_ND[rows[2]], x_ND[rows[3]]
    z0 = z1 = z2 = z3 = f32(0)
    for d in range(len(w_D)):
        z0 += x0[d] * w_D[d]
        z1 += x1[d] * w_D[d]
        z2 += x2[d] * w_D[d]
        z3 += x3[d] * w_D[d]
    return z0, z1, z2, z3


@loop()
def _put(row_A, value_A, n, row, value):
    """An entry at place n, and where the next one goes: there too if this is not above 0."""
    row_A[n], value_A[n] = row, value
    return n + (value > f32(0))


@loop()
def values(x_KBD, W_KFD, b_KF, first, starts_KCF, row_KCA, value_KCA, seen_KC, low, high):
    """x.w + b for each entry of the lists; those that are not above 0 leave."""
    K, F, _ = W_KFD.shape
    for task in range(low, high):
        k, c = task % K, first + task // K
        x_BD, starts = x_KBD[min(k, x_KBD.shape[0] - 1)], starts_KCF[k, c]
        row, value = row_KCA[k, c], value_KCA[k, c]
        n = begin = 0
        seen_KC[k, c] = starts[F]
        for f in range(F):
            w, bias, end = W_KFD[k, f], b_KF[k, f], starts[f + 1]
            for a in range(begin, end, 4):
                four = _rows(row, a, end)
                z0, z1, z2, z3 = _products(x_BD, four, w)
                n = _put(row, value, n, four[0], z0 + bias)  # a loop over them takes longer
                if a + 1 < end:
                    n = _put(row, value, n, four[1], z1 + bias)
                if a + 2 < end:
                    n = _put(row, value, n, four[2], z2 + bias)
                if a + 3 < end:
                    n = _put(row, value, n, four[3], z3 + bias)
            begin = end
            starts[f + 1] = n


@loop()
def dots(x_ND, W_FD, b_F, starts_F, row_A, z_A, low, high):
    """x.w + b for one list, of whatever sign."""
    for f in range(low, high):
        w, bias, end = W_FD[f], b_F[f], starts_F[f + 1]
        for a in range(starts_F[f], end, 4):
            products = _products(x_ND, _rows(row_A, a, end), w)
            for i in range(min(4, end - a)):
                z_A[a + i] = products[i] + bias


@loop()
def by_feature(f_A, starts_F, place_A):
    """Where each entry of a list goes that is to be ordered by feature, and nothing else."""
    F = starts_F.shape[0] - 1
    starts_F[:] = 0
    for a in range(f_A.shape[0]):
        starts_F[f_A[a] + 1] += 1
    for f in range(F):
        starts_F[f + 1] += starts_F[f]
    next_F = starts_F.copy()
    for a in range(f_A.shape[0]):
        place_A[a] = next_F[f_A[a]]
        next_F[f_A[a]] += 1


@loop()
def decode(
    target_KBD, W_KFD, chunk, first, starts_KCF, row_KCA, value_KCA, error_KBD, sum_KCD, square_KC,
    low, high,
):  # fmt: skip
    """The errors f W - target of some chunks, their sum over rows, and that of their squares."""
    K, F, D = W_KFD.shape
    for task in range(low, high):
        k, c = task % K, first + task // K
        error_BD, target_BD = error_KBD[k], target_KBD[k]
        starts, row, value = starts_KCF[k, c], row_KCA[k, c], value_KCA[k, c]
        last = min(c * chunk + chunk, error_BD.shape[0])
        for r in range(c * chunk, last):
            e, t = error_BD[r], target_BD[r]
            for d in range(D):
                e[d] = -t[d]
        for f in range(F):
            w, begin, end = W_KFD[k, f], starts[f], starts[f + 1]
            for a in range(begin, end - 1, 2):
                e0, e1, v0, v1 = error_BD[row[a]], error_BD[row[a + 1]], value[a], value[a + 1]
                for d in range(D):
                    e0[d] += v0 * w[d]
                    e1[d] += v1 * w[d]
            if (end - begin) % 2:
                e0, v0 = error_BD[row[end - 1]], value[end - 1]
                for d in range(D):
                    e0[d] += v0 * w[d]
        sum_D, squares = sum_KCD[k, c], 0.0
        sum_D[:] = 0
        for r in range(c * chunk, last):
            e = error_BD[r]
            s = f32(0)
            for d in range(D):
                s += e[d] * e[d]
                sum_D[d] += e[d]
            squares += s
        square_KC[k, c] = squares


@loop()
def gradients(
    x_KBD, error_KBD, W_enc_KFD, W_dec_KFD, scale, price_KF, pull_K, norm_KF, starts_KCF, row_KCA,
    value_KCA, d_W_enc_KFD, d_W_dec_KFD, d_b_enc_KF, sum_f_KF, count_KF, moved_KGD, low, high,
):  # fmt: skip
    """By feature, sums over its entries, four at a time; dL/df = scale e.w + price of each comes
    out beside the gradient of the decoder row w, so that rows of errors are fetched once for both.

    Args:
        pull_K: what a decoder row w is pulled by, times the mean of f over the length of w.
        moved_KGD: gets sums of d_b_enc w over blocks of features: what b_dec does in the input.
    """
    _, F, D = W_dec_KFD.shape
    C, B, per = starts_KCF.shape[1], error_KBD.shape[1], moved_KGD.shape[1]
    row_A, value_A, slope_A = np.empty(B + 3, np.int32), np.empty(B + 3, f32), np.empty(B + 3, f32)
    for task in range(low, high):
        k, block = task // per, task % per
        moved = moved_KGD[k, block]
        moved[:] = 0
        x_BD, error_BD = x_KBD[min(k, x_KBD.shape[0] - 1)], error_KBD[k]
        for f in range(block * BLOCK, min(F, block * BLOCK + BLOCK)):
            n, sum_f, sum_slope = 0, f32(0), f32(0)
            for c in range(C):
                for a in range(starts_KCF[k, c, f], starts_KCF[k, c, f + 1]):
                    row_A[n], value_A[n] = row_KCA[k, c, a], scale * value_KCA[k, c, a]
                    sum_f += value_KCA[k, c, a]
                    n += 1
            for a in range(n, n + 3):  # to a multiple of four, by entries that add nothing
                row_A[a], value_A[a] = row_A[0], 0
            g, w, price = d_W_dec_KFD[k, f], W_dec_KFD[k, f], price_KF[k, f]
            pull = pull_K[k] * (sum_f / f32(B)) / max(norm_KF[k, f], f32(1e-12))
            for d in range(D):
                g[d] = pull * w[d]
            for a in range(0, n, 4):
                r0, r1, r2, r3 = row_A[a], row_A[a + 1], row_A[a + 2], row_A[a + 3]
                v0, v1, v2, v3 = value_A[a], value_A[a + 1], value_A[a + 2], value_A[a + 3]
                e0, e1, e2, e3 = error_BD[r0], error_BD[r1], error_BD[r2], error_BD[r3]
                z0 = z1 = z2 = z3 = f32(0)
                for d in range(D):
                    g[d] += (v0 * e0[d] + v1 * e1[d]) + (v2 * e2[d] + v3 * e3[d])
                    z0 += e0[d] * w[d]
                    z1 += e1[d] * w[d]
                    z2 += e2[d] * w[d]
                    z3 += e3[d] * w[d]
                slope_A[a], slope_A[a + 1] = scale * z0 + price, scale * z1 + price
                slope_A[a + 2], slope_A[a + 3] = scale * z2 + price, scale * z3 + price
            for a in range(n):
                sum_slope += slope_A[a]
            slope_A[n : n + 3] = 0
            g, w = d_W_enc_KFD[k, f], W_enc_KFD[k, f]
            g[:] = 0
            for a in range(0, n, 4):
                r0, r1, r2, r3 = row_A[a], row_A[a + 1], row_A[a + 2], row_A[a + 3]
                s0, s1, s2, s3 = slope_A[a], slope_A[a + 1], slope_A[a + 2], slope_A[a + 3]
                x0, x1, x2, x3 = x_BD[r0], x_BD[r1], x_BD[r2], x_BD[r3]
                for d in range(D):
                    g[d] += (s0 * x0[d] + s1 * x1[d]) + (s2 * x2[d] + s3 * x3[d])
            for d in range(D):
                moved[d] += sum_slope * w[d]
            sum_f_KF[k, f], d_b_enc_KF[k, f], count_KF[k, f] = sum_f, sum_slope, n


@loop()
def squares(slope_GD, W_GD, unit, square_G, low, high):
    """Of each gradient row, without what would only stretch rows of length 1 if they are `unit`."""
    D = slope_GD.shape[1]
    for g in range(low, high):
        slope = slope_GD[g]
        along = f32(0)
        if unit:
            w = W_GD[g]
            for d in range(D):
                along += slope[d] * w[d]
        s = f32(0)
        if unit:
            w = W_GD[g]
            for d in range(D):
                left = slope[d] - along * w[d]
                s += left * left
        else:
            for d in range(D):
                s += slope[d] * slope[d]
        square_G[g] = s


@loop()
def adam(slope_GD, W_GD, mean_GD, square_GD, factor_K, lr, root, unit, low, high):
    """Adam's step, betas 0.9 and 0.999, on shortened gradients; `unit` rows stay at length 1.

    Args:
        factor_K: what each SAE's gradient is multiplied by.
        lr: the rate over 1 - 0.9^t.
        root: 1 / sqrt(1 - 0.999^t).
    """
    G, D = W_GD.shape
    for g in range(low, high):
        factor = factor_K[g * factor_K.shape[0] // G]
        slope, w, mean, square = slope_GD[g], W_GD[g], mean_GD[g], square_GD[g]
        along = f32(0)
        if unit:
            for d in range(D):
                along += slope[d] * w[d]
        for d in range(D):
            s = (slope[d] - along * w[d]) * factor
            m = mean[d] + f32(0.1) * (s - mean[d])
            v = f32(0.999) * square[d] + f32(0.001) * s * s
            mean[d], square[d] = m, v
            w[d] -= lr * m / (np.sqrt(v) * root + f32(1e-8))
        if unit:
            s = f32(0)
            for d in range(D):
                s += w[d] * w[d]
            s = f32(1) / np.sqrt(s)
            for d in range(D):
                w[d] *= s
