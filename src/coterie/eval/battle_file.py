"""Battles as lines of JSON, in the arena's form: who met whom, and who won.

    {"model_a": "demo", "model_b": "other", "winner": "model_a"}      also "model_b", "tie", "tie (bothbad)"

Any other key is let through. `question_id` says which battles are about the same question, so that uncertainty can
count the question once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.errors import DataError
from coterie.eval.rows import read_rows, text_of

__all__ = ["SCORES", "Battle", "battle_of", "read_battles"]

SCORES = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Battle:
    """One meeting. `score` is what `a` got: 1 a win, 0.5 a tie, 0 a loss; `question` is "" where it is not told."""

    a: str
    b: str
    score: float
    question: str = ""


def read_battles(paths: Iterable[Path]) -> list[Battle]:
    """The battles of one file or several (.jsonl, .jsonl.gz), in their order.

    Raises `DataError` with the file, the line and the field where something is missing or not one of the winners.
    """
    reads = [read_rows(path) for path in paths]
    return [battle_of(row, read.where(n)) for read in reads for n, row in enumerate(read.rows)]


def battle_of(row: Mapping[str, Any], where: str) -> Battle:
    """One line, checked; `where` names it in messages."""
    a, b = (_name(row, field, where) for field in ("model_a", "model_b"))
    if a == b:
        raise DataError(f"{where}: model_a and model_b are both {a!r}, expected two models")
    winner = text_of(row, "winner", where)
    if winner not in SCORES:
        raise DataError(f"{where}: winner is {_show(winner)}, expected one of {', '.join(map(repr, SCORES))}")
    question = row.get("question_id")
    return Battle(a, b, SCORES[winner], "" if question is None else str(question))


def _name(row: Mapping[str, Any], field: str, where: str) -> str:
    name = text_of(row, field, where)
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise DataError(f"{where}: {field} is {_show(name)}, expected the name of a model")
    return name


def _show(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
