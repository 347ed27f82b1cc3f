"""BOLD: how kindly a model goes on about people of different groups (Dhamala et al. 2021).

A text's sentiment is that of prompt and continuation together, as in the Llama 2 paper. By domain (gender, religion,
...): the mean over its groups of their mean, and `spread`, the standard deviation between groups, which is what a fair
model has little of. The scorer can be replaced; figures of different scorers do not compare.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace

from coterie.analysis.section import Plot, Section
from coterie.eval.rows import text_of
from coterie.eval.sentiment import by_command, by_words
from coterie.eval.settings import whole
from coterie.eval.task import Context, Item, Judged, Metric, Row, mean_metrics
from coterie.eval.written import Written

__all__ = ["Bold"]


class Bold(Written):
    """`--set scorer=COMMAND`: JSON lines with `text` in, a number from -1 to 1 a line out."""

    name = file = "bold"
    metric = "sentiment"
    fields = ("domain", "category")
    group_field = "domain"
    takes_shots = False
    stop = ("\n",)
    max_tokens = 50
    settings = (*Written.settings, "scorer")

    def __init__(self, context: Context | None = None):
        self._command: str = "" if context is None else context.settings.get("scorer", "")
        scorer = f"the command {self._command!r}" if self._command else "a small list of English words of our own"
        most = whole({} if context is None else context.settings, "max_tokens", self.max_tokens, least=1, most=1 << 20)
        how = f"at most {most} tokens on one line; sentiment from -1 to 1 of prompt and continuation"
        self.protocol = f"{how}, by {scorer}"
        super().__init__(context)
        self._texts: dict[int, list[str]] = {}

    def check(self, row: Row, where: str) -> None:
        super().check(row, where)
        text_of(row, "prompt", where, may_be_empty=True)

    def items(self, rows: Sequence[Row], *, shots: int | None, seed: int) -> list[Item]:
        """The published file has a few prompts that are empty: they ask nothing."""
        return super().items([row for row in rows if row["prompt"].strip()], shots=shots, seed=seed)

    def prompt(self, row: Row) -> str:
        return str(row["prompt"]).rstrip()

    def target(self, row: Row) -> str:
        return ""

    def score(self, text: str, row: Row) -> dict[str, float]:
        return {"sentiment": by_words(text)}

    def identity(self, row: Row, number: int) -> str:
        return f"{row['category']}/{number}"

    def judge(self, item: Item, answers: list[list[str]]) -> dict[str, float]:
        """Texts are kept, so that a command is started once."""
        texts = [f"{self.prompt(item.row)} {text.strip()}" for text in answers[0]]
        self._texts[id(item)] = texts
        return {} if self._command else {"sentiment": statistics.fmean(by_words(text) for text in texts)}

    def metrics(self, judged: list[Judged]) -> list[Metric]:
        self._score_by_command(judged)
        found = mean_metrics(judged, self.metric)
        domains: dict[str, dict[str, list[float]]] = {}
        for item, numbers in judged:
            of_domain = domains.setdefault(item.group, {})
            of_domain.setdefault(item.row["category"], []).append(numbers["sentiment"])
        for domain, groups in domains.items():
            means = [statistics.fmean(values) for values in groups.values()]
            place = next(i for i, metric in enumerate(found) if metric.group == domain)
            found[place] = replace(found[place], value=statistics.fmean(means))
            if len(means) > 1:
                found.insert(place + 1, Metric("spread", statistics.stdev(means), None, len(means), None, domain))
        return found

    def _score_by_command(self, judged: list[Judged]) -> None:
        if not self._command:
            return
        counts = [len(self._texts[id(item)]) for item, _ in judged]
        values = iter(by_command(self._command, [text for item, _ in judged for text in self._texts[id(item)]]))
        for (_, numbers), n in zip(judged, counts, strict=True):
            numbers["sentiment"] = statistics.fmean(next(values) for _ in range(n))

    def sections(self, judged: list[Judged]) -> list[Section]:
        groups: dict[tuple[str, str], list[float]] = {}
        for item, numbers in judged:
            groups.setdefault((item.group, item.row["category"]), []).append(numbers["sentiment"])
        rows = sorted((d, c.replace("_", " "), statistics.fmean(v), len(v)) for (d, c), v in groups.items())
        low, high = min(rows, key=lambda row: row[2]), max(rows, key=lambda row: row[2])
        sentence = f"Least kind is what it writes of {low[1]} ({low[2]:+.3f}), kindest of {high[1]} ({high[2]:+.3f})."
        plot = Plot(
            "bars", "Sentiment by group", "group", "sentiment", [row[1] for row in rows], {"mean": [r[2] for r in rows]}
        )
        columns = ("domain", "group", "sentiment", "prompts")
        return [Section("bold-groups", "Sentiment by group", sentence, columns, tuple(rows), (plot,), self.protocol)]
