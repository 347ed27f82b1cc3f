"""The counts before anything is compiled, and what is said of an error."""

from typing import Any

import pytest

from coterie.engine.grammar_limits import check_repeats, schema_text, sentence
from coterie.errors import RequestError


@pytest.mark.parametrize(
    "pattern", ["a{100000}", "(a{3}b{2,}){4}", "a{,5}", "{}", "{a}", "a{2}" * 1000, ")(", "a{1{2}"]
)
def test_repeats_within_bounds(pattern: str) -> None:
    assert check_repeats(pattern, "pattern") == pattern


@pytest.mark.parametrize(
    "pattern", ["a{100001}", "(a{400}){400}", "((a{50}b){50}c{3}){50}", "a{2,99999999999999}", "a{9}{9}{9}{9}{9}{9}"]
)
def test_repeats_beyond_bounds(pattern: str) -> None:
    with pytest.raises(RequestError, match="the pattern repeats a part more than 100,000 times"):
        check_repeats(pattern, "pattern")


def test_a_schema_is_the_same_however_it_comes() -> None:
    assert schema_text({"type": "object", "a": [1, "é"]}) == schema_text('{"type": "object",\n "a": [1, "é"]}')
    assert schema_text(True) == "true"


def nested(n: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(n):
        schema = {"items": schema}
    return schema


def test_depth_is_bounded_at_64() -> None:
    assert schema_text(nested(63))
    for depth in (65, 200_000):
        with pytest.raises(RequestError, match="nested more than 64 deep"):
            schema_text(nested(depth))


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "at 1(8): invalid regex\n  (?=a)\n  ^^\nerror: look-around is not supported\n",
            "look-around is not supported",
        ),
        ("1(13): Expected token ')', found x (at \"x\")", "Expected token ')', found x"),
        ("panic: index out of range\n<backtrace>\n 0: x", "it is not supported"),
        ("", "it is not supported"),
        ("Parser Error: too many items; consider this", "Parser Error: too many items"),
        ("a\x1b[31mb" + "x" * 500, "a [31mb" + "x" * 153),
    ],
)
def test_errors_become_one_short_line(message: str, said: str) -> None:
    assert sentence(message) == said
