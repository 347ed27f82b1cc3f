"""Noisy top-k gating, the first sparse mixture of experts for language (arXiv 1701.06538, section 2.1 and appendix A).

H = x·W + N(0, 1) · softplus(x·W_noise); the K largest of H, softmax over those (over all where the model does not
renormalise: with K = 1 the loss reaches the router only so). The noise is of training alone: then logits near the K-th
take turns, and `losses` has "load", a smooth stand-in for how many tokens each expert gets.
Shapes: T tokens, D model width, E experts, K experts a token.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from coterie.kernels import router_logits
from coterie.router_config import RouterConfig
from coterie.routing.assignment import Rows
from coterie.routing.balance import load_loss
from coterie.routing.choose import best, softmax_at
from coterie.routing.router import Choice, Router, replayed

__all__ = ["NoisyTopKRouter"]

_LEAST_NOISE = 1e-2  # as in the authors' tensor2tensor: keeps the load loss finite


class NoisyTopKRouter(Router):
    """`noise` [E, D] is W_noise of the paper."""

    kind = "noisy_topk"

    def __init__(
        self, weight_ED: Tensor, noise_ED: Tensor, top_k: int, options: RouterConfig, renormalise: bool = True
    ):
        super().__init__(weight_ED, top_k, options)
        self.noise, self.renormalise = nn.Parameter(noise_ED), renormalise

    def choose(self, x_TD: Tensor, logits_TE: Tensor, rows: Rows) -> Choice:
        if not self.training:
            ids_TK = best(logits_TE, self.top_k)
            return ids_TK, softmax_at(logits_TE, replayed(ids_TK, rows), self.renormalise), {}
        std_TE = functional.softplus(router_logits(x_TD, self.noise)) + _LEAST_NOISE
        drawn_TE = torch.randn(
            logits_TE.shape, generator=rows.generator, dtype=logits_TE.dtype, device=logits_TE.device
        )
        noisy_TE = logits_TE + drawn_TE * std_TE
        ids_TK = best(noisy_TE, self.top_k)
        losses = {"load": load_loss(logits_TE, noisy_TE, std_TE, self.top_k, rows.mask_T)}
        return ids_TK, softmax_at(noisy_TE, replayed(ids_TK, rows), self.renormalise), losses
