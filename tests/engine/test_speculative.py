import torch

from coterie.engine.speculative import Drafter, Governor, distinct_experts
from coterie.routing import Assignment


def test_a_draft_is_what_followed_the_same_words() -> None:
    d = Drafter([1, 2, 3, 4, 5, 6, 1, 2])
    assert d.draft(8) == []
    d.push(3)
    assert d.draft(8) == [4, 5, 6, 1] and d.draft(2) == [4, 5] and d.draft(0) == []


def test_the_last_time_counts() -> None:
    d = Drafter([1, 2, 3, 4, 0, 1, 2, 3, 5, 0, 1, 2, 3])
    assert d.draft(2) == [5, 0]


def test_repetition_drafts_itself() -> None:
    assert Drafter([7] * 6).draft(8) == [7] * 4
    assert Drafter([1, 2] * 4).draft(3) == [1, 2, 1]


def test_short_texts_have_no_drafts() -> None:
    for n in range(4):
        assert Drafter(list(range(n))).draft(8) == []
    d = Drafter([])
    for i in (1, 2, 3, 9, 1, 2, 3):
        d.push(i)
    assert d.draft(8) == [9, 1, 2, 3]


def test_drafts_grow_where_they_come_true() -> None:
    text = [*range(50), 0, 1, 2]
    d = Drafter(text)
    sizes = []
    for accepted in (True, True, False, False, True):
        n = len(d.draft(100))
        sizes.append(n)
        d.learn(n, n if accepted else 0)
    assert sizes == [4, 8, 8, 2, 2]


def run(governor: Governor, n_passes: int, n_accepted: int, n_experts: int, n_without: int) -> int:
    """How many of so many passes were drafted, all alike."""
    n_drafted = 0
    for _ in range(n_passes):
        if governor.may_draft():
            n_drafted += 1
            governor.judge(1, n_accepted, n_experts, n_without)
    return n_drafted


def test_drafts_that_come_true_stay_on() -> None:
    assert run(Governor(10, 100), 200, n_accepted=2, n_experts=30, n_without=12) == 200  # 3 tokens for 400/220 bytes


def test_drafts_that_do_not_are_switched_off_for_longer_and_longer() -> None:
    governor = Governor(10, 100)
    drafted = [run(governor, 1000, 0, 12, 12) for _ in range(4)]  # they cost no bytes, and bring nothing
    assert drafted[0] <= 40 and drafted[-1] <= 8


def test_a_mixture_pays_for_each_expert() -> None:
    """One token more for twice the bytes is a tie, hence off; a dense model reads the same bytes for it."""
    assert run(Governor(10, 0), 500, 1, 24, 12) < 60
    assert run(Governor(10, 0), 500, 1, 23, 12) == 500
    assert run(Governor(0, 100), 500, 1, 0, 0) == 500


def test_it_tries_again_and_stays_on_when_the_text_has_changed() -> None:
    governor = Governor(10, 100)
    assert run(governor, 8, 0, 20, 12) == 8 and not governor.may_draft()
    assert run(governor, 300, 3, 20, 12) > 200


def test_experts_are_counted_once_a_layer() -> None:
    def layer(*rows: list[int]) -> Assignment:
        ids = torch.tensor(rows, dtype=torch.int32)
        return Assignment(ids, ids.float(), ids.float(), {})

    routings = [layer([0, 1], [1, 2], [2, -1]), layer([3, 3], [3, 3], [0, 1])]
    assert distinct_experts(routings, [False, True, False]) == (3 + 3, 3 + 3)
    assert distinct_experts(routings, [False, True, True]) == (6, 2 + 1)
    assert distinct_experts([], [False, True]) == (0, 0)


def test_the_bytes_of_a_model(make_model) -> None:  # type: ignore[no-untyped-def]
    model = make_model()
    governor = Governor.of(model, 3, 4)
    assert governor._expert_bytes == 3 * 48 * 32 * 4
    dense = sum(p.nbytes for p in model.parameters()) - 12 * 3 * 48 * 32 * 4 - 259 * 32 * 4  # less the embedding
    assert governor._dense_bytes == dense
