import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.engine.stops import StopFilter


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    f = StopFilter(stops)
    text = ""
    for piece in pieces:
        text += f.push(piece)
    return text + f.finish(), f.is_stopped


def test_the_worked_example() -> None:
    f = StopFilter(["END"])
    assert [f.push("the E"), f.push("X"), f.push(" END!")] == ["the ", "EX", " "]
    assert f.is_stopped and f.push("more") == "" and f.finish() == ""


@pytest.mark.parametrize("pieces", [["ab", "cd"], ["abcd"], ["a", "b", "c", "d"], ["", "abc", "", "d"]])
def test_a_stop_string_across_pieces_is_found(pieces: list[str]) -> None:
    assert run(["bc"], pieces) == ("a", True)


def test_the_longest_that_ends_there_is_cut() -> None:
    assert run(["c", "abc", "bc"], ["xa", "b", "c"]) == ("x", True)


def test_what_might_be_a_stop_is_held_only_while_it_might() -> None:
    f = StopFilter(["aab"])
    assert f.push("aa") == "" and f.push("a") == "a" and f.push("c") == "aac" and f.finish() == ""


@pytest.mark.parametrize("pieces", [["xa", "b", "c", "d"], ["xabcd"], ["x", "abcd"]])
def test_a_stop_string_that_is_kept_is_the_end_of_the_text(pieces: list[str]) -> None:
    f = StopFilter(["c", "abc"], keep=True)
    assert "".join(f.push(piece) for piece in pieces) + f.finish() == "xabc" and f.is_stopped


def test_held_text_comes_out_at_the_end() -> None:
    assert run(["</s>"], ["x </"]) == ("x </", False)


def test_without_stops_text_passes_at_once() -> None:
    f = StopFilter([])
    assert f.push("abc") == "abc" and f.finish() == ""


@settings(deadline=None)
@given(st.text("ab ", max_size=30), st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3), st.data())
def test_the_result_does_not_depend_on_the_pieces_and_never_leaks(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown, is_stopped = run(stops, pieces)
    assert (shown, is_stopped) == run(stops, list(text))
    assert is_stopped == any(s in text for s in stops)
    assert text.startswith(shown) and not any(s in shown for s in stops)
    assert is_stopped or shown == text
