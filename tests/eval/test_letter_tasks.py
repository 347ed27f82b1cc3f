import math
from typing import Any

import pytest

from coterie.engine.score import Score
from coterie.errors import DataError
from coterie.eval.letter_tasks import CommonsenseQA, Mmlu
from coterie.eval.task import Choose, Item


def row(subject: str, split: str, number: int, answer: int = 0) -> dict[str, Any]:
    return {
        "id": f"{subject}-{split}-{number}", "subject": subject, "split": split, "question": f" q{number} ",
        "choices": ["w", "x", "y", "z"], "answer": answer,
    }  # fmt: skip


def context_of(item: Item) -> str:
    (ask,) = item.asks
    assert isinstance(ask, Choose)
    return ask.context


def test_mmlu_has_the_dev_rows_of_its_subject_before_it_in_order() -> None:
    rows = [row("high_school_law", "dev", 0, 2), row("art", "dev", 1), row("high_school_law", "validation", 2, 3)]
    rows += [row("high_school_law", "dev", 3, 1)]
    task = Mmlu()
    (item,) = task.items(rows, shots=2, seed=0)
    assert item.group == "high_school_law" and item.id == "high_school_law-validation-2"
    listed = "A. w\nB. x\nC. y\nD. z\nAnswer:"
    assert context_of(item) == (
        "The following are multiple choice questions (with answers) about high school law.\n\n"
        f"q0\n{listed} C\n\nq3\n{listed} B\n\nq2\n{listed}"
    )
    assert item.asks[0].continuations == (" A", " B", " C", " D")  # type: ignore[union-attr]
    assert context_of(task.items(rows, shots=1, seed=0)[0]).count("Answer:") == 2
    assert context_of(task.items(rows, shots=0, seed=0)[0]).count("Answer:") == 1


def test_more_shots_than_there_are_is_a_mistake() -> None:
    with pytest.raises(DataError, match="0 rows of art whose split is dev, but 5 shots"):
        Mmlu().items([row("art", "validation", 0)], shots=None, seed=0)


def test_mmlu_pools_the_error_of_its_subjects() -> None:
    task = Mmlu()
    rows = [row(subject, "test", n) for subject in ("art", "law") for n in range(4)]
    items = task.items(rows, shots=0, seed=0)
    right = [[1, 1, 1, 1], [1, 0, 1, 0]]
    judged = [(item, {"acc": float(v)}) for item, v in zip(items, [v for part in right for v in part], strict=True)]
    everything, art, law = task.metrics(judged)
    assert (everything.value, art.value, law.value) == (0.75, 1.0, 0.5)
    assert art.stderr == 0 and law.stderr == pytest.approx(math.sqrt(1 / 3 / 4))
    # within the subjects the variance is (0 + 3 · 1/3) / 6, of 8 questions
    assert everything.stderr == pytest.approx(math.sqrt(1 / 6 / 8))


def test_commonsenseqa_lists_its_choices() -> None:
    task = CommonsenseQA()
    question = {"question": " q ", "choices": ["a", "b", "c", "d", "e"], "answer": 4}
    task.check(question, "f")
    (item,) = task.items([question], shots=None, seed=0)
    assert context_of(item) == "Question: q\nA. a\nB. b\nC. c\nD. d\nE. e\nAnswer:"
    assert task.judge(item, [[Score(float(n), False, 1, 2) for n in range(5)]]) == {"acc": 1.0}
    with pytest.raises(DataError, match="choices has 4 texts, expected 5"):
        task.check(question | {"choices": ["a", "b", "c", "d"]}, "f")
