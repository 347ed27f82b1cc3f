"""All findings of a trace at once: complete, as JSON, on any shape, and quick."""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coterie.analysis.statistics import all_sections
from coterie.errors import DataError

Make = Callable[..., Any]
KEYS = [
    "shares", "choices", "domains", "repeats", "factors", "tokens", "kinds", "positions", "coactivation", "confidence",
]  # fmt: skip


def test_every_finding_has_a_sentence_a_table_and_a_plot(plant: Make, uniform: Make) -> None:
    T = 12_000
    documents, tokens = np.arange(T) // 150, np.random.default_rng(0).integers(0, 50, T)
    trace = plant(
        uniform(T), documents=documents, domains=["en", "fr"], domain_of_T=documents % 2, token_ids=tokens,
        pieces=[f"▁w{chr(97 + i % 26)}" for i in range(50)],
    )  # fmt: skip
    seen: list[int] = []
    sections = all_sections(trace, lambda done, total: seen.append(done))
    assert [s.key for s in sections] == KEYS and seen[-1] == T
    for section in sections:
        assert section.sentence.endswith(".") and section.rows and section.plots and section.note
        json.dumps(section.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("T", "L", "E", "K"), [(1, 1, 2, 1), (2, 1, 1, 1), (3, 2, 2, 2), (200, 1, 4, 4), (300, 33, 8, 2), (400, 2, 130, 6)]
)
def test_any_shape(plant: Make, uniform: Make, T: int, L: int, E: int, K: int) -> None:
    for section in all_sections(plant(uniform(T, L, E, K), n_experts=E)):
        json.dumps(section.as_json(), allow_nan=False)


def test_unused_slots_everywhere(plant: Make) -> None:
    for section in all_sections(plant(np.full((100, 2, 2), -1))):
        json.dumps(section.as_json(), allow_nan=False)


def test_chance_counts_the_slots_in_use(plant: Make, uniform: Make) -> None:
    """As where experts choose their tokens: as many slots as experts, of which a token has two."""
    experts = uniform(2000)
    idle = plant(np.concatenate([experts, np.full((2000, 2, 6), -1)], axis=2))
    found, wanted = ({s.key: s.as_json()["facts"] for s in all_sections(t)} for t in (idle, plant(experts)))
    assert found["repeats"] == wanted["repeats"] and found["repeats"]["random"]["either"] == 13 / 28
    assert found["coactivation"] == wanted["coactivation"] and found["tokens"] == wanted["tokens"]


def test_many_domains_of_one_document_each(plant: Make, uniform: Make) -> None:
    documents = np.arange(3000) // 50
    trace = plant(uniform(3000), documents=documents, domains=[f"d{i}" for i in range(60)], domain_of_T=documents)
    assert len(all_sections(trace)) == 9  # no kinds without pieces


def test_no_tokens(plant: Make) -> None:
    with pytest.raises(DataError, match="no tokens"):
        all_sections(plant(np.zeros((0, 2, 2))))


def test_a_hundred_thousand_tokens_take_a_moment(plant: Make, uniform: Make) -> None:
    trace = plant(uniform(100_000, L=6), documents=np.arange(100_000) // 1000)
    began = time.process_time()
    all_sections(trace)
    assert time.process_time() - began < 5  # about 0.5: a million must stay under 10
