"""Mixtral's router: float32 logits, the K largest, softmax over those (arXiv 2401.04088, section 2.1).

Equal logits go to the lowest expert id, on every device.
"""

from torch import Tensor, nn

from coterie.kernels import route
from coterie.kernels.reference import kept_weights
from coterie.routing.assignment import Assignment, Rows

__all__ = ["TopKRouter"]


class TopKRouter(nn.Module):
    """`weight` [E, D] is float32 whatever the dtype of the model, so that close logits stay apart."""

    def __init__(self, weight_ED: Tensor, top_k: int, renormalise: bool = True):
        super().__init__()
        self.weight = nn.Parameter(weight_ED)
        self.top_k, self.renormalise = top_k, renormalise

    def forward(self, x_TD: Tensor, rows: Rows | None = None) -> Assignment:
        ids_TK, weights_TK, logits_TE = route(x_TD, self.weight, self.top_k, self.renormalise)
        if rows is not None and rows.replay_ids_TK is not None:
            ids_TK = rows.replay_ids_TK
            weights_TK = kept_weights(logits_TE.gather(-1, ids_TK.long()), logits_TE, self.renormalise)
        return Assignment(ids_TK.int(), weights_TK, logits_TE, {})
