"""What is said of checkpoints, and that more than two bring saturation."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coterie.analysis.drift_sections import compare_traces
from coterie.errors import DataError

Make = Callable[..., Any]


@pytest.fixture
def steps(plant: Make, uniform: Make) -> list[Any]:
    """Four checkpoints: 0, 40, 80 and 100 % of the tokens are routed as in the last; layer 1 lags 20 % behind."""
    last, rng = uniform(10_000), np.random.default_rng(7).random(10_000)
    documents = np.arange(10_000) // 100
    traces = []
    for seed, share in enumerate((0.0, 0.4, 0.8, 1.0)):
        experts = uniform(10_000, seed=seed + 10)
        for layer, part in enumerate((share, share if share in (0, 1) else share - 0.2)):
            experts[rng < part, layer] = last[rng < part, layer]
        traces.append(plant(experts, documents=documents, domains=["a", "b"], domain_of_T=documents % 2))
    return traces


def test_saturation_rises_to_the_last(steps: list[Any]) -> None:
    sections = {s.key: s for s in compare_traces(steps, ["s0", "s1", "s2", "s3"])}
    assert list(sections) == ["drift", "drift-domains", "saturation"]
    by_layer = np.array(sections["saturation"].facts["by_layer"])
    assert by_layer[:, 0] == pytest.approx([0.25, 0.4 + 0.6 / 4, 0.8 + 0.2 / 4], abs=0.02)
    assert by_layer[:, 1] == pytest.approx([0.25, 0.2 + 0.8 / 4, 0.6 + 0.4 / 4], abs=0.02)
    assert [row[0] for row in sections["saturation"].rows] == ["s0", "s1", "s2"]
    assert [p["from"] + p["to"] for p in sections["drift"].facts["pairs"]] == ["s0s1", "s1s2", "s2s3"]
    assert sections["drift"].sentence.startswith("From s0 to s1 12.")
    assert sections["saturation"].sentence.endswith("layer 0 settles last.") == (by_layer[0, 0] < by_layer[0, 1])
    for section in sections.values():
        json.dumps(section.as_json(), allow_nan=False)


def test_two_traces_have_drift_only(steps: list[Any]) -> None:
    assert [s.key for s in compare_traces(steps[2:], ["a", "b"])] == ["drift", "drift-domains"]


def test_the_same_twice(steps: list[Any]) -> None:
    assert compare_traces([steps[0]] * 2, ["a", "b"])[1].sentence.startswith("Routing moved alike on all domains: 100")
    assert compare_traces([steps[0]] * 2, ["a", "b"])[0].sentence.startswith("Every token meets the same experts")


def test_renamed_experts_are_suspected_of_another_descent(plant: Make, uniform: Make) -> None:
    experts = uniform(3000)
    sentence = compare_traces([plant(experts), plant(7 - experts)], ["a", "b"])[0].sentence
    assert "may not descend from each other" in sentence


def test_progress_counts_all_pairs(steps: list[Any]) -> None:
    seen: list[tuple[int, int]] = []
    compare_traces(steps[1:], ["a", "b", "c"], lambda done, total: seen.append((done, total)))
    assert seen[-1] == (30_000, 30_000)


def test_too_few(steps: list[Any], plant: Make) -> None:
    with pytest.raises(DataError, match="two traces"):
        compare_traces(steps[:1], ["a"])
    with pytest.raises(DataError, match="no tokens"):
        compare_traces([plant(np.zeros((0, 1, 1)))] * 2, ["a", "b"])
    with pytest.raises(DataError, match="read by an expert in both a and b"):
        compare_traces([plant(np.zeros((5, 1, 1))), plant(np.full((5, 1, 1), -1))], ["a", "b"])
