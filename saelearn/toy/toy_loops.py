"""A step of toy models in loops that numba compiles: `toy_step`, three to thirty times faster.

A step of toy models is small: in PyTorch nearly all of it is the start of some 25 operations. Here
it is one call, and a feature that is off costs nothing. Row by row, all instances at once:

    z = f M + b        over the features that are on; M = W W^T
    e = z - f          where z > 0, else 0
    dM += f^T e        over the features that are on
    dW = (dM + dM^T) W   in the end, the columns of dM times their scale

Shapes: K instances, N rows, G true features, D hidden dimensions; H = G + 2 rows of M, the last but
one b, the last for nothing; P = G K columns, those of one feature side by side, and room up to a
multiple of what a processor adds at once.
"""

from __future__ import annotations

import numpy as np

from saelearn.compiled import loop

LANES = 32  # numbers that a vectorised loop takes in one turn; what is left over goes one by one
f32 = np.float32
# Compiled when the module is loaded, for these: where that fails, `toy_step` has its other way, and
# a process that has imported it hands it on to its children, who may not be allowed to keep it.
ROW, TABLE, TABLES = "float32[::1]", "float32[:, ::1]", "float32[:, :, ::1]"


@loop(f"void({TABLES}, {TABLE}, {TABLE}, {ROW}, int64, {TABLES}, {TABLE})")
def gradients(W_KGD, b_KG, f_NG, scale_G, left_out, d_W_KGD, d_b_KG):
    """Gradients as `toy_step.gradients`', into `d_W_KGD` and `d_b_KG`.

    `z <= 0` is asked, never `z > 0`: of a NaN both are false, and it must come out as one.

    Args:
        scale_G: importance * 2 / (B G).
        left_out: how many rows of the batch are 0 and not among `f_NG`; their z is b.
    """
    K, G, D = W_KGD.shape
    P = (G * K + LANES - 1) // LANES * LANES
    M_HP, dM_HP = np.zeros((G + 2, P), f32), np.zeros((G + 2, P), f32)
    for k in range(K):
        for g in range(G):
            for i in range(g + 1):
                s = f32(0)
                for d in range(D):
                    s += W_KGD[k, g, d] * W_KGD[k, i, d]
                M_HP[g, i * K + k] = s
                M_HP[i, g * K + k] = s
            M_HP[G, g * K + k] = b_KG[k, g]

    bias_P, d_bias_P = M_HP[G], dM_HP[G]
    e_P, spread_P = np.empty(P, f32), np.zeros(P, f32)
    on_H, value_H = np.empty(G + 2, np.int64), np.empty(G + 2, f32)
    for n in range(len(f_NG)):
        n_on = 0
        for g in range(G):  # without a branch, which a processor could not foresee
            on_H[n_on], value_H[n_on] = g, f_NG[n, g]
            n_on += f_NG[n, g] != 0
        on_H[n_on], value_H[n_on] = G + 1, f32(0)  # to an even number, by one that adds nothing
        for p in range(P):
            e_P[p] = bias_P[p]
        for a in range(0, n_on, 2):
            m0, m1, v0, v1 = M_HP[on_H[a]], M_HP[on_H[a + 1]], value_H[a], value_H[a + 1]
            for p in range(P):
                e_P[p] += v0 * m0[p] + v1 * m1[p]
        for a in range(n_on):
            spread_P[on_H[a] * K : on_H[a] * K + K] = value_H[a]
        for p in range(P):
            e = f32(0) if e_P[p] <= 0 else e_P[p] - spread_P[p]
            e_P[p] = e
            d_bias_P[p] += e
            spread_P[p] = f32(0)
        for a in range(0, n_on, 2):
            m0, m1, v0, v1 = dM_HP[on_H[a]], dM_HP[on_H[a + 1]], value_H[a], value_H[a + 1]
            for p in range(P):
                m0[p] += v0 * e_P[p]
                m1[p] += v1 * e_P[p]

    for k in range(K):
        for g in range(G):
            b, d_w = b_KG[k, g], d_W_KGD[k, g]
            echo = f32(0) if b <= 0 else f32(left_out) * b
            d_b_KG[k, g] = scale_G[g] * (d_bias_P[g * K + k] + echo)
            for d in range(D):
                d_w[d] = 0
            for i in range(G):
                s = scale_G[i] * dM_HP[g, i * K + k] + scale_G[g] * dM_HP[i, g * K + k]
                for d in range(D):
                    d_w[d] += s * W_KGD[k, i, d]


@loop(f"void({ROW}, {ROW}, {ROW}, {ROW}, float64, float64)")
def adam(w, mean, square, slope, rate, root):
    """Adam's step on a row of numbers, as `toy_step.Adam`'s; rate and root from its `next`."""
    rate, least = f32(rate), f32(1e-8 * root)
    for i in range(len(w)):
        s = slope[i]
        m = mean[i] + f32(0.1) * (s - mean[i])
        v = f32(0.999) * square[i] + f32(0.001) * s * s
        mean[i], square[i] = m, v
        w[i] -= rate * m / (np.sqrt(v) + least)


@loop(
    f"void({ROW}, {ROW}, {ROW}, {ROW}, {ROW}, UniTuple(int64, 3), {TABLE}, int64, float64, float64)"
)
def step(w, mean, square, slope, scale_G, shape, f_NG, left_out, rate, root):
    """Both, on the row `w` that holds `W`, of that shape [K, G, D], and after it `b` [K, G]."""
    K, G, D = shape
    n = K * G * D
    W_KGD, b_KG = w[:n].reshape((K, G, D)), w[n:].reshape((K, G))
    d_W_KGD, d_b_KG = slope[:n].reshape((K, G, D)), slope[n:].reshape((K, G))
    gradients(W_KGD, b_KG, f_NG, scale_G, left_out, d_W_KGD, d_b_KG)
    adam(w, mean, square, slope, rate, root)
