import re

import pytest

from coterie.eval.answers import (
    flexible_number,
    is_number,
    majority,
    marked_number,
    plain,
    span_scores,
    stripped,
    without,
)


@pytest.mark.parametrize(
    ("text", "marked", "last"),
    [
        ("She makes 9 * 2 = $18 a day.\n#### 18", "18", "18"),
        ("#### -1,234.5 dollars, or 7", "-1,234.5", "7"),
        ("so it is $1,000.", None, "$1,000."),
        ("3 and -4", None, "-4"),
        ("none at all", None, None),
        ("", None, None),
        ("####18", None, "18"),
    ],
)
def test_the_number_of_an_answer(text: str, marked: str | None, last: str | None) -> None:
    assert marked_number(text) == marked and flexible_number(text) == last


def test_numbers_are_compared_as_written_but_for_commas_dollars_and_a_full_stop() -> None:
    assert is_number("$1,000.", "1000") and is_number("18", "so\n#### 18") and not is_number("18.0", "18")
    assert not is_number(None, "18")


def test_texts_are_compared_without_what_does_not_count() -> None:
    assert stripped("St. John's!") == "st johns" and stripped(" a") == " a"
    assert plain("The  Cat, an owl!") == "cat owl"
    assert without("the 1,000", [re.compile("the "), re.compile(",")]) == "1000"


def test_spans_by_hand() -> None:
    assert span_scores("the Levi's Stadium.", ["Levi's Stadium"]) == (1.0, 1.0)
    assert span_scores("in Levi's Stadium", ["x", "Levi's Stadium"]) == (0.0, pytest.approx(0.8))  # 2 * 2 / (3 + 2)
    assert span_scores("", ["x"]) == (0.0, 0.0) and span_scores("the", ["a"]) == (1.0, 1.0)
    assert span_scores("b b", ["b"]) == (0.0, pytest.approx(2 / 3))


def test_the_answer_given_most_often_wins_and_the_first_of_equals() -> None:
    assert majority(["7", "1,000", "$1000", None]) == "1000"
    assert majority(["a", "b"]) == "a" and majority([None, None]) is None and majority([]) is None
