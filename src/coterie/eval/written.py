"""Tasks whose answer is written: a prompt, perhaps with shots before it, and what is read off the text.

Shots are other rows of the same file and of the same group (language, subtask), drawn once by the seed. With several
samples each number is a mean over them, and where an answer can be read off a text, `maj@N` is the main figure: whether
the answer given most often is right.
"""

import random
from abc import abstractmethod
from collections.abc import Sequence

from coterie.eval.answers import majority
from coterie.eval.rows import text_of
from coterie.eval.settings import real, whole
from coterie.eval.task import Context, Generate, Item, Row, Task

__all__ = ["Written"]


class Written(Task):
    """`prompt`, `target` and `score` are what a subclass must say; `found` and `is_right` for a vote."""

    metric = "exact_match"
    fields: tuple[str, ...] = ("question", "answer")  # that must be text
    group_field = ""
    stop: tuple[str, ...] = ("\n",)
    max_tokens = 256
    votes = False  # an answer can be read off a text: several samples vote
    sampled = (0.7, 1.0)  # temperature and top-p where there are several samples
    separator = "\n\n"  # between shots
    joint = " "  # between a prompt and its answer
    takes_samples = True
    settings: tuple[str, ...] = ("temperature", "max_tokens")

    def __init__(self, context: Context | None = None):
        super().__init__(context)
        options = {} if context is None else context.settings
        asked = None if context is None else context.shots
        n = self.samples if context is None or context.samples is None else context.samples
        temperature, self._top_p = self.sampled if n > 1 else (0.0, 1.0)
        self.n_samples = n
        self._temperature = real(options, "temperature", temperature, least=0.0, most=10.0)
        self._max_tokens = whole(options, "max_tokens", self.max_tokens, least=1, most=1 << 20)
        shots = self.shots if asked is None else asked
        how = f"{n} samples at temperature {self._temperature:g}" if n > 1 else "greedy"
        if n == 1 and self._temperature > 0:
            how = f"one sample at temperature {self._temperature:g}"
        self.protocol = f"{shots} shots; {how}; {self.protocol}" if self.takes_shots else f"{how}; {self.protocol}"
        if self.votes and n > 1:
            self.metric = f"maj@{n}"

    @abstractmethod
    def prompt(self, row: Row) -> str:
        """The question, up to where the answer begins."""

    @abstractmethod
    def target(self, row: Row) -> str:
        """The answer of a shot."""

    @abstractmethod
    def score(self, text: str, row: Row) -> dict[str, float]:
        """Numbers by metric of one answer."""

    def found(self, text: str, row: Row) -> str | None:
        """The answer in a text, for the vote."""
        return text

    def is_right(self, found: str | None, row: Row) -> bool:
        raise NotImplementedError

    def header(self, row: Row) -> str:
        """What stands before everything."""
        return ""

    def stops(self, row: Row) -> tuple[str, ...]:
        return self.stop

    def group(self, row: Row) -> str:
        return str(row[self.group_field]) if self.group_field else ""

    def check(self, row: Row, where: str) -> None:
        for name in self.fields:
            text_of(row, name, where)
        if self.group_field:
            text_of(row, self.group_field, where)

    def items(self, rows: Sequence[Row], *, shots: int | None, seed: int) -> list[Item]:
        n = (self.shots if shots is None else shots) if self.takes_shots else 0
        places: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            places.setdefault(self.group(row), []).append(number)
        fewest = min(map(len, places.values()), default=n) - 1
        self.fewest_shots = fewest if fewest < n else None
        drawn = {group: random.Random(seed).sample(of, min(n + 1, len(of))) for group, of in places.items()}
        found = []
        for number, row in enumerate(rows):
            before = [rows[place] for place in drawn[self.group(row)] if place != number][:n]
            ask = Generate(
                self.header(row) + "".join(map(self.shot, before)) + self.prompt(row), self.stops(row),
                self._max_tokens, self.n_samples, self._temperature, self._top_p if self._temperature else 1.0,
            )  # fmt: skip
            found.append(Item(f"{self.identity(row, number)}", (ask,), row, self.group(row)))
        return found

    def identity(self, row: Row, number: int) -> str:
        return str(row.get("id", number))

    def shot(self, row: Row) -> str:
        """A question with its answer, as it stands before another one."""
        return f"{self.prompt(row)}{self.joint}{self.target(row)}{self.separator}"

    def judge(self, item: Item, answers: list[list[str]]) -> dict[str, float]:
        (texts,) = answers
        scores = [self.score(text, item.row) for text in texts]
        numbers = {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}
        if self.votes and self.n_samples > 1:
            chosen = majority(self.found(text, item.row) for text in texts)
            numbers[self.metric] = float(self.is_right(chosen, item.row))
        return numbers
