"""The reference experts, in three readable steps: dispatch, one expert at a time, combine.

Shapes: T tokens, K slots a token, E experts, D model width, F expert width, N = T·K (token, slot) pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coterie.kernels import combine, gated_ffn, sparse_ffn, sparse_ffn_training
from coterie.kernels.reference import wide
from coterie.routing import Assignment

__all__ = ["Experts"]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """The N pairs sorted by expert.

    Example, T=2 tokens, K=2: ids [[1, 0], [1, -1]] are the pairs 0..3 with experts 1, 0, 1, -1.
    Sorted: pair_N = [3, 1, 0, 2]; counts = [1 unused, 1 of expert 0, 2 of expert 1]; place_N = [2, 1, 3, 0].
    """

    pair_N: Tensor  # sorted position -> pair
    place_N: Tensor  # pair -> sorted position
    counts: list[int]  # pairs of "unused", expert 0, expert 1, ...

    @staticmethod
    def of(ids_TK: Tensor, n_experts: int) -> "Dispatch":
        flat_N = ids_TK.reshape(-1).long()
        pair_N = flat_N.argsort(stable=True)
        counts = torch.bincount(flat_N + 1, minlength=n_experts + 1).tolist()
        return Dispatch(pair_N, pair_N.argsort(), counts)


class Experts(nn.Module):
    """`gate_up` [E, 2F, D], gate rows first, and `down` [E, D, F], as transformers 5 stacks them."""

    def __init__(self, gate_up_E2FD: Tensor, down_EDF: Tensor):
        super().__init__()
        self.gate_up = nn.Parameter(gate_up_E2FD)
        self.down = nn.Parameter(down_EDF)

    def forward(self, x_TD: Tensor, routing: Assignment) -> Tensor:
        """Σ over slots 0..K-1, in that order and in float32, of weight · expert(x); a row of -1 gives 0."""
        fused_TD = sparse_ffn(x_TD, routing.ids_TK, routing.weights_TK, self.gate_up, self.down)
        if fused_TD is not None:
            return fused_TD
        if torch.is_grad_enabled():
            return sparse_ffn_training(x_TD, routing.ids_TK, routing.weights_TK, self.gate_up, self.down)
        if x_TD.shape[0] == 1:
            return self._one_token(x_TD, routing)
        out_ND = self._without_gradients(x_TD, routing.ids_TK)
        return combine(out_ND.view(*routing.ids_TK.shape, x_TD.shape[1]), routing.weights_TK)

    def _without_gradients(self, x_TD: Tensor, ids_TK: Tensor) -> Tensor:
        """The outputs of all pairs, with the rows of one expert copied at a time."""
        dispatch = Dispatch.of(ids_TK, len(self.gate_up))
        out_ND = x_TD.new_empty(ids_TK.numel(), x_TD.shape[1])
        unused_n, *pairs = torch.split(dispatch.pair_N, dispatch.counts)
        out_ND.index_fill_(0, unused_n, 0)
        for pair_n, gate_up, down in zip(pairs, self.gate_up.unbind(), self.down.unbind(), strict=True):
            if len(pair_n):
                x_nD = x_TD.index_select(0, pair_n // ids_TK.shape[1])
                out_ND.index_copy_(0, pair_n, gated_ffn(x_nD, gate_up, down))
        return out_ND

    def _one_token(self, x_1D: Tensor, routing: Assignment) -> Tensor:
        """The same for a single token, without sorting."""
        (ids,), (weights,) = routing.ids_TK.tolist(), routing.weights_TK.tolist()
        y_1D = torch.zeros_like(wide(x_1D))
        gate_up, down = self.gate_up, self.down
        for e, weight in zip(ids, weights, strict=True):
            if e >= 0:
                y_1D.add_(wide(gated_ffn(x_1D, gate_up[e], down[e])), alpha=weight)
        return y_1D.to(x_1D.dtype)
