"""A task from a .jsonl file of one's own; its form is read off the fields of its rows.

    {"question", "choices", "answer"}    multiple choice: `answer` is the place of the right one, from 0
    {"question", "answer" or "answers"}  a short answer, compared without case, articles and punctuation
    {"text"}                             bits per byte of each text

`context` may stand before a question, `group` (or `subject`, `lang`, `task`, `category`) makes groups of rows.
"""

import math
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coterie.errors import DataError
from coterie.eval.choice import Choice
from coterie.eval.rows import text_of, texts_of
from coterie.eval.task import Context, Generate, Item, Judged, Metric, Rolled, Rolling, Row, Task

__all__ = ["FileChoice", "FileQuestion", "FileText", "task_of_file"]

_GROUPS = ("group", "subject", "lang", "task", "category")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def task_of_file(path: Path, context: Context) -> Task:
    """The task whose fields the first row has; a `DataError` names what was expected."""
    row = context.files.open(path).rows[0]
    kind: type[FileChoice | FileQuestion | FileText] | None = None
    if "choices" in row:
        kind = FileChoice
    elif "question" in row:
        kind = FileQuestion
    elif "text" in row:
        kind = FileText
    if kind is None:
        raise DataError(
            f"{context.files.open(path).where(0)} has {', '.join(map(repr, list(row)[:12])) or 'no fields'}: expected "
            "question, choices and answer; or question and answer; or text"
        )
    task = kind(context)
    task.name = path.name.removesuffix(".gz").removesuffix(".jsonl").encode(errors="replace").decode()
    task.file = str(path)
    return task


def _group(row: Row) -> str:
    return next((str(row[name]) for name in _GROUPS if isinstance(row.get(name), str)), "")


def _check_context(row: Row, where: str) -> None:
    if row.get("context") is not None:
        text_of(row, "context", where, may_be_empty=True)


def _context(row: Row) -> str:
    return f"{row['context']}\n" if row.get("context") else ""


class FileChoice(Choice):
    name = file = ""
    norm = True
    protocol = "form Question: ... Answer:, likelihood of each choice; acc_norm is per character"

    def prompt(self, row: Row) -> str:
        return f"{_context(row)}Question: {row['question']}\nAnswer:"

    def check(self, row: Row, where: str) -> None:
        super().check(row, where)
        _check_context(row, where)

    def group(self, row: Row) -> str:
        return _group(row)


class FileQuestion(Task):
    name = file = ""
    metric = "exact_match"
    takes_shots = False
    protocol = "0 shots, form Question: ... Answer:, greedy to the end of the line; without case, articles, punctuation"

    def check(self, row: Row, where: str) -> None:
        text_of(row, "question", where)
        _check_context(row, where)
        if "answers" in row:
            texts_of(row, "answers", where)
        else:
            text_of(row, "answer", where)

    def items(self, rows: Sequence[Row], *, shots: int | None, seed: int) -> list[Item]:
        return [
            Item(
                str(row.get("id", number)),
                (Generate(f"{_context(row)}Question: {row['question']}\nAnswer:", stop=("\n",), max_tokens=64),),
                row,
                _group(row),
            )
            for number, row in enumerate(rows)
        ]

    def judge(self, item: Item, answers: list[Any]) -> dict[str, float]:
        right = item.row["answers"] if "answers" in item.row else [item.row["answer"]]
        return {"exact_match": float(_plain(answers[0][0]) in {_plain(text) for text in right})}


class FileText(Task):
    name = file = ""
    metric = "bits_per_byte"
    takes_shots = False
    protocol = "every token scored once, in windows of the whole context"

    def check(self, row: Row, where: str) -> None:
        text_of(row, "text", where)

    def items(self, rows: Sequence[Row], *, shots: int | None, seed: int) -> list[Item]:
        return [
            Item(str(row.get("id", number)), (Rolling(row["text"]),), row, _group(row))
            for number, row in enumerate(rows)
        ]

    def judge(self, item: Item, answers: list[Any]) -> dict[str, float]:
        rolled: Rolled = answers[0]
        return {"nats": rolled.nats, "tokens": rolled.n_tokens, "bytes": rolled.n_bytes}

    def metrics(self, judged: list[Judged]) -> list[Metric]:
        """Nats and bytes are summed, not averaged over texts; the standard error is that of a ratio of sums."""
        groups: dict[str, list[dict[str, float]]] = {"": [numbers for _, numbers in judged]}
        for item, numbers in judged:
            if item.group:
                groups.setdefault(item.group, []).append(numbers)
        return [metric for group, numbers in groups.items() for metric in _ratios(numbers, group)]


def _ratios(numbers: list[dict[str, float]], group: str) -> list[Metric]:
    nats, tokens, n_bytes = (math.fsum(one[name] for one in numbers) for name in ("nats", "tokens", "bytes"))
    bits = nats / math.log(2) / n_bytes
    n = len(numbers)
    stderr = None
    if n > 1:
        spread = math.fsum((one["nats"] / math.log(2) - bits * one["bytes"]) ** 2 for one in numbers)
        stderr = math.sqrt(spread * n / (n - 1)) / n_bytes
    perplexity = math.exp(min(nats / tokens, 700.0))
    return [
        Metric("bits_per_byte", bits, stderr, n, None, group),
        Metric("perplexity", perplexity, None, n, None, group),
    ]


def _plain(text: str) -> str:
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", kept).split())
