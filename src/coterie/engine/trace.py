"""Which experts read which token: plain data. T tokens, L sparse layers, K experts per token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from coterie.routing import Routing

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
        experts = torch.cat(_alike([e for e, _ in parts], -1)) if parts else torch.zeros((0, 0, 0), dtype=torch.int32)
        weights = torch.cat(_alike([w for _, w in parts], 0)) if parts else torch.zeros((0, 0, 0))
        assert len(experts) == len(token_ids)
        return RoutingTrace(list(token_ids), experts, weights)


def stack_routings(routings: Sequence[Routing], n_rows: int) -> tuple[Tensor, Tensor]:
    """One routing per layer -> experts [T, L, K] and weights [T, L, K] on the CPU; [T, 0, 0] for a dense model."""
    if not routings:
        return torch.zeros((n_rows, 0, 0), dtype=torch.int32), torch.zeros((n_rows, 0, 0))
    experts = torch.stack(_alike([r.ids_TK for r in routings], -1), 1).cpu()
    weights = torch.stack(_alike([r.weights_TK for r in routings], 0), 1).float().cpu()
    return experts, weights


def _alike(parts: Sequence[Tensor], filler: int) -> list[Tensor]:
    """As many slots in each, by unused ones at the end: a router may fill more of them in one layer than in another."""
    K = max(part.shape[-1] for part in parts)
    return [part if part.shape[-1] == K else pad(part, (0, K - part.shape[-1]), value=filler) for part in parts]
