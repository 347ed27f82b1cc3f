"""Agreement of two traces: planted changes, and traces that have nothing to do with each other."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coterie.analysis.drift import Drift, check_comparable, measure_drift
from coterie.errors import DataError

Make = Callable[..., Any]


def between(a: Any, b: Any) -> Drift:
    return measure_drift([a, b], [(0, 1)])[0, 1]


def test_agreement_by_hand(plant: Make) -> None:
    """01 stays, 01 turns round, 01 becomes 02, 01 becomes 23."""
    a = plant(np.array([[0, 1]] * 4)[:, None], n_experts=4, weights_TLK=np.array([[0.75, 0.25]] * 4)[:, None])
    b = plant(
        np.array([[0, 1], [1, 0], [0, 2], [2, 3]])[:, None], n_experts=4,
        weights_TLK=np.array([[0.5, 0.5]] * 4)[:, None],
    )  # fmt: skip
    found = between(a, b)
    assert found.first.value.tolist() == [0.5]
    assert found.sets.value.tolist() == [(1 + 1 + 0.5 + 0) / 4]
    assert found.weights_moved.tolist() == [np.mean([0.25, 0.25, 0.5, 1.0])]
    assert found.first_by_chance.tolist() == [0.5] and found.first_renamed.tolist() == [0.5]
    assert found.shares_moved.tolist() == [3 / 8]


def test_a_trace_agrees_with_itself(plant: Make, uniform: Make) -> None:
    trace = plant(uniform(500))
    found = between(trace, trace)
    assert found.first.value.tolist() == found.sets.value.tolist() == [1.0, 1.0]
    assert found.weights_moved.tolist() == found.shares_moved.tolist() == [0.0, 0.0]


def test_independent_traces_agree_by_chance(plant: Make, uniform: Make) -> None:
    found = between(plant(uniform(30_000)), plant(uniform(30_000, seed=1)))
    assert found.first.value == pytest.approx(found.first_by_chance, abs=0.01)
    assert found.sets.value == pytest.approx(found.sets_by_chance, abs=0.01)
    assert found.sets_by_chance == pytest.approx([0.25, 0.25], abs=0.01)


def test_renamed_experts_are_seen_through(plant: Make, uniform: Make) -> None:
    experts, names = uniform(5000), np.random.default_rng(5).permutation(8)
    found = between(plant(experts), plant(names[experts]))
    assert found.first_renamed.tolist() == [1.0, 1.0] and found.first.value.max() < 0.5


def test_domains_may_move_apart(plant: Make, uniform: Make) -> None:
    documents = np.arange(4000) // 100
    fields = {"documents": documents, "domains": ["a", "b"], "domain_of_T": documents % 2}
    experts, later = uniform(4000), uniform(4000)
    later[documents % 2 == 1] = uniform(4000, seed=3)[documents % 2 == 1]
    found = between(plant(experts, **fields), plant(later, **fields))
    assert found.by_domain["a"].tolist() == [1.0, 1.0]
    assert found.by_domain["b"] == pytest.approx([0.25, 0.25], abs=0.03)


def test_unused_slots(plant: Make) -> None:
    a = plant(np.array([[0, -1], [-1, -1], [0, 1]])[:, None], n_experts=2)
    found = between(a, a)
    assert found.first.value.tolist() == [1.0] and found.sets.value.tolist() == [1.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"experts": (40, 2, 8, 2)}, "two has 40"),
        ({"experts": (50, 3, 8, 2)}, "one has 2 sparse layers and two has 3"),
        ({"experts": (50, 2, 8, 1)}, "one has 2 experts a token and two has 1"),
        ({"n_experts": 9}, "one has 8 experts a layer and two has 9"),
        ({"token_ids": [*range(49), 7]}, "token 49 is 49 in one and 7 in the other"),
        ({"documents": np.arange(50) // 10}, "other documents or windows"),
    ],
)
def test_traces_that_cannot_be_compared(plant: Make, uniform: Make, change: dict[str, Any], said: str) -> None:
    T, *shape = change.get("experts", (50, 2, 8, 2))
    fields = {"token_ids": range(T), "n_experts": 8} | {k: v for k, v in change.items() if k != "experts"}
    with pytest.raises(DataError, match=said):
        check_comparable([plant(uniform(50), token_ids=range(50)), plant(uniform(T, *shape), **fields)], ["one", "two"])
