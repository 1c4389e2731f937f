"""A plugin for nbval: numbers that were measured are compared within what their cell allows.

    "metadata": {"tolerance": {"rtol": 0.05, "atol": 0.01}}

A number with a decimal point or an exponent may differ from the stored one by atol + rtol times its
size. Whole numbers are counts and names, and stay exact, unless the cell says `"whole": true`; so
does all other text, but for the width of its gaps. A cell without a tolerance is compared exactly.

Fix a tolerance from the spread over at least three seeds: it must be narrower than what it claims.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

try:
    from nbval import plugin
except ImportError:  # a GPU's machine, on which no notebook is compared
    plugin = None

KEYS = {"rtol", "atol", "whole"}
WIDEST = 0.5  # rtol: a number that may be halved says nothing
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?(?![\d_])")
TEXTS = ("text/plain", "text/html", "text/markdown")


def differences(came: str, expected: str, tolerance: dict[str, Any]) -> list[str]:
    """What of a text lies outside its tolerance, each as a sentence."""
    texts = [" ".join(NUMBER.sub("\0", text).split()) for text in (came, expected)]
    if texts[0] != texts[1]:
        return ["the text between the numbers is another one"]
    found = []
    for new, old in zip(NUMBER.findall(came), NUMBER.findall(expected), strict=True):
        measured = bool(re.search(r"[.e]", new + old)) or tolerance.get("whole", False)
        a, b = float(new.replace(",", "")), float(old.replace(",", ""))
        room = tolerance.get("atol", 0.0) + tolerance.get("rtol", 0.0) * abs(b) if measured else 0.0
        if not math.isclose(a, b, rel_tol=1e-12, abs_tol=room * (1 + 1e-9)):
            found.append(f"expected {old} within {room:g}, came {new}")
    return found


def faults_of(tolerance: Any) -> Iterator[str]:
    """What is wrong with a cell's tolerance."""
    if not isinstance(tolerance, dict) or set(tolerance) - KEYS:
        yield f"a tolerance has {', '.join(sorted(KEYS))}, not {tolerance!r}"
        return
    sizes = [tolerance.get(name, 0.0) for name in ("rtol", "atol")]
    if not all(isinstance(size, int | float) and size >= 0 for size in sizes) or not any(sizes):
        yield f"a tolerance needs rtol or atol above 0, not {tolerance!r}"
    elif sizes[0] > WIDEST:
        yield f"rtol {sizes[0]} says nothing; at most {WIDEST}"


def _texts(output: dict[str, Any]) -> dict[tuple[str, str], str]:
    """The texts in an output that hold numbers, by where they stand."""
    if output["output_type"] == "stream":
        return {("stream", output["name"]): "".join(output["text"])}
    data = output.get("data", {})
    return {("data", kind): "".join(data[kind]) for kind in TEXTS if kind in data}


def _settled(came: list[dict], expected: list[dict], tolerance: dict) -> tuple[list, list[str]]:
    """What came, with the stored text wherever it lies within the tolerance; and what does not."""
    settled, found = [], []
    for new, old in zip_longest(came, expected):
        if new is None:
            break
        new = copy.deepcopy(new)
        known = _texts(old) if old else {}
        for (where, kind), text in _texts(new).items():
            if (where, kind) in known:
                outside = differences(text, known[where, kind], tolerance)
                found += outside
                if not outside and where == "stream":
                    new["text"] = known[where, kind]
                elif not outside:
                    new["data"][kind] = known[where, kind]
        settled.append(new)
    return settled, found


def _compare(self, test, ref, skip_compare=None):
    tolerance = self.cell.metadata.get("tolerance")
    if tolerance is None:
        return _exactly(self, test, ref, skip_compare)
    test, outside = _settled(test, ref, tolerance)
    same = _exactly(self, test, ref, skip_compare)
    if not same:
        self.comparison_traceback[:0] = [f"{line}\n" for line in outside]
    return same


if plugin:
    _exactly = plugin.IPyNbCell.compare_outputs
    plugin.IPyNbCell.compare_outputs = _compare
