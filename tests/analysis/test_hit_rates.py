"""Hit rates by size, policy and domain, of planted traces."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coterie.analysis.hit_rates import cache_sizes, measure_hits
from coterie.analysis.stretches import take_sample


def test_sizes() -> None:
    assert cache_sizes(8, 2) == [2, 3, 4, 5, 6, 7] and cache_sizes(4, 4) == [] and cache_sizes(4, 3) == [3]
    many = cache_sizes(256, 8)
    assert many[0] == 8 and many[-1] < 256 and len(many) == 7 and many == sorted(set(many))


@pytest.mark.parametrize("is_shared", [False, True], ids=["by layer", "shared"])
def test_random_routing_finds_the_share_that_is_in_memory(
    is_shared: bool, plant: Callable[..., Any], uniform: Callable[..., Any]
) -> None:
    trace = plant(uniform(6000, L=3))
    rates = measure_hits(trace, take_sample(trace, 6000), is_shared=is_shared)
    for size in rates.sizes:
        found = rates.at("lru", size)
        assert found is not None
        if not is_shared:
            assert found == pytest.approx(size / 24, abs=0.02)
        assert found <= (rates.at("optimal", size) or 0)
    assert (rates.low_PM <= rates.rate_PM).all() and (rates.rate_PM <= rates.high_PM).all()
    assert rates.n_tokens == 6000 and rates.sizes[-1] == 21 and rates.sizes[0] == (3 if is_shared else 6)


def test_domains_are_told_apart(plant: Callable[..., Any], uniform: Callable[..., Any]) -> None:
    """One domain uses two experts only, the other all: with two places a layer the first finds everything."""
    experts = uniform(8000, L=2)
    experts[:4000] = [0, 1]
    trace = plant(experts, domain_of_T=np.repeat([0, 1], 4000), domains=["calm", "wild", "absent"])
    rates = measure_hits(trace, take_sample(trace, 8000), is_shared=False)
    calm, wild, absent = rates.domain_PGM[0, :, 0]
    assert calm > 0.999 and wild == pytest.approx(0.25, abs=0.03) and np.isnan(absent)
    assert rates.at("lru", rates.sizes[0]) == pytest.approx((calm + wild) / 2, abs=0.001)


def test_the_least_size_for_a_rate(plant: Callable[..., Any]) -> None:
    """Four experts in turn, one a token: LRU finds none until it has all of them, the optimal policy two of three."""
    trace = plant(np.arange(2000).reshape(-1, 1, 1) % 4, n_experts=8)
    rates = measure_hits(trace, take_sample(trace, 2000), is_shared=False)
    assert rates.at("lru", 3) == 0.0 and rates.least("lru", 0.9, 8) == 4
    assert rates.at("optimal", 3) == pytest.approx(2 / 3, abs=0.01)
    assert rates.least("lru", 1.1, 8) == 8 and rates.at("lru", 99) is None and rates.at("least-stale", 3) is None


def test_unused_slots_are_not_asked_for(plant: Callable[..., Any]) -> None:
    trace = plant(np.tile([[0, -1]], (50, 1, 1)), n_experts=4)
    rates = measure_hits(trace, take_sample(trace, 50), is_shared=False)
    assert rates.at("lru", 2) == pytest.approx(49 / 50)
