"""Leaves: what fits, what does not, and that a value is shown short."""

from typing import Any

import pytest

from coterie.server.schema_fields import flag, items, number, one_of, shown, table, text, texts, whole

BIAS = table(2, "from an id to a number", lambda k, v: k.isdigit() and type(v) in (int, float), {})


@pytest.mark.parametrize(
    ("leaf", "good", "bad"),
    [
        (whole(0, 5), [0, 5], [-1, 6, True, 1.0, "1", None, [], 2**63]),
        (number(0, 2), [0, 0.5, 2], [-0.1, 2.1, True, "1", None, 2**64, float("nan"), float("inf")]),
        (number(0, 1, above=True), [1e-9, 1], [0, 1.5]),
        (flag(), [True, False], [0, 1, "true", None]),
        (text(3), ["", "abc"], ["abcd", 5, None]),
        (text(3, 1), ["a"], [""]),
        (one_of(False, "final"), [False, "final"], [0, True, "", None, "stream"]),
        (items(whole(0, 5), 1, 2), [[0], [1, 2]], [[], [1, 2, 3], [6], "ab", [True]]),
        (texts(2, 3), ["abc", ["a", "b"], []], ["", ["a"] * 3, ["abcd"], [5], 5]),
        (BIAS, [{}, {"1": 2}], [{"a": 1}, {"1": True}, {"1": 1, "2": 2, "3": 3}, []]),
    ],
)
def test_what_fits(leaf: Any, good: list[Any], bad: list[Any]) -> None:
    assert all(leaf.fits(v) for v in good)
    assert not any(leaf.fits(v) for v in bad), [v for v in bad if leaf.fits(v)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "true"),
        (None, "null"),
        ([], "[]"),
        ({}, "{}"),
        ([1, 2], "a list of 2"),
        ({"a": 1}, "an object of 1"),
        ("a", '"a"'),
        ("é", '"é"'),
        (2**63, "9223372036854775808"),
    ],
)
def test_how_a_value_is_shown(value: Any, expected: str) -> None:
    assert shown(value) == expected


def test_a_long_value_is_shown_short() -> None:
    assert len(shown("x" * 10_000_000)) == 60 == len(shown(10**300))
