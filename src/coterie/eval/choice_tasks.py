"""The multiple-choice benchmarks whose form is a sentence or two. Prompt forms are those of lm-eval."""

from coterie.eval.choice import Choice
from coterie.eval.task import Row

__all__ = ["HellaSwag"]


class HellaSwag(Choice):
    """Which ending follows (Zellers et al. 2019)."""

    name = file = "hellaswag"
    norm = True
    metric = "acc_norm"
    protocol = "0 shots; likelihood of each ending after the context; acc_norm is per character"

    def prompt(self, row: Row) -> str:
        text: str = row["question"]
        return text
