"""What a finding holds, and how its numbers are shown and written."""

import json

import numpy as np
import pytest

from coterie.analysis.section import Plot, Section, plot_file, shown


def test_numbers_for_people() -> None:
    assert [shown(cell) for cell in (None, float("nan"), 0.123456, 12345.6, 1234567, "x", 1.0)] == [
        "–", "–", "0.1235", "12,346", "1,234,567", "x", "1",
    ]  # fmt: skip


def test_json_has_plain_values_only() -> None:
    facts = {"a": np.float32(0.5), "b": np.arange(3), 4: (1, float("inf")), "deep": {"n": np.int64(7)}}
    plot = Plot("lines", "t", "x", "y", [1.0], {"s": [2.0]})
    document = Section("a-key", "T", "S", ("c",), ((float("nan"),),), (plot, plot), facts=facts).as_json()
    assert document["rows"] == [[None]] and document["plots"] == ["a-key", "a-key-2"]
    assert document["facts"] == {"a": 0.5, "b": [0, 1, 2], "4": [1, None], "deep": {"n": 7}}
    json.dumps(document, allow_nan=False)


def test_what_does_not_fit_together_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        Plot("lines", "t", "x", "y", [1.0, 2.0], {"s": [2.0]})
    with pytest.raises(AssertionError):
        Plot("lines", "t", "x", "y", [1.0], {"s": [2.0]}, low={"other": [1.0]})
    with pytest.raises(AssertionError):
        Section("Not a key", "T", "S", ("c",), ())
    with pytest.raises(AssertionError):
        Section("key", "T", "S", ("c", "d"), ((1,),))


def test_the_files_of_plots_have_names_of_their_own() -> None:
    plot = Plot("bars", "t", "x", "y", ["a"], {"s": [2.0]})
    section = Section("reuse", "T", "S", (), (), (plot, plot, plot))
    assert [plot_file(section, n) for n in range(3)] == ["reuse", "reuse-2", "reuse-3"]
