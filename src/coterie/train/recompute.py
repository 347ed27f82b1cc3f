"""Blocks that keep only their input and compute the rest a second time when the gradient comes (arXiv 1604.06174).

Less memory, a third more time. The second time a token must meet the experts it met the first time: products may round
otherwise then (another kernel, another number of threads), and two logits that nearly tie would change places. So the
ids of the first pass are kept and replayed, and the noise of a router is drawn again from the same state.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from coterie.model import Transformer
from coterie.model.attention import KeyValueCache
from coterie.model.moe import MoE
from coterie.model.transformer import Block
from coterie.routing import Routing, Rows

__all__ = ["RecomputedBlock", "recompute_blocks"]


def recompute_blocks(model: Transformer) -> Transformer:
    """The same model, its parameters under the same names, with every block recomputed in backward."""
    for i, block in enumerate(model.layers):
        assert isinstance(block, Block)
        feed_forward = block.feed_forward
        if isinstance(feed_forward, MoE):
            feed_forward = _ReplayedMoE(feed_forward.norm, feed_forward.router, feed_forward.experts)
        model.layers[i] = RecomputedBlock(block.attention, feed_forward)
    return model


class RecomputedBlock(Block):
    """A `Block` under activation checkpointing."""

    def forward(
        self, x_TD: Tensor, rotary: tuple[Tensor, Tensor], cache: KeyValueCache, rows: Rows | None
    ) -> tuple[Tensor, Routing | None]:
        if not torch.is_grad_enabled():
            return super().forward(x_TD, rotary, cache, rows)
        plain = super().forward
        run = _Replay(lambda x, rows: plain(x, rotary, cache, rows), rows or Rows())
        y: tuple[Tensor, Routing | None] = checkpoint(run, x_TD, use_reentrant=False, preserve_rng_state=False)
        return y


class _ReplayedMoE(MoE):
    """Chooses the experts without a graph first, so that both passes of a block record the same operations."""

    def route(self, normed_TD: Tensor, rows: Rows | None) -> Routing:
        rows = rows or Rows()
        if torch.is_grad_enabled() and rows.replay_ids_TK is None:
            state = _state(rows.generator)
            with torch.no_grad():
                ids_TK = getattr(super().route(normed_TD, rows), "ids_TK", None)
            rows = replace(rows, generator=_at(rows.generator, state), replay_ids_TK=ids_TK)
        return super().route(normed_TD, rows)


class _Replay:
    """A pass of a block that routes the second time as it did the first."""

    def __init__(self, forward: Callable[[Tensor, Rows], Any], rows: Rows):
        self._forward, self._rows, self._state = forward, rows, _state(rows.generator)
        self._ids_TK: Tensor | None = None
        self._is_first = True

    def __call__(self, x_TD: Tensor) -> tuple[Tensor, Routing | None]:
        rows = self._rows
        if not self._is_first:
            rows = replace(rows, generator=_at(rows.generator, self._state), replay_ids_TK=self._ids_TK)
        y_TD, routing = self._forward(x_TD, rows)
        self._ids_TK, self._is_first = getattr(routing, "ids_TK", None), False
        return y_TD, routing


def _state(generator: torch.Generator | None) -> Tensor | None:
    return None if generator is None else generator.get_state()


def _at(generator: torch.Generator | None, state: Tensor | None) -> torch.Generator | None:
    """A generator in that state; the one that was handed in has moved on, or must."""
    if generator is None or state is None:
        return None
    copy = torch.Generator(generator.device)
    copy.set_state(state)
    return copy
