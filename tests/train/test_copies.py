import numpy as np
import pytest

from coterie.train.copies import NOT_COUNTED, copying_row


@pytest.mark.parametrize(("n_ids", "length"), [(1000, 512), (1000, 20), (10, 64), (2, 8)])
def test_a_piece_comes_again_and_only_repeats_are_counted(n_ids: int, length: int) -> None:
    ids = np.arange(100, 100 + n_ids, dtype=np.uint32)
    for seed in range(20):
        row, targets = copying_row(ids, length, np.random.default_rng(seed))
        n = int((targets == NOT_COUNTED).sum())
        assert len(row) == len(targets) == length and 1 <= n <= max(1, length // 2)
        assert (targets[:n] == NOT_COUNTED).all() and (targets[n:] == row[n:]).all()
        assert (row[n:] == row[: length - n]).all() and len(set(row[:n])) == n


def test_lengths_differ_and_order_is_not_the_texts() -> None:
    ids, rng = np.arange(5000, dtype=np.uint32), np.random.default_rng(0)
    rows = [copying_row(ids, 512, rng) for _ in range(30)]
    assert len({int((t == NOT_COUNTED).sum()) for _, t in rows}) > 15
    assert not any((np.diff(row[:12]) == 1).all() for row, _ in rows)
