"""Simulated caches against a plain one, and against the best that any policy could do, by trying all of them."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest

from coterie.analysis.replay import POLICIES, Turns, replay, turns_by_layer, turns_of_all
from coterie.analysis.stretches import Sample


def sample_of(ids: np.ndarray, n_experts: int) -> Sample:
    """One stretch of ids [T, L, K], all of it counted."""
    T = len(ids)
    return Sample(
        ids[:, None].astype(np.int16), np.ones((T, 1), dtype=bool), np.arange(T, dtype=np.int64)[:, None], n_experts
    )


def random_ids(T: int, L: int, K: int, E: int, seed: int = 0) -> np.ndarray:
    """K different experts a token, low numbers more often; a few slots unused."""
    rng = np.random.default_rng(seed)
    scores = rng.random((T, L, E)) * np.linspace(1, 3, E)
    ids = np.argsort(scores, axis=-1)[..., :K]
    return np.where(rng.random((T, L, K)) < 0.05, -1, ids)


def turns_in_words(ids: np.ndarray, is_shared: bool) -> list[list[tuple[int, list[int]]]]:
    """For each cache its turns: the layer, and what it asks for as numbers of the whole cache."""
    T, L, _ = ids.shape
    E = 100
    if is_shared:
        return [[(n, [n * E + e for e in ids[t, n] if e >= 0]) for t in range(T) for n in range(L)]]
    return [[(0, [e for e in ids[t, n] if e >= 0]) for t in range(T)] for n in range(L)]


def plain(turns: list[tuple[int, list[int]]], size: int, L: int, worth: Callable[..., tuple[float, ...]]) -> int:
    """A cache as one would write it first: of what is there and not asked for now, the least worthy goes."""
    held: set[int] = set()
    hits = 0
    for q, (_, asked) in enumerate(turns):
        hits += len(held & set(asked))
        held |= set(asked)
        while len(held) > size:
            held.remove(min(held - set(asked), key=lambda e: worth(e, q, turns, L)))
    return hits


def uses(expert: int, q: int, turns: list[tuple[int, list[int]]]) -> list[int]:
    return [i for i in range(q + 1) if expert in turns[i][1]]


def lru(e: int, q: int, turns: list[tuple[int, list[int]]], L: int) -> tuple[float, ...]:
    last = uses(e, q, turns)[-1]
    return last, -turns[last][1].index(e)


def lfu(e: int, q: int, turns: list[tuple[int, list[int]]], L: int) -> tuple[float, ...]:
    return len(uses(e, q, turns)), *lru(e, q, turns, L)


def optimal(e: int, q: int, turns: list[tuple[int, list[int]]], L: int) -> tuple[float, ...]:
    coming = [i for i in range(q + 1, len(turns)) if e in turns[i][1]]
    return (-coming[0] if coming else -1e9,)


def least_stale(e: int, q: int, turns: list[tuple[int, list[int]]], L: int) -> tuple[float, ...]:
    layer = turns[uses(e, q, turns)[-1]][0]
    latest = max(i for i in range(q + 1) if i % L == layer)
    return e in turns[latest][1], -(latest + L), *lru(e, q, turns, L)


PLAIN = {"lru": lru, "lfu": lfu, "optimal": optimal, "least-stale": least_stale}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("is_shared", [False, True], ids=["by layer", "shared"])
def test_a_plain_cache_has_the_same_hits(policy: str, is_shared: bool) -> None:
    L, K, E = 3, 2, 6
    ids = random_ids(60, L, K, E)
    turns = (turns_of_all if is_shared else turns_by_layer)(sample_of(ids, E), [policy])
    sizes = [3, 5, 8, 11] if is_shared else [2, 3, 4, 5]
    found = replay(turns, sizes).sum((0, 1), dtype=int)  # [C, M]
    rounds = L if is_shared else 1
    for c, words in enumerate(turns_in_words(ids, is_shared)):
        assert found[c].tolist() == [plain(words, size, rounds, PLAIN[policy]) for size in sizes]


def most_hits(turns: list[list[int]], size: int) -> int:
    """The most hits that any choice of what stays can have."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for asked in turns:
        reached: dict[frozenset[int], int] = {}
        for held, hits in states.items():
            others, now = held - set(asked), hits + len(held & set(asked))
            for n in range(min(len(others), size - len(set(asked))) + 1):
                for kept in combinations(sorted(others), n):
                    state = frozenset(kept) | set(asked)
                    reached[state] = max(reached.get(state, 0), now)
        states = reached
    return max(states.values())


@pytest.mark.parametrize("seed", range(3))
def test_no_choice_of_what_stays_beats_the_optimal_policy(seed: int) -> None:
    ids = random_ids(14, 1, 2, 5, seed)
    found = replay(turns_by_layer(sample_of(ids, 5), ["optimal"]), [2, 3, 4]).sum((0, 1, 2), dtype=int)
    words = [[int(e) for e in row if e >= 0] for row in ids[:, 0]]
    assert found.tolist() == [most_hits(words, size) for size in (2, 3, 4)]


def test_layers_in_a_circle_defeat_lru_and_not_least_stale() -> None:
    """Two layers, each token asks for the same two experts of each; three places. LRU throws out what comes next."""
    ids = np.tile(np.array([[[0], [1], [2], [3]]]), (10, 1, 1))
    turns = turns_of_all(sample_of(ids, 4), ["lru", "least-stale", "optimal"])
    hits = replay(turns, [3])[4:].sum((0, 2, 3), dtype=int)
    assert hits[0] == 0 and hits[1] == hits[2] > 20


def test_by_layer_least_stale_is_lru() -> None:
    turns = turns_by_layer(sample_of(random_ids(80, 2, 2, 6), 6), ["lru", "least-stale"])
    hits = replay(turns, [2, 3, 4, 5])
    assert np.array_equal(hits[:, 0], hits[:, 1])


def test_an_expert_that_a_token_names_twice_is_asked_for_once() -> None:
    ids = np.array([[[1, 1]], [[1, 2]], [[2, 2]]])
    turns = turns_by_layer(sample_of(ids, 4), ["lru"])
    assert (turns.asked_QKC < turns.n_rows).sum() == 4
    assert replay(turns, [2]).ravel().tolist() == [0, 1, 1]


def test_a_larger_cache_never_has_fewer_hits() -> None:
    """The inclusion property: keys do not depend on the size."""
    turns: Turns = turns_of_all(sample_of(random_ids(50, 3, 2, 6), 6))
    hits = replay(turns, list(range(2, 18)))
    assert (np.diff(hits.astype(int), axis=-1) >= 0).all()
