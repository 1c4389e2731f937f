"""What stands in the judge's process for functions and objects that stay in the sandbox.

An answer may be a class. Its objects never leave the sandbox, where their code runs; what stands
here has the class's name, asks there for every attribute, and lets every method be computed there.
An SAE, or another module, is one here as well: its parameters and buffers are tensors on this side
that are kept equal to those on the other, so that a check can ask for a gradient, or change them.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, Protocol, Self

from torch import Tensor, nn

from saelearn.course.wire import Strange, Yours, named


class Asked(Protocol):
    """The sandbox."""

    def call(self, function: int, arguments: tuple, keywords: dict, method: str = "") -> Any: ...

    def attribute(self, far: Far, name: str) -> Any: ...


class Far(Yours, Strange):
    """An object of a student's."""

    def __init__(self, sandbox: Asked, number: int):
        vars(self).update(number=number, sandbox=sandbox)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("number", "sandbox"):
            raise AttributeError(f"{type(self).__name__} shows no {name}")
        return self.sandbox.attribute(self, name)

    def ask(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """What a method gives, computed there."""
        return self.sandbox.call(self.number, (self, *arguments), keywords, method)


class Function(Far):
    """A student's function, class, or whatever else can be called."""

    __name__ = "answer"

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.sandbox.call(self.number, arguments, keywords)


class Module(Far, nn.Module):
    """A student's module."""

    def __init__(self, sandbox: Asked, number: int):
        nn.Module.__init__(self)
        Far.__init__(self, sandbox, number)

    def __getattr__(self, name: str) -> Any:
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            return Far.__getattr__(self, name)

    def hold(self, name: str, part: Tensor, learned: bool | None) -> None:
        """Have a parameter, or a buffer where `learned` is None; names may have dots."""
        if learned is None:
            self._buffers[name] = part
        else:
            part = self._parameters[name] = nn.Parameter(part, requires_grad=learned)
        part.part_of = (self.number, name)

    def train(self, mode: bool = True) -> Self:
        self.ask("train", mode)
        return super().train(mode)


def of(
    sandbox: Asked,
    number: int,
    name: str,
    base: type[nn.Module] | None,
    parts: list[tuple[str, Tensor, bool | None]],
) -> Far:
    """What stands here for the object `number`, of a class called `name`."""
    if base is None:
        return named(name, Far)(sandbox, number)
    module = named(name, _modules_of(base))(sandbox, number)
    for part in parts:
        module.hold(*part)
    return module


@functools.cache
def _modules_of(base: type[nn.Module]) -> type[Module]:
    """A class of stand-ins that are a `base`: what it does, is done there."""
    kinds = [kind for kind in base.__mro__ if not issubclass(nn.Module, kind)]
    does = {
        name
        for kind in kinds
        for name, each in vars(kind).items()
        if isinstance(each, types.FunctionType) and not name.startswith("_")
    }
    return type(base.__name__, (Module, base), {name: _asks(name) for name in does | {"forward"}})


def _asks(method: str) -> Callable[..., Any]:
    return lambda self, *arguments, **keywords: self.ask(method, *arguments, **keywords)
