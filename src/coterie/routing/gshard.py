"""GShard: two experts, the second only as often as its weight deserves (arXiv 2006.16668, algorithm 1).

The two probabilities are normalised to add up to 1. While training the second expert is kept with probability
min(1, 2·g2): where it hardly counts, it mostly costs nothing; the weight of the first stays as it was. When the model
is used both are always asked. Shapes: T tokens, D model width, E experts, K = 2.
"""

import torch
from torch import Tensor

from coterie.routing.assignment import Rows
from coterie.routing.choose import best, softmax_at, uniform_like
from coterie.routing.router import Choice, Router, replayed

__all__ = ["GShardRouter"]


class GShardRouter(Router):
    kind = "gshard"

    def choose(self, x_TD: Tensor, logits_TE: Tensor, rows: Rows) -> Choice:
        ids_T2 = best(logits_TE, 2)
        weights_T2 = softmax_at(logits_TE, replayed(ids_T2, rows), renormalise=True)
        if self.training:
            second_T = weights_T2[:, 1].detach()
            is_left_out_T = uniform_like(second_T, rows.generator) >= 2 * second_T
            ids_T2 = torch.stack([ids_T2[:, 0], ids_T2[:, 1].masked_fill(is_left_out_T, -1)], 1)
        return ids_T2, weights_T2, {}
