"""Places in a text: their names, and a place with an expert of its own."""

from collections.abc import Callable
from typing import Any

import numpy as np

from coterie.analysis.blocks import blocks_of
from coterie.analysis.positions import PositionsReader, place_name, place_of
from coterie.analysis.scan import read_through
from coterie.analysis.section import Section

Make = Callable[..., Any]


def found(trace: Any) -> list[Section]:
    blocks = blocks_of(trace)
    return read_through(trace, blocks, [PositionsReader(trace, blocks)])


def test_places_are_powers_of_two() -> None:
    assert place_of(np.array([0, 1, 2, 3, 4, 7, 8, 1 << 40])).tolist() == [0, 1, 2, 2, 3, 3, 4, 23]
    assert [place_name(p) for p in (0, 1, 2, 3, 23)] == ["0", "1", "2-3", "4-7", "4194304 and beyond"]


def test_the_place_that_is_read_by_one_expert_is_found(plant: Make, uniform: Make) -> None:
    experts = uniform(20_000)
    documents = np.arange(20_000) // 200
    experts[::200] = [3, 4]
    (section,) = found(plant(experts, documents=documents))
    rows = {row[0]: row for row in section.rows}
    assert rows["0"][1] == 100 and rows["0"][2] > 70 and rows["0"][3] == 0.0
    assert rows["64-127"][2] < 2
    assert "hardly matters" in section.sentence


def test_a_drift_along_the_text_is_told_from_chance(plant: Make, uniform: Make) -> None:
    experts = uniform(20_000)
    late = np.arange(20_000) % 200 >= 128
    experts[late & (np.random.default_rng(0).random(20_000) < 0.3)] = [6, 7]
    (section,) = found(plant(experts, documents=np.arange(20_000) // 200))
    assert "still matters" in section.sentence and "128-255" in section.sentence


def test_a_short_text_says_nothing(plant: Make, uniform: Make) -> None:
    assert found(plant(uniform(5))) == []
