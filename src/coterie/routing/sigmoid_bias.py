"""Sigmoid scores, balanced without a loss by a bias on the choice (arXiv 2408.15664; the router of DeepSeek-V3).

The K experts of largest sigmoid(logit) + bias are taken; the weights are the sigmoids alone, renormalised to add up to
`scale` where the model says so. The bias gets no gradient: once an optimizer step `balance.update_bias` raises that of
idle experts. Shapes: T tokens, D model width, E experts, K experts a token.
"""

import torch
from torch import Tensor

from coterie.router_config import RouterConfig
from coterie.routing.assignment import Rows
from coterie.routing.choose import best
from coterie.routing.router import Choice, Router, replayed

__all__ = ["SigmoidBiasRouter"]


class SigmoidBiasRouter(Router):
    """`bias` [E], a buffer, starts at 0."""

    kind = "sigmoid_bias"
    bias: Tensor

    def __init__(self, weight_ED: Tensor, top_k: int, options: RouterConfig, renormalise: bool):
        super().__init__(weight_ED, top_k, options)
        self.renormalise = renormalise
        self.register_buffer("bias", torch.zeros_like(weight_ED[:, 0]))

    def choose(self, x_TD: Tensor, logits_TE: Tensor, rows: Rows) -> Choice:
        score_TE = logits_TE.sigmoid()
        ids_TK = best(score_TE.detach() + self.bias, self.top_k)
        weights_TK = score_TE.gather(-1, replayed(ids_TK, rows))
        if self.renormalise:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        return ids_TK, weights_TK * self.options.scale, {}
