"""Routers that learn nothing, as controls: by a hash of the token's id (arXiv 2106.04426), or at random.

Each id has its own K experts, other ones in each layer, all weights 1/K; there is no weight to train. The random router
draws anew for each token while training, which loads all experts alike, and is the hash router when the model is used.
Logits are 0, so a balance loss is 1 and pushes nothing. Shapes: T tokens, D model width, E experts, K experts a token.
"""

import torch
from torch import Tensor, nn

from coterie.routing.assignment import Assignment, Rows
from coterie.routing.choose import best

__all__ = ["HashRouter", "RandomRouter"]

_32_BITS = (1 << 32) - 1


class HashRouter(nn.Module):
    kind, is_causal = "hash", True

    def __init__(self, n_experts: int, top_k: int, layer: int, dtype: torch.dtype):
        super().__init__()
        self.n_experts, self.top_k, self.layer, self.dtype = n_experts, top_k, layer, dtype

    def forward(self, x_TD: Tensor, rows: Rows | None = None) -> Assignment:
        rows = rows or Rows()
        logits_TE = torch.zeros(len(x_TD), self.n_experts, dtype=self.dtype, device=x_TD.device)
        ids_TK = self._ids(logits_TE, rows) if rows.replay_ids_TK is None else rows.replay_ids_TK
        weights_TK = torch.full(ids_TK.shape, 1 / self.top_k, dtype=self.dtype, device=x_TD.device)
        return Assignment(ids_TK.int(), weights_TK.masked_fill(ids_TK < 0, 0), logits_TE, {})

    def _ids(self, logits_TE: Tensor, rows: Rows) -> Tensor:
        assert rows.token_ids_T is not None, "the hash router needs the tokens' ids"
        experts_E = torch.arange(self.n_experts, device=logits_TE.device)
        return best(-_mixed(_mixed(rows.token_ids_T + 1 + (self.layer << 24))[:, None] + experts_E), self.top_k)


class RandomRouter(HashRouter):
    kind = "random"

    def _ids(self, logits_TE: Tensor, rows: Rows) -> Tensor:
        if not self.training:
            return super()._ids(logits_TE, rows)
        drawn_TE = torch.rand(logits_TE.shape, generator=rows.generator, device=logits_TE.device)
        return best(drawn_TE, self.top_k)


def _mixed(x: Tensor) -> Tensor:
    """A 32-bit hash of whole numbers of up to 32 bits, in int64: xor-shifts and odd factors, as in MurmurHash3."""
    x = x & _32_BITS
    for factor in (0x45D9F3B, 0x45D9F3B):  # 27 bits: the product stays below 2^59
        x = ((x ^ (x >> 16)) * factor) & _32_BITS
    return x ^ (x >> 16)
