"""Mixtral's router: float32 logits, the K largest, softmax over those (arXiv 2401.04088, section 2.1).

Equal logits go to the lowest expert id, on every device.
"""

from torch import Tensor, nn

from coterie.kernels import route
from coterie.router_config import RouterConfig
from coterie.routing.assignment import Assignment, Rows
from coterie.routing.choose import best, softmax_at
from coterie.routing.router import Choice, Router, replayed

__all__ = ["LimitedTopKRouter", "TopKRouter"]


class TopKRouter(nn.Module):
    """`weight` [E, D] is float32 whatever the dtype of the model, so that close logits stay apart.

    Without `renormalise` the weights are those of a softmax over all experts (the "topk_all" of recipes).
    """

    kind, is_causal = "topk", True

    def __init__(self, weight_ED: Tensor, top_k: int, renormalise: bool = True, layer: int = 0):
        super().__init__()
        self.weight = nn.Parameter(weight_ED)
        self.top_k, self.renormalise, self.layer = top_k, renormalise, layer

    def forward(self, x_TD: Tensor, rows: Rows | None = None) -> Assignment:
        edits = None if rows is None or rows.edits is None else rows.edits.of_layer(self.layer)
        ids_TK, weights_TK, logits_TE = route(x_TD, self.weight, self.top_k, self.renormalise, edits)
        if rows is not None and rows.replay_ids_TK is not None:
            weights_TK = softmax_at(logits_TE, replayed(ids_TK.long(), rows), self.renormalise)
            ids_TK = rows.replay_ids_TK
            weights_TK = weights_TK.masked_fill(ids_TK < 0, 0)
        return Assignment(ids_TK.int(), weights_TK, logits_TE, {})


class LimitedTopKRouter(Router):
    """The same, trained with a capacity or with jitter; once trained it is a `TopKRouter`."""

    kind = "topk"

    def __init__(self, weight_ED: Tensor, top_k: int, options: RouterConfig, renormalise: bool = True):
        super().__init__(weight_ED, top_k, options)
        self.renormalise = renormalise

    def choose(self, x_TD: Tensor, logits_TE: Tensor, rows: Rows) -> Choice:
        ids_TK = best(logits_TE, self.top_k)
        return ids_TK, softmax_at(logits_TE, replayed(ids_TK, rows), self.renormalise), {}
