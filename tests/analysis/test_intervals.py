"""Intervals that hold what they promise, also where neighbours are alike; a test with the right level and power."""

import numpy as np
import pytest

from coterie.analysis.intervals import differences, distance, ratio_interval, student


def test_student_is_that_of_the_tables() -> None:
    table = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 30: 2.042, 1000: 1.962}
    for freedom, value in table.items():
        assert student(freedom) == pytest.approx(value, abs=0.01)
    assert np.isnan(student(0))


def test_a_ratio_by_hand() -> None:
    """Two blocks of 10 with 4 and 6: share 0.5, z = -1 and 1, variance 2 · 2 / 400 = 0.01, t(1) = 12.7."""
    found = ratio_interval(np.array([[4], [6]]), np.array([[10], [10]]), is_share=False)
    assert found.value[0] == 0.5
    assert found.high[0] - found.value[0] == pytest.approx(12.7062 * 0.1)
    assert found.design_effect[0] == pytest.approx(0.01 / (0.25 / 20))
    one = ratio_interval(np.array([[4]]), np.array([[10]]))
    assert one.value[0] == 0.4 and np.isnan(one.low[0])


def test_intervals_cover_the_truth_where_tokens_of_a_block_are_alike() -> None:
    """Blocks of 50 tokens that mostly agree: the interval covers in 95 % of cases, that of single tokens does not."""
    rng, covered, naive = np.random.default_rng(0), 0, 0
    for _ in range(400):
        own = rng.beta(1, 3, size=40)
        counts = rng.binomial(50, own)[:, None]
        found = ratio_interval(counts, np.full((40, 1), 50))
        covered += found.low[0] <= 0.25 <= found.high[0]
        half = 1.96 * np.sqrt(found.value[0] * (1 - found.value[0]) / 2000)
        naive += abs(found.value[0] - 0.25) <= half
    assert 0.91 <= covered / 400 <= 0.98 and naive / 400 < 0.6


def test_strata_leave_out_what_differs_between_domains() -> None:
    counts, domain = np.array([[1], [2], [9], [8]]), np.array([0, 0, 1, 1])
    totals = np.full((4, 1), 10)
    wide, narrow = ratio_interval(counts, totals), ratio_interval(counts, totals, domain)
    assert wide.value[0] == narrow.value[0] == 0.5
    assert narrow.high[0] - narrow.low[0] < 0.5 * (wide.high[0] - wide.low[0])
    alone = ratio_interval(counts[:3], totals[:3], domain[:3])
    assert np.isfinite(alone.low).all()


def test_distance_is_the_share_that_moves() -> None:
    assert distance(np.array([0.5, 0.5, 0]), np.array([0.25, 0.5, 0.25])) == 0.25


def test_domains_that_are_alike_differ_as_often_as_the_level_says() -> None:
    rng, domain = np.random.default_rng(1), np.repeat([0, 1, 2], 12)
    p = [
        differences(rng.multinomial(40, rng.dirichlet(np.full(8, 2.0), size=36)).reshape(36, 1, 8), domain, 3).p_all
        for _ in range(100)
    ]
    assert 0 < np.mean(np.array(p) < 0.1) < 0.2 and 0.35 < np.mean(p) < 0.65


def test_domains_that_differ_are_found_in_their_layer() -> None:
    rng, domain = np.random.default_rng(2), np.repeat([0, 1], 20)
    same, other = np.full(8, 1 / 8), np.array([0.3, *[0.1] * 7])
    layers = [
        np.stack([rng.multinomial(100, same) for _ in domain]),
        np.stack([rng.multinomial(100, other if d else same) for d in domain]),
    ]
    found = differences(np.stack(layers, axis=1), domain, 2)
    assert found.p_G[1] == pytest.approx(0.001) and found.p_G[0] > 0.02 and found.p_all < 0.01
    assert found.found_G[1] > 2 * found.by_chance_G[1] and found.n_permutations == 999


def test_one_domain_has_no_test() -> None:
    found = differences(np.ones((5, 2, 4), dtype=np.int64), np.zeros(5, dtype=np.int64), 1)
    assert np.isnan(found.p_all) and np.isnan(found.p_G).all() and found.found_G.tolist() == [0, 0]
