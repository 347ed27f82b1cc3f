"""Shares that were planted, by expert, choice and domain, and what is said of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coterie.analysis.blocks import blocks_of
from coterie.analysis.scan import read_through
from coterie.analysis.section import Section
from coterie.analysis.shares import ShareReader

Make = Callable[..., Any]


def found(trace: Any) -> dict[str, Section]:
    blocks = blocks_of(trace)
    return {s.key: s for s in read_through(trace, blocks, [ShareReader(trace, blocks)])}


def test_shares_by_hand(plant: Make) -> None:
    """Two layers of three experts; unused slots belong to nobody."""
    experts = [[[0, 1], [2, -1]], [[0, 2], [2, -1]], [[0, 1], [1, 0]], [[1, 0], [-1, -1]]]
    facts = found(plant(experts, n_experts=3))["shares"].facts
    assert facts["fair"] == 1 / 3
    assert facts["by_domain"]["all"]["value"] == [[0.5, 0.375, 0.125], [0.25, 0.25, 0.5]]
    choices = found(plant(experts, n_experts=3))["choices"].facts
    assert choices["first"]["value"] == [[0.75, 0.25, 0], pytest.approx([0, 1 / 3, 2 / 3], abs=1e-5)]
    assert choices["second"]["value"][0] == [0.25, 0.5, 0.25]
    assert choices["distance_by_layer"][0] == 0.5


def test_uniform_choices_hold_the_fair_share_and_no_domain_differs(plant: Make, uniform: Make) -> None:
    documents = np.arange(20_000) // 200
    sections = found(plant(uniform(20_000), documents=documents, domains=["a", "b"], domain_of_T=documents % 2))
    value, low, high = (np.array(sections["shares"].facts["by_domain"]["all"][k]) for k in ("value", "low", "high"))
    assert value == pytest.approx(np.full((2, 8), 1 / 8), abs=0.01)
    assert ((low <= 1 / 8) & (high >= 1 / 8)).mean() >= 0.8
    assert sections["shares"].facts["by_domain"]["all"]["design_effect"] == pytest.approx(0.86, abs=0.3)
    assert sections["domains"].facts["all"]["p_all"] > 0.05
    assert "do not differ by more than chance" in sections["domains"].sentence


def test_a_domain_with_an_expert_of_its_own_is_found(plant: Make, uniform: Make) -> None:
    documents = np.arange(12_000) // 300
    domain = documents % 3
    experts = uniform(12_000)
    mine = (domain == 2) & (np.random.default_rng(1).random(12_000) < 0.2)
    experts[mine, 1] = [5, 0]
    sections = found(plant(experts, documents=documents, domains=["a", "b", "c"], domain_of_T=domain))
    test = sections["domains"].facts["all"]
    assert test["p"][1] == 0.001 and test["p"][0] > 0.01 and test["moved"][1] > 2 * test["by_chance"][1]
    assert sections["domains"].sentence.endswith("The domain farthest from the others is c.")
    between = sections["domains"].facts["between_domains"]
    assert between["a"]["a"] == 0 and between["a"]["c"] == between["c"]["a"] > 2 * between["a"]["b"]


def test_domains_that_look_apart_by_chance_of_their_documents_are_not_called_different(plant: Make) -> None:
    """Each document has a favourite expert of its own: single tokens would make any two domains differ."""
    rng = np.random.default_rng(3)
    documents = np.arange(8000) // 200
    experts = np.stack([rng.integers(0, 8, 40)[documents], rng.integers(0, 8, 8000)], axis=1)[:, :, None]
    section = found(plant(experts, documents=documents, domains=["a", "b"], domain_of_T=documents // 20))["domains"]
    assert section.facts["all"]["moved"][0] > 0.1 and section.facts["all"]["p"][0] > 0.05


def test_first_and_second_choice_have_their_domains(plant: Make) -> None:
    """Domain a chooses 0 before 1, domain b 1 before 0: all text is even in either choice, no domain is."""
    documents = np.arange(800) // 20
    experts = np.where((documents % 2)[:, None], [1, 0], [0, 1])[:, None]
    section = found(plant(experts, n_experts=2, documents=documents, domains=["a", "b"], domain_of_T=documents % 2))
    by_domain = section["choices"].facts["by_domain"]
    assert by_domain["all"]["first"]["value"] == [[0.5, 0.5]]
    assert by_domain["a"]["first"]["value"] == [[1, 0]] and by_domain["a"]["second"]["value"] == [[0, 1]]
    assert [row[:5] for row in section["choices"].rows[2:4]] == [
        (0, "a", "first", 100.0, 0.0),
        (0, "a", "second", 0.0, 100.0),
    ]
    test = section["domains"].facts
    assert test["all"]["moved"] == [0.0] and test["first"]["moved"] == [0.5] and test["first"]["p"] == [0.001]


def test_one_domain_one_choice_and_many_experts(plant: Make, uniform: Make) -> None:
    sections = found(plant(uniform(500, E=40, K=1), n_experts=40))
    assert list(sections) == ["shares", "domains"]
    assert "nothing to compare" in sections["domains"].sentence
    assert not any("expert 0" in c for c in sections["shares"].columns)


def test_plots_of_32_layers_are_those_of_the_paper(plant: Make, uniform: Make) -> None:
    shares = found(plant(uniform(200, L=32), domains=["a", "b"], domain_of_T=np.arange(200) // 100))["shares"]
    assert [p.title.partition(":")[0] for p in shares.plots] == ["Layer 0", "Layer 15", "Layer 31"]
    assert set(shares.plots[0].series) == {"a", "b"} and shares.plots[0].references == {"fair share": 12.5}
    assert len(shares.rows) == 32 + 3 * 2
