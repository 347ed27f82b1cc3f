"""Recall of guesses: planted ones are found, chance is chance, a document's first token has no token before."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coterie.analysis.prefetch import measure_recalls, prefetch_section


def test_guesses_that_are_right_half_the_time(plant: Callable[..., Any], uniform: Callable[..., Any]) -> None:
    """Layer 1 is told right for even tokens, of layer 2 one expert of two; layer 0 has no guess."""
    real = uniform(4000, 3)
    guesses = real.copy()
    guesses[:, 0] = -1
    guesses[1::2, 1] = (real[1::2, 1, :1] + 1 + np.arange(2)) % 8
    wrong = (guesses[:, 1] == real[:, 1, ::-1]).any(-1)  # by accident
    guesses[wrong, 1] = real[wrong, 1]
    guesses[:, 2, 1] = guesses[:, 2, 0]
    recalls = measure_recalls(plant(real, guesses_TLK=guesses), 10**6)
    assert recalls.of("guess", layer=0) is None and recalls.of("guess", layer=2) == 0.5
    expected = np.mean([(np.isin(real[t, 1], guesses[t, 1])).mean() for t in range(4000)])
    assert recalls.of("guess", layer=1) == pytest.approx(expected) and 0.5 < expected < 0.8


def test_random_routing_is_told_by_chance(plant: Callable[..., Any], uniform: Callable[..., Any]) -> None:
    recalls = measure_recalls(plant(uniform(20_000)), 10**6)
    assert recalls.of("previous") == pytest.approx(0.25, abs=0.01)
    assert recalls.of("frequent") == pytest.approx(0.25, abs=0.02) and "guess" not in recalls.hits


def test_the_token_before_is_of_the_same_document(plant: Callable[..., Any]) -> None:
    """Documents of two tokens, the second as the first: of 10 tokens 5 have a token before, which tells all."""
    experts = np.repeat(np.arange(5), 2).reshape(10, 1, 1)
    recalls = measure_recalls(plant(experts, documents=np.repeat(np.arange(5), 2)), 100)
    assert recalls.of("previous") == 1.0 and recalls.asked["previous"].sum() == 5
    whole = measure_recalls(plant(np.tile(experts, (4000, 1, 1)), documents=np.repeat(np.arange(20_000), 2)), 10**6)
    assert whole.of("previous") == 1.0 and whole.asked["previous"].sum() == 20_000


def test_by_domain_and_without_unused_slots(plant: Callable[..., Any]) -> None:
    """Domain a always has experts 0 and 1, domain b expert 5 and an unused slot: 0 and 5 are frequent in layer 0."""
    experts = np.array([[[0, 1]]] * 300 + [[[5, -1]]] * 400)
    domain_of_T = np.array([0] * 300 + [1] * 400)
    trace = plant(experts, domain_of_T=domain_of_T, domains=["a", "b"], documents=domain_of_T)
    recalls = measure_recalls(trace, 10**6)
    assert recalls.of("frequent", group=0) == 0.5 and recalls.of("frequent", group=1) == 1.0
    assert recalls.of("frequent") == (300 + 400) / 1000


def test_the_finding_says_what_was_guessed(plant: Callable[..., Any], uniform: Callable[..., Any]) -> None:
    real = uniform(500, 2)
    guesses = np.where(np.arange(2)[:, None] == 0, -1, real)
    section = prefetch_section(trace := plant(real, guesses_TLK=guesses), measure_recalls(trace, 500))
    assert "names 100.0% of its experts" in section.sentence and section.rows[0][1] is None
    assert [row[0] for row in section.rows] == ["layer 0", "layer 1", "text", "all"]
    without = prefetch_section(trace := plant(real), measure_recalls(trace, 500))
    assert "record with --guess" in without.sentence and "guess" not in without.facts["recall"]
