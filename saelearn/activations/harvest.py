"""From model and text to activations, and back into the model. Lesson 07.

Shapes: N documents, T positions, D activation width; rows are (document, position) flattened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from saelearn.activations.shards import to_dtype
from saelearn.activations.source import Leave, Rows, Source, write
from saelearn.activations.store import MEMORY_LIMIT, ActivationStore
from saelearn.errors import Refusal, check_choice, check_tensor, check_width, checked, number, whole
from saelearn.lm import LM, Batch, Edit, made_for
from saelearn.metrics import ABLATIONS, LossRecovered, loss_recovered
from saelearn.sae import SAE


@dataclass(frozen=True)
class Activations:
    """Activations with where they come from.

    x_ND: one row a token; tokens_NT: the documents; skip: how many first positions of each
    document were left out; kept_NT: which places have a row (bool), in reading order. Without
    `kept_NT` all have one from `skip` on: row `d * (T - skip) + t - skip` is position t of
    document d. about: what an SAE of it has to remember (`LM.about`).
    """

    x_ND: Tensor
    tokens_NT: Tensor
    site: str
    skip: int
    kept_NT: Tensor | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens_N(self) -> Tensor:
        """The token of each row."""
        return self.tokens_NT[self.places_NT]

    @property
    def places_NT(self) -> Tensor:
        """Which places have a row (bool)."""
        if self.kept_NT is not None:
            return self.kept_NT
        late_T = torch.arange(self.tokens_NT.shape[1]) >= self.skip
        return late_T.expand(self.tokens_NT.shape)


@checked(pass_size=whole(1), skip=whole(0), max_norm=number(1))
def collect(
    lm: LM,
    tokens_NT: Tensor,
    site: str,
    *,
    mask_NT: Tensor | None = None,
    pass_size: int = 128,
    skip: int = 1,
    leave_tokens: Sequence[int] = (),
    max_norm: float | None = None,
    progress: bool = False,
) -> Activations:
    """All activations of a site over some documents, in memory (4 N T D bytes).

    `LM.capture` reads them off the running model, pass by pass; what is here leaves out and lines
    up.

    Args:
        lm: the model.
        tokens_NT: token ids.
        site: where to look.
        mask_NT: true where a token stands, if documents are filled up; None: everywhere.
        pass_size: documents in one pass.
        skip: first positions to leave out; position 0 is `<doc>`, whose activation is always
            the same and, in many models, enormous.
        leave_tokens: token ids whose rows to leave out, such as BOS within packed texts.
        max_norm: leave out rows longer than so many times the median row of their pass; None:
            none. 10 leaves out "attention sinks" a hundred times as long as all others.
        progress: show a progress bar.

    Raises:
        Refusal: documents or a site that the model cannot take; rows that are not finite.
    """
    (found,) = collect_all(
        lm, tokens_NT, [site], mask_NT=mask_NT, pass_size=pass_size, skip=skip,
        leave_tokens=leave_tokens, max_norm=max_norm, progress=progress,
    ).values()  # fmt: skip
    return found


@checked(pass_size=whole(1), skip=whole(0), max_norm=number(1))
def collect_all(
    lm: LM,
    tokens_NT: Tensor,
    sites: Sequence[str],
    *,
    mask_NT: Tensor | None = None,
    pass_size: int = 128,
    skip: int = 1,
    leave_tokens: Sequence[int] = (),
    max_norm: float | None = None,
    progress: bool = False,
) -> dict[str, Activations]:
    """As `collect`, for several sites: the model runs once, up to the last of them."""
    if not len(sites):
        raise Refusal("a list of sites", "an empty one", "activations.collect takes one site")
    for site in sites:
        lm.find_site(site)  # refuses
    documents = tokens_NT if mask_NT is None else Batch(tokens_NT, mask_NT)
    leave = Leave(skip, tuple(leave_tokens), max_norm)
    source = Source(lm, documents, tuple(sites), leave, None, pass_size, progress)
    parts = [_on_cpu(source.rows(batch)) for batch in source]
    whole = mask_NT is None and not leave.tokens and max_norm is None
    found = {}
    for site in source.sites:
        rows = [part.pop(site) for part in parts]
        kept_NT = None if whole else torch.cat([each.kept_BT for each in rows])
        x_ND = torch.cat([each.x_ND for each in rows])
        about = lm.about(site, context_size=tokens_NT.shape[1])
        found[site] = Activations(x_ND, tokens_NT, site, skip, kept_NT, about)
    return found


def _on_cpu(rows: dict[str, Rows]) -> dict[str, Rows]:
    return {site: Rows(x_ND.float().cpu(), kept_BT) for site, (x_ND, kept_BT) in rows.items()}


@checked(
    memory_limit=whole(0),
    batch_size=whole(1),
    pass_size=whole(1),
    padding=whole(0),
    skip=whole(0),
    seed=whole(0),
)
def gather(
    lm: LM,
    documents: Tensor | Batch | Iterable[Tensor | Batch],
    site: str,
    *,
    folder: str | os.PathLike | None = None,
    memory_limit: int = MEMORY_LIMIT,
    dtype: str = "float16",
    skip: int = 1,
    leave_tokens: Sequence[int] = (),
    max_norm: float | None = None,
    padding: int | None = None,
    pass_size: int = 128,
    batch_size: int = 1_024,
    epochs: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> ActivationStore:
    """Shuffled batches of a site's activations for `train`: from memory if they fit, else disk.

    Args:
        lm, documents, site, dtype, skip, leave_tokens, max_norm, padding, pass_size, progress: as
            for `write`.
        folder: where to keep what does not fit. What an earlier call has put there is used, if
            it was the same call.
        memory_limit, batch_size, epochs, seed: as for `ActivationStore`.

    Raises:
        Refusal: the rows need a folder and none is given; the message says how large they are.
    """
    how = {"batch_size": batch_size, "epochs": epochs, "seed": seed, "memory_limit": memory_limit}
    leave = Leave(skip, tuple(leave_tokens), max_norm)
    source = Source(lm, documents, (site,), leave, padding, pass_size, progress)
    room, received = f"{memory_limit / 2**30:.2f} GiB (memory_limit)", "documents of unknown number"
    if isinstance(documents, Tensor | Batch):
        rows, (d_in,) = (
            int(source.kept(source.whole()).sum()),
            source.widths().values(),
        )
        x_ND = to_dtype(torch.empty(0, d_in), dtype)
        if rows * d_in * x_ND.itemsize <= memory_limit:
            how["about"] = source.about(site, source.whole())
            return ActivationStore(source.fill(x_ND.new_empty(rows, d_in), dtype), **how)
        size = rows * d_in * x_ND.itemsize / 2**30
        received = f"{rows:,} rows of width {d_in} in {dtype}: {size:.2f} GiB"
    if folder is None:
        raise Refusal(
            f"activations that fit into {room}, or a folder",
            received,
            "folder=... keeps them on disk; or fewer documents, or a larger memory_limit",
        )
    write(
        lm, documents, site, folder, dtype=dtype, skip=skip, leave_tokens=leave_tokens,
        max_norm=max_norm, padding=padding, pass_size=pass_size, progress=progress,
    )  # fmt: skip
    return ActivationStore(folder, **how)


def splice(sae: SAE, *, elsewhere: bool = False) -> Edit:
    """An edit that puts the SAE's reconstruction in the place of the activations.

    Position 0 is left alone: SAEs are not trained on it. At another place than the SAE's own, as
    its metadata name it, the edit warns (`Misplaced`).

    Args:
        elsewhere: it is used at another place on purpose, as a control: no warning.
    """

    def edit(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        x_hat_BTD = sae(x_BTD.to(sae.W_dec.dtype)).x_hat
        return torch.where((positions_T > 0)[:, None], x_hat_BTD, x_BTD)

    return made_for(edit, {} if elsewhere else sae.metadata)


def ablation(mean_D: Tensor | None) -> Edit:
    """An edit that replaces activations by their mean, or by zero if `mean_D` is None."""

    if mean_D is not None:
        check_tensor(mean_D, "mean_D", "D")

    def edit(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        if mean_D is not None:
            check_width(mean_D, x_BTD.shape[-1], name="mean_D")
        value_D = torch.zeros_like(x_BTD[0, 0]) if mean_D is None else mean_D.to(x_BTD)
        return torch.where((positions_T > 0)[:, None], value_D.expand_as(x_BTD), x_BTD)

    return edit


@checked(pass_size=whole(1))
def measure_loss_recovered(
    lm: LM,
    sae: SAE,
    site: str,
    tokens_NT: Tensor,
    *,
    ablation_name: str,
    mask_NT: Tensor | None = None,
    pass_size: int = 128,
) -> LossRecovered:
    """Loss recovered by an SAE at a site over documents, against "zero" or "mean" ablation.

    Beside it stands the mean KL divergence between the model and the spliced one, which needs no
    ablation to compare with.

    Args:
        mask_NT: true where a token stands, if documents are filled up; None: everywhere.
        pass_size: documents in one pass, at most: fewer where their logits would not fit.
    """
    check_choice(ablation_name, "ablation_name", ABLATIONS)
    mean_D = None
    if ablation_name == "mean":
        mean_D = collect(lm, tokens_NT, site, mask_NT=mask_NT, pass_size=pass_size).x_ND.mean(0)
    how = {"mask_NT": mask_NT, "pass_size": pass_size}
    compared = lm.compare(tokens_NT, {site: splice(sae)}, **how)
    return loss_recovered(
        clean=compared.clean,
        spliced=compared.edited,
        ablated=lm.loss(tokens_NT, {site: ablation(mean_D)}, **how),
        ablation=ablation_name,
        kl=compared.kl,
    )
