"""What the next layer's router would say of this layer's input: the guess that prefetching experts lives on.

`watch` is a transformation of a plain model: the one it returns shares every weight, and each block asks the router
after it on the way. Its passes walk through modules, so they take longer than those of the plain model.
Shapes: T tokens, D model width, K slots.
"""

import copy
from itertools import pairwise

from torch import Tensor, nn

from coterie.model import Transformer
from coterie.model.attention import KeyValueCache
from coterie.model.moe import MoE
from coterie.routing import Routing, Rows

__all__ = ["watch"]


class _Watched(nn.Module):
    """A block; the ids that the next one's router chooses from its input go to `guesses`."""

    def __init__(self, block: nn.Module, after: MoE, guesses: list[Tensor]):
        super().__init__()
        self.block, self._after, self._guesses = block, [after], guesses  # in a list: no second path to its weights

    def forward(
        self, x_TD: Tensor, rotary: tuple[Tensor, Tensor], cache: KeyValueCache, rows: Rows | None
    ) -> tuple[Tensor, Routing | None]:
        (after,) = self._after
        self._guesses.append(after.route(after.norm(x_TD), rows).ids_TK)
        result: tuple[Tensor, Routing | None] = self.block(x_TD, rotary, cache, rows)
        return result


def watch(model: Transformer) -> tuple[Transformer, list[Tensor]]:
    """The model that guesses, and the list that a pass leaves its guesses in: for layers 1 to L-1, each [T, K]."""
    guesses: list[Tensor] = []
    blocks = list(model.layers)
    watched = copy.copy(model)
    watched._modules = dict(model._modules)
    watched.layers = nn.ModuleList(
        [_Watched(block, _moe_of(after), guesses) for block, after in pairwise(blocks)] + blocks[-1:]
    )
    return watched, guesses


def _moe_of(block: nn.Module) -> MoE:
    moe = block.get_submodule("feed_forward")
    assert isinstance(moe, MoE)
    return moe
