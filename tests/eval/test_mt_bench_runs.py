import json
from dataclasses import asdict
from pathlib import Path

import pytest

from coterie.errors import DataError
from coterie.eval.mt_bench_answers import Answers
from coterie.eval.mt_bench_runs import ANSWERS, JUDGMENTS, read_answers, read_ratings


def lines(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_last_answers_and_ratings_count(tmp_path: Path) -> None:
    first, last = (Answers("k", "81", "math", "m", [text], ["stop"], [1]) for text in ("a", "b"))
    lines(tmp_path / ANSWERS, asdict(first), asdict(last))
    assert read_answers(tmp_path) == {"81": last}
    rated = {"kind": "rating", "question_id": "81", "turn": 1}
    lines(tmp_path / JUDGMENTS, {**rated, "value": 3.0}, {**rated, "value": 4.0}, {**rated, "turn": 2, "value": None},
          {"kind": "battle", "question_id": "81", "turn": 1, "value": "A"})  # fmt: skip
    assert read_ratings(tmp_path) == {("81", 1): 4.0}


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no mt_bench\.answers\.jsonl"):
        read_answers(tmp_path)
    lines(tmp_path / ANSWERS, {"id": "81"})
    with pytest.raises(DataError, match="line 1 is not what a run of mt_bench writes"):
        read_answers(tmp_path)
    lines(tmp_path / JUDGMENTS, {"kind": "rating", "value": "high", "question_id": 1, "turn": 1})
    with pytest.raises(DataError, match="line 1 is not what a run of mt_bench writes"):
        read_ratings(tmp_path)
