import math

import pytest

from coterie.eval.task import Item, mean_metrics


def test_means_and_errors_over_all_and_by_group() -> None:
    values = [("a", 1.0), ("a", 0.0), ("b", 1.0), ("b", 1.0)]
    judged = [(Item(str(n), (), {}, group), {"other": 2.0, "acc": v}) for n, (group, v) in enumerate(values)]
    found = mean_metrics(judged, "acc", lambda items: 1 / len(items))
    assert [(m.group, m.name, m.value, m.n) for m in found] == [
        ("", "acc", 0.75, 4), ("", "other", 2.0, 4), ("a", "acc", 0.5, 2), ("a", "other", 2.0, 2),
        ("b", "acc", 1.0, 2), ("b", "other", 2.0, 2),
    ]  # fmt: skip
    # deviations 1/4, 1/4, 1/4, -3/4: squares 3/4, over n - 1 = 3, over n = 4
    assert found[0].stderr == pytest.approx(math.sqrt(3 / 4 / 3 / 4)) and found[0].chance == 0.25
    assert found[1].chance is None and found[2].chance == 0.5


def test_one_item_has_no_error() -> None:
    (metric,) = mean_metrics([(Item("0", (), {}), {"acc": 1.0})], "acc")
    assert metric.stderr is None
