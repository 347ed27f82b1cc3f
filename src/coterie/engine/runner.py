"""Forward passes over slots: feed prompts in chunks, then one token of every live sequence at a time.

Shapes: T tokens of all sequences in a pass, B sequences, D model width, V vocabulary.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from coterie.engine.cache import CHUNK, PagedCache
from coterie.engine.graphs import DecodeGraphs
from coterie.engine.native_pass import NativePass
from coterie.engine.plan import Plan
from coterie.model import Output, Transformer
from coterie.routing import Rows
from coterie.routing.edits import ExpertEdits, row_edits

__all__ = ["CARD_CHUNK", "CHUNK", "Runner"]

CARD_CHUNK = 8192  # most prompt tokens of a pass on a card, whose products are the faster the more rows they have
_FIRST = 2048  # tokens that a growing cache has room for where graphs hold its addresses: each move makes them anew

Edits = Sequence[ExpertEdits | None]  # of each sequence of a pass
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _on_its_device(run: "Callable[Concatenate[Runner, _P], _R]") -> "Callable[Concatenate[Runner, _P], _R]":
    """Without gradients, and with the model's card as the current one, where Triton launches: a new thread's is 0."""

    @functools.wraps(run)
    def wrapped(runner: "Runner", /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        card = runner.device
        with torch.inference_mode(), torch.cuda.device(card) if card.type == "cuda" else nullcontext():
            return run(runner, *args, **kwargs)

    return wrapped


class Runner:
    """A model and the slots of the sequences it is reading. `chunk`: most prompt tokens of a pass that it likes."""

    def __init__(self, model: Transformer, n_pages: int | None = None, cache_dtype: torch.dtype | None = None):
        self.model, self.device = model, model.device
        self._native = NativePass.of(model)
        self._graphs = DecodeGraphs.of(model)
        self._latest: tuple[Tensor, Tensor] | None = None  # hidden states and logits of a step by a graph
        self.chunk = CHUNK if model.device.type == "cpu" else CARD_CHUNK
        self.cache = PagedCache(model.config, cache_dtype or model.cache_dtype, model.device, n_pages)
        if self._graphs is not None and n_pages is None:
            self.cache.reserve(1, _FIRST)

    @_on_its_device
    def feed(self, work: Sequence[tuple[int, Sequence[int]]], edits: Edits | None = None) -> Output:
        """One pass over the new tokens of each (slot, ids); the rows of the output follow in that order."""
        ids = [i for _, part in work for i in part]
        rows = self._rows(edits, [len(part) for _, part in work])
        return self._pass(ids, self.cache.prefill([(slot, len(part)) for slot, part in work]), rows)

    def feed_all(self, slot: int, ids: Sequence[int]) -> Iterator[Output]:
        """The new tokens of one slot, in chunks: one output for each."""
        for start in range(0, len(ids), self.chunk):
            yield self.feed([(slot, ids[start : start + self.chunk])])

    @_on_its_device
    def step(self, ids: Sequence[int], edits: Edits | None = None) -> Output:
        """One pass over one new token of each of the slots 0..len(ids)-1."""
        self._latest = None
        plan, rows = self.cache.decode(len(ids)), self._rows(edits, [1] * len(ids))
        if self._graphs is not None and rows is None and (found := self._graphs.step(ids, plan)) is not None:
            output, logits_BV = found
            self._latest = output.hidden_TD, logits_BV
            return output
        return self._pass(ids, plan, rows)

    @_on_its_device
    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Logits [T, V] of these rows, in the model's dtype; on a card they may live until the next step only."""
        if self._latest is not None and hidden_TD is self._latest[0]:
            return self._latest[1]
        logits_TV: Tensor = self.model.head(hidden_TD)
        return logits_TV

    def _rows(self, edits: Edits | None, lengths: Sequence[int]) -> Rows | None:
        found = None if edits is None else row_edits(edits, lengths, self.model.config, self.model.device)
        return None if found is None else Rows(edits=found)

    def _pass(self, ids: Sequence[int], plan: Plan, rows: Rows | None) -> Output:
        ids_T = torch.tensor(ids, device=self.model.device)
        if self._native is not None:
            return self._native(ids_T, plan, rows)
        output: Output = self.model(ids_T, plan.positions_T, plan, rows)
        return output
