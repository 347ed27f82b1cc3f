import math

import numpy as np
import pytest

from coterie.eval.resample import estimate


def test_the_value_is_the_ratio_of_sums_and_the_spread_that_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = estimate(values, np.ones(400))
    assert found.value == pytest.approx(values.mean())
    assert found.stderr == pytest.approx(values.std(ddof=1) / 20, rel=0.1)
    assert found.low is not None and found.high is not None and found.low < found.value < found.high


def test_texts_that_are_all_alike_leave_nothing_open() -> None:
    found = estimate([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], scale=np.exp2)
    assert (found.value, found.stderr, found.low, found.high) == (4.0, 0.0, 4.0, 4.0)


def test_one_text_has_no_interval() -> None:
    found = estimate([math.log(8)], [3.0], scale=np.exp)
    assert found.value == pytest.approx(2.0) and found.stderr is None and found.low is None


def test_the_same_texts_give_the_same_interval() -> None:
    a, b = [1.0, 5.0, 2.0, 8.0], [2.0, 3.0, 2.0, 9.0]
    assert estimate(a, b) == estimate(a, b) != estimate(a, b, seed=1)
