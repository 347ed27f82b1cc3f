"""What a run of MT-bench leaves in its folder, and what another run reads of it.

mt_bench.answers.jsonl     a line for each conversation     mt_bench.judgments.jsonl   a line for each verdict asked
battles.jsonl              a line for each turn that was compared with another run's
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from coterie.errors import DataError
from coterie.eval.mt_bench_answers import Answers
from coterie.eval.rows import read_rows

__all__ = ["ANSWERS", "BATTLES", "JUDGMENTS", "read_answers", "read_ratings"]

ANSWERS, JUDGMENTS, BATTLES = "mt_bench.answers.jsonl", "mt_bench.judgments.jsonl", "battles.jsonl"


def read_answers(folder: Path) -> dict[str, Answers]:
    """The answers in the folder of another run, by question; where there are several, the last."""
    found: dict[str, Answers] = {}
    for row, where in _rows(folder, ANSWERS):
        if set(row) != {f.name for f in fields(Answers)} or not isinstance(row["turns"], list):
            raise DataError(f"{where} is not what a run of mt_bench writes: name the folder (-o) of one")
        found[str(row["id"])] = Answers(**row)
    return found


def read_ratings(folder: Path) -> dict[tuple[str, int], float]:
    """The judge's ratings in the folder of another run, by question and turn."""
    found: dict[tuple[str, int], float] = {}
    for row, where in _rows(folder, JUDGMENTS):
        if row.get("kind") == "rating" and row.get("value") is not None:
            try:
                found[str(row["question_id"]), int(row["turn"])] = float(row["value"])
            except (KeyError, TypeError, ValueError):
                raise DataError(f"{where} is not what a run of mt_bench writes: name the folder (-o) of one") from None
    return found


def _rows(folder: Path, name: str) -> list[tuple[dict[str, Any], str]]:
    path = folder / name
    if not path.is_file():
        raise DataError(
            f"{folder} holds no {name}: name the folder (-o) of a run of mt_bench with --set against=FOLDER"
        )
    read = read_rows(path)
    return [(row, read.where(n)) for n, row in enumerate(read.rows)]
