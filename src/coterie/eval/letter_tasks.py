"""Multiple choice by letter: the choices stand in the prompt, and the letters are compared. Forms are lm-eval's."""

import math
from collections.abc import Sequence
from dataclasses import replace

from coterie.errors import DataError
from coterie.eval.choice import Choice
from coterie.eval.rows import text_of
from coterie.eval.task import Item, Judged, Metric, Row

__all__ = ["CommonsenseQA", "Mmlu"]


class _Letters(Choice):
    def listed(self, row: Row) -> str:
        lines = [f"{chr(ord('A') + place)}. {choice}" for place, choice in enumerate(row["choices"])]
        return "\n".join([row["question"].strip(), *lines, "Answer:"])

    def choices(self, row: Row) -> list[str]:
        return [chr(ord("A") + place) for place in range(len(row["choices"]))]


class CommonsenseQA(_Letters):
    """Everyday knowledge (Talmor et al. 2019)."""

    name = file = "commonsenseqa"
    n_choices = (5,)
    protocol = "choices A to E listed, likelihood of each letter after Answer:"

    def prompt(self, row: Row) -> str:
        return f"Question: {self.listed(row)}"


class Mmlu(_Letters):
    """57 subjects (Hendrycks et al. 2021): rows whose split is `dev` are the shots, in order, of their subject."""

    name = file = "mmlu"
    n_choices = (4,)
    group_field = "subject"
    shots = 5
    protocol = (
        "dev rows of the subject; choices A to D listed, likelihood of each letter after Answer:; mean over questions"
    )

    def prompt(self, row: Row) -> str:
        return self.listed(row)

    def check(self, row: Row, where: str) -> None:
        super().check(row, where)
        if "split" in row:
            text_of(row, "split", where)

    def items(self, rows: Sequence[Row], *, shots: int | None, seed: int) -> list[Item]:
        n = self.shots if shots is None else shots
        dev: dict[str, list[Row]] = {}
        for row in rows:
            if row.get("split") == "dev":
                dev.setdefault(row["subject"], []).append(row)
        found = []
        for number, row in enumerate(rows):
            subject = row["subject"]
            if row.get("split") == "dev":
                continue
            if n > len(dev.get(subject, ())):
                raise DataError(
                    f"{self.file} has {len(dev.get(subject, ()))} rows of {subject} whose split is dev, but {n} shots "
                    "are asked for: ask for fewer with --shots"
                )
            before = self._header(subject) + "".join(map(self.shot, dev.get(subject, [])[:n]))
            found.append(Item(str(row.get("id", number)), self.asks(row, before), row, subject))
        return found

    def metrics(self, judged: list[Judged]) -> list[Metric]:
        """The error over all is pooled from the subjects', as lm-eval pools that of a group."""
        found = super().metrics(judged)
        parts = [m for m in found if m.group and m.stderr is not None]
        n, freedom = sum(m.n for m in parts), sum(m.n - 1 for m in parts)
        if not freedom or len(parts) != sum(1 for m in found if m.group):
            return found
        variance = math.fsum((m.n - 1) * m.n * (m.stderr or 0.0) ** 2 for m in parts) / freedom
        return [replace(m, stderr=math.sqrt(variance / n)) if not m.group else m for m in found]

    def _header(self, subject: str) -> str:
        return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
