"""Edits within a model's forward passes: made at their sites, at known positions, and taken away.

Hooks belong to a model, not to who registered them, so one model has one user at a time: a lock
that a thread may take again. Shapes: B documents, T positions, D activation width.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saelearn.errors import Refusal
from saelearn.lm.passes import Left, Pass, with_first
from saelearn.lm.sites import Place

Edit = Callable[[Tensor, Tensor], Tensor]
"""(x_BTD, positions_T) -> the tensor that takes the place of x_BTD."""


def shared_refusal(shared: Sequence[str], times: int) -> Refusal:
    """Sites that a pass meets several times."""
    return Refusal(
        "a site that a pass meets once",
        f"{', '.join(shared)}: its module is used at {times} places",
        "take a module beside it, or the stream: lm.residual_sites()",
    )


class _Use:
    """Who uses a model: the lock; the mask of the pass that runs; whether edits rest meanwhile."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.mask_BT: Tensor | None = None
        self.resting = False


_uses: weakref.WeakKeyDictionary[nn.Module, _Use] = weakref.WeakKeyDictionary()
_finding = threading.Lock()


def _use_of(model: nn.Module) -> _Use:
    with _finding:
        return _uses.setdefault(model, _Use())


@contextlib.contextmanager
def alone(model: nn.Module, mask_BT: Tensor | None = None) -> Iterator[None]:
    """No other thread uses the model meanwhile; edits leave alone what `mask_BT` leaves out."""
    use = _use_of(model)
    with use.lock:
        before, use.mask_BT = use.mask_BT, mask_BT
        try:
            yield
        finally:
            use.mask_BT = before


@contextlib.contextmanager
def unedited(model: nn.Module) -> Iterator[None]:
    """Passes in this block run without any edits, also within a block that makes some."""
    use = _use_of(model)
    with use.lock:
        before, use.resting = use.resting, True
        try:
            yield
        finally:
            use.resting = before


@contextlib.contextmanager
def editing(model: nn.Module, edits: Mapping[str, tuple[Place, Edit]]) -> Iterator[None]:
    """Make edits during every pass of the model inside the block; then it is as it was.

    Args:
        model: the whole language model.
        edits: site -> where that is, and what to do there.

    Raises:
        Refusal: a pass ran, and an edit was made in none: its site is one that the model has but
            does not run through.
    """
    use, session = _use_of(model), _Session(model, edits)
    with use.lock, contextlib.ExitStack() as stack:
        for handle in session.hooks(use) if edits else ():
            stack.callback(handle.remove)
        yield
    session.refuse_silence()


class _Session:
    """The edits of one block, the pass that is running, and which edits have been made."""

    def __init__(self, model: nn.Module, edits: Mapping[str, tuple[Place, Edit]]):
        self.model, self.edits = model, edits
        self.made: set[str] = set()
        self.passes = 0
        self.now: Pass | None = None
        self._outermost: nn.Module | None = None
        self._left: Left | None = None
        self._met: set[str] = set()  # in the pass that is running

    def hooks(self, use: _Use) -> Iterator[Any]:
        """Register all hooks; each is yielded at once, so that none is forgotten on an error."""
        base = getattr(self.model, "base_model", self.model)  # some call the model without its head
        wholes = [self.model] if base is self.model else [self.model, base]

        def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if not use.resting:
                self._begin(module, args, kwargs)

        for whole in wholes:
            yield whole.register_forward_pre_hook(begin, with_kwargs=True)
        for site, (place, edit) in self.edits.items():
            change = self._changer(site, edit, use)
            if place.side == "in":
                hook = _before(change, site)
                yield place.module.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                hook = _after(change, site)
                yield place.module.register_forward_hook(hook)
        for whole in wholes:
            yield whole.register_forward_hook(self._end, always_call=True)

    def refuse_silence(self) -> None:
        if self.passes and (silent := [site for site in self.edits if site not in self.made]):
            raise Refusal(
                "sites that the forward pass runs through",
                ", ".join(silent),
                "lm.residual_sites() lists some; other parts run for images, for some tokens only, "
                "or never",
            )

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._outermost is None:
            self.now = Pass.of(module, args, kwargs, self._left)
            self._outermost = module
            self._met.clear()

    def _end(self, module: nn.Module, args: tuple, output: Any) -> None:
        if module is not self._outermost:
            return
        if output is not None:  # None: it ended in an exception
            self.passes += 1
            self._left = self.now and self.now.leaves(output)
        self._outermost = self.now = None

    def _changer(self, site: str, edit: Edit, use: _Use) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            if use.resting:
                return x
            if self.now is None:
                raise Refusal(
                    "a pass of the whole model, which says where its tokens stand",
                    f"a call of a part of it, through {site}",
                    "call lm.model(tokens), or lm.logits",
                )
            if site in self._met:
                raise shared_refusal([site], 2)
            self._met.add(site)
            self.made.add(site)
            mask_BT = self.now.mask_BT if use.mask_BT is None else use.mask_BT
            return _edited(edit, self.now.rows(x, site), self.now, mask_BT).reshape(x.shape)

        return change


def _edited(edit: Edit, x_BTD: Tensor, now: Pass, mask_BT: Tensor | None) -> Tensor:
    """What the edit makes of the tokens; fillings stay as they are."""
    positions_BT = now.positions_BT.to(x_BTD.device)
    if now.alike:
        y_BTD = _checked(edit(x_BTD, positions_BT[0]), x_BTD)
    else:  # documents that begin at different columns: one by one, each at its own positions
        pairs = zip(x_BTD.split(1), positions_BT, strict=True)
        y_BTD = torch.cat([_checked(edit(x_1TD, p_T), x_1TD) for x_1TD, p_T in pairs])
    if mask_BT is not None:
        y_BTD = torch.where(mask_BT[..., None].to(x_BTD.device), y_BTD, x_BTD)
    return y_BTD


def _checked(y_BTD: Tensor, x_BTD: Tensor) -> Tensor:
    """What an edit returned, if it can take x's place."""
    if not isinstance(y_BTD, Tensor) or y_BTD.shape != x_BTD.shape:
        got = tuple(y_BTD.shape) if isinstance(y_BTD, Tensor) else type(y_BTD).__name__
        raise Refusal(f"an edit that returns shape {tuple(x_BTD.shape)}", str(got))
    if y_BTD.is_complex() or y_BTD.device != x_BTD.device:
        raise Refusal(
            f"an edit that returns real numbers on {x_BTD.device}",
            f"{y_BTD.dtype} on {y_BTD.device}".replace("torch.", ""),
            "move what the edit uses: vector.to(x_BTD)",
        )
    return y_BTD.to(x_BTD.dtype)


def _after(change: Callable[[Tensor], Tensor], site: str) -> Callable:
    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        return with_first(output, change, site)

    return hook


def _before(change: Callable[[Tensor], Tensor], site: str) -> Callable:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (with_first(args[0], change, site), *args[1:]), kwargs
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs), None)
        return args, kwargs | {name: with_first(kwargs.get(name), change, site)}

    return hook
