"""A product of whole numbers for x86 processors that have AVX2 and nothing newer for bytes.

`vpmaddubsw` multiplies bytes and adds the products two by two, in 16 bits: twice as many at once as
any instruction that gives 32. What is added in 16 bits wraps around, and is right again as long as
the sum that comes out fits: for parts of rows as short as `LONGEST` it does (Cauchy and Schwarz).
One of the two bytes has no sign: x goes in with `OFFSET` added, and sums begin at what that adds.

LLVM does not find the instruction by itself, so the innermost loop, a tile of `FEATURES` by `ROWS`,
is written down for it. Importing this raises ImportError where the processor, or numba's
configuration, is without AVX2: LLVM would end the process.

Shapes: F features, N rows, P panels of them, R rows of a panel, D width, Q quads (four neighbours
of a row), S stretches of `STRETCH` numbers, whose sums have 16 bits: of the even pairs and the odd.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from saelearn.compiled import loop
from saelearn.train.fast.loops import EVEN_S, STRETCH

FEATURES, ROWS, VECTORS = 4, 16, 2  # of a tile; rows lie in two registers of 32 bytes
QUADS = STRETCH // 4
OFFSET = 90
MOST_X = MOST_W = 90  # (90 + 90) 90 and once more the same are less than 2^15
# of half a stretch before rounding, which adds 0.5 to each number: 2.83 at the most
LONGEST_X = LONGEST_W = 178  # (178 + 2.83)^2 < 2^15; both alike, for then errors add up to least
BLOCK = 32  # features whose rows stay in the core's first cache while panels pass by

_features = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
if "+avx2" not in _features.split(","):
    raise ImportError("no AVX2")

_8, _16, _32, _64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES, _SHORTS, _INTS = (ir.VectorType(t, 256 // t.width) for t in (_8, _16, _32))
_FLOATS = ir.VectorType(ir.FloatType(), 8)


@intrinsic
def _tile(
    _typing, panel, w, start, x_side, w_side, out, quads, w_stride, start_stride, x_side_stride,
    w_side_stride, out_stride,
):  # fmt: skip
    """For a panel's rows and four features, a bit: whether x.w and the margin are above 0.

    All are addresses, or bytes from one line to the next: of x `[Q, R]` quads, w `[4, Q]` quads,
    what sums begin at `[4, S]`, each two shorts, the sides `[3, R]` and `[3, 4]` in fp32, whose
    product is the margin, and the answers `[4, R]` in bits.
    """

    def generate(_context, b: ir.IRBuilder, _signature, arguments):
        panel, w, start, x_side, w_side, out, quads, *strides = arguments
        w_stride, start_stride, x_side_stride, w_side_stride, out_stride = strides
        tile = [(f, v) for f in range(FEATURES) for v in range(VECTORS)]

        def number(n: int) -> ir.Constant:
            return ir.Constant(_64, n)

        def at(address, n, stride: int):
            return b.add(address, b.mul(n, number(stride)))

        def load(address, kind: ir.Type):
            return b.load(b.inttoptr(address, kind.as_pointer()), align=1)

        def everywhere(address, kind: ir.Type):
            """Four bytes, repeated."""
            four = b.insert_element(
                ir.Constant(_INTS, None), load(address, _32), ir.Constant(_32, 0)
            )
            return b.bitcast(b.shuffle_vector(four, four, ir.Constant(_INTS, [0] * 8)), kind)

        def instruction(name: str, gives: ir.Type, takes: ir.Type):
            kind = ir.FunctionType(gives, [takes, takes])
            name = f"llvm.x86.avx2.{name}"
            return b.module.globals.get(name) or ir.Function(b.module, kind, name)

        by_pairs = instruction("pmadd.ub.sw", _SHORTS, _BYTES)
        to_32 = instruction("pmadd.wd", _INTS, _SHORTS)
        w_4 = [b.add(w, b.mul(w_stride, number(f))) for f in range(FEATURES)]
        start_4 = [b.add(start, b.mul(start_stride, number(f))) for f in range(FEATURES)]
        before = b.block
        stretch, quad, widen, done = (
            b.append_basic_block(name) for name in ("stretch", "quad", "widen", "done")
        )
        b.branch(stretch)

        b.position_at_end(stretch)
        s = b.phi(_64)
        s.add_incoming(number(0), before)
        sums = {place: b.phi(_INTS) for place in tile}
        for total in sums.values():
            total.add_incoming(ir.Constant(_INTS, [0] * 8), before)
        begin = [everywhere(at(start_4[f], s, 4), _SHORTS) for f in range(FEATURES)]
        first = b.mul(s, number(QUADS))
        last = b.add(first, number(QUADS))
        last = b.select(b.icmp_signed("<", last, quads), last, quads)
        b.branch(quad)

        b.position_at_end(quad)
        q = b.phi(_64)
        q.add_incoming(first, stretch)
        short = {place: b.phi(_SHORTS) for place in tile}
        x_V = [load(b.add(at(panel, q, 4 * ROWS), number(32 * v)), _BYTES) for v in range(VECTORS)]
        w_now = [everywhere(at(w_4[f], q, 4), _BYTES) for f in range(FEATURES)]
        more = {(f, v): b.add(short[f, v], b.call(by_pairs, [x_V[v], w_now[f]])) for f, v in tile}
        for f, v in tile:
            short[f, v].add_incoming(begin[f], stretch)
            short[f, v].add_incoming(more[f, v], quad)
        q_next = b.add(q, number(1))
        q.add_incoming(q_next, quad)
        b.cbranch(b.icmp_signed("<", q_next, last), quad, widen)

        b.position_at_end(widen)
        ones = ir.Constant(_SHORTS, [1] * 16)
        wide = {place: b.add(sums[place], b.call(to_32, [more[place], ones])) for place in tile}
        for place in tile:
            sums[place].add_incoming(wide[place], widen)
        s_next = b.add(s, number(1))
        s.add_incoming(s_next, widen)
        b.cbranch(b.icmp_signed("<", last, quads), stretch, done)

        b.position_at_end(done)
        lines = [b.mul(x_side_stride, number(i)) for i in range(3)]
        x_3V = [
            [load(b.add(b.add(x_side, line), number(32 * v)), _FLOATS) for v in range(VECTORS)]
            for line in lines
        ]
        lines = [b.add(w_side, b.mul(w_side_stride, number(i))) for i in range(3)]
        for f, v in tile:
            total = b.sitofp(wide[f, v], _FLOATS)
            for x_V, line in zip(x_3V, lines, strict=True):
                side = everywhere(b.add(line, number(4 * f)), _FLOATS)
                total = b.fadd(total, b.fmul(side, x_V[v]))
            above = b.fcmp_ordered(">", total, ir.Constant(_FLOATS, [0.0] * 8))
            to = b.add(b.add(out, b.mul(out_stride, number(f))), number(v))
            b.store(b.bitcast(above, _8), b.inttoptr(to, _8.as_pointer()), align=1)
        return _context.get_dummy_value()

    return types.void(*[types.intp] * 12), generate


@intrinsic
def _lowest(_typing, bits):
    """The place of the lowest bit that is set."""

    def generate(_context, b: ir.IRBuilder, _signature, arguments):
        return b.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), generate


@intrinsic
def _how_many(_typing, bits):
    """How many bits are set."""

    def generate(_context, b: ir.IRBuilder, _signature, arguments):
        return b.ctpop(arguments[0])

    return types.int64(types.int64), generate


@loop()
def pack(x_KNQ, panel_KPQR, low, high):
    """Rows, as quads, into panels in which neighbours are of the same place."""
    K, _, Q = x_KNQ.shape
    for task in range(low, high):
        k, p = task % K, task // K
        for r in range(ROWS):
            for q in range(Q):
                panel_KPQR[k, p, q, r] = x_KNQ[k, p * ROWS + r, q]


@loop()
def starts(w_GD, start_GS2, low, high):
    """What sums have to begin at for each feature, since x goes in with `OFFSET` added."""
    for g in range(low, high):
        for s in range(start_GS2.shape[1]):
            w = w_GD[g, STRETCH * s : STRETCH * (s + 1)]
            full = even = np.float32(0)  # of whole numbers, so that they are exact
            for d in range(len(w)):
                full += np.float32(w[d])
                even += np.float32(w[d]) * EVEN_S[d]
            start_GS2[g, s, 0] = -OFFSET * np.int32(even)
            start_GS2[g, s, 1] = -OFFSET * np.int32(full - even)


@loop()
def mark(panel_KPQR, w_KFD, start_KFS2, x_K3N, w_K3F, first, mark_KFP, low, high):
    """A bit for each row of some panels: whether x.w + w_0 x_0 + w_1 x_1 + w_2 x_2 > 0.

    Args:
        first: panel of the rows that come first in `mark_KFP`.
    """
    _, F, P = mark_KFP.shape
    blocks, Q = (F + BLOCK - 1) // BLOCK, panel_KPQR.shape[2]
    for task in range(low, high):
        k, begin = task // blocks, task % blocks * BLOCK
        x_at, w_at = panel_KPQR[k, first].ctypes.data, w_KFD[k].ctypes.data
        start_at, mark_at = start_KFS2[k].ctypes.data, mark_KFP[k].ctypes.data
        x_side, w_side = x_K3N[k].ctypes.data + first * ROWS * 4, w_K3F[k].ctypes.data
        for p in range(P):
            for f in range(begin, min(begin + BLOCK, F), FEATURES):
                _tile(
                    x_at + p * panel_KPQR.strides[1], w_at + f * w_KFD.strides[1],
                    start_at + f * start_KFS2.strides[1], x_side + p * ROWS * 4, w_side + f * 4,
                    mark_at + (f * P + p) * ROWS // 8, Q, w_KFD.strides[1], start_KFS2.strides[1],
                    x_K3N.strides[1], w_K3F.strides[1], P * ROWS // 8,
                )  # fmt: skip


@loop()
def _four(mark_P):
    """The bits of four panels."""
    a, b = np.int64(mark_P[0]), np.int64(mark_P[1])
    c, d = np.int64(mark_P[2]), np.int64(mark_P[3])
    return a | b << ROWS | c << 2 * ROWS | d << 3 * ROWS


@loop()
def listed(mark_KFP, first, last, chunk, starts_KCF, row_KCA, full_KC, low, high):
    """The lists of what is marked, as `loops.propose` makes them.

    Args:
        first, last: rows of the batch, of which marks begin with the first.
    """
    room, F = row_KCA.shape[2], starts_KCF.shape[2] - 1
    per = (last - first + chunk - 1) // chunk
    for task in range(low, high):
        k, c = task // per, task % per
        row0 = first + c * chunk
        n_rows = min(chunk, last - row0)
        begin, n_panels = c * chunk // ROWS, (n_rows + ROWS - 1) // ROWS
        c += first // chunk
        starts, row = starts_KCF[k, c], row_KCA[k, c]
        n = 0
        full_KC[k, c] = 0
        starts[0] = 0
        for f in range(F):
            if n + chunk + 8 > room:
                full_KC[k, c] = max(F * chunk * n // (f * chunk + 1), n) + 2 * chunk
                break
            mark = mark_KFP[k, f, begin:]
            for i in range(0, n_panels, 4):
                left = n_rows - ROWS * i
                if left >= 4 * ROWS:
                    bits = _four(mark[i : i + 4])
                else:
                    bits = np.int64(0)
                    for j in range(i, n_panels):
                        bits |= np.int64(mark[j]) << (ROWS * (j - i))
                    bits &= (1 << left) - 1
                end = n + _how_many(bits)
                while n < end:
                    for j in range(4):  # more than there are do no harm, and most have fewer
                        row[n + j] = row0 + ROWS * i + _lowest(bits)
                        bits &= bits - 1
                    n += 4
                n = end
            starts[f + 1] = n
