"""How evenly experts are used, as numbers for a log. Shapes: T tokens, E experts, K slots a token."""

import math

from torch import Tensor

from coterie.routing.assignment import Routing

__all__ = ["drop_rate", "idle_experts", "load_entropy", "max_violation"]


def max_violation(counts_E: Tensor) -> float:
    """MaxVio: how far the busiest expert is above its fair share, 0 where all are even (arXiv 2408.15664, eq. 4)."""
    return float(counts_E.max() / counts_E.mean().clamp(min=1e-9)) - 1 if float(counts_E.sum()) > 0 else 0.0


def load_entropy(counts_E: Tensor) -> float:
    """The entropy of the load over log E: 1 where all are even, 0 where one expert has it all."""
    if len(counts_E) < 2 or float(counts_E.sum()) == 0:
        return 1.0
    share_E = counts_E.double() / counts_E.double().sum()
    return float(-share_E.xlogy(share_E).sum() / math.log(len(counts_E)))


def idle_experts(counts_E: Tensor) -> int:
    """How many experts got no token."""
    return int((counts_E == 0).sum())


def drop_rate(routing: Routing, mask_T: Tensor | None = None) -> float:
    """The share of slots that are unused: beyond an expert's capacity, or left out by the router itself."""
    ids_TK = routing.ids_TK if mask_T is None else routing.ids_TK[mask_T]
    return float((ids_TK < 0).float().mean()) if ids_TK.numel() else 0.0
