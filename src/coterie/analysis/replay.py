"""Caches of experts, played through: which of them would have been in memory when they were asked for.

All experts that a token asks of a layer are in memory at once while it is computed: that is a turn. Those that were
there are hits; the others are loaded, and what has the lowest key goes until the rest fits. A policy is thus no more
than the key an expert has after each of its turns:

    lru          when it was last asked for
    lfu          how often it was asked for so far, the older first among equals
    optimal      how soon it will be asked for again (Belady, IBM Systems Journal 5, 1966): no policy can do better
    least-stale  stale experts before fresh ones; of each, that whose layer has its next turn the latest

An expert is stale when its layer has had a turn since and did not ask for it. Layers take turns in a circle, so LRU
throws out what the next layers kept from the token before, just before they ask for it. Least-Stale is a policy of
SpecMD (arXiv 2602.03921), whose abstract does not define it: this is our reading. In a cache of one layer it is LRU.

Shapes: Q turns, C caches that go side by side, K experts asked for, U experts a cache may hold, P policies, M sizes;
in `turns`: S tokens, N stretches, L layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.stretches import Sample

__all__ = ["LAYER_POLICIES", "POLICIES", "Turns", "replay", "turns_by_layer", "turns_of_all"]

POLICIES = ("lru", "lfu", "least-stale", "optimal")
LAYER_POLICIES = ("lru", "lfu", "optimal")  # of a cache of one layer
_OUT, _NONE = np.int32(2**31 - 1), np.int32(-(2**31))  # the key of what is not in memory; one that nothing has
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Turns:
    """What caches are asked for, turn after turn, with the keys of the policies.

    `asked_QKC`: the expert, U where a slot is unused. `keys_QPKC`: by policy, the key of that expert after the turn.
    Turn q is one of layer q % n_layers, whose experts are the U / n_layers rows from its own on: n_layers is 1 for
    caches of one layer. `span` is what keys of least-stale are multiples of, but for the time they were last used.
    """

    asked_QKC: Ints
    keys_QPKC: Ints
    n_rows: int
    n_layers: int
    span: int
    policies: tuple[str, ...]


def turns_by_layer(sample: Sample, policies: Sequence[str] = LAYER_POLICIES) -> Turns:
    """A cache for each layer: C is N * L, a token is a turn."""
    S, N, L, K = sample.experts_SNLK.shape
    asked = np.empty((S, K, N, L), dtype=np.int32)
    keys = np.empty((S, len(policies), K, N, L), dtype=np.int32)
    for layer in range(L):
        ids, by_policy = _keys(sample, layer, policies, 1, 0)
        asked[..., layer] = ids.transpose(0, 2, 1)
        keys[..., layer] = by_policy.transpose(1, 0, 3, 2)
    shape = (S, len(policies), K, N * L)
    return Turns(asked.reshape(S, K, -1), keys.reshape(shape), sample.n_experts, 1, S * K, tuple(policies))


def turns_of_all(sample: Sample, policies: Sequence[str] = POLICIES) -> Turns:
    """One cache for all layers: C is N, each token makes L turns."""
    S, N, L, K = sample.experts_SNLK.shape
    E = sample.n_experts
    asked = np.empty((S, L, K, N), dtype=np.int32)
    keys = np.empty((S, L, len(policies), K, N), dtype=np.int32)
    for layer in range(L):
        ids, by_policy = _keys(sample, layer, policies, L, layer)
        asked[:, layer] = np.where(ids == E, L * E, ids + layer * E).transpose(0, 2, 1)
        keys[:, layer] = by_policy.transpose(1, 0, 3, 2)
    shape = (S * L, len(policies), K, N)
    return Turns(asked.reshape(S * L, K, N), keys.reshape(shape), L * E, L, S * K, tuple(policies))


def replay(turns: Turns, sizes: Sequence[int], progress: Callable[[int, int], None] | None = None) -> NDArray[np.uint8]:
    """Hits of every turn -> [Q, P, C, M]. Caches begin empty; a size is at least K, for a turn needs K at once."""
    Q, P, K, C = turns.keys_QPKC.shape
    assert min(sizes) >= K, "a cache that does not hold what one token needs"
    U, columns = turns.n_rows, np.arange(C)
    memory = _Memory(turns, np.array(sizes, dtype=np.int32))
    key, hits = memory.key, np.empty((Q, P, C, len(sizes)), dtype=np.uint8)
    for q, rows_KC in enumerate(turns.asked_QKC):
        memory.grow_stale(q)
        hits[q] = (key[rows_KC, :, columns] != _OUT).sum(0, dtype=np.uint8).swapaxes(0, 1)
        memory.held += (rows_KC < U).sum(0, dtype=np.int32)[:, None] - hits[q]
        key[rows_KC, :, columns] = _OUT  # so that none of them goes
        memory.evict(q, K)
        key[rows_KC, :, columns] = turns.keys_QPKC[q].transpose(1, 2, 0)[..., None]
        key[U] = _OUT
        memory.note(q)
        if progress and q % 64 == 0:
            progress(q, Q)
    return hits


class _Memory:
    """What is in all the caches: `key` [U + 1, P, C, M] (row U is for unused slots), `held` [P, C, M] how many.

    Caches for all layers have the lowest key of each layer at hand in `lowest` [L, P * C * M], so that finding what
    goes looks at L layers and the experts of one, not at all L * E.
    """

    def __init__(self, turns: Turns, limit_M: Ints) -> None:
        P, C, M, L = *turns.keys_QPKC.shape[1::2], len(limit_M), turns.n_layers
        self.turns, self.limit = turns, limit_M
        self.key = np.full((turns.n_rows + 1, P, C, M), _OUT, dtype=np.int32)
        self.held = np.zeros((P, C, M), dtype=np.int32)
        self._by_layer = self.key[:-1].reshape(L, -1, P * C * M)
        self._lowest = np.full((L, P * C * M), _OUT, dtype=np.int32)

    def grow_stale(self, q: int) -> None:
        """Before a layer's turn its experts are stale, but for those it will ask for; its next turn is a round on."""
        turns = self.turns
        if "least-stale" in turns.policies:
            E = turns.n_rows // turns.n_layers
            first = q % turns.n_layers * E
            block = self.key[first : first + E, turns.policies.index("least-stale")]
            block[:] = np.where(block == _OUT, _OUT, block % turns.span - (q + turns.n_layers) * turns.span)

    def note(self, q: int) -> None:
        """Keys of the layer whose turn it is have changed."""
        if self.turns.n_layers > 1:
            layer = q % self.turns.n_layers
            self._by_layer[layer].min(0, out=self._lowest[layer])

    def evict(self, q: int, most: int) -> None:
        """One at a time and `most` at the most, what has the lowest key goes wherever more is held than may be."""
        self.note(q)
        for _ in range(most):
            over = self.held > self.limit
            if not over.any():
                return
            if self.turns.n_layers == 1:
                self.key[self.key == np.where(over, self.key.min(0), _NONE)] = _OUT
            else:
                self._evict_from_layers(np.flatnonzero(over))
            self.held -= over

    def _evict_from_layers(self, where_N: NDArray[np.intp]) -> None:
        layer_N = self._lowest[:, where_N].argmin(0)
        keys_NE = self._by_layer[layer_N, :, where_N]
        expert_N = keys_NE.argmin(1)
        self._by_layer[layer_N, expert_N, where_N] = _OUT
        keys_NE[np.arange(len(where_N)), expert_N] = _OUT
        self._lowest[layer_N, where_N] = keys_NE.min(1)


def _keys(sample: Sample, layer: int, policies: Sequence[str], layers: int, turn: int) -> tuple[Ints, Ints]:
    """Of a layer whose turn is `turn` of `layers`: ids [S, N, K], E for nothing, and keys [P, S, N, K]. At one time no
    two experts of a cache have the same key: equals differ by slot, or by expert where the future counts."""
    ids = _distinct(sample.experts_SNLK[:, :, layer], sample.n_experts)
    S, N, K = ids.shape
    E, span = sample.n_experts, len(ids) * K
    assert (S + 2) * layers * max(span, E) < _OUT, "a sample too long for keys of 32 bits"
    step = np.arange(S, dtype=np.int32)[:, None, None]
    last, now = step * K + K - 1 - np.arange(K, dtype=np.int32), step * layers + turn
    is_used = np.zeros((S, N, E + 1), dtype=bool)
    np.put_along_axis(is_used, ids, True, axis=2)
    keys = np.empty((len(policies), S, N, K), dtype=np.int32)
    for p, policy in enumerate(policies):
        if policy == "lru":
            keys[p] = now * K + last % K
        elif policy == "lfu":
            keys[p] = _uses(is_used, ids) * (span * layers) + now * K + last % K
        elif policy == "optimal":
            keys[p] = -((_next_use(is_used, ids) * layers + turn) * E + ids % E)
        else:
            keys[p] = last + ((S + 1) * layers - now) * span  # above 0: fresh; its next turn is now + layers
    return ids, keys


def _distinct(ids_SNK: NDArray[np.int16], n_experts: int) -> Ints:
    """int32, with E for an unused slot and for an expert that the token has asked for already."""
    ids = np.where(ids_SNK < 0, n_experts, ids_SNK).astype(np.int32)
    for slot in range(1, ids.shape[2]):
        ids[..., slot][(ids[..., :slot] == ids[..., slot, None]).any(-1)] = n_experts
    return ids


def _uses(is_used_SNE: NDArray[np.bool_], ids_SNK: Ints) -> Ints:
    """How often each has been asked for, this time included."""
    return np.take_along_axis(np.cumsum(is_used_SNE, axis=0, dtype=np.int32), ids_SNK, axis=2)


def _next_use(is_used_SNE: NDArray[np.bool_], ids_SNK: Ints) -> Ints:
    """The token of the stretch that will ask for it next, S where none will.

    Used at tokens 1 and 3 of 5: next uses, token by token, are 1 3 3 5 5; each is the least place of a use after it.
    """
    S = len(is_used_SNE)
    places = np.where(is_used_SNE, np.arange(S, dtype=np.int32)[:, None, None], np.int32(S))
    coming = np.full_like(places, S)
    coming[:-1] = np.minimum.accumulate(places[:0:-1], axis=0)[::-1]
    return np.take_along_axis(coming, ids_SNK, axis=2)
