import json
from pathlib import Path

import pytest

from coterie.errors import ResourceError
from coterie.train.log import Log


def test_keeps_the_steps_before_the_first(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with Log(path, 0) as log:
        for step in range(3):
            log.write({"step": step, "text": "é"})
    with path.open("ab") as file:
        file.write(b'not JSON\n[1]\n{"step": "x"}\n{"step": 1')
    with Log(path, 2) as log:
        log.write({"step": 2})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_a_log_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        Log(tmp_path / "log.jsonl" / "log.jsonl", 0)


def test_what_json_has_not_is_null(tmp_path: Path) -> None:
    with Log(tmp_path / "log.jsonl", 0) as log:
        log.write({"step": 0, "loss": float("nan"), "norm": float("inf"), "lr": 0.1, "valid": {"a": float("nan")}})
        log.sync()
        found = json.loads((tmp_path / "log.jsonl").read_text())
        assert found == {"step": 0, "loss": None, "norm": None, "lr": 0.1, "valid": {"a": None}}


def test_without_a_path_nothing_is_written() -> None:
    with Log(None, 3) as log:
        log.write({"step": 3})
        log.sync()
