from coterie.eval.battle_file import Battle
from coterie.eval.ratings import rate
from coterie.eval.ratings_section import ratings_section


def test_the_table_the_sentence_and_the_plot() -> None:
    battles = [Battle("x", "y", s) for s in [1.0] * 60 + [0.5] * 10 + [0.0] * 10] + [Battle("y", "z", 0.5)] * 20
    section = ratings_section(rate(battles, rounds=50, orders=5))
    assert [row[1] for row in section.rows] == ["x", "y", "z"] and section.rows[0][0] == 1
    assert section.rows[0][-2:] == (80, 0.812) and "x is rated highest of 3" in section.sentence
    assert "100 battles, of which 30 are ties" in section.sentence
    assert section.plots[0].x == ["x", "y", "z"] and section.facts["n_battles"] == 100


def test_a_doubtful_lead_is_said() -> None:
    section = ratings_section(
        rate([Battle("x", "y", 1.0), Battle("y", "x", 1.0)] * 5 + [Battle("x", "y", 1.0)], rounds=50)
    )
    assert "y may be as good" in section.sentence
