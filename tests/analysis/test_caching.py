"""What a trace says to one who caches experts: the sentences have the figures, whatever the routing."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coterie.analysis.caching import sections

KEYS = ["caching", "caching-domains", "reuse", "working-set", "prefetch"]


def test_random_routing(plant: Callable[..., Any], uniform: Callable[..., Any]) -> None:
    seen: list[tuple[int, int]] = []
    found = sections(plant(uniform(6000, L=3)), progress=lambda done, total: seen.append((done, total)))
    assert [section.key for section in found] == KEYS
    memory = found[0]
    assert "With 12 of 24 experts in memory" in memory.sentence and "50.0% if routing were random" in memory.sentence
    assert memory.facts["by_layer"]["at_half"]["lru"] == pytest.approx(0.5, abs=0.02)
    assert memory.rows[-1][0] == 24 and set(memory.rows[-1][2:]) == {1.0}
    assert all(len(row) == len(memory.columns) for row in memory.rows)
    assert seen == sorted(seen) and seen[-1] == (3000, 3000)
    json.dumps([section.as_json() for section in found], allow_nan=False)


def test_two_experts_that_never_change_need_two_places(plant: Callable[..., Any]) -> None:
    experts = np.tile([[3, 5]], (3000, 2, 1))
    memory, _, reuse, *_ = sections(plant(experts))
    assert memory.facts["by_layer"]["least"]["lru"] == 4 and memory.facts["shared"]["least"]["least-stale"] == 4
    assert "For 90%, LRU needs 4 of them" in memory.sentence and reuse.facts["one_token_before"] > 0.99


def test_domains_with_their_names(plant: Callable[..., Any], uniform: Callable[..., Any]) -> None:
    experts = uniform(4000)
    experts[:2000] = [0, 1]
    trace = plant(experts, domain_of_T=np.repeat([0, 1], 2000), domains=["calm", "wild"])
    domains = sections(trace)[1]
    assert "on calm, where it does best" in domains.sentence and "on wild, where it does worst" in domains.sentence


def test_the_sample_bounds_the_work(plant: Callable[..., Any], uniform: Callable[..., Any]) -> None:
    memory = sections(plant(uniform(30_000, L=1)), sample=2048)[0]
    assert memory.facts["by_layer"]["tokens"] == 2048 and "on 2,048 tokens" in memory.note


def test_many_experts_get_fewer_tokens(
    plant: Callable[..., Any], uniform: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coterie.analysis.caching._WORK", 1e6)
    found = sections(plant(uniform(6000)))[0].facts
    assert (found["by_layer"]["tokens"], found["shared"]["tokens"]) == (4096, 2048)


@pytest.mark.parametrize(
    "experts",
    [np.zeros((1, 1, 1)), np.tile([[0, 1, 2, 3]], (9, 2, 1)), np.full((5, 1, 2), -1), np.zeros((3, 2, 2))],
    ids=["one token", "all experts", "nothing used", "twice the same"],
)
def test_odd_traces_have_findings(experts: Any, plant: Callable[..., Any]) -> None:
    found = sections(plant(experts, n_experts=4))
    assert [section.key for section in found] == KEYS
    assert all("nan" not in section.sentence for section in found)
    json.dumps([section.as_json() for section in found], allow_nan=False)


def test_slots_that_no_token_uses_make_no_difference(plant: Callable[..., Any], uniform: Callable[..., Any]) -> None:
    """As where experts choose their tokens: as many slots as experts, of which a token has some."""
    experts = uniform(3000)
    idle = np.concatenate([experts, np.full((3000, 2, 6), -1)], axis=2)
    for section, wanted in zip(sections(plant(idle)), sections(plant(experts), sample=3000), strict=True):
        assert (section.sentence, section.facts) == (wanted.sentence, wanted.facts)
