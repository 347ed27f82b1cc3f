"""SparseMixer v2, the router of GRIN and Phi-3.5-MoE (arXiv 2409.12136, section 2; microsoft/SparseMixer).

As `sparsemixer.py`, with Heun's third-order rule for the integral: slope(w) in a quarter of the draws that are not the
best expert, slope(w/3) in three quarters. The gradient to the logits is slope · w · (one-hot - probabilities), the
difference alone. A second expert is drawn likewise among those that are left. When the model is used the best are
taken.
Shapes: T tokens, D model width, E experts, K experts a token, 1 or 2.
"""

from typing import Any

import torch
from torch import Tensor

from coterie.routing.assignment import Rows
from coterie.routing.choose import best, uniform_like
from coterie.routing.router import Choice, Router, replayed
from coterie.routing.sparsemixer import draw, without_far_ones

__all__ = ["SparseMixerV2Router"]


class SparseMixerV2Router(Router):
    kind = "sparsemixer_v2"

    def choose(self, x_TD: Tensor, logits_TE: Tensor, rows: Rows) -> Choice:
        left_TE, ids, weights = logits_TE, [], []
        for slot in range(self.top_k):
            near_TE = without_far_ones(left_TE, self.options.epsilon)
            id_T1 = draw(near_TE, rows.generator) if self.training else best(left_TE, 1)
            at_T1 = id_T1 if rows.replay_ids_TK is None else replayed(id_T1, _slot(rows, slot))
            weights.append(self._weights(near_TE, left_TE, at_T1, rows.generator))
            ids.append(id_T1)
            left_TE = left_TE.scatter(-1, at_T1, -torch.inf)
        return torch.cat(ids, 1), torch.cat(weights, 1), {}

    def _weights(self, near_TE: Tensor, left_TE: Tensor, at_T1: Tensor, generator: torch.Generator | None) -> Tensor:
        share_TE = near_TE.softmax(-1)
        if not self.training:
            return share_TE.gather(-1, at_T1)
        is_whole_T1 = (at_T1 == best(left_TE, 1)) | (uniform_like(share_TE[:, :1], generator) > 0.75)
        weights: Tensor = _Heun.apply(near_TE, share_TE.detach(), at_T1, is_whole_T1)  # type: ignore[no-untyped-call]
        return weights


def _slot(rows: Rows, slot: int) -> Rows:
    assert rows.replay_ids_TK is not None
    return Rows(replay_ids_TK=rows.replay_ids_TK[:, slot : slot + 1])


class _Heun(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_TE: Tensor, share_TE: Tensor, at_T1: Tensor, is_whole_T1: Tensor) -> Tensor:
        weights_T1 = share_TE.gather(-1, at_T1)
        ctx.save_for_backward(share_TE, at_T1, weights_T1)
        return torch.where(is_whole_T1, weights_T1, weights_T1 / 3)

    @staticmethod
    def backward(ctx: Any, gradient_T1: Tensor) -> tuple[Tensor, None, None, None]:
        share_TE, at_T1, weights_T1 = ctx.saved_tensors
        slope_T1 = gradient_T1 * weights_T1
        return (-share_TE * slope_T1).scatter_add_(-1, at_T1, slope_T1), None, None, None
