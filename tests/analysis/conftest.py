"""Planted traces: arrays that answer as a recorded trace does, so that what a statistic must find is known."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest


class PlantedTrace:
    """A fake with the reading interface of `coterie.analysis.trace.Trace`; weights are 1/K where none are given."""

    model, fingerprint, header = "planted", "0" * 64, {}

    def __init__(
        self,
        experts_TLK: Any,
        *,
        n_experts: int = 8,
        weights_TLK: Any = None,
        token_ids: Any = None,
        documents: Any = None,
        positions: Any = None,
        domain_of_T: Any = None,
        domains: Sequence[str] = ("text",),
        logits_TLE: Any = None,
        guesses_TLK: Any = None,
        pieces: list[str] | None = None,
    ) -> None:
        self._experts = np.asarray(experts_TLK, dtype=np.int16)
        T, self.n_layers, self.top_k = self._experts.shape
        self.n_experts, self.domains, self.pieces, self._logits = n_experts, list(domains), pieces, logits_TLE
        self._guesses = guesses_TLK
        even = np.where(self._experts >= 0, 1 / self.top_k, 0)
        self._weights = np.asarray(even if weights_TLK is None else weights_TLK, dtype=np.float32)
        zeros = np.zeros(T, dtype=np.int32)
        self.token_ids = zeros if token_ids is None else np.asarray(token_ids, dtype=np.int32)
        self.documents = zeros if documents is None else np.asarray(documents, dtype=np.int32)
        self.positions = _places(self.documents) if positions is None else np.asarray(positions, dtype=np.int32)
        self.domain_of_T = zeros.astype(np.int16) if domain_of_T is None else np.asarray(domain_of_T, dtype=np.int16)
        self.vocab_size = max(int(self.token_ids.max(initial=0)) + 1, len(pieces or []))

    def __len__(self) -> int:
        return len(self._experts)

    def experts(self, start: int = 0, stop: int | None = None, layer: int | None = None) -> Any:
        return _part(self._experts, start, stop, layer)

    def weights(self, start: int = 0, stop: int | None = None, layer: int | None = None) -> Any:
        return _part(self._weights, start, stop, layer)

    def logits(self, start: int = 0, stop: int | None = None, layer: int | None = None) -> Any:
        return None if self._logits is None else _part(self._logits, start, stop, layer)

    def guesses(self, start: int = 0, stop: int | None = None, layer: int | None = None) -> Any:
        return None if self._guesses is None else _part(self._guesses, start, stop, layer)


def _part(values: Any, start: int, stop: int | None, layer: int | None) -> Any:
    return values[start:stop] if layer is None else values[start:stop, layer]


def _places(documents: Any) -> Any:
    """0, 1, 2 ... in each document."""
    at = np.arange(len(documents))
    is_first = np.append(True, documents[1:] != documents[:-1])[: len(documents)]
    return (at - np.maximum.accumulate(np.where(is_first, at, 0))).astype(np.int32)


@pytest.fixture
def plant() -> Callable[..., PlantedTrace]:
    return PlantedTrace


@pytest.fixture
def uniform() -> Callable[..., Any]:
    """Each token chooses K different experts, all sets alike: experts [T, L, K]."""

    def choose(T: int, L: int = 2, E: int = 8, K: int = 2, seed: int = 0) -> Any:
        rng = np.random.default_rng(seed)
        return np.argsort(rng.random((T, L, E)), axis=-1)[..., :K].astype(np.int16)

    return choose
