"""The step on a CUDA GPU: exact, at active entries where little is active, dense where much is.

The same sums as in `kernels`, in another order. z = (x - b_dec) W_enc^T + b_enc is a dense product;
then a bit for each entry tells what is active (`triton_kernels`), the bits become lists, and all
else happens at these entries: memory is read for what is active only. Where more is active than
`Plan.sparse_below` four more products follow in place of the lists; both ways give the same
gradient up to rounding, so the choice may rest on what was active two steps before, which the host
knows without waiting. Under `torch.use_deterministic_algorithms(True)` it rests on this batch.

The lists have room for all entries, if need be in several passes: none is ever left out. No
floating-point number is added atomically: the same input gives the same bits.

Shapes: K SAEs, B batch, D width, F features each; G = K F, R = K B.
"""

from __future__ import annotations

import importlib.util
import math
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saelearn.sae import L1, SAE, BatchTopK, Loss, Now, Objective, Squared, TopK
from saelearn.train.autograd import Plan, Seen, tf32
from saelearn.train.fast.kernels import DTYPES, Case, Stack, Sums, chooses_few, revive
from saelearn.train.update import Adam, update_

SPARSE_BELOW = {"bf16": 0.012, "tf32": 0.015, "fp32": 0.05}  # where both ways took as long
LISTED = 2**28  # entries that are listed at once
SLOTS = 2**16  # pieces of long lists, at most
WHOLE_ROW = 2**15  # numbers of a row that stay in a program's registers
AGO = 2  # steps that what was active is known after
RECORDS = 16
WORKSPACE = 2**27  # bytes that products and recorded launches keep for themselves
WARM = 3  # times that launches go one by one before they are recorded as one
DIGITS = ((31, 20, 2_048), (20, 10, 1_024), (10, 0, 1_024))  # of a positive number's 31 bits


_RECORDING = threading.Lock()  # a GPU takes one recording at a time


def room(B: int, D: int, F: int, precision: str) -> int:
    """Bytes that a step of one SAE takes beside weights, gradients and moments."""
    size = DTYPES[precision].itemsize
    both = size * (B * F + 2 * B * D + (2 * F * D if size == 2 else 0)) + 4 * (8 * F + 4 * B)
    slots = min(SLOTS, _power(max(64, F // 8)))
    lists = 4 * (2 * B * F // 32 + max(B, F, min(LISTED, B * F)) + slots * (2 * D + 4))
    dense = size * B * F + 4 * B * D + 8 * -(-B // 256) * F
    return both + lists + dense + WORKSPACE


def available() -> bool:
    """Whether this machine's PyTorch brings Triton along."""
    return importlib.util.find_spec("triton") is not None


class Tiles(NamedTuple):
    """Sizes of blocks, as measured (`benchmarks.gpu --tune`)."""

    rows: int = 16  # whose bits a program makes
    columns: int = 512
    words: int = 32  # of which a program turns 32 bits
    turned: int = 8  # words it makes of each feature
    chunk: int = 256  # entries of a feature that one program adds up
    at_once: int = 4  # of them
    feature_warps: int = 2
    decoded_at_once: int = 8
    decode_warps: int = 4
    update_warps: int = 4


class _Batch(NamedTuple):
    """What both ways read, and where they write."""

    sae: Stack
    x_BD: Tensor
    h_KBD: Tensor
    z_KBF: Tensor
    W_enc_KFD: Tensor
    W_dec_KFD: Tensor
    norm_KF: Tensor
    l1_K: Tensor
    price_KF: Tensor
    weighted: bool
    centred: bool
    e_KBD: Tensor
    loss_KB: Tensor
    sum_f_KF: Tensor
    gradient: Stack


class _Update(NamedTuple):
    """What an update reads and writes."""

    stack: Stack
    gradient: Stack
    exp_avg: Stack
    exp_avg_sq: Stack
    W_enc_KFD: Tensor
    W_dec_KFD: Tensor
    norm_KF: Tensor
    rates_43: Tensor


class _Lists(NamedTuple):
    """Bits row by row and feature by feature, and how many each list has."""

    m: Tensor
    n_R: Tensor
    t: Tensor
    n_G: Tensor


class GpuKernel:
    """Loss and gradients of K SAEs side by side, as `kernels.Kernel`, by Triton.

    Args:
        plan: below which share of active entries the sparse way is taken.
        precision: of the dense products: "fp32", "tf32", or "bf16", which also keeps activations
            and errors in bf16. Weights, sums and moments are fp32.
        compile: changes nothing; these kernels are compiled anyway.
        tiles: sizes of blocks.

    Attributes:
        way: "sparse" or "dense", as the last step went.
    """

    def __init__(
        self, plan: Plan | None = None, *, precision: str = "fp32", compile: bool = False,
        tiles: Tiles = Tiles(),  # noqa: B008 (a tuple of constants)
    ):  # fmt: skip
        from saelearn.train.fast import triton_kernels  # there is none on most machines

        self.plan = plan or Plan("triton", SPARSE_BELOW[precision])
        self.precision, self._tiles, self._kernels = precision, tiles, triton_kernels
        self._dtype, self.way = DTYPES[precision], ""
        self._memory: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}  # what a step has of it
        self._seen: list[tuple[Tensor, Any]] = []  # how much was active, on its way to the host
        self._steps: dict[int, tuple[int, int]] = {}
        self._recorded: dict[tuple, int | tuple] = {}
        self._record = torch.cuda.is_available()
        self._squares_known = False

    # --- loss and gradients -----------------------------------------------------------------------

    @torch.no_grad()
    def stacked(
        self, sae: Stack, x_BD: Tensor, case: Case, *, k: int | None = None,
        of_batch: bool = False, unchanged: bool = False,
    ) -> tuple[Sums, Tensor, Stack]:  # fmt: skip
        """As `kernels.Kernel.stacked`; the gradients lie in memory that the next step uses again.

        Args:
            k: only the k largest entries of each row are active, or with `of_batch` the k B
                largest of the batch; for one SAE.
            unchanged: the weights are those that the last `move` left.
        """
        self._device, (l1_K, decoder_norm, centred) = x_BD.device, case
        sae = Stack(*(parameter.contiguous() for parameter in sae))
        (K, F, D), B = sae.W_dec_KFD.shape, len(x_BD)
        W_enc_KFD, W_dec_KFD, norm_KF = self._rounded(sae, unchanged=unchanged)
        batch = _Batch(
            sae, self._room("x", (B, D)), self._room("h", (K, B, D), self._dtype),
            self._room("z", (K, B, F), self._dtype), W_enc_KFD, W_dec_KFD, norm_KF,
            self._room("lambda", (K,)), self._room("price", (K, F)), decoder_norm == "weighted",
            centred, self._room("e", (K, B, D), self._dtype), self._room("loss", (K, B)),
            self._room("sum f", (K, F)),
            Stack(*(self._room(f"gradient {n}", p.shape) for n, p in enumerate(sae))),
        )  # fmt: skip
        batch.x_BD.copy_(x_BD)
        batch.l1_K.copy_(l1_K)
        few = True if k or self.plan.sparse_below >= 1 else self._few(batch)
        if few is not None:
            self.way = "sparse" if few else "dense"
        if few is None or batch.x_BD.nbytes < self._memory["x"].nbytes:
            # nothing is known yet: look at this batch; or an epoch's last, too small to record
            terms_3K, count_KF, active = self._gradients(batch, k, of_batch, few)
        else:
            name = ("gradients", self.way, decoder_norm, centred, k, of_batch)
            terms_3K, count_KF, active = self._at_once(
                name, batch, lambda: self._gradients(batch, k, of_batch, few)
            )
        self._squares_known = True
        self._tell(active)
        return Sums(*terms_3K.clone()), count_KF.long(), batch.gradient

    def _few(self, batch: _Batch) -> bool | None:
        """Whether little enough is active for the sparse way; None if that is not known."""
        if self.plan.sparse_below <= 0:
            return False
        active = self._active_before()
        return None if active is None else active < self._limit(batch)

    def _limit(self, batch: _Batch) -> float:
        return self.plan.sparse_below * batch.z_KBF.numel()

    def _gradients(
        self, batch: _Batch, k: int | None, of_batch: bool, few: bool | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and its terms, `count_KF`, and how much was active; the rest into its room."""
        sae, (K, B, _), D = batch.sae, batch.z_KBF.shape, batch.x_BD.shape[1]
        batch.price_KF.copy_(batch.l1_K[:, None]).div_(B)
        if batch.weighted:
            batch.price_KF.mul_(batch.norm_KF)
        self._kernels.prepare[B, K](
            batch.x_BD, sae.b_dec_KD, batch.h_KBD, B, D, CENTRED=batch.centred,
            BD=min(1_024, _power(D)),
        )  # fmt: skip
        self._encode(batch)
        lists = None
        if few is not False:
            lists = self._counted(batch.z_KBF, self._bar(batch.z_KBF, k, of_batch) if k else None)
        if few is None:
            few = int(lists.n_R.sum()) < self._limit(batch)
            self.way = "sparse" if few else "dense"
        count_KF = self._sparse(batch, lists) if few else self._dense(batch)
        gradient = batch.gradient
        torch.sum(batch.e_KBD, 1, dtype=torch.float32, out=gradient.b_dec_KD)
        if batch.centred:  # the way through the encoder
            gradient.b_dec_KD.sub_(torch.bmm(gradient.b_enc_KF[:, None], sae.W_enc_KFD)[:, 0])
        reconstruction_K = batch.loss_KB.sum(1) / B
        sum_f_KF = batch.sum_f_KF * batch.norm_KF if batch.weighted else batch.sum_f_KF
        sparsity_K = sum_f_KF.sum(1) / B
        total_K = reconstruction_K + batch.l1_K * sparsity_K
        return torch.stack([total_K, reconstruction_K, sparsity_K]), count_KF, count_KF.sum()

    def _at_once(self, name: tuple, batch: NamedTuple, work: Callable[[], Any]) -> Any:
        """What `work` gives, its launches recorded after some times and then sent off as one.

        They read and write the same memory each time: that of `batch` and of `_room`. A CUDA graph
        is what PyTorch calls the record. Where that fails, or the gradients it gives are other
        than those of single launches, everything goes on launch by launch.
        """
        if not self._record:
            return work()
        key = (*name, *_addresses(batch))
        if len(self._recorded) > RECORDS:  # the weights lie elsewhere at each step
            self._record = False
            self._recorded.clear()
            return work()
        known = self._recorded.get(key, 0)
        if isinstance(known, tuple):
            graph, found = known
            graph.replay()
            return found
        found = work()
        self._recorded[key] = known + 1
        if known + 1 == WARM:
            self._recorded[key] = self._taken_down(name, work) or 0
        return found

    def _taken_down(self, name: tuple, work: Callable[[], Any]) -> tuple | None:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            with _RECORDING:
                torch.cuda.synchronize(self._device)
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    found = work()
            if name[0] == "gradients":
                self._check_record(graph)
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # where a recording was spoilt, it was left on its own
            self._record = False
            self._recorded.clear()
            warnings.warn(f"the step's launches are not joined: {error}", stacklevel=2)
            return None
        return graph, found

    def _check_record(self, graph: torch.cuda.CUDAGraph) -> None:
        """The record of what was just computed must give the same; what was computed stays."""
        names = [name for name in self._kept if name.startswith("gradient")]
        before = {name: self._kept[name].clone() for name in names}
        graph.replay()
        far = [n for n, g in before.items() if not (self._kept[n] - g).norm() <= 1e-3 * g.norm()]
        for name in names:
            self._kept[name].copy_(before[name])
        if far:
            raise RuntimeError("the record gave another gradient")

    def _tell(self, active: Tensor) -> None:
        """Send off how much was active; nobody waits for it."""
        if active.device.type == "cpu" or torch.are_deterministic_algorithms_enabled():
            return
        there, arrived = (
            self._seen.pop(0)
            if len(self._seen) > AGO
            else (torch.empty((), dtype=torch.int64, pin_memory=True), torch.cuda.Event())
        )
        there.copy_(active, non_blocking=True)
        arrived.record()
        self._seen.append((there, arrived))

    def _active_before(self) -> int | None:
        """How much was active `AGO` steps before; None if that is not known."""
        if len(self._seen) < AGO or torch.are_deterministic_algorithms_enabled():
            return None
        there, arrived = self._seen[-AGO]
        arrived.synchronize()  # has long arrived: the host is at most so many steps ahead
        return int(there)

    def _counted(self, z_KBF: Tensor, bar: tuple[Tensor, Tensor] | None) -> _Lists:
        (K, B, F), tiles, kernels = z_KBF.shape, self._tiles, self._kernels
        NF, NB = -(-F // 32), -(-B // 32)
        m = self._room("m", (K * B, NF), torch.int32)
        t = self._room("t", (K * F, NB), torch.int32)
        kernels.mask[-(-K * B // tiles.rows), -(-F // tiles.columns)](
            z_KBF, *(bar or (z_KBF, z_KBF)), m.view(torch.uint8), K * B, F, NF,
            HAS_BAR=bar is not None, R=tiles.rows, C=tiles.columns,
        )  # fmt: skip
        kernels.transpose[-(-NB // tiles.turned), -(-NF // tiles.words), K](
            m, t, B, F, NF, NB, W=tiles.words, N=tiles.turned
        )
        counts = []
        for name, words in (("rows", m), ("features", t)):
            n, many = self._room(f"n {name}", (len(words),), torch.int32), words.shape[1]
            Q = max(1, 2_048 // _power(many))
            kernels.count[-(-len(n) // Q),](words, n, len(n), many, Q=Q, P=_power(many))
            counts.append(n)
        return _Lists(m, counts[0], t, counts[1])

    def _sparse(self, batch: _Batch, lists: _Lists) -> Tensor:
        """At the active entries."""
        sae, gradient, tiles, kernels = batch.sae, batch.gradient, self._tiles, self._kernels
        (m, n_R, t, n_G), (K, B, F), D = lists, batch.z_KBF.shape, batch.x_BD.shape[1]
        G, R = K * F, K * B
        end_R = self._room("end rows", (R,), torch.int64)
        end_G = self._room("end features", (G,), torch.int64)
        cut_G = self._room("cut", (G,), torch.int32)
        scan = {"P": 8_192, "num_warps": 16}
        kernels.running[1,](n_R, end_R, end_R, R, CHUNK=0, **scan)
        kernels.running[1,](n_G, end_G, cut_G, G, CHUNK=tiles.chunk, **scan)
        slots = min(SLOTS, _power(max(64, G // 8)))
        item_f = self._room("item f", (slots,), torch.int32).fill_(-1)
        item_s = self._room("item s", (slots,), torch.int32)
        kernels.share_out[-(-G // 256),](
            n_G, cut_G, item_f, item_s, G, slots, CHUNK=tiles.chunk, P=256
        )
        listed = self._room("lists", (max(B, F, min(LISTED, R * F)),), torch.int32)
        block = min(1_024, _power(D))
        for first, many in _passes(R, F):
            kernels.extract[many,](m, end_R, n_R, listed, first, m.shape[1], P=_power(m.shape[1]))
            kernels.decode[many,](
                end_R, n_R, listed, batch.z_KBF, batch.W_dec_KFD, sae.b_dec_KD, batch.x_BD,
                batch.e_KBD, batch.loss_KB, first, B, D, F, 2 / B, J=tiles.decoded_at_once,
                BD=block, BLOCKS=-(-D // block), num_warps=tiles.decode_warps,
            )  # fmt: skip
        width, more = _power(D), _more(D)
        part = self._room("pieces", (slots, 2 * D + 2))
        given = (sae.W_dec_KFD, batch.price_KF, batch.norm_KF)
        sums = (gradient.W_enc_KFD, gradient.W_dec_KFD, gradient.b_enc_KF, batch.sum_f_KF,
                self._room("squares", (K, F)))  # fmt: skip
        how = {"PULL": batch.weighted, "CHUNK": tiles.chunk, "BD": width}
        for first, many in _passes(G, B):
            kernels.extract[many,](
                t, end_G, n_G, listed, first, t.shape[1], P=_power(t.shape[1]),
                num_warps=1 if t.shape[1] <= 512 else 4,
            )  # fmt: skip
            kernels.features[slots + many,](
                end_G, n_G, cut_G, listed, batch.z_KBF, batch.W_dec_KFD, batch.e_KBD, batch.h_KBD,
                item_f, item_s, part, *given, *sums, first, first + many, B, D, F, slots,
                J=max(1, tiles.at_once // more), num_warps=min(16, tiles.feature_warps * more),
                **how,
            )  # fmt: skip
        kernels.merge[slots,](
            n_G, item_f, item_s, part, *given, *sums, D, num_warps=min(16, 4 * more), **how
        )
        return n_G.view(K, F)

    def _dense(self, batch: _Batch) -> Tensor:
        """By full products."""
        (K, B, F), D, kernels = batch.z_KBF.shape, batch.x_BD.shape[1], self._kernels
        gradient, z_KBF, e_KBD = batch.gradient, batch.z_KBF, batch.e_KBD
        R, S, C = 256, 16, 256
        NR = -(-B // R)
        grid, sizes = (NR, -(-F // C), K), {"R": R, "S": S, "C": C, "num_warps": 8}
        sums_KRF = self._room("sums", (K, NR, F))
        counts_KRF = self._room("counts", (K, NR, F), torch.int32)
        kernels.relu[grid](z_KBF, counts_KRF, sums_KRF, B, F, NR, **sizes)
        torch.sum(sums_KRF, 1, out=batch.sum_f_KF)
        count_KF = counts_KRF.sum(1)
        y_KBD = self._room("y", (K, B, D))
        self._product(z_KBF, batch.W_dec_KFD, y_KBD)
        kernels.error[K * B,](
            y_KBD, batch.x_BD, batch.sae.b_dec_KD, e_KBD, batch.loss_KB, B, D, 2 / B,
            BD=min(1_024, _power(D)),
        )  # fmt: skip
        d_f_KBF = self._room("d f", (K, B, F), self._dtype)
        self._product(e_KBD, batch.W_dec_KFD.mT, d_f_KBF)
        kernels.slope[grid](z_KBF, d_f_KBF, batch.price_KF, sums_KRF, B, F, NR, **sizes)
        torch.sum(sums_KRF, 1, out=gradient.b_enc_KF)
        self._product(z_KBF.mT, e_KBD, gradient.W_dec_KFD)
        self._product(d_f_KBF.mT, batch.h_KBD, gradient.W_enc_KFD)
        self._finish(batch.sae, gradient, batch, pull=batch.weighted)
        return count_KF

    def _finish(
        self, sae: Stack, gradient: Stack, batch: _Batch | None = None, *,
        pull: bool = False, unit: bool = False,
    ) -> None:  # fmt: skip
        """What the gradient of decoder rows still lacks, and squared lengths."""
        K, F, D = sae.W_dec_KFD.shape
        none = sae.b_enc_KF  # is not read without a pull
        for_pull = (batch.price_KF, batch.norm_KF, batch.sum_f_KF) if pull else (none, none, none)
        self._kernels.finish[K * F,](
            gradient.W_enc_KFD, gradient.W_dec_KFD, gradient.b_enc_KF, sae.W_dec_KFD, *for_pull,
            self._room("squares", (K, F)), D, PULL=pull, UNIT=unit, BD=_power(D),
            num_warps=min(16, 4 * _more(D)),
        )  # fmt: skip
        self._squares_known = True

    def _bar(self, z_KBF: Tensor, k: int, of_batch: bool) -> tuple[Tensor, Tensor]:
        """What an entry of each row has to exceed to be among the largest, and up to which column
        those count that only equal it."""
        K, B, F = z_KBF.shape
        bar = self._room("bar", (K * B,))
        last = self._room("last", (K * B,), torch.int32)
        if not of_batch:
            C = min(WHOLE_ROW, _power(F))
            warps = max(4, min(16, C // 2_048))
            bits = 31 if z_KBF.itemsize == 4 else 15
            self._kernels.kth_of_row[K * B,](
                z_KBF, bar, last, F, k, C=C, ONE=C >= F, BITS=bits, num_warps=warps
            )
            return bar, last
        wanted = torch.full((1,), k * B, dtype=torch.int32, device=bar.device)
        prefix = torch.zeros(1, dtype=torch.int32, device=bar.device)
        for above, shift, bins in DIGITS if z_KBF.itemsize == 4 else DIGITS[:2]:  # bf16 ends in 0
            n = torch.zeros(bins, dtype=torch.int32, device=bar.device)
            self._kernels.histogram[-(-z_KBF.numel() // 8_192),](
                z_KBF, prefix, n, z_KBF.numel(), SHIFT=shift, BINS=bins, ABOVE=above, C=8_192,
                num_warps=8,
            )  # fmt: skip
            self._kernels.pick[1,](n, wanted, prefix, BINS=bins, FIRST=above == 31)
        least = (prefix << shift).view(torch.float32)
        return bar.copy_(least.expand_as(bar)), last.fill_(F)

    # --- the update -------------------------------------------------------------------------------

    @torch.no_grad()
    def move(
        self, stack: Stack, gradient: Stack, optimizer: Adam, parameters: Sequence[Tensor],
        *, clip_norm: float, unit_norm: bool,
    ) -> None:  # fmt: skip
        """Clip, Adam, and what the next step wants to know of the weights, in one pass.

        Args:
            stack, gradient: what the last `stacked` saw and gave.
            parameters: of the optimizer, in the stack's order.
        """
        W_enc_KFD, W_dec_KFD, norm_KF = self._copies(stack)
        states = [optimizer.state_of(p) for p in parameters]
        counts = [state["step"] for state in states]
        done = [self._steps_done(count) for count in counts]
        rates = [
            (optimizer.lr * optimizer.factor_of(p), 1 / (1 - 0.9**t), 1 / (1 - 0.999**t))
            for p, t in zip(parameters, (t + 1 for t in done), strict=True)
        ]
        update = _Update(
            stack, gradient,
            *(Stack(*(_by_feature(state[n], p) for state, p in zip(states, stack, strict=True)))
              for n in ("exp_avg", "exp_avg_sq")),
            W_enc_KFD, W_dec_KFD, norm_KF, self._room("rates", (4, 3)),
        )  # fmt: skip
        pinned = torch.tensor(rates, pin_memory=self._device.type == "cuda")  # nobody waits for it
        update.rates_43.copy_(pinned, non_blocking=True)
        known, self._squares_known = self._squares_known, False
        name = ("update", clip_norm, unit_norm, known)
        self._at_once(name, update, lambda: self._moved(update, clip_norm, unit_norm, known))
        torch._foreach_add_(counts, 1)
        self._steps = {id(c): (c._version, t + 1) for c, t in zip(counts, done, strict=True)}
        for parameter in parameters:
            torch.autograd.graph.increment_version(parameter)

    def _moved(self, update: _Update, clip_norm: float, unit_norm: bool, known: bool) -> None:
        stack, gradient, kernels = update.stack, update.gradient, self._kernels
        K, F, D = stack.W_dec_KFD.shape
        if unit_norm or not known:
            self._finish(stack, gradient, unit=unit_norm)
        factor_K = self._room("factor", (K,))
        kernels.shorten[K,](
            self._room("squares", (K, F)), gradient.b_dec_KD, factor_K, F, D, clip_norm,
            P=4_096, num_warps=8,
        )  # fmt: skip
        for p, slope, mean, square, rate in zip(
            stack, gradient, update.exp_avg, update.exp_avg_sq, update.rates_43, strict=True
        ):
            if p.ndim == 2:
                kernels.adam_flat[-(-p.numel() // 1_024),](
                    p, slope, mean, square, factor_K, rate, p.numel(), p.shape[1], P=1_024
                )
                continue
            decoder = p is stack.W_dec_KFD
            copy = update.W_dec_KFD if decoder else update.W_enc_KFD
            self._adam_rows(
                p, slope, mean, square, copy, update.norm_KF, factor_K, rate,
                decoder=decoder, unit=decoder and unit_norm,
            )  # fmt: skip

    def _adam_rows(self, p: Tensor, *others: Tensor, decoder: bool, unit: bool = False) -> None:
        K, F, D = p.shape
        copy = others[3]
        self._kernels.adam_rows[K * F,](
            p, *others, F, D, HALF=copy is not p, NORM=decoder, UNIT=unit, BD=_power(D),
            num_warps=min(16, self._tiles.update_warps * _more(D)),
        )  # fmt: skip

    def _steps_done(self, count: Tensor) -> int:
        """What a counter on the GPU says, read only if somebody else changed it."""
        version, steps = self._steps.get(id(count), (None, 0))
        return steps if version == count._version else int(count)

    def _rounded(self, sae: Stack, *, unchanged: bool) -> tuple[Tensor, Tensor, Tensor]:
        """What `_copies` has room for, made anew unless the last update left it."""
        W_enc_KFD, W_dec_KFD, norm_KF = self._copies(sae)
        if not unchanged:  # by the update itself at a rate of 0: its lengths, to the bit
            zero_KFD = self._room("gradient 2", sae.W_dec_KFD.shape).zero_()
            zeros = zero_KFD, zero_KFD, zero_KFD
            ones = self._room("ones", (sae.W_dec_KFD.shape[0],)).fill_(1)
            still = self._room("still", (3,)).zero_()
            how = norm_KF, ones, still
            self._adam_rows(sae.W_enc_KFD, *zeros, W_enc_KFD, *how, decoder=False)
            self._adam_rows(sae.W_dec_KFD, *zeros, W_dec_KFD, *how, decoder=True)
        return W_enc_KFD, W_dec_KFD, norm_KF

    def _copies(self, sae: Stack) -> tuple[Tensor, Tensor, Tensor]:
        """Both matrices as the products take them, and the decoder rows' lengths."""
        matrices, (K, F, D) = (sae.W_enc_KFD, sae.W_dec_KFD), sae.W_dec_KFD.shape
        if self._dtype != torch.float32:
            matrices = (self._room(n, (K, F, D), self._dtype) for n in ("W_enc", "W_dec"))
        return *matrices, self._room("norm", (K, F))

    # --- small things -----------------------------------------------------------------------------

    def _room(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uninitialised memory, the same at each step; of a smaller one a part of it."""
        kept = self._kept.get(name)
        if kept is None or kept.shape != torch.Size(shape) or kept.dtype != dtype:
            memory, n = self._memory.get(name), math.prod(shape)
            if memory is None or len(memory) < n or memory.dtype != dtype:
                self._recorded.clear()  # records know the memory that goes now
                memory = torch.empty(n, dtype=dtype, device=self._device)
                self._memory[name] = memory
            kept = self._kept[name] = memory[:n].view(shape)
        return kept

    def _encode(self, batch: _Batch) -> None:
        """z = input W_enc^T + b_enc; the bias is added before the sum is rounded."""
        bias_KF = batch.sae.b_enc_KF.to(self._dtype)
        with tf32(self.precision == "tf32"):
            for bias_F, h_BD, W_FD, z_BF in zip(
                bias_KF, batch.h_KBD, batch.W_enc_KFD, batch.z_KBF, strict=True
            ):
                torch.addmm(bias_F, h_BD, W_FD.T, out=z_BF)

    def _product(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        with tf32(self.precision == "tf32"):
            if a.dtype == out.dtype:
                torch.bmm(a, b, out=out)
            elif a.device.type == "cuda":
                torch.bmm(a, b, out_dtype=out.dtype, out=out)
            else:  # Triton's interpreter
                out.copy_(torch.bmm(a.float(), b.float()))


class _Engine(GpuKernel):
    """What both engines share: one SAE, and an update that knows what the step found."""

    def __init__(self, plan: Plan | None = None, **arguments):
        super().__init__(plan, **arguments)
        self._left: tuple = ()  # the weights as the last update left them
        self._gradient: Stack | None = None

    def _alone(self, sae: SAE, x_BD: Tensor, case: Case, **how: Any) -> tuple[Sums, Tensor]:
        """One SAE: what is summed up and `count_F`; gradients are written into `.grad`."""
        unchanged = self._left == _versions(sae)
        sums, count_KF, gradient = self.stacked(
            Stack.of(sae), x_BD, case, unchanged=unchanged, **how
        )
        sae.W_enc.grad = gradient.W_enc_KFD[0].T
        sae.b_enc.grad, sae.W_dec.grad, sae.b_dec.grad = (g[0] for g in gradient[1:])
        self._gradient = gradient
        return Sums(*(term[0] for term in sums)), count_KF[0]

    @torch.no_grad()
    def update(self, sae: SAE, optimizer: Adam, *, clip_norm: float, unit_norm: bool) -> None:
        """As `update.update_`, which is taken where something is frozen or lies otherwise."""
        stack, mine = Stack.of(sae), _parameters(sae)
        if (
            not isinstance(optimizer, Adam)
            or any(p.grad is None for p in mine)
            or not all(p.is_contiguous() for p in stack)
        ):
            update_(sae, optimizer, clip_norm=clip_norm, unit_norm=unit_norm)
            return
        self.move(stack, self._gradient, optimizer, mine, clip_norm=clip_norm, unit_norm=unit_norm)
        self._left = _versions(sae)


class GpuL1(_Engine):
    """The GPU's engine of the standard SAE with the L1 objective.

    Weights that are changed between two steps through `.data`, which PyTorch does not count as a
    change, are seen one step late by the products.
    """

    @staticmethod
    def fits(sae: SAE, objective: Objective, *, device: str, **_: object) -> bool:
        """On CUDA with Triton, by any number of processes."""
        return device == "cuda" and available() and type(sae) is SAE and type(objective) is L1

    @torch.no_grad()
    def __call__(self, sae: SAE, x_BD: Tensor, objective: L1, now: Now) -> Seen:
        l1 = float(objective.coefficient * now.warmup)
        sums, count_F = self._alone(sae, x_BD, Case.of(sae, l1, objective.decoder_norm))
        return sums.seen(count_F, len(x_BD))


class GpuTopK(_Engine):
    """The GPU's engine of TopK and BatchTopK with the squared error: nothing has a price."""

    @staticmethod
    def fits(
        sae: SAE, objective: Objective, *, device: str, processes: int = 1, **_: object
    ) -> bool:
        """On CUDA with Triton, as `chooses_few`."""
        if device != "cuda" or not available():
            return False
        return chooses_few(sae, objective, below=SPARSE_BELOW["fp32"], processes=processes)

    @torch.no_grad()
    def __call__(self, sae: TopK | BatchTopK, x_BD: Tensor, objective: Squared, now: Now) -> Seen:
        of_batch = isinstance(sae, BatchTopK)
        how = {"k": sae.k, "of_batch": of_batch}
        sums, count_F = self._alone(sae, x_BD, Case.of(sae, 0.0, "free"), **how)
        terms, total = {"reconstruction": sums.reconstruction}, sums.reconstruction
        if objective.aux_k:
            error_BD = self._kept["e"][0].float() * (-len(x_BD) / 2)
            terms["auxiliary"] = revive(sae, x_BD, objective, error_BD, now)
            self._squares_known = False
            total = total + objective.aux_coefficient * terms["auxiliary"]
        observed = None
        if of_batch:
            least = self._kept["bar"][:1]
            observed = torch.where(least.isfinite(), least, torch.inf)
        return Seen(Loss(total, terms), count_F, len(x_BD), observed)


def _addresses(given: Iterable) -> Iterator[int]:
    """Where all tensors of a tuple of tuples lie, and what else there is."""
    for each in given:
        if isinstance(each, Tensor):
            yield each.data_ptr()
        elif isinstance(each, tuple):
            yield from _addresses(each)
        else:
            yield each


def _parameters(sae: SAE) -> tuple[Tensor, ...]:
    return sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec


def _versions(sae: SAE) -> tuple:
    """Changes when somebody changes the weights."""
    return tuple((p.data_ptr(), p._version) for p in _parameters(sae))


def _by_feature(moment: Tensor, like: Tensor) -> Tensor:
    """A moment of one SAE's parameter as its stack has it."""
    if moment.ndim == like.ndim:
        return moment
    return (moment.T if moment.ndim == 2 and not moment.is_contiguous() else moment)[None]


def _passes(n_lists: int, longest: int) -> Iterator[tuple[int, int]]:
    """The first of some lists, and how many, such that all fit that they may hold."""
    many = max(1, LISTED // longest)
    return ((first, min(many, n_lists - first)) for first in range(0, n_lists, many))


def _more(width: int) -> int:
    """How many times as many threads a wide row wants, and so many fewer entries at once."""
    return max(1, _power(width) // 1_024)


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()
