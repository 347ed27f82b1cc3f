"""The sparse feed-forward block: norm, router, experts. Its parts are handed in. T tokens, D model width."""

from torch import Tensor, nn

from coterie.routing import Assignment, Rows

__all__ = ["MoE"]


class MoE(nn.Module):
    """y = experts(norm(x), router(norm(x)))."""

    def __init__(self, norm: nn.Module, router: nn.Module, experts: nn.Module):
        super().__init__()
        self.norm, self.router, self.experts = norm, router, experts

    def forward(self, x_TD: Tensor, rows: Rows | None) -> tuple[Tensor, Assignment]:
        normed_TD = self.norm(x_TD)
        routing: Assignment = self.router(normed_TD, rows)
        return self.experts(normed_TD, routing), routing
