"""Sinkhorn routing: while training, tokens are shared out almost evenly (S-BASE, arXiv 2202.01169, appendix B).

exp(logits) is scaled by rows and columns until each token gives 1/T and each expert gets 1/E; the K largest of the
scaled matrix are taken. No gradient passes the scaling: the weights are sigmoid(logit) for K = 1, else the softmax over
all experts at the chosen ones. When the model is used it is plain top-k, which looks at no other token: causal then,
and evenly loaded no longer. Shapes: T tokens, D model width, E experts, K experts a token.
"""

import torch
from torch import Tensor

from coterie.routing.assignment import Rows
from coterie.routing.choose import best, softmax_at
from coterie.routing.router import Choice, Router, replayed

__all__ = ["SinkhornRouter", "sinkhorn"]


class SinkhornRouter(Router):
    kind = "sinkhorn"

    @property
    def is_causal(self) -> bool:
        return not self.training

    def choose(self, x_TD: Tensor, logits_TE: Tensor, rows: Rows) -> Choice:
        ids_TK = best(self._balanced(logits_TE.detach(), rows.mask_T) if self.training else logits_TE, self.top_k)
        at_TK = replayed(ids_TK, rows)
        if self.top_k == 1:
            return ids_TK, logits_TE.gather(-1, at_TK).sigmoid(), {}
        return ids_TK, softmax_at(logits_TE, at_TK, renormalise=False), {}

    def _balanced(self, logits_TE: Tensor, mask_T: Tensor | None) -> Tensor:
        """The scaled matrix; padding keeps its logits."""
        if mask_T is None:
            return sinkhorn(logits_TE)
        return logits_TE.index_put((mask_T,), sinkhorn(logits_TE[mask_T]))


def sinkhorn(logits_TE: Tensor, tolerance: float = 1e-4, most: int = 200) -> Tensor:
    """exp(logits) · row factors · column factors, rows summing to 1/T and columns to 1/E: float64 inside, [T, E].

    Iterates until the column factors change by less than `tolerance` of their mean, at most `most` times.
    """
    T, E = logits_TE.shape
    if T == 0:
        return logits_TE
    # The factors take up what a column or a row has in common. Less both maxima, each holds a 1: no sum of them is 0.
    cost_TE = logits_TE.double() - logits_TE.double().amax(0)
    cost_TE = (cost_TE - cost_TE.amax(-1, keepdim=True)).exp()
    column_E = torch.ones(E, dtype=torch.float64, device=logits_TE.device)
    for _ in range(most):
        row_T = 1 / (T * (cost_TE @ column_E))
        new_E = 1 / (E * (row_T @ cost_TE))
        change = (new_E - column_E).abs().mean() / new_E.abs().mean()
        column_E = new_E
        if change < tolerance:
            break
    row_T = 1 / (T * (cost_TE @ column_E))
    return (row_T[:, None] * cost_TE * column_E).to(logits_TE.dtype)
