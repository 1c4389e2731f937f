"""SAELens' and TransformerLens' names for places in a block, found by measuring.

    resid_pre + attn_out + mlp_out = resid_post

is what these names mean, and no table of architectures knows it for all: a norm may follow what
attention computes (Gemma 2, OLMo 2, GLM-4), the stream may be added inside of it (Bloom, MPT), a
number may scale it (Granite). So a few tokens pass through the block once, and `attn_out` and
`mlp_out` are the outputs for which the equation holds to rounding; if there are none, the name is
refused. Shapes: B documents, T positions, D activation width.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from saelearn.errors import Refusal
from saelearn.lm import hooks, sites
from saelearn.lm.passes import with_first
from saelearn.lm.sites import Place
from saelearn.lm.visits import some_tokens

_ATTENTION = ("attn", "attention", "temporal_block")
IN_BLOCK = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out",
             "attn.hook_z", "mlp.hook_post")  # fmt: skip
_COPY = "the stream goes past this module too; edit hook_resid_pre, hook_attn_out or hook_mlp_out"


@dataclass(frozen=True)
class Writes:
    """Sites in one block by SAELens' names; those that no module's output or input is are absent.

    missing: why, for the names that are absent.
    """

    sites: dict[str, str]
    missing: str = ""


def find(model: nn.Module, site: str) -> Place:
    """The place that a site names: a module path, or one of SAELens' names.

    Raises:
        Refusal: the model has no such module, or none that does what the name says.
    """
    path, side = sites.split(translate(model, site))
    module = sites.at(model, path, side)
    if module is None:
        raise sites.refusal(model, site, _known(model))
    return Place(module, side, _COPY if site.endswith(".hook_resid_mid") else "")


def translate(model: nn.Module, site: str) -> str:
    """SAELens' and TransformerLens' names into module paths; others as they are.

    Raises:
        Refusal: one of their names for which this model has no place.
    """
    if not isinstance(site, str):
        raise sites.refusal(model, site, [])
    if site == "hook_embed":
        return _embedding(model)
    if (name := sites.lens_name(site)) is None:
        return site
    number, hook = name
    block = f"{sites.blocks_path(model)}.{number}"
    if sites.at(model, block, "out") is None or hook not in IN_BLOCK:
        return site  # unknown: refused with near names by who asked
    if hook in ("hook_resid_pre", "hook_resid_post"):
        return f"{block}:{'in' if hook.endswith('pre') else 'out'}"
    found = _measured(model, block)
    if hook not in found.sites:
        raise Refusal(
            f"a block in which some module's output or input is {hook}",
            f"{site!r}: {found.missing}",
            f"{block}:out is the stream after it; print(lm.model) shows the paths of its modules",
        )
    return found.sites[hook]


def _known(model: nn.Module) -> Iterator[str]:
    yield from ("hook_embed", *(path for path, _ in model.named_modules() if path))
    for i in range(len(sites.residual(model))):
        yield from (f"blocks.{i}.{name}" for name in IN_BLOCK)


# --- measuring ------------------------------------------------------------------------------------

_found: weakref.WeakKeyDictionary[nn.Module, dict[str, Writes]] = weakref.WeakKeyDictionary()


class _Seen(Exception):
    """Ends a pass when the block has been passed."""


@dataclass
class _Passed:
    """What passed the modules of a block: site -> rows [N, D], and which are linear maps."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    linear: list[str] = field(default_factory=list)

    def error(self, a: Tensor, *terms: Tensor) -> float:
        """How far `a` is from the sum of the terms; infinite if by more than rounding.

        Each number is compared by the size of what is added there: where the stream is large and
        what is written small, the numbers near zero tell what is right.
        """
        if any(term.shape != a.shape for term in terms):
            return math.inf
        size = torch.stack([t.float().abs() for t in (a, *terms)]).amax(0)
        error = (a.float() - sum(t.float() for t in terms)).abs()
        if (error > 8 * torch.finfo(a.dtype).eps * size).any():
            return math.inf
        return float(error.sum())


def _measured(model: nn.Module, block: str) -> Writes:
    known = _found.setdefault(model, {})
    if block not in known:
        known[block] = _writes(_passed(model, block), block, model.get_submodule(block))
    return known[block]


def _writes(passed: _Passed, block: str, module: nn.Module) -> Writes:
    x = passed.tensors
    pre, post = x[f"{block}:in"], x[f"{block}:out"]
    outputs = [site for site in x if site.endswith(":out") and site != f"{block}:out"]
    outputs.sort(key=lambda site: site.count("."))  # the outermost first: it may be one of several
    within = {site: site.removeprefix(f"{block}.") for site in outputs}
    reads = [s for s in outputs if any(name in within[s] for name in _ATTENTION)]
    rest = [s for s in outputs if s not in reads]
    error = {(a, m): passed.error(post, pre, x[a], x[m]) for a in reads for m in rest}
    attention, mlp = min(error, key=error.__getitem__, default=(None, None))
    if attention is None or error[attention, mlp] == math.inf:
        kind = type(module).__name__
        return Writes({}, f"no two outputs in {kind} add up with its input to its output")
    found = {"hook_attn_out": attention, "hook_mlp_out": mlp}
    for hook, writer in (("attn.hook_z", attention), ("mlp.hook_post", mlp)):
        if last := _last_map(passed, writer, block, reads if writer == attention else rest):
            found[hook] = last.replace(":out", ":in")
    inputs = sorted((s for s in x if s.endswith(":in")), key=lambda site: site.count("."))
    middle = [
        s for s in inputs if s != f"{block}:in" and passed.error(x[s], pre, x[attention]) < math.inf
    ]
    if middle:
        found["hook_resid_mid"] = middle[0]
    return Writes(found, f"this {type(module).__name__} has no such place")


def _last_map(passed: _Passed, writer: str, block: str, among: list[str]) -> str | None:
    """The linear map whose output is what attention or the MLP computes (before a norm)."""
    x = passed.tensors
    tops = [s for s in among if s.removeprefix(f"{block}.").count(".") == 0]
    for site in among:
        whole = [writer, *(top for top in tops if site.startswith(top.removesuffix(":out") + "."))]
        same = any(x[w].shape == x[site].shape and torch.equal(x[w], x[site]) for w in whole)
        if site in passed.linear and same:
            return site
    return None


def _passed(model: nn.Module, block: str) -> _Passed:
    """Two documents of a few tokens, up to the end of the block, without anybody's edits."""
    passed, root = _Passed(), model.get_submodule(block)
    ids_BT = some_tokens(model)

    def keep(site: str) -> Callable[[Tensor], Tensor]:
        def note(x: Tensor) -> Tensor:
            if x.is_floating_point() and x.numel() and site not in passed.tensors:
                rows = x.reshape(-1, x.shape[-1])
                if len(rows) == ids_BT.numel():  # a clone: some models go on adding in place
                    passed.tensors[site] = rows.detach().clone()
            return x

        return note

    def before(site: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            given = args[0] if args else kwargs.get("hidden_states")
            if isinstance(given, Tensor):
                keep(site)(given)

        return hook

    def after(site: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            try:
                with_first(output, keep(site), site)
            except Refusal:  # nothing there that could be a site
                return
            if module is root:
                raise _Seen

        return hook

    handles = []
    with hooks.unedited(model), torch.no_grad():
        try:
            for path, module in root.named_modules(prefix=block):
                if getattr(getattr(module, "weight", None), "ndim", 0) == 2:
                    passed.linear.append(f"{path}:out")
                handle = module.register_forward_pre_hook(before(f"{path}:in"), with_kwargs=True)
                handles += [handle, module.register_forward_hook(after(f"{path}:out"))]
            model(ids_BT, use_cache=False)
        except _Seen:
            pass
        finally:
            for handle in handles:
                handle.remove()
    if not {f"{block}:in", f"{block}:out"} <= passed.tensors.keys():
        raise Refusal(f"a block that a stream passes through at {block}", type(root).__name__)
    return passed


def _embedding(model: nn.Module) -> str:
    """The module whose output enters the stream, alone or with a vector for each position.

    Models that scale or normalise what their table of tokens gives do it somewhere behind it.
    """
    table = model.get_input_embeddings()
    path = next(path for path, module in model.named_modules() if module is table)
    first = f"{sites.blocks_path(model)}.0"
    seen: dict[str, Tensor] = {}
    with hooks.unedited(model), torch.no_grad():
        ids_BT = some_tokens(model)

        def note(module: nn.Module, args: tuple, output: Tensor) -> None:
            seen["out"] = output.detach().clone()

        def end(module: nn.Module, args: tuple, kwargs: dict) -> None:
            seen["in"] = (args[0] if args else kwargs["hidden_states"]).detach().clone()
            raise _Seen

        one = table.register_forward_hook(note)
        other = model.get_submodule(first).register_forward_pre_hook(end, with_kwargs=True)
        try:
            model(ids_BT, use_cache=False)
        except _Seen:
            pass
        finally:
            one.remove()
            other.remove()
    stream, token = seen["in"].float(), seen["out"].float()
    if stream.shape == token.shape:
        by_position = stream - token
        size = torch.maximum(stream.abs(), token.abs()).amax()
        if (by_position[0] - by_position[1]).abs().max() <= 1e-2 * size:
            return f"{path}:out"
    if (stream[0, :-1] - stream[1, 1:]).abs().max() <= 1e-2 * stream.abs().max():
        return f"{first}:in"  # the same for the same token wherever it stands
    raise Refusal(
        "a module that gives a token's own part of the stream",
        f"'hook_embed': in {type(model).__name__} it is mixed with its position's",
        f"{path}:out is the table of tokens, {first}:in the stream's beginning",
    )
