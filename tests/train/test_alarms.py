import random

import numpy as np
import pytest

from coterie.train.alarms import Alarms, Spike, Starvation
from coterie.train.recipe import Balance, Train

EVEN = np.ones((2, 4))


def alarms(load: float = 0.01, bias: float = 0.0) -> Alarms:
    return Alarms(Train(steps=100, lr=3e-3), Balance(load=load, bias=bias), window=10)


def starved(share: float) -> np.ndarray:
    shares_LE = EVEN.copy()
    shares_LE[1, 2] = share
    return shares_LE


def test_a_quiet_run_says_nothing() -> None:
    """Falling losses with noise, and loads that come and go."""
    random.seed(0)
    watch, numbers = alarms(), np.random.default_rng(0)
    for step in range(400):
        loss = 6 - 3 * step / 400 + random.gauss(0, 0.05)
        shares_LE = numbers.uniform(0.3, 1.7, (2, 4))
        assert watch.check(step, loss, random.uniform(0.3, 1.0), shares_LE) == []


def test_an_expert_that_starves_is_named_once_with_what_to_do() -> None:
    watch = alarms()
    said = [s for step in range(40) for s in watch.check(step, 3.0, 1.0, starved(0.05))]
    assert len(said) == 1
    assert "expert 2 of layer 1 got less than a tenth of a fair share in the last 10 steps" in said[0]
    assert "[balance] load (now 0.01)" in said[0] and "sigmoid_bias" in said[0]


def test_a_dead_expert_is_told_from_a_starving_one() -> None:
    watch = alarms(load=0.0)
    for step in range(30):
        for sentence in watch.check(step, 3.0, 1.0, starved(0.3)):
            pytest.fail(sentence)
    said = [s for step in range(30) for s in watch.check(step, 3.0, 1.0, starved(0.0))]
    assert len(said) == 1 and "less than a tenth" in said[0]  # on the way down it starves first
    watch = alarms(load=0.0)
    said = [s for step in range(30) for s in watch.check(step, 3.0, 1.0, starved(0.0))]
    assert len(said) == 1 and "got no token" in said[0] and "raise [balance] load (now 0; 0.01 is usual)" in said[0]


def test_an_expert_that_recovers_can_starve_again() -> None:
    watch = Starvation(window=5)
    feed = [0.0] * 10 + [0.15] * 10 + [0.0] * 10 + [1.0] * 10 + [0.0] * 10
    told = [i for i, share in enumerate(feed) if any(watch.add(starved(share)))]
    assert told == [4, 44]  # 0.15 is not yet a recovery


def test_many_experts_make_one_sentence() -> None:
    shares_LE = np.zeros((3, 4))
    shares_LE[:, 0] = 4.0
    said = [s for step in range(20) for s in alarms().check(step, 3.0, 1.0, shares_LE)]
    assert said == []  # a new watch each time: no history, no alarm
    watch = alarms(bias=0.001)
    said = [s for step in range(20) for s in watch.check(step, 3.0, 1.0, shares_LE)]
    assert len(said) == 1
    assert said[0].startswith("experts 1 of layer 0, 2 of layer 0, 3 of layer 0, 1 of layer 1 and 5 more got no token")
    assert "raise [balance] bias (now 0.001)" in said[0]


def test_a_spike_of_the_loss_is_said_once_and_again_after_it_is_over() -> None:
    random.seed(0)
    watch = alarms()
    said = []
    for step in range(200):
        is_high = 50 <= step < 60 or 120 <= step < 123
        said += watch.check(step, 3.0 + random.gauss(0, 0.02) + 2 * is_high, 1.0, EVEN)
    assert [s.split(":")[0] for s in said] == ["step 50", "step 120"]
    assert (
        "the loss is 5.0" in said[0] and "smaller [train] lr (now 0.003)" in said[0] and "warmup (now 100)" in said[0]
    )


def test_a_spike_of_the_gradient_names_clip() -> None:
    watch = alarms()
    said = [s for step in range(40) for s in watch.check(step, 3.0, 20.0 if step == 30 else 0.5, EVEN)]
    assert len(said) == 1 and "step 30: the gradient's norm is 20 and was 0.5, clipped to 1" in said[0]


def test_constant_values_and_dense_models_are_no_reason() -> None:
    watch = alarms()
    for step in range(100):
        assert watch.check(step, 0.0, 0.0, np.zeros((0, 1))) == []
        assert watch.check(step, float("nan"), float("inf"), np.zeros((0, 1))) == []


def test_a_spike_needs_a_history() -> None:
    spike = Spike(width=8, factor=1.1, needs=16)
    assert [i for i in range(20) if spike.add(100.0 if i == 5 else 1.0)] == []
