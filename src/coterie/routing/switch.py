"""Switch: one expert a token, weighed by its probability among all (arXiv 2101.03961, section 2.1).

The weight stays below 1, which is how the router gets its gradient. The paper trains with capacity 1.0 to 1.25 and
jitter 0.01; a token that finds no room passes by the experts. Shapes: T tokens, D model width, E experts, K = 1.
"""

from torch import Tensor

from coterie.routing.assignment import Rows
from coterie.routing.choose import best, softmax_at
from coterie.routing.router import Choice, Router, replayed

__all__ = ["SwitchRouter"]


class SwitchRouter(Router):
    kind = "switch"

    def choose(self, x_TD: Tensor, logits_TE: Tensor, rows: Rows) -> Choice:
        ids_T1 = best(logits_TE, 1)
        return ids_T1, softmax_at(logits_TE, replayed(ids_T1, rows), renormalise=False), {}
