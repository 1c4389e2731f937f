"""How often one pass runs through each module. A site is one place in a model: a module that is
used at several (Phi's dropout, the shared block of Zamba, the one layer of ALBERT) is none.
"""

from __future__ import annotations

import contextlib
import weakref

import torch
from torch import Tensor, nn

from saelearn.lm import hooks
from saelearn.lm.sites import Place

_Counts = weakref.WeakKeyDictionary[nn.Module, int]
_counted: weakref.WeakKeyDictionary[nn.Module, _Counts] = weakref.WeakKeyDictionary()


def refuse_shared(model: nn.Module, places: dict[str, Place]) -> None:
    """Refuse sites that a pass meets more than once; counted in one short pass for each model.

    A capture that ends at its last site could not tell which of them it saw.
    """
    with hooks.unedited(model):
        if model not in _counted:
            _counted[model] = _count(model)
        counts = _counted[model]
    if shared := [site for site, place in places.items() if counts.get(place.module, 1) > 1]:
        raise hooks.shared_refusal(shared, counts[places[shared[0]].module])


def _count(model: nn.Module) -> _Counts:
    counts: _Counts = weakref.WeakKeyDictionary()

    def note(module: nn.Module, args: tuple) -> None:
        counts[module] = counts.get(module, 0) + 1

    handles = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        # a model that cannot run to its end says so in the pass that was asked for
        with torch.no_grad(), contextlib.suppress(Exception):
            model(some_tokens(model), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def some_tokens(model: nn.Module) -> Tensor:
    """Two documents of ordinary tokens, the second as the first but one place later.

    Special tokens tend to be the first or the last of all ids.
    """
    table = model.get_input_embeddings()
    n = table.weight.shape[0]
    ids_T = (n // 2 + torch.arange(6)) % n
    return torch.stack([ids_T[1:], ids_T[:-1]]).to(table.weight.device)
