"""The sample that caches are simulated on: stretches of neighbouring tokens, spread evenly over a trace.

A simulation goes token by token, which no array operation does; but stretches can go side by side. Each is led by
tokens that fill its cache and are not counted, so that it does not begin with an empty one; the first has none before.
Shapes: T tokens of the trace, N stretches, S tokens of each (its lead first), L layers, K experts per token, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.trace import Trace

__all__ = ["Sample", "take_sample", "without_idle_slots"]

_STRETCHES, _MOST = 64, 2048  # how many, and tokens of each: where these are too few, there are more


@dataclass(frozen=True)
class Sample:
    """`experts_SNLK`: -1 is an unused slot, and every slot where there is no token. `is_counted_SN`: past the lead.
    `token_SN`: places in the trace, -1 where there is none."""

    experts_SNLK: NDArray[np.int16]
    is_counted_SN: NDArray[np.bool_]
    token_SN: NDArray[np.int64]
    n_experts: int

    @property
    def n_tokens(self) -> int:
        """How many are counted."""
        return int(self.is_counted_SN.sum())

    @property
    def n_layers(self) -> int:
        return int(self.experts_SNLK.shape[2])

    @property
    def top_k(self) -> int:
        return int(self.experts_SNLK.shape[3])

    @property
    def mean_used(self) -> float:
        """Experts that a counted token uses in a layer: `top_k`, less where slots are unused."""
        return float((self.experts_SNLK >= 0).sum((2, 3))[self.is_counted_SN].mean() / self.n_layers)


def without_idle_slots(samples: Sequence[Sample]) -> list[Sample]:
    """Fewer slots where the last are unused in all: where experts choose tokens, there are as many as experts."""
    used = [np.flatnonzero((s.experts_SNLK >= 0).any((0, 1, 2))) for s in samples]
    most = max(int(slots.max(initial=0)) + 1 for slots in used)
    return [replace(s, experts_SNLK=s.experts_SNLK[..., :most]) for s in samples]


def take_sample(trace: Trace, n_tokens: int, *, lead: int = 512, longest: int = _MOST) -> Sample:
    """About `n_tokens` tokens in 64 stretches or so, each led by `lead`; the whole trace where it has no more.

    Stretches are at least twice as long as what leads them, and at most `longest`. A trace of 10,000 tokens, n_tokens
    4,096, lead 512: 4 stretches that begin at 0, 2,500, 5,000 and 7,500, each of 1,024 tokens, after the 512 before it.
    A token counts once: stretches do not overlap, leads may.
    """
    n_tokens = min(n_tokens, len(trace))
    N = max(min(n_tokens // (2 * lead), _STRETCHES), -(-n_tokens // longest), 1)
    starts = [len(trace) * i // N for i in range(N)]
    size = -(-n_tokens // N)
    lead = lead if N > 1 else 0
    shape = (lead + size, N, trace.n_layers, trace.top_k)
    experts = np.full(shape, -1, dtype=np.int16)
    token, is_counted = np.full(shape[:2], -1, dtype=np.int64), np.zeros(shape[:2], dtype=bool)
    for n, (start, end) in enumerate(zip(starts, [*starts[1:], len(trace)], strict=True)):
        first, stop = max(start - lead, 0), min(start + size, end)
        rows = slice(lead - (start - first), lead + stop - start)
        experts[rows, n] = trace.experts(first, stop)
        token[rows, n] = np.arange(first, stop)
        is_counted[lead : lead + stop - start, n] = True
    return Sample(experts, is_counted, token, trace.n_experts)
