"""Figures for tables and plots."""

from collections.abc import Callable
from typing import Any

import numpy as np

from coterie.analysis.figures import drawn_domains, interval_series, percent
from coterie.analysis.intervals import ratio_interval


def test_per_cent_is_rounded_and_plain() -> None:
    assert percent(0.123456) == 12.35 and percent(np.array([0.5, 1.0])) == [50.0, 100.0]


def test_a_plot_has_values_with_their_ends() -> None:
    shares = ratio_interval(np.array([[[4, 6]], [[6, 4]]]), np.array([[[10, 10]], [[10, 10]]]))
    value, low, high = interval_series({"a": shares}, 0)
    assert value == {"a": [50.0, 50.0]} and low["a"][0] < 50 < high["a"][0]
    assert interval_series({"a": shares})[0] == {"a": [[50.0, 50.0]]}


def test_the_eight_largest_domains_are_drawn(plant: Callable[..., Any], uniform: Callable[..., Any]) -> None:
    domain = np.repeat(np.arange(10), np.arange(1, 11))
    trace = plant(uniform(55), domains=[f"d{i}" for i in range(10)], domain_of_T=domain)
    by_name = {"all": 0} | {f"d{i}": i for i in range(10)}
    assert list(drawn_domains(by_name, trace)) == [f"d{i}" for i in range(2, 10)]
    assert drawn_domains({"all": 0}, plant(uniform(5))) == {"all": 0}
