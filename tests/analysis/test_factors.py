"""Routers that go by one thing only: that thing tells all, the others what chance does."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coterie.analysis.blocks import blocks_of
from coterie.analysis.factors import FactorsReader, cross_validated
from coterie.analysis.scan import read_through
from coterie.analysis.section import Section

Make = Callable[..., Any]


def found(trace: Any) -> Section:
    blocks = blocks_of(trace)
    (section,) = read_through(trace, blocks, [FactorsReader(trace, blocks)])
    return section


def text(T: int = 8000) -> dict[str, Any]:
    documents = np.arange(T) // 100
    return {
        "token_ids": np.random.default_rng(0).integers(0, 16, T), "documents": documents,
        "domains": ["a", "b", "c"], "domain_of_T": documents % 3, "pieces": [*"abcdefgh", *",.;:!?()"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("factor", "verdict"), [("token", "what the token is"), ("kind", ""), ("domain", ""), ("position", "")]
)
def test_what_the_router_goes_by_is_found(plant: Make, factor: str, verdict: str) -> None:
    fields = text()
    by = {
        "token": fields["token_ids"] % 8, "kind": fields["token_ids"] // 8, "domain": fields["domain_of_T"],
        "position": (np.arange(8000) % 100 >= 32).astype(int),
    }  # fmt: skip
    section = found(plant(by[factor][:, None, None], **fields))
    assert section.facts[factor] == [1.0]
    others = {"token", "domain", "position"} - {factor} - ({"token"} if factor == "kind" else set())
    for other in others:
        assert section.facts[other][0] == pytest.approx(section.facts["nothing"][0], abs=0.05)
    assert verdict in section.sentence


def test_the_expert_before_and_the_expert_below(plant: Make) -> None:
    """Layer 0 goes round in a circle, layer 1 is a renaming of layer 0."""
    around = np.arange(4000) % 100 % 8
    experts = np.stack([around, 7 - around], axis=1)[:, :, None]
    section = found(plant(experts, documents=np.arange(4000) // 100))
    assert section.facts["previous"] == pytest.approx([1.0, 1.0], abs=0.001)
    assert section.facts["below"][1] == 1.0 and section.facts["below"][0] < 0.2
    assert "domain" not in section.facts and "kind" not in section.facts


def test_many_values_bring_no_advantage(plant: Make, uniform: Make) -> None:
    """2000 tokens of the vocabulary, each seen a few dozen times: what is learnt on one half is worth nothing."""
    tokens = np.random.default_rng(0).integers(0, 300, 12_000)
    section = found(plant(uniform(12_000), token_ids=tokens, documents=np.arange(12_000) // 100))
    assert section.facts["token"] == pytest.approx([1 / 8, 1 / 8], abs=0.012)


def test_cross_validation_by_hand() -> None:
    """Value 0 prefers expert 0 in one half and expert 1 in the other; value 1 is met by one half only."""
    counts = np.array([[[3, 1], [1, 3], [0, 0], [2, 0]]])
    assert cross_validated(counts).tolist() == [(1 + 1 + 2) / 10]
    assert np.isnan(cross_validated(np.zeros((1, 2, 2), dtype=np.int64))[0])
