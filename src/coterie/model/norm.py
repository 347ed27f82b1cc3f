"""RMSNorm, Linear, Embedding, and the pair of the first two that a kernel may fuse."""

from torch import Tensor, nn
from torch.nn import functional

from coterie.kernels import linear, rms_norm

__all__ = ["Embedding", "Linear", "Projection", "RMSNorm"]


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
        return linear(x_TD, self.weight)


class Embedding(nn.Module):
    """`weight` [V, D]: a row for each token id."""

    def __init__(self, weight_VD: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight_VD)

    def forward(self, ids_T: Tensor) -> Tensor:
        return functional.embedding(ids_T, self.weight)


class Projection(nn.Module):
    """linear(norm(x)): swapped as one part, so that a kernel may fuse the two."""

    def __init__(self, norm: nn.Module, linear: nn.Module):
        super().__init__()
        self.norm, self.linear = norm, linear

    def forward(self, x_TD: Tensor) -> Tensor:
        if type(self.norm) is RMSNorm and type(self.linear) is Linear:
            return linear(x_TD, self.linear.weight, (self.norm.weight, self.norm.eps))
        y: Tensor = self.linear(self.norm(x_TD))
        return y
