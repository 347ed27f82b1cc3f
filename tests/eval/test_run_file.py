import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.api import LanguageModel
from coterie.engine.score import Score
from coterie.errors import DataError, ResourceError
from coterie.eval.rows import Files
from coterie.eval.run_file import RunFolder, read_run
from coterie.eval.task import Answer, Choose, Context, Item, Rolled
from coterie.model import Transformer

ITEM = Item("a", (Choose("c", (" d",)),), {})


@pytest.fixture(scope="module")
def lm(make_model: Callable[..., Transformer], byte_tokenizer: Any) -> LanguageModel:
    return LanguageModel(make_model(), byte_tokenizer)


HOLDER = """
import sys, pathlib
from coterie.train.lock import hold_run
with hold_run(pathlib.Path(sys.argv[1]), "evaluating"):
    print(1, flush=True)
    sys.stdin.read()
"""


def folder(path: Path | None, lm: LanguageModel) -> RunFolder:
    return RunFolder(path, lm, Context(Files(None)), ["t"])


def test_answers_come_back_as_they_were(lm: LanguageModel, tmp_path: Path) -> None:
    answers: list[Answer] = [
        [Score(-1.5, True, 2, 3), Score(-math.inf, False, 1, 1)],
        ["a\n\x1b", "é"],
        Rolled(0.1, 2, 3),
    ]
    with folder(tmp_path, lm) as kept:
        assert kept.answers("t", ITEM) is None
        kept.keep("t", ITEM, answers)
    with folder(tmp_path, lm) as kept:
        assert kept.answers("t", ITEM) == answers
        assert kept.answers("other", ITEM) is None
        assert kept.answers("t", Item("a", (Choose("c", (" e",)),), {})) is None


def test_seconds_of_answers_are_kept_and_counted_after_a_resume(lm: LanguageModel, tmp_path: Path) -> None:
    with folder(tmp_path, lm) as kept:
        kept.keep("t", ITEM, ["x"], 2.5)
    with folder(tmp_path, lm) as kept:
        assert kept.seconds("t", ITEM) == 2.5 and kept.seconds("other", ITEM) == 0


def test_a_folder_takes_one_process(lm: LanguageModel, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"1\n"
        with pytest.raises(ResourceError, match=f"process {other.pid} is evaluating in"):
            folder(tmp_path, lm)
        other.kill()
    with folder(tmp_path, lm):
        pass


def test_without_a_folder_nothing_is_kept(lm: LanguageModel) -> None:
    with folder(None, lm) as kept:
        kept.keep("t", ITEM, [[Score(-1.5, True, 2, 3)]])
        assert kept.finish([], ["x needs y"])["left_out"] == ["x needs y"]


def test_a_line_that_holds_no_answers_is_named(lm: LanguageModel, tmp_path: Path) -> None:
    with folder(tmp_path, lm):
        pass
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"task": "t"}\n')
    with pytest.raises(DataError, match="line 2 holds no answers"):
        folder(tmp_path, lm)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is no run.json"),
        ('{"format": 99}', "format 1"),
        ('{"format": 1, "arguments": {}, "model": {}, "tasks": []}', "has no tasks"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_run(tmp_path)
    with pytest.raises(DataError, match=message):
        read_run(tmp_path / "run.json")


def test_a_run_is_read_from_its_file_or_its_folder(lm: LanguageModel, tmp_path: Path) -> None:
    with folder(tmp_path, lm) as kept:
        document = kept.finish([], [])
    assert read_run(tmp_path) == read_run(tmp_path / "run.json") == json.loads(json.dumps(document))
