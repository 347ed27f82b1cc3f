"""Layers whose weights stay packed on a card: the kernels read them as they are; without kernels they are made plain.

They take the places of `layers.py`'s, of which a `PackedProjection` serves both. Activations have the type of the
norms. Shapes: T tokens, K slots a token, E experts, D model width, F expert width, N outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from coterie.kernels import combine, gated_ffn, gpu, rms_norm
from coterie.kernels.packed import Packed
from coterie.quant.card import CardPart, join
from coterie.routing import Assignment

__all__ = ["CardEmbedding", "CardExperts", "CardLinear"]


class CardLinear(nn.Module):
    """Matrices side by side: x [T, D] -> [T, N_1 + N_2 + ...]."""

    def __init__(self, parts: Sequence[CardPart]):
        super().__init__()
        self.parts = tuple(join(parts))

    def forward(self, x_TD: Tensor, norm: tuple[Tensor, float] | None = None) -> Tensor:
        x_TD = x_TD if norm is None else rms_norm(x_TD, *norm)
        y = [_product(x_TD, part) for part in self.parts]
        return y[0] if len(y) == 1 else torch.cat(y, -1)


class CardEmbedding(nn.Module):
    """Rows of a table, in the type of the activations."""

    def __init__(self, table: CardPart, dtype: torch.dtype):
        super().__init__()
        self.table, self.dtype = table, dtype

    def forward(self, ids_T: Tensor) -> Tensor:
        if isinstance(self.table, Tensor):
            return functional.embedding(ids_T, self.table)
        if gpu.is_here(ids_T.device):
            return gpu.packed_rows(self.table, ids_T, self.dtype)
        return self.table.rows(ids_T).to(self.dtype)


class CardExperts(nn.Module):
    """The experts' side of the seam: stacks `gate_up` [E, 2F, D], gate rows first, and `down` [E, D, F]."""

    def __init__(self, gate_up: CardPart, down: CardPart):
        super().__init__()
        self.gate_up, self.down = gate_up, down

    def forward(self, x_TD: Tensor, routing: Assignment) -> Tensor:
        """Σ over slots 0..K-1, in that order and in float32, of weight · expert(x); a row of -1 gives 0."""
        if gpu.is_usable(x_TD):
            return gpu.sparse_ffn(x_TD, routing.ids_TK, routing.weights_TK, self.gate_up, self.down)
        out_TKD = x_TD.new_zeros(*routing.ids_TK.shape, x_TD.shape[1])
        for e in set(routing.ids_TK.flatten().tolist()):
            if e >= 0:
                at = (routing.ids_TK == e).nonzero(as_tuple=True)
                gate_up, down = (_numbers(stack, e).to(x_TD.dtype) for stack in (self.gate_up, self.down))
                out_TKD[at] = gated_ffn(x_TD[at[0]], gate_up, down)
        return combine(out_TKD, routing.weights_TK)


def _numbers(stack: CardPart, e: int) -> Tensor:
    return stack[e] if isinstance(stack, Tensor) else stack.numbers(e)


def _product(x_TD: Tensor, part: CardPart) -> Tensor:
    if isinstance(part, Packed):
        if gpu.is_usable(x_TD):
            return gpu.packed_linear(x_TD, part)
        part = part.numbers(0)
    return functional.linear(x_TD, part.to(x_TD.dtype))
