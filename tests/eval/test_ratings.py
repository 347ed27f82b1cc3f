import json

import numpy as np
import pytest

from coterie.errors import DataError, RequestError
from coterie.eval.battle_file import Battle
from coterie.eval.ratings import rate

PLANTED = {"ada": 1250.0, "bo": 1100.0, "cy": 900.0, "di": 750.0}


def tournament(n: int, seed: int = 0, per_question: int = 1) -> list[Battle]:
    """`n` battles between random two of PLANTED; `per_question` copies of each under one question."""
    rng, names, battles = np.random.default_rng(seed), list(PLANTED), []
    for q in range(n):
        a, b = rng.choice(names, 2, replace=False)
        score = float(rng.random() < 1 / (1 + 10 ** ((PLANTED[b] - PLANTED[a]) / 400)))
        battles += [Battle(a, b, score, f"q{q}")] * per_question
    return battles


def test_planted_ratings_are_recovered_and_lie_in_their_intervals() -> None:
    result = rate(tournament(4000), rounds=200, orders=40)
    assert [r.model for r in result.ratings] == list(PLANTED) and [r.rank for r in result.ratings] == [1, 2, 3, 4]
    for r in result.ratings:
        assert r.low < PLANTED[r.model] < r.high and r.low < r.rating < r.high
        assert r.rating == pytest.approx(PLANTED[r.model], abs=25)
        assert r.elo_low < r.elo < r.elo_high and r.elo == pytest.approx(r.rating, abs=25)
    assert result.notes == [] and result.drawn == "battles" and sum(r.battles for r in result.ratings) == 8000


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    hits = [
        r.low <= PLANTED[r.model] <= r.high
        for s in range(25)
        for r in rate(tournament(300, s), rounds=100, orders=1).ratings
    ]
    assert 0.85 <= np.mean(hits) <= 1.0


def test_copies_of_a_battle_under_one_question_make_nothing_surer() -> None:
    once, thrice = (rate(tournament(300, per_question=k), rounds=300, orders=1) for k in (1, 3))
    assert thrice.drawn == "questions" and thrice.n_drawn == 300
    for a, b in zip(once.ratings, thrice.ratings, strict=True):
        assert b.rating == pytest.approx(a.rating, abs=1e-6) and b.high - b.low == pytest.approx(
            a.high - a.low, rel=0.35
        )


def test_an_anchor_moves_the_scale_and_has_no_interval() -> None:
    battles = tournament(500)
    free, tied = rate(battles, rounds=50, orders=3), rate(battles, rounds=50, orders=3, anchor=("cy", 1114.0))
    shift = 1114 - next(r.rating for r in free.ratings if r.model == "cy")
    for a, b in zip(free.ratings, tied.ratings, strict=True):
        assert b.rating == pytest.approx(a.rating + shift)
    cy = next(r for r in tied.ratings if r.model == "cy")
    assert cy.low == cy.high == cy.rating == cy.elo == pytest.approx(1114) and tied.anchor == {"cy": 1114.0}
    with pytest.raises(RequestError, match="'bob' fought no battle, expected one of ada, bo, cy, di"):
        rate(battles, anchor=("bob", 1000.0))


def test_ties_are_half_wins() -> None:
    ties = rate([Battle("x", "y", 0.5)] * 40, rounds=20, orders=2)
    assert [r.rating for r in ties.ratings] == pytest.approx([1000, 1000]) and ties.n_ties == 40
    mixed = rate([Battle("x", "y", s) for s in [1.0] * 2 + [0.5] * 2 + [0.0]], rounds=20, orders=2)
    assert mixed.ratings[0].rating - mixed.ratings[1].rating == pytest.approx(400 * np.log10(3 / 2))
    assert mixed.pairs[0].wins == 2 and mixed.pairs[0].ties == 2 and mixed.pairs[0].expected == pytest.approx(0.6)


def test_who_never_lost_is_rated_with_a_drawn_battle_more_and_said() -> None:
    result = rate([Battle("best", "x", 1.0)] * 9 + [Battle("x", "y", 1.0), Battle("y", "x", 1.0)] * 20, rounds=30)
    assert result.ratings[0].model == "best" and np.isfinite(result.ratings[0].high)
    assert result.ratings[0].rating - result.ratings[1].rating == pytest.approx(400 * np.log10(9.5 / 0.5), abs=30)
    assert any("best never lost" in note and "one drawn battle" in note for note in result.notes)


def test_groups_that_never_met_are_refused() -> None:
    battles = [Battle("a", "b", 1.0), Battle("b", "a", 1.0), Battle("c", "d", 1.0), Battle("d", "c", 1.0)]
    with pytest.raises(DataError, match="no chain of battles leads from a, b to c, d"):
        rate(battles)


def test_the_same_seed_gives_the_same_and_json_holds_it_all() -> None:
    one, two = (rate(tournament(80), rounds=40, orders=5, seed=7).to_json() for _ in range(2))
    assert one == two == json.loads(json.dumps(one, allow_nan=False))
    assert one != rate(tournament(80), rounds=40, orders=5, seed=8).to_json()


def test_a_as_b_is_the_same_battle() -> None:
    battles = tournament(200)
    turned = [Battle(b.b, b.a, 1 - b.score, b.question) for b in battles]
    assert rate(battles, rounds=10, orders=2) == rate(turned, rounds=10, orders=2)
