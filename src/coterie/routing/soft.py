"""Soft mixture of experts: no token is sent anywhere, experts read mixtures of them (arXiv 2308.00951, section 2).

X·Φ of the tokens of a sequence with the slots of the experts; a softmax over tokens makes what a slot reads, one over
slots what a token gets back. Both are normalised first, Φ with a learned scale (section 2.3). Each token sees all
others of its sequence, later ones too: such a model cannot generate text. Padding is not mixed in.
Shapes: T tokens, D model width, E experts, M slots (E times those of an expert), B sequences.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from coterie.kernels import router_logits
from coterie.router_config import RouterConfig
from coterie.routing.assignment import Mixture, Rows

__all__ = ["SoftRouter"]


class SoftRouter(nn.Module):
    """`weight` [M, D] is Φ, a row each slot, expert by expert; `scale` [1]."""

    kind, is_causal = "soft", False

    def __init__(self, weight_MD: Tensor, scale_1: Tensor, top_k: int, options: RouterConfig):
        super().__init__()
        self.weight, self.scale = nn.Parameter(weight_MD), nn.Parameter(scale_1)
        self.top_k, self.options = top_k, options

    def forward(self, x_TD: Tensor, rows: Rows | None = None) -> Mixture:
        rows = rows or Rows()
        phi_MD = functional.normalize(self.weight, dim=-1)
        x_TD = functional.normalize(x_TD.to(phi_MD.dtype), dim=-1)
        logits_TM = router_logits(x_TD, phi_MD) * self.scale
        lengths_B = _lengths(rows.sequence_T, len(x_TD))
        shown_TM = logits_TM if rows.mask_T is None else logits_TM.masked_fill(~rows.mask_T[:, None], -torch.inf)
        dispatch_TM = torch.cat([part.softmax(0) for part in torch.split(shown_TM, lengths_B)])
        dispatch_TM = dispatch_TM.nan_to_num(0.0)  # a sequence of padding alone
        logits_TE = logits_TM.view(len(x_TD), -1, self.options.slots).logsumexp(-1)
        return Mixture(dispatch_TM, logits_TM.softmax(-1), lengths_B, logits_TE, {})


def _lengths(sequence_T: Tensor | None, n_tokens: int) -> list[int]:
    """How many rows each run of equal numbers has; one run where nothing is said."""
    if sequence_T is None:
        return [n_tokens]
    lengths: list[int] = torch.unique_consecutive(sequence_T, return_counts=True)[1].tolist()
    return lengths
