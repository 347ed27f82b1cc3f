import gzip
import json
from pathlib import Path

import pytest

from coterie.errors import DataError
from coterie.eval.battle_file import Battle, read_battles

GOOD = {"model_a": "x", "model_b": "y", "winner": "model_a"}


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_winners_become_scores_and_other_keys_are_let_through(tmp_path: Path) -> None:
    rows = [GOOD | {"winner": w} for w in ("model_a", "model_b", "tie", "tie (bothbad)")]
    path = written(tmp_path / "b.jsonl", *rows, "", GOOD | {"question_id": 81, "judge": "someone", "tstamp": 1.5})
    battles = read_battles([path])
    assert [b.score for b in battles] == [1.0, 0.0, 0.5, 0.5, 1.0]
    assert battles[0] == Battle("x", "y", 1.0) and battles[4].question == "81"


def test_several_files_packed_or_not(tmp_path: Path) -> None:
    plain = written(tmp_path / "a.jsonl", GOOD)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(GOOD | {"model_b": "z"}).encode()))
    assert [b.b for b in read_battles([plain, packed])] == ["y", "z"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"model_a": "x", "model_b": "y"}, "line 2: there is no field 'winner', only 'model_a', 'model_b'"),
        (GOOD | {"winner": "x"}, "winner is 'x', expected one of 'model_a', 'model_b', 'tie'"),
        (GOOD | {"winner": ["tie"]}, "winner is .*tie"),
        (GOOD | {"model_b": "x"}, "model_a and model_b are both 'x'"),
        (GOOD | {"model_b": 3}, "model_b is 3, expected text"),
        (GOOD | {"model_b": "\x1b[2J"}, "model_b is"),
        ([1], "expected an object"),
        ("{", "line 2 is no JSON"),
        ("[" * 100_000, "line 2 is no JSON"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: object, said: str) -> None:
    with pytest.raises(DataError, match=said) as e:
        read_battles([written(tmp_path / "b.jsonl", GOOD, row)])
    assert "b.jsonl" in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 400


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no rows"):
        read_battles([written(tmp_path / "empty.jsonl")])
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 99)[:-12])
    (tmp_path / "not.jsonl.gz").write_bytes(b"plain")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\xff\n")
    for name in ("torn.jsonl.gz", "not.jsonl.gz", "bytes.jsonl"):
        with pytest.raises(DataError, match=name):
            read_battles([tmp_path / name])
    with pytest.raises(FileNotFoundError):  # the command line says it in the system's words
        read_battles([tmp_path / "nowhere.jsonl"])
