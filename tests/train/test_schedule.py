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


def test_warm_up_stable_decay() -> None:
    """With 110 steps, a fifth of them decaying: the peak up to step 88, half of it after 11 more."""
    assert rate(88, "wsd") == pytest.approx(2.0)
    assert rate(99, "wsd") == pytest.approx(1.0)
    assert rate(109, "wsd") == pytest.approx(2.0 / 22)
    assert learning_rate(5, steps=10, warmup=0, peak=1.0, schedule="wsd", decay=0.0) == 1.0
