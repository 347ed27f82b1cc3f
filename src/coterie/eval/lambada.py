"""LAMBADA (Paperno et al. 2016): the last word of a passage, by likelihood. The form is lm-eval's.

`acc`: is every token of the word the most likely one? `perplexity`: of the word, over words, not tokens.
"""

import math
from collections.abc import Sequence

from coterie.engine.score import Score
from coterie.eval.rows import text_of
from coterie.eval.task import Choose, Item, Judged, Metric, Row, Task, mean_metrics

__all__ = ["Lambada"]


class Lambada(Task):
    name = file = "lambada"
    metric = "acc"
    takes_shots = False
    protocol = "0 shots; likelihood of the last word after the passage; perplexity is per word"

    def check(self, row: Row, where: str) -> None:
        text_of(row, "context", where)
        text_of(row, "answer", where)

    def items(self, rows: Sequence[Row], *, shots: int | None, seed: int) -> list[Item]:
        return [
            Item(str(row.get("id", number)), (Choose(row["context"], (f" {row['answer']}",)),), row)
            for number, row in enumerate(rows)
        ]

    def judge(self, item: Item, answers: list[list[Score]]) -> dict[str, float]:
        (score,) = answers[0]
        return {"acc": float(score.is_greedy), "logprob": score.logprob}

    def metrics(self, judged: list[Judged]) -> list[Metric]:
        """The error of the perplexity follows from that of the mean log-probability."""
        found = []
        for m in mean_metrics(judged, self.metric):
            if m.name == "logprob":
                perplexity = math.exp(min(-m.value, 700.0))
                stderr = None if m.stderr is None else perplexity * m.stderr
                m = Metric("perplexity", perplexity, stderr, m.n)
            found.append(m)
        return found
