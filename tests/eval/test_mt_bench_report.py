import math

import pytest

from coterie.eval.battles import Fought
from coterie.eval.mt_bench_answers import Conversation
from coterie.eval.mt_bench_report import battle_section, judged, metrics, rating_section

TALKS = [Conversation(i, c, ("q", "q"), ("", "")) for i, c in (("1", "math"), ("2", "math"), ("3", "stem"))]
RATINGS = {("1", 1): 8.0, ("1", 2): 6.0, ("2", 1): 3.0, ("3", 1): 5.0, ("3", 2): 4.0}


def fought(question: str, winner: str, verdicts: tuple[str, str]) -> Fought:
    return Fought(question, "math", 1, "x", "y", winner, "m", verdicts)


def test_means_are_over_questions_and_missing_turns_are_left_out() -> None:
    found = {(m.name, m.group): m for m in metrics(judged(TALKS, RATINGS, []))}
    rating = found["rating", ""]
    assert rating.value == pytest.approx((7 + 3 + 4.5) / 3) and rating.n == 3
    sd = math.sqrt(sum((v - rating.value) ** 2 for v in (7, 3, 4.5)) / 2)
    assert rating.stderr == pytest.approx(sd / math.sqrt(3))
    assert found["rating_turn_2", ""].value == 5.0 and found["rating_turn_2", ""].n == 2
    assert found["rating", "math"].value == 5.0 and found["rating", "stem"].n == 1
    assert metrics(judged(TALKS, {}, [])) == []


def test_win_rates() -> None:
    battles = [fought("1", "model_a", ("A", "B")), fought("1", "tie", ("A", "A")), fought("2", "model_b", ("B", "A"))]
    found = {(m.name, m.group): m for m in metrics(judged(TALKS, {}, battles))}
    assert found["win_rate", ""].value == pytest.approx((0.75 + 0) / 2) and found["win_rate", ""].chance == 0.5
    section = battle_section(battles, ("x", "y"))
    assert section.rows[-1] == ("all", 1, 1, 1, 0.5)
    assert section.facts["contradictions"] == 1 and section.facts["first_place_share"] == pytest.approx(4 / 6)


def test_the_table_of_ratings() -> None:
    section = rating_section(TALKS, RATINGS)
    assert section.columns == ("category", "turn 1", "turn 2", "mean", "ratings")
    assert section.rows[0] == ("math", 5.5, 6.0, 5.0, 3) and section.rows[-1][-1] == 5
    assert "4.83 of 10, from 5 rated answers" in section.sentence
    assert section.plots[0].series["turn 1"] == [5.5, 5.0]
