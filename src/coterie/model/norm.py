"""RMSNorm, Linear, and the pair of them that a kernel may fuse."""

from torch import Tensor, nn
from torch.nn import functional

from coterie.kernels import rms_norm

__all__ = ["Linear", "Projection", "RMSNorm"]


class RMSNorm(nn.Module):
    """`weight` [D]."""

    def __init__(self, weight_D: Tensor, eps: float):
        super().__init__()
        self.weight = nn.Parameter(weight_D)
        self.eps = eps

    def forward(self, x_TD: Tensor) -> Tensor:
        return rms_norm(x_TD, self.weight, self.eps)


class Linear(nn.Module):
    """`weight` [N, D], no bias: no model of the family has one."""

    def __init__(self, weight_ND: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight_ND)

    def forward(self, x_TD: Tensor) -> Tensor:
        return functional.linear(x_TD, self.weight)


class Projection(nn.Module):
    """linear(norm(x)): swapped as one part, so that a kernel may fuse the two."""

    def __init__(self, norm: nn.Module, linear: nn.Module):
        super().__init__()
        self.norm, self.linear = norm, linear

    def forward(self, x_TD: Tensor) -> Tensor:
        y: Tensor = self.linear(self.norm(x_TD))
        return y
