"""Readable refusals: what was expected, what came, what to do."""

from __future__ import annotations

import functools
import inspect
import math
import operator
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor


class Refusal(ValueError):
    """Input that cannot be used, told in three parts so that the reader can act on it.

    Args:
        expected: what the function needs.
        received: what it was given.
        remedy: what the caller can do about it.
    """

    def __init__(self, expected: str, received: str, remedy: str = ""):
        self.expected, self.received, self.remedy = expected, received, remedy
        lines = [f"expected {expected}", f"received {received}"]
        super().__init__("\n  ".join([*lines, f"try      {remedy}"] if remedy else lines))

    def __reduce__(self):
        """So that a refusal gets from a worker process to its parent."""
        return type(self), (self.expected, self.received, self.remedy)


class ArtifactError(Refusal, OSError):
    """A file that is missing, damaged, or could not be written."""


class Misplaced(UserWarning):
    """What was made for one model or site is used at another."""


def check_activations(x: Tensor, d_in: int | None = None, *, name: str = "activations") -> Tensor:
    """Return `x_ND` if it is a non-empty, finite, floating matrix of width `d_in`; else refuse.

    Args:
        x: the candidate, `[N, D]`.
        d_in: the width D that is needed; any width if None.
        name: what to call it in the message.
    """
    if not isinstance(x, Tensor):
        raise Refusal(
            f"{name} as a torch.Tensor [N, D]",
            type(x).__name__,
            "torch.as_tensor(x) turns arrays and lists into tensors",
        )
    check_width(x, d_in, name=name)
    if x.ndim != 2:
        raise Refusal(
            f"{name} of shape [N, D]",
            f"shape {tuple(x.shape)}",
            "flatten batch and position first: x.flatten(0, -2)",
        )
    if len(x) == 0:
        raise Refusal(f"at least one row of {name}", "an empty dataset", "collect some text first")
    if not x.is_floating_point():
        raise Refusal(f"{name} of a floating dtype", str(x.dtype), "call .float() on them")
    check_finite(x, name=name)
    return x


def check_width(x: Tensor, width: int | None, *, name: str = "activations") -> None:
    """Refuse what is no tensor of real numbers whose last dimension is `width`."""
    if not isinstance(x, Tensor) or x.is_complex():
        received = str(x.dtype) if isinstance(x, Tensor) else brief(x)
        raise Refusal(f"{name} as a torch.Tensor of real numbers", received, "torch.as_tensor(x)")
    if x.ndim == 0 or (width is not None and x.shape[-1] != width):
        raise Refusal(
            f"{name} of width {width}" if width else f"{name} with at least one dimension",
            f"shape {tuple(x.shape)}",
            "check that the data comes from the site (and the model) this was made for",
        )


def check_finite(x: Tensor, *, name: str = "activations") -> None:
    """Refuse NaN and infinity before they silently poison everything computed from them."""
    if x.numel() and x.is_floating_point() and x.device.type == "cpu":
        x = x.detach()
        if math.isfinite(x.sum()):  # the fastest look: a single NaN or infinity spoils a sum
            return
        if all(map(math.isfinite, map(float, x.aminmax()))):  # the sum alone was too large
            return
    elif torch.isfinite(x).all():
        return
    n_nan, n_inf = int(x.isnan().sum()), int(x.isinf().sum())
    raise Refusal(
        f"finite {name}",
        f"{n_nan} NaN and {n_inf} infinite of {x.numel()} values",
        "look for overflow in half precision, a division by zero, or uninitialised memory",
    )


def check_series(values: Iterable, name: str, *, least: int = 0) -> list:
    """Return `values` as a list if they are several things in a row; else refuse.

    One text is no row of letters, and one thing no row of its parts: `[x]` makes it a row.

    Args:
        least: how many there have to be.
    """
    single = isinstance(values, str | bytes | Mapping | Iterator) or not isinstance(
        values, Iterable
    )
    if single or getattr(values, "ndim", None) == 0:  # a tensor or array of one
        raise Refusal(f"{name} as a list", brief(values), "put a single one into brackets: [x]")
    values = list(values)
    if len(values) < least:
        raise Refusal(f"at least {least} of {name}", f"{len(values)}")
    return values


def check_named(values: Mapping, name: str, *, least: int = 0) -> Mapping:
    """Return `values` if it is a mapping from names to things, `least` of them; else refuse."""
    if not isinstance(values, Mapping):
        raise Refusal(f"{name} by name, as a dict", brief(values), "{'a name': ...}")
    if len(values) < least:
        raise Refusal(f"at least {least} of {name}", f"{len(values)}")
    return values


def brief(value: object) -> str:
    """What a value is, for a message: its type, and its repr if that is short."""
    try:
        text = repr(value)
    except Exception:  # of somebody else's class, or an integer of thousands of digits
        return type(value).__name__
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


ABOVE_0 = 1e-30
"""A lower end for what must not be 0; smaller numbers vanish in single precision."""


def check_range(value: float, name: str, low: float, high: float = math.inf) -> float:
    """Return `value` if it is a finite number in [low, high]; else refuse. No truth value is one.

    Integers of any size are numbers, but not those that no float can hold.
    """
    try:
        finite = not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:
        finite = False
    if finite and low <= value <= high:
        return value
    remedy = f"pass a number for {name} in that range"
    raise Refusal(_span(name, low, high), brief(value), remedy)


def check_whole(value: int, name: str, low: int, high: float = 2**63 - 1) -> int:
    """Return `value` as an int if it is a whole number in [low, high]; else refuse."""
    truth = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    if truth or not hasattr(value, "__index__"):
        raise Refusal(f"{name} as a whole number", brief(value))
    try:
        number = operator.index(value)
    except TypeError:  # a tensor of several
        raise Refusal(f"{name} as a whole number", brief(value)) from None
    return int(check_range(number, name, low, high))


def check_flag(value: bool, name: str) -> bool:
    """Return `value` if it is True or False: the text "false" would count as true."""
    if type(value).__name__ not in ("bool", "bool_"):  # NumPy's too
        raise Refusal(f"{name} as True or False", brief(value))
    return bool(value)


def _span(name: str, low: float, high: float) -> str:
    least = f"{name} above 0" if low == ABOVE_0 else f"{name} >= {_short(low)}"
    if high >= 2**63 - 1:  # what no size comes to is no limit to speak of
        return least
    if low == ABOVE_0:
        return f"{least} and at most {_short(high)}"
    return f"{name} between {_short(low)} and {_short(high)}"


def _short(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- all arguments of a function ------------------------------------------------------------------


def whole(low: int, high: float = 2**63 - 1) -> Callable[[Any, str], int]:
    """For `checked`: a whole number in [low, high]."""
    return functools.partial(check_whole, low=low, high=high)


def number(low: float = -1e300, high: float = math.inf) -> Callable[[Any, str], float]:
    """For `checked`: a finite number in [low, high]."""
    return functools.partial(check_range, low=low, high=high)


def checked(
    stretch: str = "", /, **numbers: Callable[[Any, str], Any]
) -> Callable[[Callable], Callable]:
    """Check what a function is given, where it enters.

        @checked(k=whole(1), share=number(0, 1))
        def f(x_ND: Tensor, y_ND: Tensor, k: int, share: float = 0.5, slow: bool = False): ...

    Tensors are checked by their names: `x_ND` is a matrix of finite real numbers, at least one of
    them, and the same letter means the same size. Names that begin with `labels`, `holds` or
    `fires` hold truth values, those with `tokens` whole numbers from 0 on; activations, weights and
    directions (`x`, `W`, `a`, `direction`) have a floating dtype. Truth values, texts, lists,
    functions and objects of a class are checked by their annotation, numbers by the ranges that
    are given here, which are added to the docstring. None passes where it is the default.

    Args:
        stretch: letters of which a tensor may have 1, which stands for as many as the others have.
    """

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())
        optional = {p.name for p in parameters if p.default is None}
        matrices = {p.name: found[1] for p in parameters if (found := _SHAPED.search(p.name))}

        @functools.cache
        def kinds() -> dict[str, Callable[[Any, str], Any] | None]:  # late: all classes are there
            return {p.name: _kind(str(p.annotation), function) for p in parameters}

        @functools.cache
        def others() -> dict[str, tuple[type, ...]]:
            return {p.name: _others(str(p.annotation), function) for p in parameters}

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            sizes: dict[str, int] = {}
            for name, value in given.items():
                if value is None and name in optional:
                    continue
                if name in numbers:
                    numbers[name](value, name)
                elif name in matrices and not isinstance(value, others()[name]):
                    check_tensor(value, name, matrices[name], sizes, stretch)
                elif check := kinds()[name]:
                    check(value, name)
            return function(*args, **kwargs)

        _document(wrapper, numbers)
        return wrapper

    return decorate


def check_text(value: str, name: str) -> str:
    """Return `value` if it is a text; else refuse."""
    if not isinstance(value, str):
        raise Refusal(f"{name} as a text", brief(value))
    return value


def check_choice(value: str, name: str, known: Iterable[str]) -> str:
    """Return `value` if it is one of those known; else refuse."""
    if not isinstance(value, str) or value not in known:
        raise Refusal(f"{name} as one of {', '.join(known)}", brief(value))
    return value


def check_pieces(values: Iterable, name: str) -> Iterable:
    """Return `values` if one thing after the other can be taken from it; else refuse."""
    if not isinstance(values, Iterable) or getattr(values, "ndim", None) == 0:
        raise Refusal(f"{name}, one after the other", brief(values))
    return values


def check_callable(value: Callable, name: str) -> Callable:
    """Return `value` if it can be called; else refuse."""
    if not callable(value):
        raise Refusal(f"{name} as a function", brief(value))
    return value


_KINDS = {
    "bool": check_flag,
    "str": check_text,
    "Sequence": check_series,
    "Mapping": check_named,
    "Callable": check_callable,
}


def _kind(annotation: str, function: Callable) -> Callable[[Any, str], Any] | None:
    """The check of an annotation; None of one that says too little, such as `A | B`."""
    name = _bare(annotation).removesuffix(" | None")
    if name in _KINDS:
        return _KINDS[name]
    kind = _class(name, function)
    if kind is None:
        return None

    def check(value: Any, name: str) -> None:
        if not isinstance(value, kind):
            raise Refusal(f"{name} as a {kind.__name__}", brief(value))

    return check


def _others(annotation: str, function: Callable) -> tuple[type, ...]:
    """What may stand in a tensor's place: the classes of `Tensor | A | None` beside it."""
    names = set(_bare(annotation).split(" | "))
    if "Tensor" not in names:
        return ()
    found = (_class(name, function) for name in sorted(names - {"Tensor", "None"}))
    return tuple(kind for kind in found if kind)


def _bare(annotation: str) -> str:
    """An annotation without what stands in brackets."""
    while annotation != (annotation := re.sub(r"\[[^\[\]]*\]", "", annotation)):
        pass
    return annotation


def _class(name: str, function: Callable) -> type | None:
    """The class of that name in a function's module, if there is one and instances can be told."""
    kind: Any = types.SimpleNamespace(**inspect.unwrap(function).__globals__)
    for part in name.split("."):
        kind = getattr(kind, part, None)
    return kind if isinstance(kind, type) and not getattr(kind, "_is_protocol", False) else None


_SHAPED = re.compile(r"_([A-Z]{1,4})$")


def check_tensor(
    x: Tensor, name: str, letters: str, sizes: dict[str, int] | None = None, stretch: str = ""
) -> Tensor:
    """Return `x` if it is what its name says (`checked`); else refuse.

    Args:
        letters: one for each dimension; behind "..." any may come before them.
        sizes: how large each letter is; those that are new are added.
        stretch: as for `checked`.
    """
    shape = f"[{', '.join(letters.replace('...', '')) or '...'}]"
    sizes = {} if sizes is None else sizes
    if not isinstance(x, Tensor):
        raise Refusal(f"{name} as a torch.Tensor {shape}", brief(x), "torch.as_tensor(x)")
    if x.is_meta or x.layout != torch.strided:
        received = "device 'meta'" if x.is_meta else str(x.layout)
        raise Refusal(f"{name} as a dense tensor with numbers in it", received, "x.to_dense()")
    if letters.startswith("..."):
        letters = letters.removeprefix("...")
        extra = max(0, x.ndim - len(letters))
    else:
        extra = 0
    if x.ndim != len(letters) + extra or x.numel() == 0:
        received, remedy = f"shape {tuple(x.shape)}", "tokenize some text first"
        raise Refusal(
            f"{name} of shape {shape}, none of them 0", received, remedy if "tok" in name else ""
        )
    for letter, size in zip(letters, x.shape[extra:], strict=True):
        if letter in stretch and 1 in (size, sizes.get(letter)):
            sizes[letter] = max(size, sizes.get(letter, 1))
        elif size != sizes.setdefault(letter, size):
            received = f"shape {tuple(x.shape)}"
            same = f"the same {letter}, {sizes[letter]}, as before it"
            raise Refusal(f"{name} of shape {shape} with {same}", received)
    kind, dtype = name.split("_")[0], str(x.dtype).removeprefix("torch.")
    if kind in ("labels", "holds", "fires"):
        if x.dtype != torch.bool:
            raise Refusal(f"{name} of truth values", dtype, "x > 0 makes them of numbers")
    elif kind == "tokens":
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise Refusal(f"{name} of whole numbers", dtype)
        if x.min() < 0:
            raise Refusal(f"{name} from 0 on", f"{int(x.min())}")
    elif x.is_complex() or (kind in ("x", "W", "a", "direction") and not x.is_floating_point()):
        raise Refusal(f"{name} of real numbers, in a floating dtype", dtype, "x.float()")
    else:
        check_finite(x, name=name)
    return x


def _document(function: Callable, numbers: Mapping[str, Callable]) -> None:
    """Say in the docstring what is checked of numbers."""
    spans = [_span(name, **check.keywords) for name, check in numbers.items()]
    if spans and function.__doc__:
        lines = f"Checked: {', '.join(spans)}."
        function.__doc__ = f"{inspect.cleandoc(function.__doc__)}\n\n{lines}\n"
