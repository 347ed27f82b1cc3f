"""Which experts read which token: plain data. T tokens, L sparse layers, K experts per token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.routing import Assignment

__all__ = ["RoutingTrace", "stack_routings"]


@dataclass(frozen=True, slots=True)
class RoutingTrace:
    """`experts` int32 [T, L, K], best first, -1 an unused slot; `weights` float32 [T, L, K]. Dense: L = 0."""

    token_ids: list[int]
    experts: Tensor
    weights: Tensor

    def to_json(self) -> dict[str, Any]:
        """`{"experts": [T][L][K], "weights": [T][L][K]}`."""
        return {"experts": self.experts.tolist(), "weights": self.weights.tolist()}

    @staticmethod
    def of(token_ids: Sequence[int], parts: Sequence[tuple[Tensor, Tensor]]) -> "RoutingTrace":
        """From parts of one or more tokens each, in order."""
        experts = torch.cat([e for e, _ in parts]) if parts else torch.zeros((0, 0, 0), dtype=torch.int32)
        weights = torch.cat([w for _, w in parts]) if parts else torch.zeros((0, 0, 0))
        assert len(experts) == len(token_ids)
        return RoutingTrace(list(token_ids), experts, weights)


def stack_routings(routings: Sequence[Assignment], n_rows: int) -> tuple[Tensor, Tensor]:
    """One `Assignment` per layer -> experts [T, L, K] and weights [T, L, K] on the CPU; [T, 0, 0] for a dense model."""
    if not routings:
        return torch.zeros((n_rows, 0, 0), dtype=torch.int32), torch.zeros((n_rows, 0, 0))
    experts = torch.stack([r.ids_TK for r in routings], 1).cpu()
    weights = torch.stack([r.weights_TK for r in routings], 1).float().cpu()
    return experts, weights
