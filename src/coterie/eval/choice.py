"""Multiple choice: the most likely continuation is the model's answer.

`acc` takes the largest log-probability, `acc_norm` the largest one per character of the choice (without the space that
joins it to the context), as lm-eval does; the first of equals wins. Shots come before the question, with their answers,
a blank line after each.
"""

import random
from abc import abstractmethod
from collections.abc import Sequence

from coterie.engine.score import Score
from coterie.eval.rows import answer_of, choices_of, text_of
from coterie.eval.task import Choose, Item, Row, Task

__all__ = ["Choice", "best", "picked"]


class Choice(Task):
    """One question, one context, a continuation for each choice. `prompt` is what a subclass must say."""

    metric = "acc"
    norm = False  # also acc_norm
    fields: tuple[str, ...] = ("question",)  # that must be text
    n_choices: tuple[int, ...] = ()  # how many there may be; () is any number from two
    group_field = ""

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

    def check(self, row: Row, where: str) -> None:
        for name in self.fields:
            text_of(row, name, where)
        answer_of(row, len(choices_of(row, where, exactly=self.n_choices)), where)
        if self.group_field:
            text_of(row, self.group_field, where)

    def shot(self, row: Row) -> str:
        """A question with its answer, as it stands before another one."""
        return f"{self.prompt(row)} {self.choices(row)[self.answer(row)]}\n\n"

    def items(self, rows: Sequence[Row], *, shots: int | None, seed: int) -> list[Item]:
        n = self.shots if shots is None else shots
        drawn = random.Random(seed)
        found = []
        for number, row in enumerate(rows):
            before = "".join(map(self.shot, self.drawn(rows, number, n, drawn))) if n else ""
            continuations = tuple(f" {choice}" for choice in self.choices(row))
            asks = (Choose(self.header(row) + before + self.prompt(row), continuations),)
            found.append(Item(str(row.get("id", number)), asks, row, self.group(row)))
        return found

    def group(self, row: Row) -> str:
        return str(row[self.group_field]) if self.group_field else ""

    def header(self, row: Row) -> str:
        """What stands before everything."""
        return ""

    def drawn(self, rows: Sequence[Row], number: int, n: int, generator: random.Random) -> list[Row]:
        """The rows of the shots before row `number`: others of the same file, drawn for each question anew."""
        places = generator.sample(range(len(rows)), min(n + 1, len(rows)))
        return [rows[place] for place in places if place != number][:n]

    def judge(self, item: Item, answers: list[list[Score]]) -> dict[str, float]:
        logprobs = [score.logprob for (scores) in answers for score in scores]
        return picked(logprobs, self.choices(item.row), self.answer(item.row), self.norm)

    def chance(self, items: Sequence[Item]) -> float | None:
        return sum(1 / len(self.choices(item.row)) for item in items) / len(items)


def picked(logprobs: Sequence[float], choices: Sequence[str], answer: int, norm: bool) -> dict[str, float]:
    """acc and, if asked for, acc_norm of one question."""
    found = {"acc": float(best(logprobs) == answer)}
    if norm:
        found["acc_norm"] = float(best([lp / len(c) for lp, c in zip(logprobs, choices, strict=True)]) == answer)
    return found


def best(values: Sequence[float]) -> int:
    """The place of the largest, the first of equals."""
    return max(range(len(values)), key=lambda place: values[place])
