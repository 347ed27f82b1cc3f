import random

from coterie.eval.passkey import Passkey


def hide(depth: float, room: int) -> tuple[list[str], str, tuple[str, ...]]:
    hidden = Passkey().hide(random.Random(3), depth, lambda text: len(text) - room)
    assert hidden is not None and len(hidden.prompt) <= room
    return hidden.prompt.split("\n"), hidden.value, hidden.others


def test_the_key_lies_as_deep_as_asked_in_filler_that_fills_the_room() -> None:
    for depth, place in ((0.0, 1), (0.5, 6), (1.0, 11)):
        lines, value, others = hide(depth, 1210)
        assert len(lines) == 13 and lines[place] == f"The pass key is {value}. Remember it. {value} is the pass key."
        assert lines[-1] == "What is the pass key? The pass key is"
        assert len({value, *others}) == 10 and all(len(other) == 5 for other in others)
        assert 1210 - len("\n".join(lines)) <= 88


def test_depths_of_a_trial_hide_the_same_key_after_the_same_text() -> None:
    first, second = hide(0.5, 1210), hide(1.0, 1210)
    assert first[1:] == second[1:] and first[0][:6] == second[0][:6]


def test_no_room_no_prompt() -> None:
    assert Passkey().hide(random.Random(0), 0.5, lambda text: len(text) - 100) is None


def test_what_is_written_is_read_up_to_the_last_digit() -> None:
    task = Passkey()
    assert task.spell("12345") == " 12345"
    assert [task.read(t) for t in (" 12345. It is", "12345", " 123456", " the 12345", "")] == [
        "12345", "12345", "123456", None, None,
    ]  # fmt: skip
