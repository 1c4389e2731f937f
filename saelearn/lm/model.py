"""Any Hugging Face causal language model: load, capture, edit, generate. Lesson 06.

The course's tiny model takes the same path as `gpt2` or a Llama. A site is a place in a model,
such as `transformer.h.1:out` (`lm.sites`). Shapes: N documents, B batch, T positions, D
activation width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from saelearn import artifacts
from saelearn.errors import Refusal, check_range
from saelearn.lm import sites

TINY = "tiny"
Edit = Callable[[Tensor, Tensor], Tensor]
"""(x_BTD, positions_T) -> the tensor that takes the place of x_BTD."""


class _AllFound(Exception):
    """Ends a forward pass from within a hook: every site that was asked for has been seen."""


class LM:
    """A causal language model with its tokenizer, in evaluation mode.

    Args:
        model: a `transformers` causal LM.
        tokenizer: its tokenizer; None if only token ids will be used.
    """

    def __init__(self, model: nn.Module, tokenizer=None):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._start = 0  # position of the first token of the pass that is running

    @classmethod
    def load(cls, name: str | Path = TINY, *, device: str = "cpu", dtype: str = "float32") -> LM:
        """Load the course's model ("tiny"), a folder, or a name on the Hugging Face hub.

        Raises:
            Refusal: there is no such model here, or the hub cannot be reached.
        """
        source = artifacts.find("lm") if name == TINY else name
        try:
            where = {"local_files_only": Path(source).exists() or _unreachable(str(source))}
            with _quiet_if(Path(source).exists()):
                tokenizer = AutoTokenizer.from_pretrained(source, **where)
                model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **where)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise Refusal(
                f"a causal language model: {TINY!r}, a folder, or a name on the hub",
                f"{str(name)!r}: {reason}",
                "check the name; without network only folders and cached models can be loaded",
            ) from error
        return cls(model.to(device), tokenizer)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def context_length(self) -> int:
        """The most tokens that one pass can take."""
        return getattr(self.model.config, "max_position_embeddings", 2**31)

    # --- text and tokens --------------------------------------------------------------------------

    def tokenize(self, text: str) -> Tensor:
        """Token ids `tokens_1T` of a text.

        Raises:
            Refusal: empty text, or a word that a closed vocabulary does not have.
        """
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        unknown = self.tokenizer.unk_token_id
        special = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)  # GPT-2: all the same
        if unknown is not None and unknown not in special and (ids == unknown).any():
            words = [w for w in text.split() if self.tokenizer(w)["input_ids"] == [unknown]]
            raise Refusal(
                "words that the model knows",
                ", ".join(map(repr, words)) or "unknown characters",
                "lm.tokenizer.get_vocab() lists them; punctuation stands between spaces",
            )
        if ids.numel() == 0:
            raise Refusal("a text with at least one token", repr(text))
        return ids.to(self.device)

    def words(self, tokens_T: Tensor | Sequence[int]) -> list[str]:
        """Each token as text."""
        return [self.tokenizer.decode([int(token)]) for token in tokens_T]

    def text(self, tokens_T: Tensor | Sequence[int]) -> str:
        """Tokens as one text."""
        return self.tokenizer.decode([int(token) for token in tokens_T])

    # --- forward ----------------------------------------------------------------------------------

    @torch.no_grad()
    def logits(self, tokens_BT: Tensor, edits: Mapping[str, Edit] | None = None) -> Tensor:
        """Next-token logits `logits_BTV`, with `edits` made at their sites on the way."""
        check_range(tokens_BT.shape[-1], "tokens in a document", 1, self.context_length)
        with self.editing(edits or {}):
            return self.model(tokens_BT.to(self.device), use_cache=False).logits

    @torch.no_grad()
    def loss(
        self, tokens_NT: Tensor, edits: Mapping[str, Edit] | None = None, *, batch_size: int = 128
    ) -> float:
        """Mean cross-entropy in nats per predicted token (all but the first of each document)."""
        total, count = 0.0, 0
        for tokens_BT in tokens_NT.split(batch_size):
            logits_BTV = self.logits(tokens_BT, edits)[:, :-1].flatten(0, 1).float()
            target = tokens_BT[:, 1:].flatten().to(self.device)
            total += nn.functional.cross_entropy(logits_BTV, target, reduction="sum").item()
            count += len(target)
        return total / count

    @torch.no_grad()
    def capture(self, tokens_BT: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """What passes the sites: site -> `x_BTD`, in one forward pass.

        The pass ends at the last of the sites: later blocks and the logits (for GPT-2 50,257
        numbers a token) are never computed. Of a site that a pass meets twice, the last is kept
        that comes before this end.
        """
        if isinstance(sites, str):
            raise Refusal("a list of sites", f"the string {sites!r}", f"[{sites!r}]")
        found: dict[str, Tensor] = {}

        def keep(site: str) -> Edit:
            def edit(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
                found[site] = x_BTD.detach().clone()
                if len(found) == len(set(sites)):
                    raise _AllFound
                return x_BTD

            return edit

        with contextlib.suppress(_AllFound):  # `editing` takes the hooks away on any exception
            self.logits(tokens_BT, {site: keep(site) for site in sites})
        if silent := [site for site in sites if site not in found]:
            raise Refusal("sites that the forward pass runs through", ", ".join(silent))
        return found

    @torch.no_grad()
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

        Our own loop, for what `model.generate` does not offer: a generator for the draws, and
        edits that know the position they are at. Temperature 0 takes the likeliest token.
        """
        tokens_NT = self.tokenize(prompt) if isinstance(prompt, str) else prompt.to(self.device)
        tokens_NT = tokens_NT.repeat(n, 1) if n > 1 else tokens_NT
        check_range(temperature, "temperature", 0.0)
        check_range(tokens_NT.shape[1] + max_new_tokens, "tokens", 1, self.context_length)
        generator = torch.Generator().manual_seed(seed)
        cache, new_NT = None, tokens_NT
        with self.editing(edits or {}):
            for _ in range(max_new_tokens):
                self._start = tokens_NT.shape[1] - new_NT.shape[1]
                out = self.model(new_NT, past_key_values=cache, use_cache=True)
                cache, logits_NV = out.past_key_values, out.logits[:, -1].float().cpu()
                if temperature == 0:
                    new_NT = logits_NV.argmax(-1, keepdim=True)
                else:
                    p_NV = (logits_NV / temperature).softmax(-1)
                    new_NT = torch.multinomial(p_NV, 1, generator=generator)
                new_NT = new_NT.to(self.device)
                tokens_NT = torch.cat([tokens_NT, new_NT], dim=1)
        return tokens_NT.cpu()

    # --- sites ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def editing(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Make edits during every pass inside the block; afterwards the model is as it was.

        Args:
            edits: site -> function of (x_BTD, positions_T) that returns what takes x's place.
        """
        places = {site: self.find_site(site) for site in edits}  # refuse before anything is hooked
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, self, "_start", 0)
            for site, edit in edits.items():
                module, side = places[site]
                hook = self._hook_in(edit) if side == "in" else self._hook_out(edit)
                handle = (
                    module.register_forward_pre_hook(hook, with_kwargs=True)
                    if side == "in"
                    else module.register_forward_hook(hook)
                )
                stack.callback(handle.remove)
            yield

    def find_site(self, site: str) -> tuple[nn.Module, str]:
        """The module that a site names, and "in" or "out"; `sites.find`."""
        return sites.find(self.model, site)

    def residual_sites(self) -> list[str]:
        """The residual stream after each block, as site names."""
        return sites.residual(self.model)

    def _hook_out(self, edit: Edit) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
            if isinstance(output, Tensor):
                return self._edited(edit, output)
            return (self._edited(edit, output[0]), *output[1:])

        return hook

    def _hook_in(self, edit: Edit) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if args:
                return (self._edited(edit, args[0]), *args[1:]), kwargs
            name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
            return args, kwargs | {name: self._edited(edit, kwargs[name])}

        return hook

    def _edited(self, edit: Edit, x_BTD: Tensor) -> Tensor:
        start = self._start
        positions_T = torch.arange(start, start + x_BTD.shape[1], device=x_BTD.device)
        y_BTD = edit(x_BTD, positions_T)
        if not isinstance(y_BTD, Tensor) or y_BTD.shape != x_BTD.shape:
            got = tuple(y_BTD.shape) if isinstance(y_BTD, Tensor) else type(y_BTD).__name__
            raise Refusal(f"an edit that returns shape {tuple(x_BTD.shape)}", str(got))
        return y_BTD.to(x_BTD.dtype)


def _unreachable(name: str) -> bool:
    """Whether the hub does not answer: then at once, without retries, only the cache is asked."""
    try:
        with contextlib.suppress(HfHubHTTPError):  # an answer, if no good one
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=10)
    except Exception:  # whatever the network library raises, or no name that a hub could know
        return True
    return False


@contextlib.contextmanager
def _quiet_if(local: bool) -> Iterator[None]:
    """No progress bar for what loads from a folder at once; it comes back afterwards."""
    if not local or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
