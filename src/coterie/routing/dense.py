"""All experts for every token, weighed by the softmax: the mixture of 1991 as a layer, and a control for sparse ones.

Shapes: T tokens, D model width, E experts, K = E.
"""

from torch import Tensor

from coterie.routing.assignment import Rows
from coterie.routing.choose import best
from coterie.routing.router import Choice, Router, replayed

__all__ = ["DenseRouter"]


class DenseRouter(Router):
    kind = "dense"

    def choose(self, x_TD: Tensor, logits_TE: Tensor, rows: Rows) -> Choice:
        ids_TE = best(logits_TE, logits_TE.shape[1])
        return ids_TE, logits_TE.softmax(-1).gather(-1, replayed(ids_TE, rows)), {}
