"""The paper's own figures, added up: a digit that was typed wrongly would show."""

import pytest

from coterie.analysis.paper_routing import PAPER_SHAPE, TABLE_5, paper_means
from coterie.analysis.repeats import random_repeats


def test_sums_of_table_5() -> None:
    assert len(TABLE_5) == 8
    assert [sum(row.first[i] for row in TABLE_5.values()) for i in range(3)] == pytest.approx([112.7, 211.2, 181.4])
    assert [sum(row.either[i] for row in TABLE_5.values()) for i in range(3)] == pytest.approx([384.3, 509.5, 407.3])
    assert paper_means().first == pytest.approx((14.0875, 26.4, 22.675))


def test_its_baselines() -> None:
    assert random_repeats(*PAPER_SHAPE) == pytest.approx((0.125, 13 / 28))
