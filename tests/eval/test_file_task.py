import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.api import LanguageModel
from coterie.errors import DataError
from coterie.eval.file_task import FileChoice, FileQuestion, FileText, task_of_file
from coterie.eval.rows import Files
from coterie.eval.run import evaluate
from coterie.eval.task import Choose, Context, Generate, Rolled, Task
from coterie.model import Transformer


def task_of(path: Path, *rows: dict[str, Any], shots: int | None = None) -> Task:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return task_of_file(path, Context(Files(None), shots=shots))


def test_choices(tmp_path: Path) -> None:
    row = {"question": "q", "choices": ["a", "b"], "answer": 1, "context": "Before.", "subject": "s"}
    task = task_of(tmp_path / "mine.jsonl", row)
    assert isinstance(task, FileChoice) and task.name == "mine"
    task.check(row, "f")
    (item,) = task.items([row], shots=None, seed=0)
    assert item.group == "s" and item.asks == (Choose("Before.\nQuestion: q\nAnswer:", (" a", " b")),)
    with pytest.raises(DataError, match="f: answer is 5"):
        task.check(row | {"answer": 5}, "f")


@pytest.mark.parametrize(
    ("answer", "right"), [(" The Nile.", 1.0), ("nile", 1.0), ("the Rhine", 0.0), ("Nile river", 0.0), ("", 0.0)]
)
def test_short_answers_are_compared_without_case_articles_punctuation(
    tmp_path: Path, answer: str, right: float
) -> None:
    row = {"question": "Which river", "answers": ["the Nile", "a Nile!"]}
    task = task_of(tmp_path / "mine.jsonl.x.jsonl", row)
    assert isinstance(task, FileQuestion)
    task.check(row, "f")
    (item,) = task.items([row], shots=None, seed=0)
    assert item.asks == (Generate("Question: Which river\nAnswer:", stop=("\n",), max_tokens=64),)
    assert task.judge(item, [[answer]]) == {"exact_match": right}
    with pytest.raises(DataError, match="there is no field 'answer'"):
        task.check({"question": "q"}, "f")
    with pytest.raises(DataError, match=r"f: context is \['a'\], expected text"):
        task.check(row | {"context": ["a"]}, "f")


def test_texts_are_sums_not_means(tmp_path: Path) -> None:
    rows = [{"text": "abcd", "lang": "en"}, {"text": "ab", "lang": "fr"}]
    task = task_of(tmp_path / "mine.jsonl", *rows)
    assert isinstance(task, FileText)
    items = task.items(rows, shots=None, seed=0)
    answers = [Rolled(4 * math.log(2), 2, 4), Rolled(8 * math.log(2), 2, 2)]
    metrics = task.metrics([(i, task.judge(i, [a])) for i, a in zip(items, answers, strict=True)])
    values = {(m.name, m.group): m.value for m in metrics}
    assert values["bits_per_byte", ""] == pytest.approx(2.0) and values["bits_per_byte", "fr"] == pytest.approx(4.0)
    assert values["perplexity", ""] == pytest.approx(2.0**3)
    # residuals 4 - 2 · 4 and 8 - 2 · 2: squares 32, times 2 / 1, over 6 bytes
    assert metrics[0].stderr == pytest.approx(math.sqrt(64) / 6)


def test_a_file_of_texts_is_measured(
    make_model: Callable[..., Transformer], byte_tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "abc"}\n{"text": "de"}\n')
    lm = LanguageModel(make_model(), byte_tokenizer)
    (task,) = evaluate(lm, [str(path)]).tasks
    logps = [lm.logits([1, *(3 + b for b in t[:-1])]).log_softmax(-1) for t in (b"abc", b"de")]
    nats = -sum(float(p[n, 3 + b]) for p, t in zip(logps, (b"abc", b"de"), strict=True) for n, b in enumerate(t))
    assert task.headline is not None and task.headline.value == pytest.approx(nats / math.log(2) / 5, rel=1e-5)
