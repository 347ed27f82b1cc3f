"""SparseMixer: an expert is drawn by lot and the router learns from it (arXiv 2310.00811; microsoft/SparseMixer).

The gradient of an expectation over which expert is drawn asks what the experts that were not drawn would have said.
Taking none (weight 0) as the other end, the difference is the integral of the loss's slope between weight 0 and the
weight w of the drawn expert: w · slope(w/2) by the mid-point rule. So half of the draws that are not the best expert
run with half the weight, and the gradient is doubled to hold both that difference and the slope at w. Experts too far
below the best are never drawn. When the model is used the best expert is taken.
Shapes: T tokens, D model width, E experts, K = 1.
"""

from typing import Any

import torch
from torch import Tensor, nn

from coterie.router_config import RouterConfig
from coterie.routing.assignment import Rows
from coterie.routing.choose import best, uniform_like
from coterie.routing.router import Choice, Router, replayed

__all__ = ["SparseMixerRouter", "draw", "without_far_ones"]


class SparseMixerRouter(Router):
    """`omega` [1] scales the output; a scale for each dimension (the authors') could be taken up by the experts."""

    kind = "sparsemixer"

    def __init__(self, weight_ED: Tensor, omega_1: Tensor, top_k: int, options: RouterConfig):
        super().__init__(weight_ED, top_k, options)
        self.omega = nn.Parameter(omega_1)

    def choose(self, x_TD: Tensor, logits_TE: Tensor, rows: Rows) -> Choice:
        near_TE = without_far_ones(logits_TE, self.options.epsilon)
        ids_T1 = draw(near_TE, rows.generator) if self.training else best(logits_TE, 1)
        at_T1 = replayed(ids_T1, rows)
        weights_T1 = near_TE.softmax(-1).gather(-1, at_T1)
        if self.training:
            is_whole_T1 = (at_T1 == best(logits_TE, 1)) | (uniform_like(weights_T1, rows.generator) > 0.5)
            weights_T1 = _MidPoint.apply(weights_T1, is_whole_T1)  # type: ignore[no-untyped-call]
        return ids_T1, weights_T1 * self.omega, {}


def without_far_ones(logits_TE: Tensor, epsilon: float) -> Tensor:
    """The logits, -inf where (max - logit) / max(|logit|, max) > 2 · epsilon: what jitter of epsilon could not lift."""
    most_T1 = logits_TE.detach().amax(-1, keepdim=True)
    reach_TE = torch.maximum(logits_TE.detach().abs(), most_T1)
    return logits_TE.masked_fill(most_T1 - logits_TE.detach() > 2 * epsilon * reach_TE, -torch.inf)


def draw(logits_TE: Tensor, generator: torch.Generator | None) -> Tensor:
    """An expert for each token with the probabilities of a softmax, by Gumbel's trick: int64 [T, 1]."""
    exponential_TE = torch.empty_like(logits_TE).exponential_(generator=generator)
    return best(logits_TE.detach() - exponential_TE.log(), 1)


class _MidPoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_T1: Tensor, is_whole_T1: Tensor) -> Tensor:
        return torch.where(is_whole_T1, weights_T1, weights_T1 / 2)

    @staticmethod
    def backward(ctx: Any, gradient_T1: Tensor) -> tuple[Tensor, None]:
        return 2 * gradient_T1, None
