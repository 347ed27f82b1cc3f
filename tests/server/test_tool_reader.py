"""Calls out of text, whole and piece by piece, and everything that only looks like calls."""

import itertools
import json
import random
from collections.abc import Iterable
from typing import Any

import pytest

from coterie.server.tool_reader import CallReader, Piece, new_call_id

CALLS = '[{"name": "weather", "arguments": {"place": "Zürich [x] }{", "n": [1, {"a": "\\\\\\""}]}}, {"name": "g"}]'
WANTED = [("weather", {"place": "Zürich [x] }{", "n": [1, {"a": '\\"'}]}), ("g", {})]


def read(text: str, cuts: Iterable[int] = (), **options: Any) -> tuple[str, list[tuple[str, str]], list[Piece]]:
    """The text, the (name, arguments) of the calls, and the pieces, of text that comes in cut up."""
    reader = CallReader(**{"is_streamed": False, "begins": True, **options})
    edges = [0, *sorted(cuts), len(text)]
    pieces = [p for a, b in itertools.pairwise(edges) for p in reader.push(text[a:b])] + reader.finish()
    calls: dict[int, list[str]] = {}
    for piece in pieces:
        if piece.index is not None:
            if piece.index not in calls:
                assert piece.id is not None and len(piece.id) == 9 and piece.name is not None
                calls[piece.index] = [piece.name, ""]
            else:
                assert piece.id is None and piece.name is None
            calls[piece.index][1] += piece.arguments
    assert list(calls) == list(range(len(calls))) and reader.n_calls == len(calls)
    return "".join(p.text for p in pieces), [(name, arguments) for name, arguments in calls.values()], pieces


def loaded(calls: list[tuple[str, str]]) -> list[tuple[str, Any]]:
    return [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_however_the_text_is_cut_the_calls_are_the_same(is_streamed: bool) -> None:
    rng = random.Random(0)
    for _ in range(200):
        cuts = rng.sample(range(len(CALLS)), rng.randint(0, 20))
        text, calls, _ = read(" " + CALLS + " ", cuts, is_streamed=is_streamed)
        assert (text, loaded(calls)) == ("", WANTED)


def test_arguments_are_streamed_as_they_come() -> None:
    _, _, pieces = read(CALLS, range(1, len(CALLS)), is_streamed=True)
    parts = [p.arguments for p in pieces if p.index == 0]
    assert parts[:4] == ["", "{", '"', "p"] and pieces[0].name == "weather"


def test_whole_calls_come_whole() -> None:
    _, _, pieces = read(CALLS, range(1, len(CALLS)))
    assert len(pieces) == 2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', [("f", {"a": 1})]),
        ('[{"arguments": {"a": 1}, "name": "f"}]', [("f", {"a": 1})]),
        ('[{"name": "f", "arguments": "{\\"a\\": 1}"}]', [("f", {"a": 1})]),
        ('[{"name": "f", "arguments": {}, "id": "abcdefghi"}]', [("f", {})]),
        ('[{"id": 1, "name": "f", "x": [[]], "arguments": {"b": "]"}}]', [("f", {"b": "]"})]),
        ('\n[ { "name" : "f" , "arguments" : { } } ]\n', [("f", {})]),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_other_ways_to_write_calls(text: str, wanted: Any, is_streamed: bool) -> None:
    assert (lambda r: (r[0], loaded(r[1])))(read(text, range(1, len(text)), is_streamed=is_streamed)) == ("", wanted)


@pytest.mark.parametrize(
    "text",
    [
        "I would rather talk.",
        "[1, 2]",
        "[[]]",
        '["x"]',
        '[{"name": "f"',
        '[{"name": 7}]',
        '[{"name": "no spaces"}]',
        '[{"arguments": {}}]',
        '[{"name": "f", "arguments": [1]}]',
        '[{"name": "f", "arguments": "no"}]',
        '[{"name": "f", "x": NaN}]',
        '[{"name": "f"]]',
        '[{"name" "f"}]',
        "[{name: 'f'}]",
        "}",
        '[{"name": "f", "x": ' + "9" * 5000 + "}]",
        '[{"name": "f", "x": ' + "[" * 40 + "]" * 40 + "}]",
        '[{"name": "f", "x": "' + "x" * 70_000 + '"}]',
        "__import__('os').system('true')",
        "[" * 100_000,
        '[{"name": "f", "x": "\\ud800"',
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_what_is_no_list_of_calls_is_text(text: str, step: int) -> None:
    for is_streamed in (False, True):
        found, calls, _ = read(text, range(step, len(text), step), is_streamed=is_streamed)
        assert (found, calls) == (text, [])


def test_a_list_that_breaks_off_keeps_its_whole_calls() -> None:
    text, calls, _ = read('[{"name": "f", "arguments": {}}, {"name": "g", "argu')
    assert (text, calls) == ("", [("f", "{}")])
    text, calls, _ = read('[{"name": "f", "arguments": {"a": [1', is_streamed=True)
    assert (text, calls) == ("", [("f", '{"a": [1')])


def test_text_after_the_list_is_text() -> None:
    assert read('[{"name": "f"}] and more', [17])[0] == "and more"


def test_the_mark_begins_the_calls() -> None:
    reader = CallReader(is_streamed=False, mark=5)
    assert reader.push("Well", [9]) == [Piece("Well")] and reader.push("", [5]) == []
    assert reader.push(CALLS, [7])[0].name == "weather" and reader.n_calls == 2
    assert CallReader(is_streamed=False, mark=5).push(CALLS, [7]) == [Piece(CALLS)]


def test_in_text_a_list_at_the_beginning_is_one_of_calls() -> None:
    assert loaded(read(" \n" + CALLS, [1, 2, 3], begins=False, in_text=True)[1]) == WANTED
    assert read("Well, [1]", [1], begins=False, in_text=True)[0] == "Well, [1]"
    assert read("  ", begins=False, in_text=True)[0] == "  "
    assert read("[1] is a note", begins=False, in_text=True)[0] == "[1] is a note"


def test_random_text_never_raises_and_loses_nothing() -> None:
    rng = random.Random(1)
    alphabet = '[]{}":,\\ nameargumets1é'
    words = [*alphabet, '"name": "f"', '"arguments": {', "[{", "}]"]
    for _ in range(3000):
        text = "".join(rng.choice(words) for _ in range(rng.randint(0, 30)))
        found, calls, _ = read(text, rng.sample(range(len(text) + 1), min(5, len(text))), begins=rng.random() < 0.5)
        assert calls or found == text


def test_ids_are_nine_letters_and_digits() -> None:
    ids = {new_call_id() for _ in range(100)}
    assert len(ids) == 100 and all(len(i) == 9 and i.isalnum() and i.isascii() for i in ids)
