"""Counting, and chunks that join without a seam."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coterie.analysis import scan
from coterie.analysis.blocks import blocks_of
from coterie.analysis.repeats import RepeatsReader
from coterie.analysis.scan import chunks, count, shown_layers

Make = Callable[..., Any]


def test_count_is_by_row_and_expert_and_leaves_out_what_is_negative() -> None:
    ids_LT = np.array([[2, -1, 2, 0], [1, 1, 1, 1]], dtype=np.int16)
    found = count(np.array([0, 0, 1, -1]), ids_LT, 2, 3)
    assert found.tolist() == [[[0, 0, 1], [0, 0, 1]], [[0, 2, 0], [0, 1, 0]]]
    by_layer = count(np.array([[0, 0, 0, 0], [1, 1, -1, 1]]), ids_LT, 2, 3)
    assert by_layer.tolist() == [[[1, 0, 2], [0, 0, 0]], [[0, 0, 0], [0, 3, 0]]]


def test_chunks_cover_the_trace_once_and_report(plant: Make, uniform: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = plant(uniform(50), documents=np.repeat([0, 1], 25))
    monkeypatch.setattr(scan, "_TOKENS", 7)
    seen: list[tuple[int, int]] = []
    parts = list(chunks(trace, blocks_of(trace), lambda done, total: seen.append((done, total))))
    assert [len(p) for p in parts] == [7] * 7 + [1] and seen[-1] == (50, 50)
    assert np.concatenate([p.ids_KLT for p in parts], axis=2).transpose(2, 1, 0).tolist() == trace.experts().tolist()
    assert np.flatnonzero(~np.concatenate([p.follows_T for p in parts])).tolist() == [0, 25]


def test_pairs_over_the_end_of_a_chunk_count(plant: Make, uniform: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = plant(uniform(500), documents=np.repeat(np.arange(10), 50))
    blocks = blocks_of(trace)

    def repeats() -> tuple[Any, Any, int]:
        reader = RepeatsReader(trace, blocks)
        for chunk in chunks(trace, blocks):
            reader.add(chunk)
        found = reader.of()
        return found.first.value.tolist(), found.either.value.tolist(), found.n_pairs

    whole = repeats()
    monkeypatch.setattr(scan, "_TOKENS", 13)
    assert repeats() == whole and whole[2] == 490


def test_shown_layers_of_32_are_those_of_the_paper() -> None:
    assert shown_layers(32) == [0, 15, 31] and shown_layers(3) == [0, 1, 2] and shown_layers(6, most=3) == [0, 2, 5]
