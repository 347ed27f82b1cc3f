import pytest

from coterie.eval.math_answers import boxed, final_answer, is_equal, normal


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"so $\boxed{7}$", "7"),
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\fbox{a{b}c}", "a{b}c"),
        (r"\boxed{never closed", None),
        ("none", None),
        ("", None),
    ],
)
def test_what_the_last_box_holds(text: str, inside: str | None) -> None:
    assert boxed(text) == inside


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        ("x = 5", "5"),
        (r"\$1,000", "1000"),
        (r"10\%", "10"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"45^\circ", "45"),
        (r"12\text{ cm}", "12"),
        (r"\sqrt2", r"\sqrt{2}"),
        ("7.", "7"),
        (r"\text{Monday}", "Monday"),
    ],
)
def test_the_same_answer_written_in_two_ways_is_one(a: str, b: str) -> None:
    assert normal(a) == normal(b)


def test_numbers_are_equal_as_numbers() -> None:
    assert is_equal("0.5", normal(r"\frac{1}{2}")) and is_equal("1/2", "0.50") and is_equal(r"\frac{2}{4}", "1/2")
    assert not is_equal("0.5", "0.25") and not is_equal(None, "1") and not is_equal("1/0", "1") and is_equal("x", "x")
    assert not is_equal(r"\frac{1}{0}", "1") and is_equal(r"-\frac{1}{2}", "-.5")


def test_a_models_answer_is_found_by_words_box_or_last_number() -> None:
    assert final_answer("Final Answer: The final answer is $[2,5)$. I hope it is correct. 9") == "[2,5)"
    assert final_answer(r"thus \boxed{24} and 3") == "24"
    assert final_answer("so we get 1,024") == "1024" and final_answer("I do not know") is None
