"""Margins and entropies by hand, from weights and from logits."""

from collections.abc import Callable
from math import log
from typing import Any

import numpy as np
import pytest

from coterie.analysis.blocks import blocks_of
from coterie.analysis.confidence import ConfidenceReader
from coterie.analysis.scan import read_through
from coterie.analysis.section import Section

Make = Callable[..., Any]


def found(trace: Any) -> list[Section]:
    blocks = blocks_of(trace)
    return read_through(trace, blocks, [ConfidenceReader(trace, blocks)])


def test_weights_by_hand(plant: Make) -> None:
    """0.75 and 0.25: margin 0.5, entropy 0.811 bits of 1; weights that do not sum to 1 count by their ratio."""
    experts = np.array([[[0, 1], [0, 1]]] * 100)
    weights = np.array([[[0.75, 0.25], [0.3, 0.3]]] * 100)
    (section,) = found(plant(experts, weights_TLK=weights))
    facts = section.facts["by_domain"]["all"]
    assert facts["margin"] == [0.5, 0.0]
    assert facts["entropy"] == pytest.approx([0.811278, 1.0], abs=1e-5)
    assert section.facts["first_weight"][0][15] == 100 and section.facts["first_weight"][1][10] == 100
    assert section.sentence.startswith("The first choice has 0.25 more weight than the second")


def test_a_token_with_one_expert_is_sure_and_one_without_is_left_out(plant: Make) -> None:
    experts = np.array([[0, -1], [-1, -1]])[:, None]
    weights = np.array([[0.6, 0.0], [0.0, 0.0]])[:, None]
    (section,) = found(plant(experts, weights_TLK=weights))
    assert section.facts["by_domain"]["all"] == {"margin": [1.0], "entropy": [0.0]}


def test_logits_by_hand(plant: Make) -> None:
    """Probabilities 1/2, 1/4, 1/8, 1/8: entropy 1.75 bits of 2, 3/4 of it kept, the third log 2 behind the second."""
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125]))
    near = np.array([2.0, 1.0, 0.95, 0.0])
    trace = plant(
        np.array([[[0, 1], [0, 1]]] * 40), n_experts=4,
        logits_TLE=np.tile(np.stack([logits, near]), (40, 1, 1)).astype(np.float16),
    )  # fmt: skip
    (section,) = found(trace)
    facts = section.facts["by_domain"]["all"]
    assert facts["full_entropy"][0] == pytest.approx(0.875, abs=1e-3)
    assert facts["kept"][0] == pytest.approx(0.75, abs=1e-3)
    assert facts["close"] == [0.0, 1.0]
    p = np.exp(near) / np.exp(near).sum()
    assert facts["full_entropy"][1] == pytest.approx(-(p * np.log(p)).sum() / log(4), abs=1e-3)
    assert "50.0% of the tokens nearly chose another expert" in section.sentence


def test_one_expert_a_token_needs_logits(plant: Make, uniform: Make) -> None:
    assert found(plant(uniform(50, K=1))) == []
    logits = np.zeros((50, 2, 8), dtype=np.float16)
    (section,) = found(plant(uniform(50, K=1), logits_TLE=logits))
    assert section.facts["by_domain"]["all"]["full_entropy"] == [1.0, 1.0]


def test_domains_have_their_own_rows(plant: Make, uniform: Make) -> None:
    documents = np.arange(1000) // 50
    weights = np.where((documents % 2)[:, None, None], [0.9, 0.1], [0.6, 0.4]) * np.ones((1, 2, 1))
    (section,) = found(
        plant(uniform(1000), weights_TLK=weights, documents=documents, domains=["a", "b"], domain_of_T=documents % 2)
    )
    assert section.facts["by_domain"]["a"]["margin"] == pytest.approx([0.2, 0.2], abs=1e-4)
    assert section.facts["by_domain"]["b"]["margin"] == pytest.approx([0.8, 0.8], abs=1e-4)
    assert section.facts["by_domain"]["all"]["margin"] == pytest.approx([0.5, 0.5], abs=1e-4)
