"""The best pairing, against all of them."""

from itertools import permutations

import numpy as np
import pytest

from coterie.analysis.matching import best_matching


@pytest.mark.parametrize("E", [1, 2, 3, 5, 6])
def test_no_other_pairing_is_better(E: int) -> None:
    rng = np.random.default_rng(E)
    for _ in range(50):
        gain = rng.integers(0, 9, (E, E))
        found = best_matching(gain)
        assert sorted(found) == list(range(E))
        assert gain[range(E), found].sum() == max(gain[range(E), list(p)].sum() for p in permutations(range(E)))


def test_a_renaming_is_found() -> None:
    names = np.random.default_rng(0).permutation(64)
    assert best_matching(np.eye(64)[:, np.argsort(names)]).tolist() == names.tolist()
