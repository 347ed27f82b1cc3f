"""Planted sequences: random ones give 12.5 % and 46.43 %, sticky ones what they were made of."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coterie.analysis.blocks import blocks_of
from coterie.analysis.repeats import RepeatsReader, measure_repeats, random_repeats
from coterie.analysis.scan import read_through

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("E", "K", "first", "either"),
    [(8, 2, 1 / 8, 13 / 28), (8, 1, 1 / 8, 1 / 8), (4, 2, 1 / 4, 5 / 6), (4, 3, 1 / 4, 1.0), (2, 2, 1 / 2, 1.0)],
)
def test_random_baselines(E: int, K: int, first: float, either: float) -> None:
    assert random_repeats(E, K) == pytest.approx((first, either))


@pytest.mark.parametrize(("E", "K"), [(8, 2), (16, 3), (128, 8)])
def test_random_choices_give_the_random_baseline(plant: Make, uniform: Make, E: int, K: int) -> None:
    found = measure_repeats(plant(uniform(30_000, E=E, K=K), n_experts=E))["all"]
    first, either = random_repeats(E, K)
    assert found.first.value == pytest.approx(np.full(2, first), abs=0.01)
    assert found.either.value == pytest.approx(np.full(2, either), abs=0.015)
    assert found.first_given_shares == pytest.approx(np.full(2, first), abs=0.005)
    assert found.either_given_shares == pytest.approx(np.full(2, either), abs=0.01)
    assert (found.first.low < first).all() and (found.first.high > first - 0.01).all()


def test_a_sequence_by_hand(plant: Make) -> None:
    """01 02 20 13 | 13 : of three pairs one has the same first choice, two have an expert in common."""
    experts = np.array([[0, 1], [0, 2], [2, 0], [1, 3], [1, 3]])[:, None]
    found = measure_repeats(plant(experts, documents=[0, 0, 0, 0, 1]))["all"]
    assert found.n_pairs == 3
    assert found.first.value.tolist() == [1 / 3] and found.either.value.tolist() == [2 / 3]


def test_pairs_do_not_cross_documents_or_windows_and_need_two_experts(plant: Make) -> None:
    experts = np.array([[0], [0], [0], [0], [-1], [0]])[:, None]
    trace = plant(experts, documents=[0, 0, 1, 1, 1, 1], positions=[0, 1, 0, 0, 1, 2])
    found = measure_repeats(trace)["all"]
    assert found.n_pairs == 1 and found.first.value.tolist() == [1.0]


def test_sticky_sequences_give_what_they_were_made_of(plant: Make, uniform: Make) -> None:
    """With chance s a token takes over the experts of the one before, in their order: s + (1 - s) of the baseline."""
    experts, rng, s = uniform(40_000), np.random.default_rng(1), 0.3
    for layer in range(2):
        keeps = rng.random(len(experts)) < s * layer
        source = np.maximum.accumulate(np.where(keeps, 0, np.arange(len(experts))))
        experts[:, layer] = experts[source, layer]
    found = measure_repeats(plant(experts))["all"]
    assert found.first.value == pytest.approx([1 / 8, s + (1 - s) / 8], abs=0.012)
    assert found.either.value == pytest.approx([13 / 28, s + (1 - s) * 13 / 28], abs=0.012)
    assert found.either_given_shares == pytest.approx([13 / 28, 13 / 28], abs=0.012)


def test_unequal_shares_alone_are_told_from_locality(plant: Make) -> None:
    """First choices 0 with chance 0.6, else 1 to 4: 0.36 + 4 · 0.01 = 0.40 without any memory."""
    first = np.random.default_rng(2).choice(5, size=30_000, p=[0.6, 0.1, 0.1, 0.1, 0.1])
    found = measure_repeats(plant(first[:, None, None]))["all"]
    assert found.first.value == pytest.approx([0.4], abs=0.012)
    assert found.first_given_shares == pytest.approx([0.4], abs=0.006)
    assert found.either_given_shares == pytest.approx([0.4], abs=0.012)


def test_domains_are_apart_and_all_text_has_the_mean_of_their_baselines(plant: Make) -> None:
    """A domain of expert 0, one of expert 1: all pairs repeat, and each domain's shares already say so."""
    documents = np.arange(4000) // 100
    trace = plant((documents % 2)[:, None, None], documents=documents, domains=["a", "b"], domain_of_T=documents % 2)
    found = measure_repeats(trace)
    assert all(r.first.value.tolist() == [1.0] and r.first_given_shares.tolist() == [1.0] for r in found.values())
    assert found["all"].n_pairs == 40 * 99 == found["a"].n_pairs + found["b"].n_pairs


def test_the_section_has_the_paper_beside(plant: Make, uniform: Make) -> None:
    trace = plant(uniform(2000), documents=np.arange(2000) // 50)
    blocks = blocks_of(trace)
    (section,) = read_through(trace, blocks, [RepeatsReader(trace, blocks)])
    rows = {(row[0], row[1]): row[2:] for row in section.rows}
    assert rows["Mixtral: GitHub", 15] == (28.1, None, None, 12.5, None, 66.9, None, None, 46.43, None)
    assert rows["all", 0][3] == 12.5 and rows["all", 0][8] == 46.43
    assert section.facts["paper_mean"]["first"][0] == pytest.approx(14.0875)
    assert [p.references["random"] for p in section.plots] == [12.5, 46.43]


def test_tokens_that_follow_nothing(plant: Make, uniform: Make) -> None:
    trace = plant(uniform(5), documents=range(5))
    blocks = blocks_of(trace)
    (section,) = read_through(trace, blocks, [RepeatsReader(trace, blocks)])
    assert section.sentence.startswith("No token follows another")
