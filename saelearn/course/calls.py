"""What goes into the sandbox with a call, and what became of it there.

A check hands its arguments to a student's function as it would in one process: whatever they hold
is pickled by us, and what the call changed of them is told afterwards.
"""

from __future__ import annotations

import io
import pickle
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saelearn.course.wire import Broken, Packer, Yours, parts_of

GENERATOR = torch.Generator  # under its own name: the judge puts another in its place


@dataclass
class Taken:
    """What a call takes along and might change, whatever it lies in; each once, as it was met."""

    tensors: list[Tensor] = field(default_factory=list)
    arrays: list[np.ndarray] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    holders: list[list | dict] = field(default_factory=list)
    known: set[int] = field(default_factory=set)

    def meet(self, value: Any) -> None:
        """Note a value; called for everything that is pickled."""
        kinds = ((Tensor, self.tensors), (nn.Module, self.modules), (np.ndarray, self.arrays),
                 (torch.optim.Optimizer, self.optimizers))  # fmt: skip
        for kind, met in kinds:
            if isinstance(value, kind) and id(value) not in self.known:
                self.known.add(id(value))
                met.append(value)
        if isinstance(value, Yours) and isinstance(value, nn.Module):
            for part, _ in parts_of(value).values():
                self.meet(part)


class _Pickler(pickle.Pickler):
    """Pickles a check's arguments; functions that stay with the judge become numbers."""

    def __init__(self, file: io.BytesIO, keep: Callable[[Callable], int]):
        super().__init__(file, protocol=5)
        self._keep = keep
        self.taken = Taken()
        self._alive: list[Tensor] = []

    def persistent_id(self, value: Any) -> tuple[str, Any] | None:
        self.taken.meet(value)
        if isinstance(value, Yours):
            return "yours", value.number
        if isinstance(value, Tensor) and hasattr(value, "part_of"):
            return "part", value.part_of
        if isinstance(value, types.FunctionType) and "<l" in value.__qualname__:  # locals, lambda
            return "ask", self._keep(value)
        return None

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, GENERATOR):
            return _generator, (value.get_state().numpy().tobytes(),)
        if isinstance(value, nn.Parameter):  # its numbers are no tensor beside it
            data = value.data
            self._alive.append(data)
            self.taken.known.add(id(data))
            return _parameter, (data, value.requires_grad)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, body: bytes, load: Callable[[tuple[str, Any]], Any]):
        super().__init__(io.BytesIO(body))
        self.persistent_load = load


def _generator(state: bytes) -> torch.Generator:
    generator = GENERATOR()
    generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    return generator


def _parameter(data: Tensor, learned: bool) -> nn.Parameter:
    return nn.Parameter(data, requires_grad=learned)


def into(value: Any, keep: Callable[[Callable], int]) -> bytes:
    """The judge's value for the sandbox; what is one object in it stays one."""
    file = io.BytesIO()
    _Pickler(file, keep).dump(value)
    return file.getvalue()


def from_judge(body: bytes, load: Callable[[tuple[str, Any]], Any]) -> Any:
    """For the sandbox alone: the value that the judge sent."""
    return _Unpickler(body, load).load()


def call_into(
    arguments: tuple, keywords: dict[str, Any], keep: Callable[[Callable], int]
) -> tuple[bytes, Taken]:
    """A call's arguments for the sandbox, and what of them it might change.

    What a pickle leaves out follows: gradients, and the values that the judge has for tensors which
    are the sandbox's own.
    """
    file = io.BytesIO()
    pickler = _Pickler(file, keep)
    pickler.dump((arguments, keywords))
    taken, pickler.taken = pickler.taken, Taken()
    taken.holders += _holders((arguments, tuple(keywords.values())))
    slopes = [tensor.grad for tensor in taken.tensors]
    values = [t.detach() if hasattr(t, "part_of") else None for t in taken.tensors]
    what = (taken.tensors, taken.arrays, taken.modules, taken.optimizers, taken.holders)
    pickler.dump((*what, slopes, values))
    return file.getvalue(), taken


def call_from_judge(
    body: bytes, load: Callable[[tuple[str, Any]], Any]
) -> tuple[tuple, dict[str, Any], Taken]:
    """For the sandbox alone: arguments, and the same parts of them that the judge noted."""
    unpickler = _Unpickler(body, load)
    arguments, keywords = unpickler.load()
    *what, slopes, values = unpickler.load()
    taken = Taken(*what)
    for tensor, slope, value in zip(taken.tensors, slopes, values, strict=True):
        if value is not None and not same(tensor, value):
            tensor.data = value
        tensor.grad = slope
    return arguments, keywords, taken


# --- what a call may change -----------------------------------------------------------------------


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.detach(), b.detach())


class Before:
    """What a call was given as it was before; for the sandbox, which tells what became of it.

    A tensor that a module had under a name counts as changed if another stands there afterwards,
    or none.
    """

    def __init__(self, taken: Taken):
        self._taken = taken
        self._tensors = [tensor.detach().clone() for tensor in taken.tensors]
        self._arrays = [array.copy() for array in taken.arrays]
        self._held = [list(_entries(holder)) for holder in taken.holders]
        self._places: dict[int, tuple[nn.Module, str]] = {}
        for module in taken.modules:
            for name, (part, _) in parts_of(module).items():
                self._places.setdefault(id(part), (module, name))

    def changed(self, packer: Packer) -> dict[str, Any]:
        """For each thing that was taken: nothing, or what it is now."""
        taken = self._taken
        return {
            "tensors": [
                self._tensor(now, old, packer)
                for now, old in zip(taken.tensors, self._tensors, strict=True)
            ],
            "arrays": [
                None if _same_array(now, old) else packer.pack(now)
                for now, old in zip(taken.arrays, self._arrays, strict=True)
            ],
            "holders": [
                None if _same_entries(list(_entries(now)), old) else packer.pack(now)
                for now, old in zip(taken.holders, self._held, strict=True)
            ],
            "optimizers": [packer.pack(each.state_dict()["state"]) for each in taken.optimizers],
            "hooks": [
                len(each._forward_hooks) + len(each._forward_pre_hooks) for each in taken.modules
            ],
        }

    def _tensor(self, leaf: Tensor, old: Tensor, packer: Packer) -> dict[str, Any]:
        now = leaf
        if id(leaf) in self._places:
            module, name = self._places[id(leaf)]
            now, _ = parts_of(module).get(name, (old.new_empty(0), False))
        return {
            "changed": None if same(now, old) else packer.pack(now.detach()),
            "grad": None if leaf.grad is None else packer.pack(leaf.grad.detach()),
        }


def _holders(value: Any) -> Iterator[list | dict]:
    """The lists and dictionaries among a call's arguments, in one fixed order."""
    if isinstance(value, list | tuple | dict):
        if not isinstance(value, tuple):
            yield value
        for each in value.values() if isinstance(value, dict) else value:
            yield from _holders(each)


def _entries(holder: list | dict) -> Iterator[Any]:
    if isinstance(holder, list):
        yield from holder
        return
    for key, value in holder.items():
        yield key
        yield value


def _same_entries(now: list, old: list) -> bool:
    return len(now) == len(old) and all(a is b for a, b in zip(now, old, strict=True))


def _same_array(now: np.ndarray, old: np.ndarray) -> bool:
    return now.shape == old.shape and now.dtype == old.dtype and now.tobytes() == old.tobytes()


Unpack = Callable[[Any], Any]


def do_the_same(taken: Taken, told: dict[str, Any], unpack: Unpack) -> None:
    """Do to what a call took along what was done to the copies, as `Before.changed` told.

    Raises:
        Broken: it does not fit.
    """
    for name, apply in _APPLY.items():
        things = taken.modules if name == "hooks" else getattr(taken, name)
        afters = told.get(name)
        if not isinstance(afters, list) or len(afters) != len(things):
            raise Broken("an answer that cannot be read")
        for thing, after in zip(things, afters, strict=True):
            apply(thing, after, unpack)


def _of_tensor(leaf: Tensor, after: Any, unpack: Unpack) -> None:
    if not isinstance(after, dict):
        raise Broken("an answer that cannot be read")
    changed, grad = (unpack(after[key]) if after.get(key) else None for key in ("changed", "grad"))
    if isinstance(changed, Tensor):
        leaf.data = changed
    if isinstance(grad, Tensor) and grad.shape == leaf.shape and leaf.requires_grad:
        leaf.grad = grad.to(leaf.dtype)
    elif leaf.grad is not None:
        leaf.grad = None


def _of_array(array: np.ndarray, after: Any, unpack: Unpack) -> None:
    changed = unpack(after) if after else None
    if isinstance(changed, np.ndarray) and changed.shape == array.shape:
        array[...] = changed


def _of_holder(holder: list | dict, after: Any, unpack: Unpack) -> None:
    changed = unpack(after) if after else holder
    if changed is holder or type(changed) is not type(holder):
        return
    holder.clear()
    holder.extend(changed) if isinstance(holder, list) else holder.update(changed)


def _of_hooks(module: nn.Module, n: Any, _: Unpack) -> None:
    had = len(module._forward_hooks) + len(module._forward_pre_hooks)
    n = min(n, 9) if isinstance(n, int) and not isinstance(module, Yours) else had
    if n < had:  # others' hooks are gone over there
        module._forward_hooks.clear()
    for _ in range(n - had):
        module.register_forward_hook(lambda *_: None)


def _of_optimizer(own: torch.optim.Optimizer, after: Any, unpack: Unpack) -> None:
    found = unpack(after)  # for each parameter a dictionary of tensors and numbers
    if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
        raise Broken("an answer that cannot be read")
    own.load_state_dict({**own.state_dict(), "state": found})


_APPLY = {
    "tensors": _of_tensor, "arrays": _of_array, "holders": _of_holder,
    "hooks": _of_hooks, "optimizers": _of_optimizer,
}  # fmt: skip
