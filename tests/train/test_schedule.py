import pytest

from coterie.train.schedule import learning_rate


def rate(step: int, schedule: str) -> float:
    return learning_rate(step, steps=110, warmup=10, peak=2.0, schedule=schedule)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warm_up_reaches_the_peak(schedule: str) -> None:
    assert rate(0, schedule) == pytest.approx(0.2)
    assert rate(9, schedule) == pytest.approx(2.0)
    assert rate(10, schedule) == pytest.approx(2.0)


def test_half_way_and_end() -> None:
    assert rate(60, "linear") == pytest.approx(1.0)
    assert rate(60, "cosine") == pytest.approx(1.0)
    assert rate(109, "linear") == pytest.approx(0.02)
    assert rate(109, "cosine") < 0.001
    assert rate(109, "constant") == 2.0
