"""One token after another. Shapes: N texts, T positions, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saelearn.errors import Refusal, check_range, check_whole
from saelearn.lm.documents import Batch
from saelearn.lm.passes import logits_of


class Sampler:
    """Continue texts that begin at the first column, also if their prompts differ in length.

    Args:
        max_new_tokens: for each text.
        temperature: 0 takes the likeliest token.
        seed: of the draws.
        eos: ids that end a text; none: it never ends before `max_new_tokens`.
    """

    def __init__(
        self, max_new_tokens: int, *, temperature: float, seed: int, eos: tuple[int, ...] = ()
    ):
        self.max_new_tokens = check_whole(max_new_tokens, "max_new_tokens", 0)
        self.temperature = check_range(temperature, "temperature", 0.0)
        self.eos = eos
        self._generator = torch.Generator().manual_seed(check_whole(seed, "seed", 0))

    def run(self, model: nn.Module, prompts_NT: Tensor, mask_NT: Tensor | None) -> Batch:
        """The prompts and what follows, on the CPU.

        Models that give no `past_key_values` (Mamba, RWKV) read everything again for each token.
        """
        n, longest = prompts_NT.shape
        read_N = torch.full((n,), longest) if mask_NT is None else mask_NT.sum(1).cpu()
        end_N = read_N + self.max_new_tokens
        tokens_NT, cache = prompts_NT[:, : int(read_N.min())], None
        new_NT = tokens_NT
        eos = torch.tensor(self.eos, dtype=torch.long)
        while tokens_NT.shape[1] < int(end_N.max()):
            t = tokens_NT.shape[1]
            out = (
                model(new_NT, past_key_values=cache, use_cache=True)
                if cache
                else model(new_NT, use_cache=True)
            )
            cache = getattr(out, "past_key_values", None)
            next_N1 = self._draw(logits_of(out, new_NT)[:, -1].float().cpu())
            if t < longest:
                reading_N1 = (t < read_N)[:, None]
                next_N1 = torch.where(reading_N1, prompts_NT[:, t, None].cpu(), next_N1)
            ends_N = torch.isin(next_N1[:, 0], eos) & (t >= read_N) & (t < end_N)
            end_N = torch.where(ends_N, t + 1, end_N)
            next_N1 = next_N1.to(tokens_NT.device)
            tokens_NT = torch.cat([tokens_NT, next_N1], dim=1)
            new_NT = tokens_NT if cache is None else next_N1
        mask_NT = torch.arange(tokens_NT.shape[1]) < end_N[:, None]
        return Batch(tokens_NT.cpu().masked_fill(~mask_NT, self.eos[0] if self.eos else 0), mask_NT)

    def _draw(self, logits_NV: Tensor) -> Tensor:
        if logits_NV.isnan().any():
            raise Refusal(
                "logits to draw from",
                "NaN",
                "an edit that returns NaN, or a number too large for the model's dtype",
            )
        if self.temperature == 0:
            return logits_NV.argmax(-1, keepdim=True)
        p_NV = (logits_NV / self.temperature).softmax(-1)
        return torch.multinomial(p_NV, 1, generator=self._generator)
