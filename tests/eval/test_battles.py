from pathlib import Path
from types import ModuleType

import pytest

from coterie.eval.battle_file import read_battles
from coterie.eval.battles import Fought, fight, first_place_share, from_ratings, settle, write_battles
from coterie.eval.endpoint import Endpoint
from coterie.eval.journal import Journal
from coterie.eval.judge import Judge
from coterie.eval.mt_bench_answers import Answers, Conversation

TALKS = [Conversation(str(n), "math", (f"{n}: q1", "q2"), ("", "")) for n in range(3)]


def answers(word: str) -> dict[str, Answers]:
    return {c.id: Answers("k", c.id, c.category, word, [f"{word}1", f"{word}2"]) for c in TALKS}


@pytest.mark.parametrize(
    ("first", "swapped", "winner"),
    [
        ("A", "B", "model_a"),
        ("B", "A", "model_b"),
        ("A", "A", "tie"),  # whatever it reads first
        ("B", "B", "tie"),
        ("tie", "tie", "tie"),
        ("A", "tie", "tie"),
        ("tie", "A", "tie"),
    ],
)
def test_a_win_needs_both_orders(first: str, swapped: str, winner: str) -> None:
    assert settle(first, swapped) == winner


def fought_with(judges: ModuleType, prefers: object) -> tuple[list[Fought], int, int]:
    def say(body: dict, handler: object) -> str | None:
        talk = body["messages"][0]["content"]
        a = talk[
            talk.index("=== Conversation with assistant A") : talk.index("=== End of the conversation with assistant A")
        ]
        return prefers("good" in a, handler)

    with judges.fake_judge(say) as server, Journal(None) as journal:
        judge = Judge(Endpoint(server.url, "m", pause=0.01, retries=0), 2)
        fought, n_left_out = fight(
            judge, journal, TALKS, answers("good"), answers("bad"), ("x", "y"), lambda d, t: None
        )
        return fought, n_left_out, len(server.asked)


def test_a_judge_that_sees_who_is_good(judges: ModuleType, tmp_path: Path) -> None:
    fought, n_left_out, n_asked = fought_with(judges, lambda is_good_first, h: "[[A]]" if is_good_first else "[[B]]")
    assert n_asked == 12 and n_left_out == 0 and len(fought) == 6  # 3 questions, 2 turns, both orders
    assert {f.winner for f in fought} == {"model_a"} and {f.turn for f in fought} == {1, 2}
    assert first_place_share(fought) == 0.5
    write_battles(tmp_path / "battles.jsonl", fought)
    read = read_battles([tmp_path / "battles.jsonl"])
    assert [(b.a, b.b, b.score, b.question) for b in read] == [("x", "y", 1.0, c.id) for c in TALKS for _ in range(2)]


def test_a_judge_that_likes_the_first_makes_only_ties(judges: ModuleType) -> None:
    fought, _, _ = fought_with(judges, lambda is_good_first, h: "I read it: [[A]]")
    assert {f.winner for f in fought} == {"tie"} and first_place_share(fought) == 1.0


def test_a_pair_with_one_verdict_is_no_battle(judges: ModuleType) -> None:
    fought, n_left_out, _ = fought_with(judges, lambda is_good_first, h: "[[A]]" if is_good_first else "who knows")
    assert fought == [] and n_left_out == 6 and first_place_share(fought) is None


def test_ratings_make_battles_and_small_differences_ties() -> None:
    ours = {("0", 1): 7.0, ("0", 2): 5.0, ("1", 1): 6.0}
    theirs = {("0", 1): 6.5, ("0", 2): 5.05, ("1", 1): 8.0, ("2", 1): 3.0}
    fought = from_ratings(TALKS, ours, theirs, ("x", "y"), "m")
    assert [(f.question_id, f.turn, f.winner) for f in fought] == [
        ("0", 1, "model_a"),
        ("0", 2, "tie"),
        ("1", 1, "model_b"),
    ]
