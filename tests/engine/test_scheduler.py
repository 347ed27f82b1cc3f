from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.engine.scheduler import Waiting, shares


def sequence(number: int, owner: str = "", n_prompt: int = 10, n_read: int = 0, n: int = 1) -> Any:
    """What the scheduler looks at."""
    request = SimpleNamespace(owner=owner, prompt_ids=(0,) * n_prompt, params=SimpleNamespace(n=n))
    return SimpleNamespace(number=number, request=request, n_read=n_read, is_prompt_read=n_read == n_prompt)


def queue(*sequences: Any) -> Waiting:
    waiting = Waiting()
    for s in sequences:
        waiting.add(s)
    return waiting


def order(waiting: Waiting, live: list[Any] | None = None) -> list[int]:
    numbers = []
    while waiting:
        s = waiting.next(live or [])
        waiting.take(s)
        numbers.append(s.number)
    return numbers


def test_one_owner_is_served_in_the_order_of_arrival() -> None:
    assert order(queue(*(sequence(i) for i in range(4)))) == [0, 1, 2, 3]


def test_owners_take_turns() -> None:
    waiting = queue(*(sequence(i, "a") for i in range(3)), sequence(3, "b"), sequence(4, "c"), sequence(5, "b"))
    assert order(waiting) == [0, 3, 4, 1, 5, 2]


def test_who_has_the_fewest_at_work_comes_first() -> None:
    live = [sequence(90, "a"), sequence(91, "a"), sequence(92, "b")]
    assert queue(sequence(0, "a"), sequence(1, "b"), sequence(2, "c")).next(live).number == 2
    assert queue(sequence(0, "a"), sequence(1, "b")).next(live).number == 1
    assert queue(sequence(0, "a"), sequence(1, "b")).next([sequence(92, "b", n=3), *live[:2]]).number == 0


def test_looking_takes_nothing_and_cancelling_leaves_no_trace() -> None:
    waiting = queue(sequence(0, "a", 5), sequence(1, "b", 7), sequence(2, "a", 9))
    assert (waiting.n_requests, waiting.n_tokens) == (3, 21)
    assert waiting.next([]) is waiting.next([])
    waiting.cancel(0)
    waiting.cancel(1)
    waiting.cancel(17)
    assert (waiting.n_requests, waiting.n_tokens) == (1, 9) and order(waiting) == [2]
    assert not waiting and waiting.n_tokens == 0


@pytest.mark.parametrize(
    ("prompts", "room", "expected"),
    [
        ([10], 4, [4]),
        ([3, 4], 100, [3, 4]),
        ([10, 1, 9], 8, [4, 1, 3]),
        ([128] * 4, 256, [128, 128, 0, 0]),  # as many as can be are done with
        ([500, 10], 64, [54, 10]),  # the short one is read at once
        ([500, 500], 64, [64, 0]),
        ([500, 500, 500], 1, [1, 0, 0]),
    ],
)
def test_shares_of_one_owner(prompts: list[int], room: int, expected: list[int]) -> None:
    assert shares([sequence(i, n_prompt=n) for i, n in enumerate(prompts)], room) == expected


def test_owners_get_equal_shares_however_many_their_prompts() -> None:
    reading = [sequence(i, "a", 500) for i in range(5)] + [sequence(5, "b", 500)]
    found = shares(reading, 100)
    assert sum(found[:5]) == 50 and found[5] == 50
    reading[5] = sequence(5, "b", 500, n_read=490)
    assert shares(reading, 100)[5] == 10 and sum(shares(reading, 100)) == 100


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 90)), min_size=1, max_size=9), st.integers(1, 128))
def test_shares_fill_the_room_and_exceed_no_prompt(prompts: list[tuple[str, int]], room: int) -> None:
    found = shares([sequence(i, owner, n) for i, (owner, n) in enumerate(prompts)], room)
    assert sum(found) == min(room, sum(n for _, n in prompts))
    assert all(0 <= share <= n for share, (_, n) in zip(found, prompts, strict=True))
