"""The product of bytes whose sums have 16 bits: exact whatever the rows, or not taken."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelearn.train.fast import search
from saelearn.train.fast.active import Scratch, shorts

tiles = shorts()
needs_avx2 = pytest.mark.skipif(tiles is None, reason="no AVX2 here")


def is_exact(x_KBD: torch.Tensor, W_KFD: torch.Tensor, rows: list[int]) -> bool:
    """Whether the sums at these rows are those of the whole numbers, neither more nor less: half
    more is above 0 where their negative is added, half less is not."""
    scratch, (K, F, D), B = Scratch(), W_KFD.shape, x_KBD.shape[1]
    search._shorts(x_KBD, W_KFD, torch.zeros(K, F), scratch)
    Q, G = -(-D // 4), -(-F // tiles.FEATURES) * tiles.FEATURES
    P, S = -(-B // tiles.ROWS), -(-Q // tiles.QUADS)
    x8 = scratch("x8 of tiles", (K, P * tiles.ROWS, 4 * Q), torch.uint8)
    w8 = scratch("w8 of tiles", (K, G, 4 * Q), torch.int8)
    panels = scratch("panels", (K, P, Q, tiles.ROWS), torch.int32)
    starts = scratch("starts of sums", (K, G, S, 2), torch.int16)
    x, w = x8[:, :B].long() - tiles.OFFSET, w8.long()
    assert x[..., D:].count_nonzero() == w[..., D:].count_nonzero() == 0
    assert x.abs().max() <= tiles.MOST_X and w.abs().max() <= tiles.MOST_W
    u_KGB = w @ x.mT
    x_side, w_side = torch.zeros(K, 3, P * tiles.ROWS), torch.zeros(K, 3, G)
    x_side[:, 2] = 1
    found = True
    for row in rows:
        first = row // tiles.ROWS
        for more in (0.5, -0.5):
            w_side[:, 2] = more - u_KGB[:, :, row]
            marks = np.zeros((K, G, 1), np.uint16)
            given = panels, w8, starts, x_side, w_side
            tiles.mark(*(t.numpy() for t in given), first, marks, 0, K * -(-G // tiles.BLOCK))
            bits = marks[..., 0] >> row % tiles.ROWS & 1
            found &= bool((bits == (more > 0)).all())
    return found


@needs_avx2
@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 150), st.integers(1, 40)),
    seed=st.integers(0, 2**31),
    few=st.booleans(),
)
def test_it_is_exact_at_any_size(sizes, seed, few):
    (K, B, D, F), generator = sizes, torch.Generator().manual_seed(seed)
    x_KBD = torch.randn(K, B, D, generator=generator)
    W_KFD = torch.randn(K, F, D, generator=generator)
    if few:  # most of each row lies in some of its numbers
        x_KBD, W_KFD = x_KBD**5, W_KFD**5
    assert is_exact(x_KBD, W_KFD, [0, B // 2, B - 1])


def worst() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of numbers that are all as large as can be, of one sign, of two, in parts of 64, and in
    one pair, whose products are added with saturation."""
    signs = torch.stack([torch.ones(200), -torch.ones(200), torch.ones(200).cumsum(0) % 2 * 2 - 1])
    part_4D = torch.zeros(4, 200)
    part_4D[0, :64] = part_4D[1, 64:100] = part_4D[2, 190:] = part_4D[3, 4:6] = 1
    return torch.cat([signs, part_4D])[None], torch.cat([part_4D, signs, -signs, -part_4D])[None]


@needs_avx2
def test_sums_fit_into_16_bits_for_the_longest_rows():
    assert is_exact(*worst(), list(range(7)))


@needs_avx2
def test_numbers_beyond_the_largest_would_be_cut_off(monkeypatch):
    monkeypatch.setattr(tiles, "MOST_W", 94)
    assert not is_exact(*worst(), list(range(7)))


@needs_avx2
@pytest.mark.parametrize("limit", ["LONGEST_X", "LONGEST_W"])
def test_without_the_limits_on_their_length_they_would_not(limit, monkeypatch):
    monkeypatch.setattr(tiles, limit, 0)
    assert not is_exact(*worst(), list(range(7)))


STEP = """
import torch
from saelearn.train.fast import Case, Kernel, Plan, Stack
from saelearn.train.fast.active import loops, shorts
assert loops() is not None and shorts() is None, shorts()
torch.manual_seed(0)
W_1FD, x_BD = torch.randn(1, 40, 20), torch.randn(60, 20)
sae = Stack(W_1FD, torch.full((1, 40), -3.0), W_1FD, torch.zeros(1, 20))
a, b = (Kernel(Plan(e, 1.1)).stacked(sae, x_BD, Case(torch.ones(1), "free", True))
        for e in ("plain", "shorts"))
assert a[1].sum() > 0 and all(x.equal(y) for x, y in zip(a[2], b[2]))
"""


@pytest.mark.parametrize("variable", ["NUMBA_CPU_NAME=generic", "NUMBA_ENABLE_AVX=0"])
def test_a_processor_without_the_instruction_goes_the_plain_way(variable, tmp_path):
    """LLVM would end the process if it were asked for the instruction."""
    name, value = variable.split("=")
    environment = {**os.environ, name: value, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", STEP]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
