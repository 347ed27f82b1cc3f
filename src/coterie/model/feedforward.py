"""The dense feed-forward block of Mistral 7B and Llama 2. Shapes: T tokens, D model width, F inner width."""

from torch import Tensor, nn

from coterie.kernels import swiglu

__all__ = ["FeedForward"]


class FeedForward(nn.Module):
    """`gate_up` is a Projection to 2F rows, gate rows first; `down` [D, F]."""

    def __init__(self, gate_up: nn.Module, down: nn.Module):
        super().__init__()
        self.gate_up, self.down = gate_up, down

    def forward(self, x_TD: Tensor) -> Tensor:
        y: Tensor = self.down(swiglu(self.gate_up(x_TD)))
        return y
