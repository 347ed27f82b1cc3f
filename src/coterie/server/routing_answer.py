"""Routing as part of an answer: which experts read each token, with what weights.

T tokens written, L layers with experts, K experts a token, best first; -1 is an unused slot. Recent answers that asked
for it are kept for a while (`Shelf`), for their own key alone.
"""

import base64
import io
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coterie.engine.trace import RoutingTrace
from coterie.server.tokens import Token

__all__ = ["Kept", "Shelf", "final_routing", "streamed_routing"]

_DIGITS = 5  # of a weight
_MOST_ANSWERS, _MOST_BYTES = 256, 32 << 20


def streamed_routing(tokens: Sequence[Token]) -> dict[str, Any]:
    """`routing` of one chunk: experts and weights [t][L][K] of the tokens of this chunk, with their texts and ids."""
    routed = [t for t in tokens if t.routing is not None]
    return {
        "experts": [t.routing[0].tolist()[0] for t in routed if t.routing is not None],
        "weights": [rounded(t.routing[1].numpy()[0]) for t in routed if t.routing is not None],
        "tokens": [t.text for t in routed],
        "token_ids": [t.id for t in routed],
    }


def final_routing(tokens: Sequence[Token]) -> dict[str, Any]:
    """`routing` of a whole choice, and vLLM's `routed_experts`: int16 [T, L, K] as .npy in base64."""
    experts, weights = arrays(tokens)
    file = io.BytesIO()
    np.save(file, experts, allow_pickle=False)
    routed = [t for t in tokens if t.routing is not None]
    routing = {
        "experts": experts.tolist(),
        "weights": rounded(weights),
        "tokens": [t.text for t in routed],
        "token_ids": [t.id for t in routed],
    }
    return {"routing": routing, "routed_experts": base64.b64encode(file.getvalue()).decode()}


def arrays(tokens: Sequence[Token]) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """experts and weights [T, L, K]."""
    routed = [(t.id, t.routing) for t in tokens if t.routing is not None]
    trace = RoutingTrace.of([i for i, _ in routed], [parts for _, parts in routed])
    return trace.experts.numpy().astype(np.int16), trace.weights.numpy()


def rounded(weights: NDArray[np.float32]) -> list[Any]:
    """As lists; by numpy, which takes a quarter of the time."""
    listed: list[Any] = weights.astype(np.float64).round(_DIGITS).tolist()
    return listed


@dataclass(frozen=True)
class Kept:
    """The routing of one answer: for each choice its token ids, their texts, experts and weights."""

    owner: str
    model: str
    created: int
    choices: list[tuple[list[int], list[str], NDArray[np.int16], NDArray[np.float32]]]

    @property
    def n_bytes(self) -> int:
        return sum(e.nbytes + w.nbytes + 64 * len(ids) for ids, _, e, w in self.choices)

    def to_json(self, answer_id: str) -> dict[str, Any]:
        choices = [
            {
                "index": i,
                "token_ids": ids,
                "tokens": texts,
                "experts": experts.tolist(),
                "weights": rounded(weights),
            }
            for i, (ids, texts, experts, weights) in enumerate(self.choices)
        ]
        return {
            "id": answer_id,
            "object": "routing",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


class Shelf:
    """Recent answers by id, the oldest dropped first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._n_bytes = 0

    def put(self, answer_id: str, owner: str, model: str, created: int, choices: Sequence[Sequence[Token]]) -> None:
        """Keep the routing of these tokens, one list for each choice."""
        parts = [([t.id for t in c], [t.text for t in c], *arrays(c)) for c in choices]
        kept = Kept(owner, model, created, parts)
        self._kept[answer_id] = kept
        self._n_bytes += kept.n_bytes
        while self._kept and (len(self._kept) > _MOST_ANSWERS or self._n_bytes > _MOST_BYTES):
            _, oldest = self._kept.popitem(last=False)
            self._n_bytes -= oldest.n_bytes

    def get(self, answer_id: str, owner: str) -> Kept | None:
        """An answer of this owner; another's is as if there were none."""
        kept = self._kept.get(answer_id)
        return kept if kept is not None and kept.owner == owner else None
