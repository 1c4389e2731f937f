"""How values pass between the process that judges and the one in which a student's code runs.

The two directions are not alike. What *leaves* the sandbox is JSON and safetensors of a few kinds
that are listed here: it is parsed, measured and rebuilt, and nothing in it can run. What goes *in*
is pickled by us: the sandbox may trust the judge, never the other way round.

A frame is two lengths, a JSON header and a body of bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from saelearn.sae import SAE

LONGEST_HEADER, LONGEST_BODY = 4 * 2**20, 64 * 2**20  # bytes
DEEPEST, MOST = 40, 50_000  # levels and values in one answer
LONGEST_TEXT = 200_000
DTYPES = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
          torch.bfloat16, torch.float32, torch.float64, torch.complex64}  # fmt: skip
HEAD = struct.Struct(">II")
MODULES = {"SAE": SAE, "Module": nn.Module}  # what an object that stays away may be, by names


class Broken(Exception):
    """What came over the wire is not what the protocol allows."""


class Strange:
    """In the place of a value that is none of the kinds that pass; its class has its name."""


# --- frames ---------------------------------------------------------------------------------------


def frame(header: dict[str, Any], body: bytes = b"") -> bytes:
    head = json.dumps(header).encode()
    return HEAD.pack(len(head), len(body)) + head + body


def read_frame(read_exactly: Callable[[int], bytes]) -> tuple[dict[str, Any], bytes]:
    """The next header and body.

    Raises:
        Broken: too long, or no JSON object.
    """
    n_head, n_body = HEAD.unpack(read_exactly(HEAD.size))
    if n_head > LONGEST_HEADER or n_body > LONGEST_BODY:
        raise Broken(f"an answer of {(n_head + n_body) / 2**20:.0f} MB, which is too large")
    head, body = read_exactly(n_head), read_exactly(n_body)
    try:
        header = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise Broken("an answer that cannot be read") from error
    if not isinstance(header, dict):
        raise Broken("an answer that cannot be read")
    return header, body


# --- out of the sandbox ---------------------------------------------------------------------------


class Packer:
    """Turns values into JSON and tensors; what it cannot turn becomes a name."""

    def __init__(
        self, keep_function: Callable[[Callable], int], keep_graph: Callable[[Tensor], int]
    ):
        self.tensors: dict[str, Tensor] = {}
        self._keep_function, self._keep_graph = keep_function, keep_graph
        self._count = 0

    def body(self) -> bytes:
        return safetensors.torch.save(self.tensors) if self.tensors else b""

    def pack(self, value: Any, depth: int = 0) -> dict[str, Any]:
        self._count += 1
        if depth > DEEPEST or self._count > MOST:
            return _strange(value)
        if value is None or value is ... or isinstance(value, bool | str):
            return self._plain(value)
        if isinstance(value, np.generic) and value.dtype.kind in "biufc":
            value = value.item()
        if isinstance(value, int):
            fits = value.bit_length() < 10 * LONGEST_TEXT
            return {"is": "int", "as": hex(value)} if fits else _strange(value)
        if isinstance(value, float):
            return {"is": "float", "as": float(value).hex()}
        if isinstance(value, complex):
            return {"is": "complex", "as": [value.real.hex(), value.imag.hex()]}
        if isinstance(value, Tensor | np.ndarray):
            return self._array(value)
        if isinstance(value, Mapping):
            pairs = [[self.pack(k, depth + 1), self.pack(v, depth + 1)] for k, v in value.items()]
            return {"is": "dict", "of": pairs}
        if isinstance(value, range):
            value = list(value[:MOST])
        if isinstance(value, list | tuple):
            of = [self.pack(each, depth + 1) for each in value]
            kind = "list" if isinstance(value, list) else "tuple"
            return {"is": kind, "of": of, "name": type(value).__name__}
        if isinstance(value, nn.Module):
            return self._module(value)
        if callable(value):
            return {"is": "function", "id": self._keep_function(value)}
        return {**_strange(value), "is": "object", "id": self._keep_function(value)}

    def _plain(self, value: Any) -> dict[str, Any]:
        if isinstance(value, str):
            return {"is": "str", "as": value[:LONGEST_TEXT].encode("utf-8", "replace").decode()}
        return {"is": "dots" if value is ... else type(value).__name__, "as": value is True}

    def _module(self, value: nn.Module) -> dict[str, Any]:
        """What kind of module it is, and its parameters and buffers; the module itself stays."""
        base = next(name for name, kind in MODULES.items() if isinstance(value, kind))
        parts = [
            [name, self._array(part.detach()), part.requires_grad if learned else None]
            for name, (part, learned) in parts_of(value).items()
        ]
        packed = {**_strange(value), "is": "module", "id": self._keep_function(value)}
        return {**packed, "base": base, "parts": parts}

    def _array(self, value: Tensor | np.ndarray) -> dict[str, Any]:
        try:
            tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
            dense = tensor.detach().resolve_conj().resolve_neg().cpu().clone().contiguous()
            if dense.dtype not in DTYPES or dense.layout != torch.strided:
                return _strange(value)
        except Exception:  # an array of objects, a tensor without numbers
            return _strange(value)
        index = str(len(self.tensors))
        self.tensors[index] = dense
        packed = {"is": "tensor", "index": index, "numpy": isinstance(value, np.ndarray)}
        if isinstance(value, Tensor) and value.requires_grad:
            packed["graph"] = self._keep_graph(value)
        return packed


def _strange(value: Any) -> dict[str, Any]:
    return {"is": "strange", "name": str(type(value).__name__)[:60]}


class Unpacker:
    """Rebuilds values from a header and a body that a student's process wrote.

    Args:
        body: the tensors, in safetensors' format, or nothing.
        function: makes a stand-in for a function of the sandbox, from its number.
        graph: makes a tensor through which gradients flow, from its value and number.
        thing: makes a stand-in for an object of the sandbox, from its number, class and name, and
            of a module the parts: each a name, a tensor, and for a parameter whether it is learned.

    Raises:
        Broken: the body cannot be read.
    """

    def __init__(
        self,
        body: bytes,
        function: Callable[[int], Any],
        graph: Callable[[Tensor, int], Tensor],
        thing: Callable[[int, str, type | None, list[tuple[str, Tensor, bool | None]]], Any],
    ):
        try:
            self._tensors = safetensors.torch.load(body) if body else {}
        except Exception as error:
            raise Broken("an answer whose numbers cannot be read") from error
        self._function, self._graph, self._thing = function, graph, thing

    def unpack(self, packed: Any, depth: int = 0) -> Any:
        """The value.

        Raises:
            Broken: it is not of a kind that passes.
        """
        if depth > DEEPEST + 1:
            raise Broken("an answer that is nested too deeply")
        try:
            return self._of_kind(packed["is"], packed, depth)
        except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
            raise Broken("an answer that cannot be read") from error

    def _of_kind(self, kind: str, packed: dict[str, Any], depth: int) -> Any:
        match kind:
            case "NoneType":
                return None
            case "dots":
                return ...
            case "bool":
                return packed["as"] is True
            case "int":
                return int(packed["as"], 16)
            case "float":
                return float.fromhex(packed["as"])
            case "complex":
                return complex(*map(float.fromhex, packed["as"]))
            case "str":
                return str(packed["as"])[:LONGEST_TEXT]
            case "list" | "tuple":
                parts = [self.unpack(each, depth + 1) for each in packed["of"]]
                return parts if kind == "list" else named(packed["name"], tuple)(parts)
            case "dict":
                unpack = self.unpack
                return {unpack(k, depth + 1): unpack(v, depth + 1) for k, v in packed["of"]}
            case "function":
                return self._function(int(packed["id"]))
            case "object":
                return self._thing(int(packed["id"]), str(packed["name"]), None, [])
            case "module":
                parts = [self._part(*each) for each in packed["parts"]]
                base = MODULES[packed["base"]]
                return self._thing(int(packed["id"]), str(packed["name"]), base, parts)
            case "tensor":
                return self._tensor(packed)
        return named(packed["name"], Strange)()

    def _part(self, name: Any, packed: Any, learned: Any) -> tuple[str, Tensor, bool | None]:
        part = self._tensor({**packed, "numpy": False})
        if learned is not None:
            learned = learned is True and part.is_floating_point()
        return str(name), part, learned

    def _tensor(self, packed: dict[str, Any]) -> Tensor | np.ndarray:
        tensor = self._tensors[packed["index"]].clone()
        if packed["numpy"]:
            return tensor.numpy()
        return self._graph(tensor, int(packed["graph"])) if "graph" in packed else tensor


def named(name: Any, base: type) -> type:
    """`base`, or a class of it with the name that the student's had, for a hint to mention."""
    if name == base.__name__ or not isinstance(name, str):
        return base
    return type("".join(c for c in name if c.isalnum() or c == "_")[:60], (base,), {})


class Yours:
    """What stands in the judge's process for a function or an object of the sandbox.

    The tensors of a module that do so have an attribute `part_of`: its number, and their name.
    """

    number: int


def parts_of(module: nn.Module) -> dict[str, tuple[Tensor, bool]]:
    """The tensors of a module by their names, and whether each is a parameter."""
    parameters = module.named_parameters(remove_duplicate=False)
    found = {name: (each, True) for name, each in parameters}
    return found | {name: (each, False) for name, each in module.named_buffers()}
