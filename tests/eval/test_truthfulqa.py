import math
from typing import Any

import pytest

from coterie.engine.score import Score
from coterie.errors import DataError
from coterie.eval.task import Choose
from coterie.eval.truthfulqa import TruthfulQA, TruthfulQAEs

ROW: dict[str, Any] = {
    "id": 2,
    "question": "Why?",
    "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]},
    "mc2_targets": {"choices": ["a", "c", "b"], "labels": [1, 1, 0]},
}


def scores(*logprobs: float) -> list[Score]:
    return [Score(lp, False, 1, 1) for lp in logprobs]


def test_both_languages_have_their_form() -> None:
    (item,) = TruthfulQAEs().items([ROW], shots=None, seed=0)
    assert item.asks == (Choose("Q: Why?\nA:", (" a", " b")), Choose("Q: Why?\nA:", (" a", " c", " b")))
    (item,) = TruthfulQA().items([ROW], shots=None, seed=0)
    assert isinstance(item.asks[0], Choose)
    assert item.asks[0].context.count("Q: ") == 7 and item.asks[0].context.endswith("Spain.\n\nQ: Why?\nA:")


def test_mc1_is_the_best_one_and_mc2_a_share_of_probability() -> None:
    task = TruthfulQA()
    (item,) = task.items([ROW], shots=None, seed=0)
    logprobs = [math.log(0.2), math.log(0.1), math.log(0.1)]
    assert task.judge(item, [scores(-1, -2), scores(*logprobs)]) == pytest.approx({"mc1": 1.0, "mc2": 0.75})
    assert task.judge(item, [scores(-2, -1), scores(-2000.0, -2000.0, -2000.0)])["mc2"] == pytest.approx(2 / 3)
    chances = {m.name: m.chance for m in task.metrics([(item, {"mc1": 1.0, "mc2": 0.75})])}
    assert chances == pytest.approx({"mc1": 1 / 2, "mc2": 2 / 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mc1_targets": None}, "mc1_targets is NoneType"),
        ({"mc1_targets": {"choices": ["a", "b"], "labels": [0, 1]}}, "one true answer"),
        ({"mc2_targets": {"choices": ["a", "b"], "labels": [1]}}, "0 or 1 for each of the 2 choices"),
        ({"mc2_targets": {"choices": ["a", "b"], "labels": [1, 2]}}, "0 or 1"),
        ({"question": 3}, "question is 3"),
    ],
)
def test_a_broken_row_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TruthfulQA().check(ROW | change, "f, line 1")
