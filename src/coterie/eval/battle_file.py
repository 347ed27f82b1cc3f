"""Battles as lines of JSON, in the arena's form: who met whom, and who won.

    {"model_a": "demo", "model_b": "other", "winner": "model_a"}      also "model_b", "tie", "tie (bothbad)"

Any other key is let through. `question_id` says which battles are about the same question, so that uncertainty can
count the question once.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.errors import DataError

__all__ = ["SCORES", "Battle", "read_battles"]

SCORES = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}
_LONGEST_NAME = 200
_LONGEST_LINE = 16 << 20  # characters; records of an arena carry whole conversations


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
    files = list(paths)
    battles = [_battle(row, where) for path in files for where, row in _rows(path)]
    if not battles:
        names = ", ".join(map(str, files))
        raise DataError(f"{names} holds no battles, expected lines with model_a, model_b and winner")
    return battles


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Each line that is not blank, parsed, and where it stands."""
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as f:
            while line := f.readline(_LONGEST_LINE):
                number += 1
                where = f"{path}, line {number}"
                if len(line) == _LONGEST_LINE:
                    raise DataError(f"{where} is longer than {_LONGEST_LINE:,} characters: is this a file of battles?")
                if line.strip():
                    yield where, json.loads(line)
    except FileNotFoundError:
        raise DataError(f"{path} is missing, expected a .jsonl file of battles") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}, after line {number}, is not UTF-8 text") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise DataError(f"{path}, after line {number}, is not a whole gzip file: {e}") from None
    except OSError as e:
        raise DataError(f"{path} cannot be read: {(e.strerror or str(e)).lower()}") from None
    except (ValueError, RecursionError):
        raise DataError(
            f"{path}, line {number}, is not JSON: expected an object with model_a, model_b, winner"
        ) from None


def _battle(row: Any, where: str) -> Battle:
    if not isinstance(row, dict):
        raise DataError(f"{where} is not an object, expected model_a, model_b and winner")
    for field in ("model_a", "model_b", "winner"):
        if field not in row:
            has = ", ".join(map(repr, list(row)[:8])) or "nothing"
            raise DataError(f"{where} has no {field!r}, expected model_a, model_b and winner; it has {has}")
    a, b = (_name(row[field], field, where) for field in ("model_a", "model_b"))
    if a == b:
        raise DataError(f"{where}: model_a and model_b are both {a!r}, expected two models")
    winner = row["winner"]
    if not isinstance(winner, str) or winner not in SCORES:
        raise DataError(f"{where}: winner is {_show(winner)}, expected one of {', '.join(map(repr, SCORES))}")
    question = row.get("question_id")
    return Battle(a, b, SCORES[winner], "" if question is None else str(question))


def _name(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > _LONGEST_NAME or not value.isprintable():
        raise DataError(f"{where}: {field} is {_show(value)}, expected the name of a model")
    return value


def _show(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
