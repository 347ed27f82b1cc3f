"""What an engine has done so far, as plain numbers that only grow; any thread may read them.

Rows of experts are counted some passes late (at once when the engine falls idle): copying a pass's ids into numpy would
take as long as a small model's layer, so those of many passes are counted together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coterie.routing import Routing

__all__ = ["EngineStats"]

_TOGETHER = 32  # passes


@dataclass(slots=True)
class EngineStats:
    """Tokens, unless it says otherwise. `expert_tokens_LE` is a new array each time it changes."""

    expert_tokens_LE: NDArray[np.int64]  # rows that each expert of each layer has read, of prompts, texts and drafts
    prompt_tokens: int = 0  # of the prompts taken up, those out of the cache too
    prefix_queries: int = 0  # of prompts, looked up in the cache
    cached_tokens: int = 0  # of those, found
    generated_tokens: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0  # drafted tokens that came true
    _uncounted: list[list[Tensor]] = field(default_factory=list)  # ids [T, K] by pass and layer

    @staticmethod
    def of(n_layers: int, n_experts: int) -> "EngineStats":
        return EngineStats(np.zeros((n_layers, n_experts), np.int64))

    def add_pass(self, routings: Sequence[Routing]) -> None:
        """Count a pass and, in the end, the rows of its experts."""
        self.passes += 1
        if routings:
            self._uncounted.append([r.ids_TK for r in routings])
        if len(self._uncounted) >= _TOGETHER:
            self.count()

    def count(self) -> None:
        """Bring `expert_tokens_LE` up to date."""
        uncounted, self._uncounted = self._uncounted, []
        if not uncounted:
            return
        E = self.expert_tokens_LE.shape[1]
        layers = list(zip(*uncounted, strict=True))
        ids_N = torch.cat([ids.reshape(-1) for of_layer in layers for ids in of_layer]).cpu().numpy()  # one copy
        ends = np.cumsum([sum(ids.numel() for ids in of_layer) for of_layer in layers])[:-1]
        counts = [np.bincount(part + 1, minlength=E + 1)[1:] for part in np.split(ids_N, ends)]  # no id: -1
        self.expert_tokens_LE = self.expert_tokens_LE + np.stack(counts)
