"""Mixtral's router: float32 logits, the K largest, softmax over those (arXiv 2401.04088, section 2.1).

Equal logits go to the lowest expert id, on every device.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from coterie.routing.assignment import Assignment, Rows

__all__ = ["TopKRouter"]


class TopKRouter(nn.Module):
    """`weight` [E, D] is float32 whatever the dtype of the model, so that close logits stay apart."""

    def __init__(self, weight_ED: Tensor, top_k: int, renormalise: bool = True):
        super().__init__()
        self.weight = nn.Parameter(weight_ED)
        self.top_k, self.renormalise = top_k, renormalise

    def forward(self, x_TD: Tensor, rows: Rows | None = None) -> Assignment:
        logits_TE = functional.linear(x_TD.float(), self.weight)
        ids_TK, kept_TK = self._select(logits_TE, rows.replay_ids_TK if rows else None)
        if self.renormalise:
            weights_TK = kept_TK.softmax(-1)
        else:
            weights_TK = (kept_TK - logits_TE.logsumexp(-1, keepdim=True)).exp()
        return Assignment(ids_TK.to(torch.int32), weights_TK, logits_TE, {})

    def _select(self, logits_TE: Tensor, replay_ids_TK: Tensor | None) -> tuple[Tensor, Tensor]:
        if replay_ids_TK is not None:
            ids_TK = replay_ids_TK.long()
            return ids_TK, logits_TE.gather(-1, ids_TK)
        sorted_TE, order_TE = logits_TE.sort(dim=-1, descending=True, stable=True)
        return order_TE.narrow(1, 0, self.top_k), sorted_TE.narrow(1, 0, self.top_k)
