"""The sparse feed-forward block: norm, router, experts. Its parts are handed in.

Shapes: T tokens, D model width, E experts, B sequences, M slots of a sequence, N = B·M.
"""

import torch
from torch import Tensor, nn

from coterie.routing import Assignment, Mixture, Routing, Rows

__all__ = ["MoE"]


class MoE(nn.Module):
    """y = experts(norm(x), router(norm(x)))."""

    def __init__(self, norm: nn.Module, router: nn.Module, experts: nn.Module):
        super().__init__()
        self.norm, self.router, self.experts = norm, router, experts

    def forward(self, x_TD: Tensor, rows: Rows | None) -> tuple[Tensor, Routing]:
        normed_TD = self.norm(x_TD)
        routing = self.route(normed_TD, rows)
        if isinstance(routing, Mixture):
            return _through_slots(self.experts, normed_TD, routing), routing
        return self.experts(normed_TD, routing), routing

    def route(self, normed_TD: Tensor, rows: Rows | None) -> Routing:
        routing: Routing = self.router(normed_TD, rows)
        return routing


def _through_slots(experts: nn.Module, x_TD: Tensor, mixture: Mixture) -> Tensor:
    """Each slot is a row that goes to one expert, whole: what the experts get is an assignment like any other."""
    M, n_experts, dtype = mixture.dispatch_TM.shape[1], mixture.logits_TE.shape[1], mixture.dispatch_TM.dtype
    dispatch, combine, x = (
        torch.split(t, mixture.lengths_B) for t in (mixture.dispatch_TM, mixture.combine_TM, x_TD.to(dtype))
    )
    slots_ND = torch.cat([d_SM.T @ x_SD for d_SM, x_SD in zip(dispatch, x, strict=True)]).to(x_TD.dtype)
    expert_M = torch.arange(n_experts, dtype=torch.int32, device=x_TD.device).repeat_interleave(M // n_experts)
    ids_N1 = expert_M.repeat(len(x))[:, None]
    weights_N1 = torch.ones(ids_N1.shape, dtype=dtype, device=x_TD.device)
    out_ND = experts(slots_ND, Assignment(ids_N1, weights_N1, weights_N1.new_zeros(len(ids_N1), n_experts), {}))
    out = torch.split(out_ND.to(dtype), M)
    return torch.cat([c_SM @ out_MD for c_SM, out_MD in zip(combine, out, strict=True)]).to(x_TD.dtype)
