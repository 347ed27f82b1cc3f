"""Multiple choice: the most likely continuation is the model's answer.

`acc` takes the largest log-probability, `acc_norm` the largest one per character of the choice (without the space that
joins it to the context), as lm-eval does; the first of equals wins. Shots come before the question, with their answers
and a blank line after each: the same ones before every question, so that they are read once, and another row in place
of the one that is asked.
"""

import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from coterie.engine.score import Score
from coterie.eval.rows import answer_of, choices_of, text_of
from coterie.eval.task import Choose, Context, Item, Judged, Metric, Row, Task

__all__ = ["Choice", "best", "picked"]


class Choice(Task):
    """One question, one context, a continuation for each choice. `prompt` is what a subclass must say."""

    metric = "acc"
    norm = False  # also acc_norm
    fields: tuple[str, ...] = ("question",)  # that must be text
    n_choices: tuple[int, ...] = ()  # how many there may be; () is any number from two
    group_field = ""

    def __init__(self, context: Context | None = None):
        super().__init__(context)
        asked = None if context is None else context.shots
        self.protocol = f"{self.shots if asked is None else asked} shots; {self.protocol}"

    @abstractmethod
    def prompt(self, row: Row) -> str:
        """The context, without shots."""

    def choices(self, row: Row) -> list[str]:
        """The continuations, without the space before them."""
        choices: list[str] = row["choices"]
        return choices

    def answer(self, row: Row) -> int:
        place: int = row["answer"]
        return place

    def group(self, row: Row) -> str:
        return str(row[self.group_field]) if self.group_field else ""

    def check(self, row: Row, where: str) -> None:
        for name in self.fields:
            text_of(row, name, where)
        answer_of(row, len(choices_of(row, where, exactly=self.n_choices)), where)
        if self.group_field:
            text_of(row, self.group_field, where)

    def asks(self, row: Row, before: str) -> tuple[Choose, ...]:
        """What is asked of a row; `before` are its shots."""
        return (Choose(before + self.prompt(row), tuple(f" {choice}" for choice in self.choices(row))),)

    def shot(self, row: Row) -> str:
        """A question with its answer, as it stands before another one."""
        return f"{self.prompt(row)} {self.choices(row)[self.answer(row)]}\n\n"

    def items(self, rows: Sequence[Row], *, shots: int | None, seed: int) -> list[Item]:
        n = self.shots if shots is None else shots
        self.fewest_shots = len(rows) - 1 if n >= len(rows) else None
        drawn = random.Random(seed).sample(range(len(rows)), min(n + 1, len(rows))) if n else []
        found = []
        for number, row in enumerate(rows):
            before = "".join(self.shot(rows[place]) for place in [p for p in drawn if p != number][:n])
            found.append(Item(str(row.get("id", number)), self.asks(row, before), row, self.group(row)))
        return found

    def judge(self, item: Item, answers: list[list[Score]]) -> dict[str, float]:
        logprobs = [score.logprob for scores in answers for score in scores]
        return picked(logprobs, self.choices(item.row), self.answer(item.row), self.norm)

    def chance(self, items: Sequence[Item]) -> float | None:
        return sum(1 / len(self.choices(item.row)) for item in items) / len(items)

    def metrics(self, judged: list[Judged]) -> list[Metric]:
        """Guessing is as good in acc_norm as in acc."""
        found, chances = list[Metric](), dict[str, float | None]()
        for metric in super().metrics(judged):
            chances.setdefault(metric.group, metric.chance)
            found.append(replace(metric, chance=chances[metric.group]))
        return found


def picked(logprobs: Sequence[float], choices: Sequence[str], answer: int, norm: bool) -> dict[str, float]:
    """acc and, if asked for, acc_norm of one question."""
    found = {"acc": float(best(logprobs) == answer)}
    if norm:
        found["acc_norm"] = float(best([lp / len(c) for lp, c in zip(logprobs, choices, strict=True)]) == answer)
    return found


def best(values: Sequence[float]) -> int:
    """The place of the largest, the first of equals."""
    return max(range(len(values)), key=lambda place: values[place])
