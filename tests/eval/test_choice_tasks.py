"""Forms of the benchmarks, word for word, and how their answers are judged, from scores made by hand."""

from collections.abc import Sequence
from typing import Any

import pytest

from coterie.engine.score import Score
from coterie.errors import DataError
from coterie.eval.choice import best, picked
from coterie.eval.choice_tasks import (
    AgiEval,
    ArcChallenge,
    ArcEasy,
    BasicSkills,
    BoolQ,
    Copa,
    Exams,
    HellaSwag,
    OpenBookQA,
    Piqa,
    WinoGrande,
    XcopaIt,
)
from coterie.eval.rows import Files
from coterie.eval.task import Choose, Context, Item, Task

ROW: dict[str, Any] = {"id": "x", "question": "Why  so?", "choices": ["Yes  it is", "No"], "answer": 1}


def scores(*logprobs: float) -> list[Score]:
    return [Score(lp, False, 1, 1) for lp in logprobs]


def asked(task: Task, row: dict[str, Any], shots: int | None = None) -> tuple[Any, ...]:
    task.check(row, "f, line 1")
    (item,) = task.items([row], shots=shots, seed=0)
    return item.asks


@pytest.mark.parametrize(
    ("task", "row", "context", "continuations"),
    [
        (HellaSwag(), ROW, "Why so?", [" Yes it is", " No"]),
        (Piqa(), ROW, "Question: Why  so?\nAnswer:", [" Yes  it is", " No"]),
        (ArcEasy(), ROW, "Question: Why  so?\nAnswer:", [" Yes  it is", " No"]),
        (ArcChallenge(), ROW, "Question: Why  so?\nAnswer:", [" Yes  it is", " No"]),
        (OpenBookQA(), ROW, "Why  so?", [" Yes  it is", " No"]),
        (BasicSkills(), ROW | {"task": "logic"}, "Why  so?", [" Yes  it is", " No"]),
        (
            BoolQ(),
            ROW | {"context": "P.", "question": "is it", "choices": ["no", "yes"]},
            "P.\nQuestion: is it?\nAnswer:",
            [" no", " yes"],
        ),
        (
            Copa(),
            ROW | {"context": "It rained. ", "question": "cause", "choices": ["The sky was grey.", "Ed ran."]},
            "It rained because",
            ["  the sky was grey.", "  ed ran."],
        ),
        (
            XcopaIt(),
            ROW | {"context": "Piove.", "question": "effect", "choices": ["Mi bagno.", "Rido."]},
            "Piove quindi",
            [" mi bagno.", " rido."],
        ),
        (
            AgiEval(),
            ROW | {"context": None, "task": "aqua-rat", "choices": ["1", "2", "3"]},
            "Q: Why  so? Answer Choices: (A)1 (B)2 (C)3\nA: Among A through C, the answer is",
            [" (A)1", " (B)2", " (C)3"],
        ),
        (Exams(), ROW | {"lang": "it"}, "Domanda: Why  so?\nRisposta:", [" Yes  it is", " No"]),
        (Exams(), ROW | {"lang": "pl"}, "Question: Why  so?\nAnswer:", [" Yes  it is", " No"]),
    ],
)
def test_forms(task: Task, row: dict[str, Any], context: str, continuations: list[str]) -> None:
    assert asked(task, row) == (Choose(context, tuple(continuations)),)


def test_winogrande_asks_for_the_rest_after_each_name() -> None:
    row = {"question": "Ann met Eva because _ called her .", "choices": ["Ann", "Eva"], "answer": 0}
    task = WinoGrande()
    assert asked(task, row) == (
        Choose("Ann met Eva because Ann", (" called her .",)),
        Choose("Ann met Eva because Eva", (" called her .",)),
    )
    (item,) = task.items([row], shots=None, seed=0)
    assert task.judge(item, [scores(-2.0), scores(-3.0)]) == {"acc": 1.0}
    assert task.judge(item, [scores(-2.0), scores(-1.0)]) == {"acc": 0.0}


def test_acc_norm_is_per_character_and_the_first_of_equals_wins() -> None:
    assert best([1.0, 3.0, 3.0]) == 1
    # -10 for 10 characters is -1 each, -6 for 2 characters is -3 each
    assert picked([-10.0, -6.0], ["ten chars.", "no"], 0, True) == {"acc": 0.0, "acc_norm": 1.0}
    assert picked([-1.0, -1.0], ["a", "b"], 1, False) == {"acc": 0.0}


def test_shots_are_other_rows_and_the_same_before_every_question() -> None:
    rows = [{"question": f"q{n}", "choices": ["a", "b"], "answer": n % 2} for n in range(6)]
    items = Piqa().items(rows, shots=2, seed=3)
    contexts = [ask.context for item in items for ask in item.asks if isinstance(ask, Choose)]
    begin = [context[: context.rindex("Question:")] for context in contexts]
    assert len(set(begin)) <= 3 and all(text.count("Answer:") == 2 for text in begin)
    for row, text in zip(rows, begin, strict=True):
        assert f"{row['question']}\n" not in text
    number = next(n for n in range(6) if f"q{n}\n" in begin[0])
    assert f"Question: q{number}\nAnswer: {'ab'[number % 2]}\n\n" in begin[0]
    assert contexts != [a.context for i in Piqa().items(rows, shots=2, seed=4) for a in i.asks if isinstance(a, Choose)]


def test_a_protocol_says_its_shots() -> None:
    assert Piqa().protocol.startswith("0 shots; form Question")
    assert Piqa(Context(Files(None), shots=3)).protocol.startswith("3 shots; form")


def test_chance_is_the_mean_of_one_over_the_choices_in_both_metrics() -> None:
    task = ArcEasy()
    rows = [ROW, ROW | {"choices": ["a", "b", "c", "d"]}]
    items: Sequence[Item] = task.items(rows, shots=None, seed=0)
    judged = [
        (items[0], task.judge(items[0], [scores(-1, -2)])),
        (items[1], task.judge(items[1], [scores(-9, -1, -9, -9)])),
    ]
    metrics = {m.name: m for m in task.metrics(judged)}
    assert metrics["acc"].value == 0.5 and metrics["acc"].stderr == 0.5
    assert metrics["acc"].chance == metrics["acc_norm"].chance == 0.375


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (Piqa(), {"choices": ["a", "b"], "answer": 0}, "f, line 7: there is no field 'question'"),
        (Piqa(), ROW | {"answer": 2}, "answer is 2, expected a whole number from 0 to 1"),
        (Piqa(), ROW | {"choices": ["a", "b", "c"]}, "choices has 3 texts, expected 2"),
        (BoolQ(), ROW, "there is no field 'context'"),
        (WinoGrande(), ROW, "no gap"),
        (WinoGrande(), ROW | {"question": "ends with _"}, "no gap"),
        (Copa(), ROW | {"context": "c"}, "expected 'cause' or 'effect'"),
        (Exams(), ROW, "there is no field 'lang'"),
        (AgiEval(), ROW | {"task": "t", "context": 3}, "context is 3"),
    ],
)
def test_a_broken_row_is_named(task: Task, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task.check(row, "f, line 7")
