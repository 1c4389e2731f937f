"""Which features before the last block cause which in its MLP: forecast, and tried. Lesson 11.

Shapes: T positions, D width, F features before the block, H transcoder features, N rows,
C concepts; J transcoder features that are on at a token, S active features up to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saelearn.activations import readings, slopes
from saelearn.lm import LM
from saelearn.sae import SAE
from saelearn.tiny import shipped
from saelearn.tiny.beyond import READS

Edges = Callable[[Tensor, Tensor, Tensor], Tensor]
"""f_TF, W_dec_FD and slope_TD -> what each feature at each position brings, `[T, F]`."""


@dataclass(frozen=True)
class Circuit:
    """Edges from an SAE's features at the default site to a transcoder's at one token.

    Attributes:
        f_TF, h_H: features before the block, up to the token; the transcoder's at it.
        place_S, feature_S: where each source stands, and which feature it is.
        target_J: which transcoder features are on.
        slope_JTD: how fast each target's pre-activation rises with the activations.
        attributed_JS: each source's part in each target, by its slope.
        lost_JS: what each target loses without each source.
        written_S: how long a vector each source writes.
    """

    f_TF: Tensor
    h_H: Tensor
    place_S: Tensor
    feature_S: Tensor
    target_J: Tensor
    slope_JTD: Tensor
    attributed_JS: Tensor
    lost_JS: Tensor
    written_S: Tensor
    attribute: Callable[[Tensor], Tensor]

    @classmethod
    def of(
        cls, lm: LM, source: SAE, transcoder: SAE, edges: Edges, tokens_T: Tensor, position: int,
        *, share: float = 1.0,
    ) -> Circuit:  # fmt: skip
        """All edges into one token.

        Args:
            lm, source, transcoder: the model, an SAE at the default site, its last MLP's stand-in.
            edges: attribution.
            tokens_T, position: a document, and which token's transcoder features are explained.
            share: how much of each source is taken out; what is lost is divided by it.
        """
        W_dec_FD, W_enc_DH = source.W_dec.detach(), transcoder.W_enc.detach()
        with torch.no_grad():
            at = lm.capture(tokens_T[None], [shipped.SITE, READS])
            f_TF = source.encode(at[shipped.SITE][0, : position + 1])
            f_TF[0] = 0  # SAEs are not trained on the first position
            now_D = at[READS][0, position]
            h_H = transcoder.encode(now_D)
        target_J = h_H.nonzero()[:, 0]
        place_S, feature_S = f_TF.nonzero(as_tuple=True)
        writes_SD = f_TF[place_S, feature_S, None] * W_dec_FD[feature_S]
        given = (lm, tokens_T, shipped.SITE, READS)
        read_SD = readings(*given, -share * writes_SD, place_S, position)
        lost_JS = ((now_D - read_SD) @ W_enc_DH[:, target_J]).T / share
        slope_JTD = slopes(*given, W_enc_DH.T[target_J], position)[:, : position + 1]

        def attribute(slope_JTD: Tensor) -> Tensor:
            parts = [edges(f_TF, W_dec_FD, slope_TD) for slope_TD in slope_JTD]
            return torch.stack(parts)[:, place_S, feature_S]

        return cls(
            f_TF, h_H, place_S, feature_S, target_J, slope_JTD, attribute(slope_JTD), lost_JS,
            writes_SD.norm(dim=1), attribute,
        )  # fmt: skip

    def crossed(self, other: Circuit) -> tuple[Tensor, Tensor]:
        """The control: attributed by another text's slopes, and what is lost, as many each."""
        n = min(len(other.slope_JTD), len(self.lost_JS))
        return self.attribute(other.slope_JTD[:n]), self.lost_JS[:n]

    def largest(self, k: int = 20) -> tuple[float, float]:
        """Of the k largest attributions: share with the right sign; lost over attributed."""
        top_K = self.attributed_JS.flatten().abs().topk(k).indices
        guess_K, truth_K = self.attributed_JS.flatten()[top_K], self.lost_JS.flatten()[top_K]
        same = (guess_K.sign() == truth_K.sign()).double().mean()
        return float(same), float((truth_K * guess_K.sign()).sum() / guess_K.abs().sum())


def fitting_names(f_NF: Tensor, labels_NC: Tensor, names: Sequence[str]) -> list[str]:
    """For each feature the concept that fits its firings best, with that F1."""
    fires_NF, holds_NC = (f_NF > 0).float(), labels_NC.float()
    hits_FC = fires_NF.T @ holds_NC
    f1_FC = 2 * hits_FC / (fires_NF.sum(0)[:, None] + holds_NC.sum(0)).clamp(min=1)
    return [f"{names[int(c)]} {v:.1f}" for v, c in zip(*f1_FC.max(1), strict=True)]
