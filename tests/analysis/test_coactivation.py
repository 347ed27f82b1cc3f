"""Pairs of experts: N_ij / N_i by hand, a planted couple, and uniform choices without any."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coterie.analysis import coactivation
from coterie.analysis.blocks import blocks_of
from coterie.analysis.coactivation import CoactivationReader
from coterie.analysis.scan import read_through
from coterie.analysis.section import Section

Make = Callable[..., Any]


def found(trace: Any) -> list[Section]:
    blocks = blocks_of(trace)
    return read_through(trace, blocks, [CoactivationReader(trace, blocks)])


def test_together_by_hand(plant: Make) -> None:
    """Expert 0 is read with 1 twice and with 2 once; an unused slot is nobody's company."""
    experts = np.array([[0, 1], [1, 0], [0, 2], [2, -1]])[:, None]
    (section,) = found(plant(experts, n_experts=3))
    assert section.facts["together"][0] == pytest.approx(
        np.array([[0, 2 / 3, 1 / 3], [1, 0, 0], [0.5, 0, 0]]), abs=1e-5
    )
    assert section.facts["uniform"] == 0.5


def test_uniform_choices_have_a_lift_of_1(plant: Make, uniform: Make) -> None:
    (section,) = found(plant(uniform(40_000)))
    lift = np.array(section.facts["lift"], dtype=float)
    assert np.nanmax(np.abs(lift - 1)) < 0.1
    assert np.isnan(lift[:, range(8), range(8)]).all()


def test_unequal_shares_are_no_couple(plant: Make) -> None:
    """Two draws without replacement, expert 0 far more often: every lift is near 1 although pairs with 0 are common."""
    rng = np.random.default_rng(0)
    keys = rng.exponential(1 / np.array([4.0, *[1.0] * 7]), size=(40_000, 1, 8))
    (section,) = found(plant(np.argsort(keys, axis=-1)[..., :2]))
    assert np.nanmax(np.abs(np.array(section.facts["lift"], dtype=float) - 1)) < 0.25


def test_a_couple_is_found(plant: Make, uniform: Make) -> None:
    experts = uniform(10_000)
    experts[np.random.default_rng(0).random(10_000) < 0.2, 1] = [2, 5]
    (section,) = found(plant(experts))
    assert section.rows[1][1] in ("2 and 5", "5 and 2") and section.rows[1][4] > 2
    assert "experts 2 and 5 of layer 1" in section.sentence


def test_a_single_expert_a_token_has_no_company(plant: Make, uniform: Make) -> None:
    assert found(plant(uniform(50, K=1))) == []


def test_a_sample_of_the_tokens_gives_the_same_picture(
    plant: Make, uniform: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = plant(uniform(30_000, E=16, K=4), n_experts=16)
    (whole,) = found(trace)
    monkeypatch.setattr(coactivation, "_PAIRS", 100_000)
    (sample,) = found(trace)
    assert sample.facts["together"][0] == pytest.approx(np.array(whole.facts["together"][0]), abs=0.05)
    assert sample.facts["together"] != whole.facts["together"]
