"""The GPU's loops over active entries, in Triton; `gpu` says what they are for and in which order.

An entry is active or not: one bit. The bits lie twice, 32 to a word: row by row (`m`) and feature
by feature (`t`). Counting bits gives each list its length, running sums give it its place, so the
lists are made without a number that the host would have to wait for. No kernel adds atomically:
two runs give the same bits.

Names: K SAEs side by side, B rows, D width, F features each. A pointer ends in `_p`, a block's
size is a power of two in capitals. Accumulators are fp32 whatever the operands are.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _popc(w):
    """How many of a word's bits are set."""
    w = w - ((w >> 1) & 0x55555555)
    w = (w & 0x33333333) + ((w >> 2) & 0x33333333)
    w = (w + (w >> 4)) & 0x0F0F0F0F
    return ((w * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def mask(
    z_p, bar_p, last_p, m_p, B, F, NF, HAS_BAR: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    """Which entries of z exceed their row's bar (0 without one), as `m`: eight to a byte.

    An entry that equals the bar counts up to the column `last`.
    """
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    c = tl.program_id(1) * C + tl.arange(0, C)
    inside = (r < B)[:, None] & (c < F)[None, :]
    z = tl.load(z_p + r[:, None] * F + c[None, :], mask=inside, other=0.0).to(tl.float32)
    on = inside & (z > 0)
    if HAS_BAR:
        bar = tl.load(bar_p + r, mask=r < B, other=0.0)[:, None]
        last = tl.load(last_p + r, mask=r < B, other=-1)[:, None]
        on = on & ((z > bar) | ((z == bar) & (c[None, :] <= last)))
    eight = tl.reshape(on.to(tl.int32), [R, C // 8, 8]) << tl.arange(0, 8)[None, None, :]
    w = tl.program_id(1) * (C // 8) + tl.arange(0, C // 8)
    at = m_p + r[:, None] * (NF * 4) + w[None, :]
    tl.store(at, tl.sum(eight, 2).to(tl.uint8), mask=(r < B)[:, None] & (w < NF * 4)[None, :])


@triton.jit
def transpose(m_p, t_p, B, F, NF, NB, W: tl.constexpr, N: tl.constexpr):
    """The bits of `m` as `t`: N words of each of 32 W features.

    The rows of a word lie along the last axis and not side by side in memory, so a thread holds
    all 32 and adds them up alone.
    """
    k = tl.program_id(2).to(tl.int64)
    w = tl.program_id(1) * W + tl.arange(0, W)
    n = tl.program_id(0) * N + tl.arange(0, N)
    shift = tl.arange(0, 32)
    r = n[None, :, None] * 32 + shift[None, None, :]
    at = (k * B + r) * NF + w[:, None, None]
    m = tl.load(m_p + at, mask=(r < B) & (w < NF)[:, None, None], other=0)
    for bit in tl.static_range(32):
        t = tl.sum(((m >> bit) & 1) << shift[None, None, :], 2)
        f = w * 32 + bit
        at_t = (k * F + f)[:, None] * NB + n[None, :]
        tl.store(t_p + at_t, t, mask=(f < F)[:, None] & (n < NB)[None, :])


@triton.jit
def count(m_p, n_p, N, W, Q: tl.constexpr, P: tl.constexpr):
    """How many bits each of N lists of W words has; Q lists a program."""
    i = tl.program_id(0).to(tl.int64) * Q + tl.arange(0, Q)
    w = tl.arange(0, P)
    here = (i < N)[:, None] & (w < W)[None, :]
    m = tl.load(m_p + i[:, None] * W + w[None, :], mask=here, other=0).to(tl.uint32, bitcast=True)
    tl.store(n_p + i, tl.sum(_popc(m), 1), mask=i < N)


@triton.jit
def running(n_p, end_p, cut_p, N, CHUNK: tl.constexpr, P: tl.constexpr):
    """Where each of N lists ends if they lie one after the other; with CHUNK, too, how many pieces
    there are up to each if those longer than CHUNK are cut."""
    i = tl.arange(0, P)
    total = tl.zeros([1], tl.int64)
    pieces = tl.zeros([1], tl.int32)
    for low in range(0, N, P):
        n = tl.load(n_p + low + i, mask=low + i < N, other=0)
        tl.store(end_p + low + i, total + tl.cumsum(n.to(tl.int64), 0), mask=low + i < N)
        total += tl.sum(n.to(tl.int64), 0)
        if CHUNK:
            c = tl.where(n > CHUNK, (n + CHUNK - 1) // CHUNK, 0)
            tl.store(cut_p + low + i, pieces + tl.cumsum(c, 0), mask=low + i < N)
            pieces += tl.sum(c, 0)


@triton.jit
def extract(m_p, end_p, n_p, out_p, first, W, P: tl.constexpr):
    """The places of a list's bits, ascending, behind those of the lists from `first` on."""
    i = first + tl.program_id(0)
    w = tl.arange(0, P)
    m = tl.load(m_p + i.to(tl.int64) * W + w, mask=w < W, other=0).to(tl.uint32, bitcast=True)
    n = _popc(m)
    base = tl.load(end_p + first) - tl.load(n_p + first)
    at = tl.load(end_p + i) - tl.load(n_p + i) - base + tl.cumsum(n, 0) - n
    for _ in range(0, tl.max(n, 0)):
        low = m & (0 - m)
        tl.store(out_p + at, w * 32 + _popc(low - 1), mask=m != 0)
        at += 1
        m = m & (m - 1)


@triton.jit
def prepare(x_p, b_p, h_p, B, D, CENTRED: tl.constexpr, BD: tl.constexpr):
    """A row of the encoder's input, centred, as the products take it."""
    row, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    for low in range(0, D, BD):
        d = low + tl.arange(0, BD)
        x = tl.load(x_p + row * D + d, mask=d < D, other=0.0)
        if CENTRED:
            x -= tl.load(b_p + k * D + d, mask=d < D, other=0.0)
        tl.store(h_p + (k * B + row) * D + d, x.to(h_p.dtype.element_ty), mask=d < D)


@triton.jit
def decode(
    end_p, n_p, idx_p, z_p, W_p, b_dec_p, x_p, e_p, loss_p, first, B, D, F, scale,
    J: tl.constexpr, BD: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """A row's error e = x_hat - x from its list, times `scale`, and its squared length."""
    row = (first + tl.program_id(0)).to(tl.int64)
    k = row // B
    n = tl.load(n_p + row)
    lo = tl.load(end_p + row) - n - (tl.load(end_p + first) - tl.load(n_p + first))
    loss = 0.0
    for block in tl.static_range(BLOCKS):
        d = block * BD + tl.arange(0, BD)
        here = d < D
        sum_D = tl.zeros([BD], tl.float32)
        for s in range(0, n, J):
            j = s + tl.arange(0, J)
            f = tl.load(idx_p + lo + j, mask=j < n, other=0).to(tl.int64)
            v = tl.load(z_p + row * F + f, mask=j < n, other=0.0).to(tl.float32)
            at = (k * F + f)[:, None] * D + d[None, :]
            both = (j < n)[:, None] & here[None, :]
            sum_D += tl.sum(v[:, None] * tl.load(W_p + at, mask=both, other=0.0).to(tl.float32), 0)
        x = tl.load(x_p + (row % B) * D + d, mask=here, other=0.0)
        b = tl.load(b_dec_p + k * D + d, mask=here, other=0.0)
        e = tl.where(here, sum_D - (x - b), 0.0)
        tl.store(e_p + row * D + d, (e * scale).to(e_p.dtype.element_ty), mask=here)
        loss += tl.sum(e * e, 0)
    tl.store(loss_p + row, loss)


@triton.jit
def share_out(n_p, end_p, item_f_p, item_s_p, G, SLOTS, CHUNK: tl.constexpr, P: tl.constexpr):
    """Long lists are cut in pieces of CHUNK, each in a slot of its own, as long as there are any.

    `end` is the running sum of how many pieces the features have; short lists have none.
    """
    g = tl.program_id(0) * P + tl.arange(0, P)
    n = tl.load(n_p + g, mask=g < G, other=0)
    pieces = tl.where(n > CHUNK, (n + CHUNK - 1) // CHUNK, 0)
    end = tl.load(end_p + g, mask=g < G, other=0)
    pieces = tl.where(end <= SLOTS, pieces, 0)
    for s in range(0, tl.max(pieces, 0)):
        at = end - pieces + s
        tl.store(item_f_p + at, g, mask=s < pieces)
        tl.store(item_s_p + at, g * 0 + s, mask=s < pieces)


@triton.jit
def _settle(
    sum_E, sum_D, db, sf, g, W32_p, price_p, norm_p, dWe_p, dWd_p, dbe_p, sumf_p, sq_p, D, d,
    PULL: tl.constexpr,
):  # fmt: skip
    """A feature's gradients into their places; the pull of a penalty that grows with the norm."""
    here = d < D
    if PULL:
        norm = tl.maximum(tl.load(norm_p + g), 1e-12)
        pull = sf * tl.load(price_p + g) / (norm * norm)  # the price is lambda times norm over B
        sum_D += pull * tl.load(W32_p + g * D + d, mask=here, other=0.0)
    tl.store(dWe_p + g * D + d, sum_E, mask=here)
    tl.store(dWd_p + g * D + d, sum_D, mask=here)
    tl.store(dbe_p + g, db)
    tl.store(sumf_p + g, sf)
    tl.store(sq_p + g, tl.sum(sum_E * sum_E, 0) + tl.sum(sum_D * sum_D, 0) + db * db)


@triton.jit
def features(
    end_p, n_p, cut_p, row_p, z_p, W_p, e_p, h_p, item_f_p, item_s_p, part_p,
    W32_p, price_p, norm_p, dWe_p, dWd_p, dbe_p, sumf_p, sq_p,
    first, last, B, D, F, SLOTS,
    PULL: tl.constexpr, CHUNK: tl.constexpr, J: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A feature's gradients from its list; pieces of long lists come first and go to `part`.

    d_f = e.w + price      d_W_enc = sum d_f x      d_W_dec = sum f e
    """
    pid = tl.program_id(0)
    if pid < SLOTS:
        g = tl.load(item_f_p + pid)
        mine = (g >= first) & (g < last)
        g = tl.where(mine, g, first).to(tl.int64)
        piece = tl.load(item_s_p + pid)
        n = tl.load(n_p + g)
        begin = piece * CHUNK
        stop = tl.where(mine, tl.minimum(n, begin + CHUNK), 0)
    else:
        g = (first + pid - SLOTS).to(tl.int64)
        n = tl.load(n_p + g)
        mine = (n <= CHUNK) | (tl.load(cut_p + g) > SLOTS)
        begin = n * 0
        stop = tl.where(mine, n, 0)
    if mine:
        lo = tl.load(end_p + g) - n - (tl.load(end_p + first) - tl.load(n_p + first))
        base = g // F * B  # the SAE's first row
        f = g % F
        d = tl.arange(0, BD)
        here = d < D
        w = tl.load(W_p + g * D + d, mask=here, other=0.0).to(tl.float32)
        price = tl.load(price_p + g)
        sum_E = tl.zeros([BD], tl.float32)
        sum_D = tl.zeros([BD], tl.float32)
        db = 0.0
        sf = 0.0
        for s in range(begin, stop, J):
            j = s + tl.arange(0, J)
            row = base + tl.load(row_p + lo + j, mask=j < stop, other=0).to(tl.int64)
            v = tl.load(z_p + row * F + f, mask=j < stop, other=0.0).to(tl.float32)
            both = (j < stop)[:, None] & here[None, :]
            at = row[:, None] * D + d[None, :]
            e = tl.load(e_p + at, mask=both, other=0.0).to(tl.float32)
            x = tl.load(h_p + at, mask=both, other=0.0).to(tl.float32)
            df = tl.where(j < stop, tl.sum(e * w[None, :], 1) + price, 0.0)
            sum_D += tl.sum(v[:, None] * e, 0)
            sum_E += tl.sum(df[:, None] * x, 0)
            db += tl.sum(df, 0)
            sf += tl.sum(v, 0)
        if pid < SLOTS:
            part_p += pid.to(tl.int64) * (2 * D + 2)
            tl.store(part_p + d, sum_E, mask=here)
            tl.store(part_p + D + d, sum_D, mask=here)
            tl.store(part_p + 2 * D, db)
            tl.store(part_p + 2 * D + 1, sf)
        else:
            _settle(sum_E, sum_D, db, sf, g, W32_p, price_p, norm_p, dWe_p, dWd_p, dbe_p,
                    sumf_p, sq_p, D, d, PULL)  # fmt: skip


@triton.jit
def merge(
    n_p, item_f_p, item_s_p, part_p, W32_p, price_p, norm_p, dWe_p, dWd_p, dbe_p, sumf_p, sq_p, D,
    PULL: tl.constexpr, CHUNK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The pieces of a long list, added in their order by the program of the first."""
    slot = tl.program_id(0)
    g = tl.load(item_f_p + slot).to(tl.int64)
    if (g >= 0) & (tl.load(item_s_p + slot) == 0):
        pieces = (tl.load(n_p + g) + CHUNK - 1) // CHUNK
        d = tl.arange(0, BD)
        here = d < D
        sum_E = tl.zeros([BD], tl.float32)
        sum_D = tl.zeros([BD], tl.float32)
        db = 0.0
        sf = 0.0
        for s in range(0, pieces):
            at = part_p + (slot + s).to(tl.int64) * (2 * D + 2)
            sum_E += tl.load(at + d, mask=here, other=0.0)
            sum_D += tl.load(at + D + d, mask=here, other=0.0)
            db += tl.load(at + 2 * D)
            sf += tl.load(at + 2 * D + 1)
        _settle(sum_E, sum_D, db, sf, g, W32_p, price_p, norm_p, dWe_p, dWd_p, dbe_p, sumf_p,
                sq_p, D, d, PULL)  # fmt: skip


@triton.jit
def relu(z_p, n_p, sum_p, B, F, NR, R: tl.constexpr, S: tl.constexpr, C: tl.constexpr):
    """f = ReLU(z) in its place; for each block of R rows, features' sums and counts."""
    k = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * C + tl.arange(0, C)
    total = tl.zeros([S, C], tl.float32)
    n = tl.zeros([S, C], tl.int32)
    for low in range(0, R, S):
        r = tl.program_id(0) * R + low + tl.arange(0, S)
        inside = (r < B)[:, None] & (c < F)[None, :]
        at = z_p + (k * B + r)[:, None] * F + c[None, :]
        z = tl.load(at, mask=inside, other=0.0)
        f = tl.where(z > 0, z, 0.0)
        tl.store(at, f, mask=inside)
        total += f.to(tl.float32)
        n += (f > 0).to(tl.int32)
    out = (k * NR + tl.program_id(0)) * F + c
    tl.store(sum_p + out, tl.sum(total, 0), mask=c < F)
    tl.store(n_p + out, tl.sum(n, 0), mask=c < F)


@triton.jit
def slope(f_p, df_p, price_p, sum_p, B, F, NR, R: tl.constexpr, S: tl.constexpr, C: tl.constexpr):
    """d_f = (e W^T + price) where f is active, in its place; for each block of rows, its sums."""
    k = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * C + tl.arange(0, C)
    price = tl.load(price_p + k * F + c, mask=c < F, other=0.0)[None, :]
    total = tl.zeros([S, C], tl.float32)
    for low in range(0, R, S):
        r = tl.program_id(0) * R + low + tl.arange(0, S)
        inside = (r < B)[:, None] & (c < F)[None, :]
        at = (k * B + r)[:, None] * F + c[None, :]
        f = tl.load(f_p + at, mask=inside, other=0.0)
        v = tl.load(df_p + at, mask=inside, other=0.0).to(tl.float32) + price
        v = tl.where(f > 0, v, 0.0).to(df_p.dtype.element_ty)
        tl.store(df_p + at, v, mask=inside)
        total += v.to(tl.float32)
    out = (k * NR + tl.program_id(0)) * F + c
    tl.store(sum_p + out, tl.sum(total, 0), mask=c < F)


@triton.jit
def error(y_p, x_p, b_dec_p, e_p, loss_p, B, D, scale, BD: tl.constexpr):
    """e = y + b_dec - x of the dense way, times `scale`, and its squared length."""
    row = tl.program_id(0).to(tl.int64)
    k = row // B
    loss = 0.0
    for low in range(0, D, BD):
        d = low + tl.arange(0, BD)
        y = tl.load(y_p + row * D + d, mask=d < D, other=0.0)
        x = tl.load(x_p + (row % B) * D + d, mask=d < D, other=0.0)
        b = tl.load(b_dec_p + k * D + d, mask=d < D, other=0.0)
        e = tl.where(d < D, y - (x - b), 0.0)
        tl.store(e_p + row * D + d, (e * scale).to(e_p.dtype.element_ty), mask=d < D)
        loss += tl.sum(e * e, 0)
    tl.store(loss_p + row, loss)


@triton.jit
def finish(
    dWe_p, dWd_p, dbe_p, W_p, price_p, norm_p, sumf_p, sq_p, D,
    PULL: tl.constexpr, UNIT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The pull of the norm, or without what would stretch unit rows; squared lengths."""
    g = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    here = d < D
    dWe = tl.load(dWe_p + g * D + d, mask=here, other=0.0)
    dWd = tl.load(dWd_p + g * D + d, mask=here, other=0.0)
    if PULL | UNIT:
        w = tl.load(W_p + g * D + d, mask=here, other=0.0)
        if PULL:
            norm = tl.maximum(tl.load(norm_p + g), 1e-12)
            dWd += w * (tl.load(sumf_p + g) * tl.load(price_p + g) / (norm * norm))
        if UNIT:
            dWd -= w * tl.sum(w * dWd, 0)
        tl.store(dWd_p + g * D + d, dWd, mask=here)
    db = tl.load(dbe_p + g)
    tl.store(sq_p + g, tl.sum(dWe * dWe, 0) + tl.sum(dWd * dWd, 0) + db * db)


@triton.jit
def shorten(sq_p, db_dec_p, factor_p, F, D, clip, P: tl.constexpr):
    """What an SAE's gradient has to be multiplied by to be no longer than `clip`."""
    k = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, P)
    total = tl.zeros([P], tl.float32)
    for low in range(0, F, P):
        total += tl.load(sq_p + k * F + low + i, mask=low + i < F, other=0.0)
    for low in range(0, D, P):
        d = tl.load(db_dec_p + k * D + low + i, mask=low + i < D, other=0.0)
        total += d * d
    tl.store(factor_p + k, tl.minimum(1.0, clip / (tl.sqrt(tl.sum(total, 0)) + 1e-6)))


@triton.jit
def _moved(p, g, m, v, rate_p):
    lr, c1, c2 = tl.load(rate_p), tl.load(rate_p + 1), tl.load(rate_p + 2)
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g * g
    return p - lr * (m * c1) / (tl.sqrt(v * c2) + 1e-8), m, v


@triton.jit
def adam_rows(
    p_p, g_p, m_p, v_p, h_p, norm_p, factor_p, rate_p, F, D,
    HALF: tl.constexpr, NORM: tl.constexpr, UNIT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A row of weights: clip, Adam, its copy for the next products, its new length.

    A rate is a learning rate and, for both moments, the correction for having begun at 0.
    """
    g = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    here = d < D
    at = g * D + d
    slope = tl.load(g_p + at, mask=here, other=0.0) * tl.load(factor_p + g // F)
    p, m, v = (
        tl.load(p_p + at, mask=here, other=0.0),
        tl.load(m_p + at, mask=here, other=0.0),
        tl.load(v_p + at, mask=here, other=0.0),
    )
    p, m, v = _moved(p, slope, m, v, rate_p)
    p = tl.where(here, p, 0.0)
    if UNIT:
        p /= tl.sqrt(tl.sum(p * p, 0))
    tl.store(p_p + at, p, mask=here)
    tl.store(m_p + at, m, mask=here)
    tl.store(v_p + at, v, mask=here)
    if HALF:
        tl.store(h_p + at, p.to(h_p.dtype.element_ty), mask=here)
    if NORM:
        tl.store(norm_p + g, tl.sqrt(tl.sum(p * p, 0)))


@triton.jit
def adam_flat(p_p, g_p, m_p, v_p, factor_p, rate_p, N, M, P: tl.constexpr):
    """The same for N numbers, M of each SAE."""
    i = tl.program_id(0) * P + tl.arange(0, P)
    here = i < N
    slope = tl.load(g_p + i, mask=here, other=0.0) * tl.load(factor_p + i // M, mask=here)
    p, m, v = (
        tl.load(p_p + i, mask=here, other=0.0),
        tl.load(m_p + i, mask=here, other=0.0),
        tl.load(v_p + i, mask=here, other=0.0),
    )
    p, m, v = _moved(p, slope, m, v, rate_p)
    tl.store(p_p + i, p, mask=here)
    tl.store(m_p + i, m, mask=here)
    tl.store(v_p + i, v, mask=here)


@triton.jit
def _key(v):
    """Numbers above 0 in their order as whole numbers; all others are 0."""
    return tl.where(v > 0, v, 0.0).to(tl.int32, bitcast=True)


@triton.jit
def kth_of_row(z_p, bar_p, last_p, F, n, C: tl.constexpr, ONE: tl.constexpr, BITS: tl.constexpr):
    """The n-th largest number above 0 of a row, bit by bit, and a column up to which entries that
    equal it are among the n.

    Args:
        ONE: the row fits into one block of C columns and is read once.
        BITS: that numbers differ in, of 31: those of bf16 end with 16 zeros.
    """
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, C)
    kept = tl.zeros([C], tl.int32)
    if ONE:
        kept = _key(tl.load(z_p + row * F + c, mask=c < F, other=0.0).to(tl.float32))
    bar = 0
    at_least = n  # as many as are not smaller than the bar
    for bit in range(0, BITS):
        higher = bar | (1 << (30 - bit))
        found = 0
        if ONE:
            found += tl.sum((kept >= higher).to(tl.int32), 0)
        else:
            for low in range(0, F, C):
                z = tl.load(z_p + row * F + low + c, mask=low + c < F, other=0.0).to(tl.float32)
                found += tl.sum((_key(z) >= higher).to(tl.int32), 0)
        bar = tl.where(found >= n, higher, bar)
        at_least = tl.where(found >= n, found, at_least)
    last = F - 1
    if at_least > n:  # of those that equal the bar the first
        last = -1
        left = n
        for low in range(0, F, C):
            z = tl.load(z_p + row * F + low + c, mask=low + c < F, other=0.0).to(tl.float32)
            left -= tl.sum((_key(z) > bar).to(tl.int32), 0)
        for low in range(0, F, C):
            z = tl.load(z_p + row * F + low + c, mask=low + c < F, other=0.0).to(tl.float32)
            equal = ((low + c < F) & (_key(z) == bar)).to(tl.int32)
            among = (equal == 1) & (tl.cumsum(equal, 0) <= left)
            last = tl.maximum(last, tl.max(tl.where(among, low + c, -1), 0))
            left -= tl.sum(equal, 0)
    tl.store(bar_p + row, bar.to(tl.float32, bitcast=True))
    tl.store(last_p + row, last)


@triton.jit
def histogram(z_p, prefix_p, out_p, N, SHIFT: tl.constexpr, BINS: tl.constexpr,
              ABOVE: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """How many numbers above 0 have which next digits, of those whose digits so far are `prefix`.

    Counts are whole, so it does not matter in which order they are added.
    """
    i = tl.program_id(0).to(tl.int64) * C + tl.arange(0, C)
    key = _key(tl.load(z_p + i, mask=i < N, other=0.0).to(tl.float32))
    mine = (key > 0) & ((key >> ABOVE) == tl.load(prefix_p))
    digit = tl.where(mine, (key >> SHIFT) & (BINS - 1), 0)
    bins = tl.arange(0, BINS)
    others = C - tl.sum(mine.to(tl.int32), 0)  # were counted as zeros
    n = tl.histogram(digit, BINS) - tl.where(bins == 0, others, 0)
    tl.atomic_add(out_p + bins, n, sem="relaxed", mask=n > 0)


@triton.jit
def pick(n_p, wanted_p, prefix_p, BINS: tl.constexpr, FIRST: tl.constexpr):
    """Of counts by digit, the digit of the number that so many are not smaller than."""
    i = tl.arange(0, BINS)
    n = tl.load(n_p + i)
    wanted = tl.load(wanted_p)
    if FIRST:  # there may be fewer
        wanted = tl.minimum(wanted, tl.sum(n, 0))
    at_least = tl.sum(n, 0) - tl.cumsum(n, 0) + n  # with this digit or a larger one
    digit = tl.maximum(tl.max(tl.where(at_least >= wanted, i, -1), 0), 0)
    more = tl.sum(tl.where(i > digit, n, 0), 0)
    tl.store(wanted_p, wanted - more)
    tl.store(prefix_p, tl.load(prefix_p) * BINS + digit)
