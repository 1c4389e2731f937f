"""Any Hugging Face causal language model: load, capture, edit, measure, generate. Lesson 06.

The course's tiny model takes the same path as `gpt2` or a Llama. A site is a place in a model,
such as `transformer.h.1:out` (`saelearn.lm.sites`). Shapes: N documents, B batch, T positions, D
activation width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saelearn import artifacts
from saelearn.errors import Refusal, check_flag, check_named, check_range, check_series, check_whole
from saelearn.lm import belonging, hooks, loading, scoring, sites, visits, writes
from saelearn.lm.documents import Alignment, Batch, align
from saelearn.lm.hooks import Edit
from saelearn.lm.loading import OURS, TINY, refuse_other_kinds
from saelearn.lm.passes import logits_of
from saelearn.lm.reader import Reader
from saelearn.lm.sampling import Sampler
from saelearn.lm.scoring import Compared, Predicted
from saelearn.lm.sites import Place

ENDLESS = 2**30
"""A context length that nobody can have meant: it stands for none."""


class _AllFound(Exception):
    """Ends a forward pass from within a hook: every site that was asked for has been seen."""


class LM(Reader):
    """A causal language model with its tokenizer, in evaluation mode.

    One thread at a time uses a model: others wait, also for the end of a block of `editing`.

    Where documents of unequal length are passed, a mask says where their tokens stand; filling
    may stand before or behind them. It is never counted, captured, scored or steered, and results
    are NaN there. An edit always sees documents that begin at its first column.

    Args:
        model: a `transformers` causal LM.
        tokenizer: its tokenizer; None if only token ids will be used.
        bos: whether texts are opened by the BOS token, in `tokenize`, `generate` and
            `activations.chunk` alike; None: if the model was trained so (`text.opens_with_bos`).

    Attributes:
        name: what the model was loaded as, "saelearn/tiny" for the course's; "" if it came from a
            folder or as an object, which have no name that others would know.

    Raises:
        Refusal: an encoder, or a model of two parts.
    """

    def __init__(self, model: nn.Module, tokenizer=None, *, bos: bool | None = None):
        super().__init__(tokenizer, bos)
        self.model = model.eval()
        self.name = ""
        refuse_other_kinds(self.model)

    @classmethod
    def load(
        cls,
        name: str | Path = TINY,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        bos: bool | None = None,
    ) -> LM:
        """Load the course's model ("tiny"), a folder, or a name on the Hugging Face hub.

        What comes with a model as code is never run. `bos` is as for `LM`.

        Raises:
            Refusal: there is no such model here, the hub cannot be reached, or tensors are missing.
        """
        source = artifacts.find("lm") if name == TINY else name
        lm = cls(*loading.load(name, source, device=device, dtype=dtype), bos=bos)
        lm.name = OURS if name == TINY else "" if Path(name).exists() else str(name)
        return lm

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def context_length(self) -> int | None:
        """The most tokens that one pass can take; None if the model knows no end."""
        config = self.model.config.get_text_config(decoder=True)
        names = ("max_position_embeddings", "n_positions", "max_seq_len")
        stated = (getattr(config, name, None) for name in names)
        return next((n for n in stated if isinstance(n, int) and n < ENDLESS), None)

    # --- forward ----------------------------------------------------------------------------------

    def logits(
        self,
        tokens_BT: Tensor,
        edits: Mapping[str, Edit] | None = None,
        *,
        mask_BT: Tensor | None = None,
        gradients: bool = False,
    ) -> Tensor:
        """Next-token logits `logits_BTV`, with `edits` made at their sites on the way.

        Args:
            tokens_BT: token ids.
            edits: site -> function of (x_BTD, positions_T) that returns what takes x's place.
            mask_BT: true where a token stands; None: everywhere.
            gradients: let gradients flow, to what edits add and to the model's parameters. Else
                nothing remembers how it was computed.
        """
        documents = self._documents(tokens_BT, mask_BT)
        output = self._run(documents, edits, gradients=gradients, use_cache=False)
        return documents.restored(logits_of(output, documents.tokens_BT))

    def loss(
        self,
        tokens_NT: Tensor,
        edits: Mapping[str, Edit] | None = None,
        *,
        mask_NT: Tensor | None = None,
        pass_size: int = 128,
    ) -> float:
        """Mean cross-entropy in nats per predicted token (all but the first of each document).

        Computed in pieces that fit into memory, of `pass_size` documents at most.
        """
        return scoring.mean_loss(self._predictions(tokens_NT, [edits], mask_NT, pass_size))

    def compare(
        self,
        tokens_NT: Tensor,
        edits: Mapping[str, Edit],
        *,
        mask_NT: Tensor | None = None,
        pass_size: int = 128,
    ) -> Compared:
        """The loss without and with edits, and the mean KL divergence between both, in one sweep.

        In nats per predicted token, counted where `loss` counts.
        """
        return scoring.compare(self._predictions(tokens_NT, [None, edits], mask_NT, pass_size))

    def capture(
        self,
        tokens_BT: Tensor,
        sites: Sequence[str],
        *,
        mask_BT: Tensor | None = None,
        gradients: bool = False,
    ) -> dict[str, Tensor]:
        """What passes the sites: site -> `x_BTD`, in one forward pass.

        A hook on the module that a site names (PyTorch's `register_forward_hook`, or the one before
        for `:in`) keeps a copy of what goes by, and is taken away afterwards.
        The pass ends at the last of the sites: later blocks and the logits (for GPT-2 50,257
        numbers a token) are never computed.

        Args:
            tokens_BT, mask_BT: as for `logits`.
            sites: names of places.
            gradients: keep how each was computed, as for `logits`; else each is a copy.

        Raises:
            Refusal: no such site, one that the pass does not run through, or more than once.
        """
        if isinstance(sites, str):
            raise Refusal("a list of sites", f"the string {sites!r}", f"[{sites!r}]")
        check_series(sites, "sites", least=1)
        found: dict[str, Tensor] = {}

        def keep(site: str) -> Edit:
            def edit(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
                found[site] = x_BTD.clone() if gradients else x_BTD.detach().clone()
                if len(found) == len(set(sites)):
                    raise _AllFound
                return x_BTD

            return edit

        documents = self._documents(tokens_BT, mask_BT)
        places = {site: writes.find(self.model, site) for site in sites}
        visits.refuse_shared(self.model, places)
        kept = {site: (place, keep(site)) for site, place in places.items()}
        with (
            contextlib.suppress(_AllFound),  # `editing` takes the hooks away on any exception
            self._alone(documents, gradients),
            hooks.editing(self.model, kept),
        ):
            self.model(documents.tokens_BT, use_cache=False)
        return {site: documents.restored(x_BTD) for site, x_BTD in found.items()}

    # --- generate ---------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | Tensor,
        *,
        max_new_tokens: int,
        n: int = 1,
        temperature: float = 1.0,
        seed: int = 0,
        edits: Mapping[str, Edit] | None = None,
    ) -> Tensor:
        """Sample `n` continuations of one prompt: `tokens_NT`, the prompt included.

        Our own loop, for what `model.generate` does not offer: a generator for the draws. It goes
        on after an EOS token; `generate_all` stops there. Temperature 0 takes the likeliest token.
        """
        if isinstance(prompt, list | tuple):
            raise Refusal("one prompt", type(prompt).__name__, "lm.generate_all takes a list")
        tokens_BT = self.tokenize(prompt) if isinstance(prompt, str) else prompt
        sampler = Sampler(max_new_tokens, temperature=temperature, seed=seed)
        return self._generate(Batch(tokens_BT, None), n, edits, sampler).tokens_BT

    def generate_all(
        self,
        prompts: Sequence[str] | Batch,
        *,
        max_new_tokens: int,
        n: int = 1,
        temperature: float = 1.0,
        seed: int = 0,
        edits: Mapping[str, Edit] | None = None,
        stop_at_eos: bool = True,
    ) -> Batch:
        """Continue prompts of any lengths, each up to its EOS token or by `max_new_tokens`.

        Every text begins at the first column, so no filling stands before it: shorter prompts go
        on while longer ones are still being read. At temperature 0 each text is the one that its
        prompt gets alone.

        Args:
            prompts: texts, or token ids with their mask.
            max_new_tokens, temperature, seed, edits: as for `generate`.
            n: continuations of each; row `i + k * len(prompts)` is the k-th of prompt i.
            stop_at_eos: a text ends with its first new EOS token.

        Returns:
            the texts with their prompts; `mask_BT` says where each ends.
        """
        if not isinstance(prompts, Batch):
            prompts = self.tokenize_all(prompts)
        eos = self._eos() if check_flag(stop_at_eos, "stop_at_eos") else ()
        sampler = Sampler(max_new_tokens, temperature=temperature, seed=seed, eos=eos)
        return self._generate(prompts, n, edits, sampler)

    def _eos(self) -> tuple[int, ...]:
        """The ids that end a text: the model may have several."""
        settings = getattr(self.model, "generation_config", None)
        eos = getattr(settings, "eos_token_id", None)
        eos = eos if eos is not None else getattr(self.tokenizer, "eos_token_id", None)
        return () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,)

    def _generate(
        self, prompts: Batch, n: int, edits: Mapping[str, Edit] | None, sampler: Sampler
    ) -> Batch:
        check_whole(n, "n", 1)
        documents = self._documents(*prompts, sampler.max_new_tokens)
        tokens_NT, mask_NT = documents.tokens_BT, documents.mask_BT
        if mask_NT is not None and not mask_NT.any(1).all():
            raise Refusal("prompts of at least one token", "an empty one")
        if n > 1:
            tokens_NT = tokens_NT.repeat(n, 1)
            mask_NT = None if mask_NT is None else mask_NT.repeat(n, 1)
        with torch.no_grad(), hooks.alone(self.model), self.editing({} if edits is None else edits):
            return sampler.run(self.model, tokens_NT, mask_NT)

    # --- sites ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def editing(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Make edits during every pass inside the block; afterwards the model is as it was.

        Also those of `lm.model(...)` and `lm.model.generate(...)`: an edit's positions are read
        from what the model is given. Nothing here switches gradients off: an edit may hold tensors
        that need them, and `lm.model(tokens_BT).logits` inside the block goes on to them.

        Args:
            edits: site -> function of (x_BTD, positions_T) that returns what takes x's place.

        Raises:
            Refusal: no such site, or one that no pass in the block ran through.
        """
        check_named(edits, "edits")
        places = {site: writes.find(self.model, site) for site in edits}  # refuse before hooking
        for site, edit in edits.items():
            self.warn_if_misplaced(site, getattr(edit, "belongs", {}))
        for site, place in places.items():
            if place.reads_only:
                raise Refusal("a site that can be edited", repr(site), place.reads_only)
        with hooks.editing(self.model, {site: (places[site], edits[site]) for site in edits}):
            yield

    def find_site(self, site: str) -> Place:
        """The module that a site names, and "in" or "out"; `writes.find`."""
        return writes.find(self.model, site)

    def about(self, site: str, *, context_size: int | None = None) -> dict[str, Any]:
        """What an SAE of a site has to remember: `train(..., metadata=lm.about(site))`.

        SAELens' names for the model, the site (`hook_name`; the site's own name where it has none
        there) and BOS, and beside them `site`, `tokenizer` and `context_size`. There the model has
        to be loaded without its usual processing, which moves the stream: that is said, too.

        Args:
            context_size: tokens in a document.
        """
        self.find_site(site)  # refuses
        hook = belonging.hook_name(self.model, site)
        about: dict[str, Any] = {"model_name": self.name} if self.name else {}
        about |= {"hook_name": hook or site, "site": writes.translate(self.model, site)}
        if hook:
            about["model_from_pretrained_kwargs"] = {"center_writing_weights": False}
        if self.tokenizer is not None:
            kind = type(self.tokenizer).__name__
            about["tokenizer"] = f"{kind} of {len(self.tokenizer)}"
            about["prepend_bos"] = self.bos
        return about | ({} if context_size is None else {"context_size": context_size})

    def warn_if_misplaced(self, site: str, about: Mapping[str, Any]) -> None:
        """Warn (`Misplaced`) if what was made for one place is used at `site` of this model.

        Args:
            about: what `about` said of the place that it was made for; `sae.metadata`.
        """
        belonging.warn_if_misplaced(self.model, self.name, site, about)

    def residual_sites(self) -> list[str]:
        """The residual stream after each block, as site names."""
        return sites.residual(self.model)

    # --- how a pass is run ------------------------------------------------------------------------

    def _documents(self, tokens_BT: Tensor, mask_BT: Tensor | None, new: int = 0) -> Alignment:
        """Documents at the left edge, on the model's device, if the model can read them."""
        if not isinstance(tokens_BT, Tensor) or tokens_BT.ndim != 2 or not len(tokens_BT):
            got = tuple(tokens_BT.shape) if isinstance(tokens_BT, Tensor) else type(tokens_BT)
            raise Refusal("token ids [B, T]", str(got), "of one document: tokens_T[None]")
        if tokens_BT.is_floating_point() or tokens_BT.is_complex() or tokens_BT.dtype == torch.bool:
            raise Refusal("token ids: whole numbers", str(tokens_BT.dtype))
        documents = align(tokens_BT.to(self.device), mask_BT)
        tokens_BT = documents.tokens_BT
        check_range(tokens_BT.shape[1], "tokens in a document", 1)
        length, name = tokens_BT.shape[1] + new, "tokens" if new else "tokens in a document"
        check_range(length, name, 1, self.context_length or float("inf"))
        known = self.model.get_input_embeddings().weight.shape[0]
        low, high = (int(x) for x in tokens_BT.aminmax())
        if low < 0 or high >= known:
            raise Refusal(f"token ids from 0 to {known - 1}", f"ids from {low} to {high}")
        return documents

    @contextlib.contextmanager
    def _alone(self, documents: Alignment, gradients: bool) -> Iterator[None]:
        with (
            torch.set_grad_enabled(check_flag(gradients, "gradients")),
            hooks.alone(self.model, documents.mask_BT),
        ):
            yield

    def _run(
        self,
        documents: Alignment,
        edits: Mapping[str, Edit] | None,
        *,
        gradients: bool = False,
        **given: Any,
    ) -> Any:
        """The model's own output for documents at the left edge."""
        with self._alone(documents, gradients), self.editing({} if edits is None else edits):
            return self.model(documents.tokens_BT, **given)

    def _predictions(
        self,
        tokens_NT: Tensor,
        edits: Sequence[Mapping[str, Edit] | None],
        mask_NT: Tensor | None,
        pass_size: int,
    ) -> Iterator[Predicted]:
        self._documents(tokens_NT, mask_NT)  # refuse before any work is done
        words = self.model.get_input_embeddings().weight.shape[0]
        fitting = scoring.documents_at_once(tokens_NT.shape[1], words, len(edits))
        size = min(check_whole(pass_size, "pass_size", 1), fitting)
        for start in range(0, len(tokens_NT), size):
            rows = slice(start, start + size)
            mask_BT = None if mask_NT is None else mask_NT[rows]
            documents = self._documents(tokens_NT[rows], mask_BT)
            yield from scoring.predictions(self._run, documents, edits, words)
