"""Forward passes over slots: feed prompts in chunks, then one token of every live sequence at a time.

Shapes: T tokens of all sequences in a pass, B sequences, D model width, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from coterie.engine.cache import Decode, Prefill, SlotCache
from coterie.engine.native_pass import NativePass
from coterie.model import Output, Transformer

__all__ = ["CHUNK", "Runner"]

CHUNK = 512  # most prompt tokens of one pass: bounds memory, and the wait of sequences that are decoding


class Runner:
    """A model and the slots of the sequences it is reading."""

    def __init__(self, model: Transformer):
        self.model = model
        self._native = NativePass.of(model)
        self.cache = SlotCache(model.config, model.cache_dtype, model.device)

    @torch.inference_mode()
    def feed(self, work: Sequence[tuple[int, Sequence[int]]]) -> Output:
        """One pass over the new tokens of each (slot, ids); the rows of the output follow in that order."""
        ids = [i for _, part in work for i in part]
        return self._pass(ids, self.cache.prefill([(slot, len(part)) for slot, part in work]))

    def feed_all(self, slot: int, ids: Sequence[int]) -> Iterator[Output]:
        """The new tokens of one slot, in chunks: one output for each."""
        for start in range(0, len(ids), CHUNK):
            yield self.feed([(slot, ids[start : start + CHUNK])])

    @torch.inference_mode()
    def step(self, ids: Sequence[int]) -> Output:
        """One pass over one new token of each of the slots 0..len(ids)-1."""
        return self._pass(ids, self.cache.decode(len(ids)))

    @torch.inference_mode()
    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Logits [T, V] of these rows, in the model's dtype."""
        logits_TV: Tensor = self.model.head(hidden_TD)
        return logits_TV

    def _pass(self, ids: Sequence[int], plan: Prefill | Decode) -> Output:
        ids_T = torch.tensor(ids, device=self.model.device)
        if self._native is not None:
            return self._native(ids_T, plan)
        output: Output = self.model(ids_T, plan.positions_T, plan)
        return output
