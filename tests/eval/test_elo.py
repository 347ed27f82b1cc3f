import itertools

import numpy as np
import pytest

from coterie.eval.elo import elo, elo_in_orders


def arrays(*battles: tuple[int, int, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b, score = zip(*battles, strict=True)
    return np.array(a), np.array(b), np.array(score)


def test_two_battles_by_hand() -> None:
    a, b, score = arrays((0, 1, 1.0), (1, 0, 1.0))
    assert elo(a[:1], b[:1], score[:1], 2).tolist() == [1002.0, 998.0]  # 4 (1 - 1/2)
    expected = 1 / (1 + 10 ** (4 / 400))  # of the one that is 4 behind
    assert elo(a, b, score, 2) == pytest.approx([1002 - 4 * (1 - expected), 998 + 4 * (1 - expected)])


def test_a_tie_of_equals_moves_nothing_and_points_are_only_passed_on() -> None:
    a, b, score = arrays((0, 1, 0.5), (0, 2, 0.5), (0, 1, 1.0), (2, 1, 0.0), (2, 0, 0.5))
    assert elo(a[:2], b[:2], score[:2], 3).tolist() == [1000.0] * 3
    assert elo(a, b, score, 3).sum() == pytest.approx(3000)


def test_orders_differ_and_their_mean_is_stable() -> None:
    rng = np.random.default_rng(0)
    battles = [(0, 1, float(rng.random() < 0.75)) for _ in range(3000)]
    one, other = (elo_in_orders(*arrays(*battles), 2, n_orders=60, seed=s) for s in (0, 1))
    assert one.shape == (60, 2) and one[:, 0].std() > 1
    gap = np.array([found[:, 0].mean() - found[:, 1].mean() for found in (one, other)])
    won = np.mean([s for _, _, s in battles])
    assert gap == pytest.approx(400 * np.log10(won / (1 - won)), abs=12)


def test_each_order_is_one_of_the_same_battles() -> None:
    battles = arrays((0, 1, 1.0), (1, 2, 1.0), (2, 0, 1.0))
    found = elo_in_orders(*battles, 3, n_orders=40, seed=3)
    possible = [elo(*(x[list(order)] for x in battles), 3) for order in itertools.permutations(range(3))]
    assert all(any(np.allclose(row, p) for p in possible) for row in found)
    assert len({tuple(row.round(9)) for row in found}) == 6


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    elo_in_orders(*arrays(*[(0, 1, 1.0)] * 1500), 2, n_orders=2, progress=lambda d, t: seen.append((d, t)))
    assert seen == [(0, 1500), (1000, 1500)]
