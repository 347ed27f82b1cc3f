"""How soon experts come back: worked sequences, the hits of LRU at every size, chance where routing is random."""

import math

import numpy as np
import pytest

from coterie.analysis.replay import replay, turns_by_layer
from coterie.analysis.reuse import measure_reuse, reuse_by_chance, reuse_sections, working_set_by_chance
from coterie.analysis.stretches import Sample


def sample_of(ids: np.ndarray, n_experts: int) -> Sample:
    """Stretches of ids [S, N, L, K], all counted."""
    S, N = ids.shape[:2]
    return Sample(ids.astype(np.int16), np.ones((S, N), dtype=bool), np.arange(S * N).reshape(N, S).T, n_experts)


def random_sample(S: int = 3000, E: int = 8, K: int = 2, L: int = 1, N: int = 1) -> Sample:
    rng = np.random.default_rng(0)
    return sample_of(np.argsort(rng.random((S, N, L, E)), axis=-1)[..., :K], E)


def test_the_example_of_the_docstring() -> None:
    reuse = measure_reuse(sample_of(np.array([0, 1, 0, 2, 1]).reshape(5, 1, 1, 1), 3), 0, [1, 2, 3])
    assert reuse.tokens_SNK.ravel().tolist() == [-1, -1, 2, -1, 3]
    assert reuse.others_SNK.ravel().tolist() == [-1, -1, 1, -1, 2]
    assert reuse.needed == [1.0, 2.0, (2 + 3 + 3) / 3]


def test_unused_slots_ask_for_nothing() -> None:
    reuse = measure_reuse(sample_of(np.array([[0, 1], [-1, -1], [1, -1]]).reshape(3, 1, 1, 2), 3), 0, [2])
    assert reuse.is_asked_SNK.reshape(3, 2).tolist() == [[True, True], [False, False], [True, False]]
    assert reuse.tokens_SNK.reshape(3, 2).tolist() == [[-1, -1], [-1, -1], [2, -1]]
    assert reuse.others_SNK.reshape(3, 2).tolist() == [[-1, -1], [-1, -1], [1, -1]]
    assert reuse.needed == [(2 + 1) / 2]


def test_the_distance_in_experts_tells_what_lru_finds_at_every_size() -> None:
    sample = random_sample(400, E=7, K=2)
    others = measure_reuse(sample, 0, [1]).others_SNK
    hits = replay(turns_by_layer(sample, ["lru"]), [2, 3, 4, 5, 6]).sum((0, 1, 2), dtype=int)
    assert hits.tolist() == [int(((others >= 0) & (others < size)).sum()) for size in (2, 3, 4, 5, 6)]


def test_random_routing_gives_what_chance_gives() -> None:
    reuse = measure_reuse(random_sample(), 0, [1, 4, 16])
    ago = reuse.tokens_SNK[reuse.is_asked_SNK]
    assert [float(((ago > 0) & (ago <= d)).mean()) for d in (1, 4, 16)] == pytest.approx(
        reuse_by_chance(8, 2, [1, 4, 16]), abs=0.02
    )
    assert reuse_by_chance(8, 2, [1]) == [0.25]
    assert reuse.needed == pytest.approx(working_set_by_chance(8, 2, [1, 4, 16]), abs=0.05)
    assert working_set_by_chance(8, 2, [1, 2]) == [2.0, 3.5]


def test_findings_of_a_layer_that_never_changes() -> None:
    ids = np.zeros((50, 1, 2, 1), dtype=int)
    ids[:, 0, 1, 0] = np.arange(50) % 4
    distances, needed = reuse_sections(sample_of(ids, 4))
    assert [row[1] for row in distances.rows] == pytest.approx([0.98, 0.0])  # 49 of 50, none
    assert distances.rows[1][2] == 4.0 and "most in layer 0 (98.0%)" in distances.sentence
    assert needed.rows[2][2:4] == (1.0, 4.0) and needed.rows[-1][1] != needed.rows[-1][1]  # 256 tokens: there are not
    assert "16 tokens in a row need 2.50 of the 4 experts" in needed.sentence


def test_a_single_token_has_findings_too() -> None:
    distances, needed = reuse_sections(sample_of(np.zeros((1, 1, 1, 1), dtype=int), 4))
    assert distances.rows[0][2] is None and math.isnan(needed.rows[1][1])
