import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.eval.bradley_terry import bradley_terry, can_rate, expected_score, is_joined


def consistent(ratings: list[float], games: float = 100.0) -> np.ndarray:
    """Each pair meets `games` times and splits them exactly as the ratings say."""
    r = np.array(ratings)
    wins = games / (1 + 10 ** ((r[None, :] - r[:, None]) / 400))
    np.fill_diagonal(wins, 0)
    return wins


def test_three_wins_to_one() -> None:
    a, b = bradley_terry(np.array([[[0, 3.0], [1, 0]]]))[0]
    assert a - b == pytest.approx(400 * math.log10(3)) and a + b == pytest.approx(2000)


def test_lopsided_counts() -> None:
    tables = np.array([[[0, 1e9], [0.5, 0]], [[0, 1e6], [1, 0]], [[0, 1e-3], [1e-3, 0]]])
    gaps = [a - b for a, b in bradley_terry(tables)]
    assert gaps == pytest.approx([400 * math.log10(2e9), 2400, 0], abs=0.01)
    ladder = np.zeros((1, 30, 30))
    for i in range(29):
        ladder[0, i, i + 1], ladder[0, i + 1, i] = 1000, 1
    assert np.diff(bradley_terry(ladder)[0]) == pytest.approx([-1200] * 29, abs=0.01)


def test_planted_ratings_come_back_exactly() -> None:
    planted = [1315.0, 1120.0, 1000.0, 900.0, 665.0]
    assert bradley_terry(consistent(planted)[None])[0] == pytest.approx(planted, abs=1e-4)


@given(st.lists(st.floats(200, 1800), min_size=2, max_size=7))
def test_any_planted_ratings_come_back(ratings: list[float]) -> None:
    found = bradley_terry(consistent(ratings)[None])[0]
    assert found - found.mean() == pytest.approx(np.array(ratings) - np.mean(ratings), abs=0.05)


def test_a_chain_of_pairs_is_enough() -> None:
    wins = consistent([1200.0, 1000.0, 800.0])
    wins[0, 2] = wins[2, 0] = 0
    assert bradley_terry(wins[None])[0] == pytest.approx([1200, 1000, 800], abs=1e-4)


def test_many_tables_at_once_are_each_as_alone() -> None:
    tables = np.random.default_rng(0).integers(1, 30, (20, 6, 6)).astype(float) * (1 - np.eye(6))
    together = bradley_terry(tables)
    for table, found in zip(tables, together, strict=True):
        assert bradley_terry(table[None])[0] == pytest.approx(found, abs=1e-6)
        p = 1 / (1 + 10 ** ((found[None, :] - found[:, None]) / 400))
        assert ((table + table.T) * p).sum(1) == pytest.approx(table.sum(1), abs=1e-5)  # wins are what was expected


def test_it_is_logistic_regression() -> None:
    """Gradient descent on the ±1 design, to the end, finds the same."""
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 4, 400), rng.integers(0, 4, 400)
    a, b = a[a != b], b[a != b]
    won = rng.random(len(a)) < 0.6
    design = np.zeros((len(a), 4))
    design[range(len(a)), a] += 1
    design[range(len(a)), b] -= 1
    theta = np.zeros(4)
    for _ in range(5000):
        theta += 0.01 * design.T @ (won - 1 / (1 + np.exp(-design @ theta)))
    wins = np.zeros((4, 4))
    np.add.at(wins, (np.where(won, a, b), np.where(won, b, a)), 1)
    assert bradley_terry(wins[None])[0] == pytest.approx(theta * 400 / math.log(10) + 1000, abs=1e-3)


def test_when_there_is_a_finite_answer() -> None:
    circle, ladder = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0.0]]), np.array([[0, 1, 1], [0, 0, 1], [0, 0, 0.0]])
    tie = np.array([[0, 0.5], [0.5, 0]])
    apart = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0.0]])
    assert can_rate(np.stack([circle, ladder])).tolist() == [True, False]
    assert can_rate(tie[None])[0] and not can_rate(apart[None])[0]
    assert is_joined(ladder) and not is_joined(apart)


def test_expected_score_at_the_ends() -> None:
    assert expected_score(np.array([-1e9, 0.0, 1e9])).tolist() == [0.0, 0.5, 1.0]
