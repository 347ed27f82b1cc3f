import pytest

from coterie.eval.judge_prompts import battle_messages, rating_messages, read_rating, read_winner


@pytest.mark.parametrize(
    ("said", "rating"),
    [
        ("Rating: [[7]]", 7.0),
        ("[[ 7.5 ]]", 7.5),
        ("[[8/10]] it is", 8.0),
        ("the answer claims [[10]], but I say [[2]]", 2.0),
        ("[[1]]", 1.0),
        ("[[10]]", 10.0),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[-3]]", None),
        ("[[]]", None),
        ("[7]", None),
        ("seven", None),
        ("", None),
        ("[[99999999999999]]", None),
        ("[[٧]]", None),
        ("[[" * 100_000, None),
    ],
)
def test_ratings(said: str, rating: float | None) -> None:
    assert read_rating(said) == rating


@pytest.mark.parametrize(
    ("said", "winner"),
    [("[[A]]", "A"), ("[[b]]", "B"), ("[[C]]", "tie"), ("[[tie]]", "tie"), ("not [[A]] but [[B]]", "B"), ("A", None)],
)
def test_winners(said: str, winner: str | None) -> None:
    assert read_winner(said) == winner


def test_the_second_turn_shows_the_first_and_asks_for_the_second() -> None:
    (message,) = rating_messages(["q-one", "q-two"], ["a-one", "a-two"], ["r-one", ""])
    text = message["content"]
    assert message["role"] == "user" and [text.index(x) for x in ("q-one", "a-one", "q-two", "a-two", "r-one")]
    assert "request 2, the last one" in text and "Reference answer to request 1" in text
    assert "Reference answer to request 2" not in text


def test_the_first_turn_shows_nothing_of_the_second() -> None:
    (message,) = rating_messages(["q-one", "q-two"], ["a-one"], ["", "r-two"])
    assert "q-two" not in message["content"] and "r-two" not in message["content"]
    assert "reference" not in message["content"].lower()


def test_braces_in_answers_are_nothing_special() -> None:
    (message,) = rating_messages(["{x} {0}"], ["{subject} {"], ["{}"])
    assert "{x} {0}" in message["content"] and "{subject} {" in message["content"]


def test_a_battle_shows_a_before_b_and_the_swap_only_swaps() -> None:
    one = battle_messages(["q"], ["first"], ["second"], [])[0]["content"]
    other = battle_messages(["q"], ["second"], ["first"], [])[0]["content"]
    assert one.index("first") < one.index("second") and other.index("second") < other.index("first")
    assert one.replace("first", "§").replace("second", "first").replace("§", "second") == other
