"""What grading has to run: all that a student wrote, and what a check may depend on.

Most of a lesson's time goes into what it shows: sweeps, controls, figures. No check asks for them,
and in a cell that is as it was handed out there is nothing to judge. Read from the end, a statement
of such a cell is needed if it binds, or might change, a name that something after it needs. In
doubt it is.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
from collections.abc import Iterable, Iterator, Sequence

REACHES_ALL = {"globals", "locals", "vars", "eval", "exec", "get_ipython", "__main__"}
"""Who uses these may depend on any name."""
ALTERS = {
    "add", "append", "backward", "clear", "cpu", "cuda", "discard", "double", "eval", "extend",
    "float", "half", "insert", "load_state_dict", "manual_seed", "pop", "popitem", "remove",
    "reverse", "seed", "setdefault", "sort", "step", "to", "train", "update", "zero_grad",
}  # fmt: skip
"""Methods after which an object may be another, beside those that end with `_`."""
BUILTIN_ALTERS = {"setattr", "delattr", "next"}
TENSOR = re.compile(r"_[A-Z]+$")
"""How tensors are called. A function may not change them unless its name, too, ends with `_`."""
SHIPPED = {"tiny", "corpus"}
"""Modules from which lessons load what they use and leave as it is."""


def needed(sources: Sequence[str], wanted: Sequence[bool]) -> list[str]:
    """What to run of each of a notebook's cells, in their order.

    Args:
        sources: each cell's Python; what does not parse would not run either.
        wanted: whether a cell is run in any case, and whole.
    """
    return split(sources, wanted, [])[0]


def split(
    sources: Sequence[str], wanted: Sequence[bool], common: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """What to run of each cell, and statements that are run before all of them.

    What the lesson alone decides is the same for a whole class and can be run once for it. A
    statement may be run early if nothing else that is run changes what it reads or binds, and
    nothing that stands before it reads what it binds.

    Args:
        sources, wanted: as for `needed`.
        common: statements that have been run already, as an earlier answer named them; None asks
            which these could be.

    Returns:
        what is left of each cell; and the statements that may be run early, or none if those that
        have been run may not.
    """
    if any(_names(_parsed(s)) & REACHES_ALL for s, run in zip(sources, wanted, strict=True) if run):
        return list(sources), []
    pieces: list[tuple[int, ast.Module]] = []
    for i, source in enumerate(sources):
        tree = _parsed(source)
        lessons = [] if wanted[i] else _Taken().visit(tree).body
        parts = [tree] if wanted[i] else [ast.Module([each], []) for each in lessons]
        pieces += [(i, part) for part in parts]
    always = [wanted[i] for i, _ in pieces]
    effects = _effects([tree for _, tree in pieces])
    chosen = _chosen(effects, always)
    texts = [
        "" if run else ast.unparse(tree) for run, (_, tree) in zip(always, pieces, strict=True)
    ]
    early = _early(effects, chosen, always) if common is None else _found(texts, common)
    if common is not None and not _may_be_early(effects, chosen, early):
        early = set()
    left: list[list[str]] = [[] for _ in sources]
    for n, ((i, _), run) in enumerate(zip(pieces, chosen, strict=True)):
        left[i] += [texts[n]] if run and n not in early else []
    kept = [s if w else "\n".join(x) for s, w, x in zip(sources, wanted, left, strict=True)]
    return kept, [texts[n] for n in sorted(early)]


class _Taken(ast.NodeTransformer):
    """Puts the library's version for `own(answer, library's)`: where answers are judged by another
    process no check has taken one, so that it comes to the same."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        of_two = isinstance(node.func, ast.Name) and len(node.args) == 2 and not node.keywords
        return node.args[1] if of_two and node.func.id == "own" else node


Effect = tuple[set[str], set[str], set[str]]
"""Names that a statement reads, those it binds in any case, and those it binds or might change."""


def _early(effects: list[Effect], chosen: list[bool], always: list[bool]) -> set[int]:
    """The most that may be run early: others are taken away until the rest is independent."""
    early = {n for n, run in enumerate(chosen) if run and not always[n]}
    while not _may_be_early(effects, chosen, early):
        others = [n for n, run in enumerate(chosen) if run and n not in early]
        early = {n for n in early if not any(_meet(effects, n, other) for other in others)}
    return early


def _may_be_early(effects: list[Effect], chosen: list[bool], early: set[int]) -> bool:
    others = [n for n, run in enumerate(chosen) if run and n not in early]
    return not any(_meet(effects, n, other) for n in early for other in others)


def _meet(effects: list[Effect], early: int, other: int) -> bool:
    """Whether it matters which of two statements is run first, or the later one is."""
    read, _, changed = effects[early]
    other_read, _, other_changed = effects[other]
    return bool(other_changed & (read | changed) or (other < early and other_read & changed))


def _found(texts: list[str], common: Sequence[str]) -> set[int]:
    """Where these statements stand, in their order; nowhere if one is missing."""
    found: set[int] = set()
    start = 0
    for text in common:
        if text not in texts[start:]:
            return set()
        start = texts.index(text, start) + 1
        found.add(start - 1)
    return found


def _effects(trees: list[ast.Module]) -> list[Effect]:
    """What each of these pieces reads, binds and might change."""
    imported = {name for tree in trees for name in _imported(tree)}
    methods = {name for tree in trees for name in _methods(tree)}
    constant = imported | _constant(trees) | set(dir(builtins))
    known = imported | set(dir(builtins))
    effects = []
    does: dict[str, set[str]] = {}  # a function's name -> what it changes wherever it is used
    for tree in trees:
        read, bound = _read_and_bound(tree)
        for name, function in _functions(tree):
            changed = _changed(function, known, methods) & read - constant
            does[name] = changed.union(*(does.get(n, ()) for n in [name, *_names(function)]))
        changed = _changed(tree, known, methods) & read - constant
        everything = _binds(tree).union(changed, *(does.get(n, ()) for n in read))
        effects.append((read, bound, everything))
    return effects


def _chosen(effects: list[Effect], wanted: list[bool]) -> list[bool]:
    """Which of the pieces to run."""
    live: set[str] = set()
    run = []
    for (read, bound, touched), always in reversed(list(zip(effects, wanted, strict=True))):
        run.append(always or bool(touched & live))
        if run[-1]:
            live = (live - bound) | read
    return run[::-1]


def _parsed(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])


def _read_and_bound(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Names that a cell takes from others, and those that it binds whatever happens."""
    read: set[str] = set()
    bound: set[str] = set()
    for statement in tree.body:
        table = symtable.symtable(ast.unparse(statement), "cell", "exec")
        taken = set(_referenced(table)) | set(_added_to(statement))
        own: set[str] = set()
        if isinstance(statement, ast.For):
            own = _names(statement.target) - _names(statement.iter)
        read |= taken - own - bound
        bound |= own | set(_surely_bound(statement))
    return read, bound


def _referenced(table: symtable.SymbolTable) -> Iterator[str]:
    """Names of the notebook that some code reads, also within functions."""
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (table.get_type() == "module" or symbol.is_global()):
            yield symbol.get_name()
    for inner in table.get_children():
        yield from _referenced(inner)


def _added_to(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.AugAssign) and (name := _root(each.target)):
            yield name


def _surely_bound(statement: ast.stmt) -> Iterable[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return _imported(statement)
    if isinstance(statement, ast.Assign):
        return [name for target in statement.targets for name in _stored(target)]
    return []


def _binds(node: ast.AST) -> set[str]:
    """Names of the notebook that a cell binds, or stores into, under whatever condition."""
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            found.add(child.name)
        elif not isinstance(
            child, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
        ):
            found |= set(_imported(child)) | _binds(child)
            if isinstance(child, ast.Name | ast.Attribute | ast.Subscript):
                stored = not isinstance(child.ctx, ast.Load)
                found |= {name for name in [_root(child)] if stored and name}
    return found


def _changed(tree: ast.Module, known: set[str], methods: set[str]) -> set[str]:
    """Names whose values a cell's calls might change."""
    found: set[str | None] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            found.add(_root(node))  # within a function, too
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Attribute):
            alters = function.attr.endswith("_") or function.attr in ALTERS | methods
            takes = function.attr.endswith("_") or function.attr in methods
            found |= {_root(function.value)} if alters else set()
        else:
            name = function.id if isinstance(function, ast.Name) else ""
            takes = name not in known or name in BUILTIN_ALTERS or name.endswith("_")
        if takes:
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            found |= {n for each in given for n in _names(each) if not TENSOR.search(n)}
    return {name for name in found if name}


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Whatever may be called later, by its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            yield from ((name, node.value) for t in node.targets for name in _stored(t))


def _constant(trees: Sequence[ast.Module]) -> set[str]:
    """Names whose values nothing changes: functions, numbers, texts, what the course ships."""
    fixed, others = set(), set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            fixed.add(node.name)
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for place, value in pairs:
                shipped = isinstance(value, ast.Call) and _root(value.func) in SHIPPED
                kind = fixed if shipped or isinstance(value, ast.Constant) else others
                kind.update(_stored(place))
    return fixed - others


def _imported(node: ast.AST) -> list[str]:
    return [
        (alias.asname or alias.name).split(".")[0]
        for each in ast.walk(node)
        if isinstance(each, ast.Import | ast.ImportFrom)
        for alias in each.names
    ]


def _methods(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from (each.name for each in node.body if isinstance(each, ast.FunctionDef))


def _names(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _stored(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            yield each.id


def _root(node: ast.AST) -> str | None:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Starred):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None
