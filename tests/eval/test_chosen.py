import json
from pathlib import Path
from typing import Any

import pytest

from coterie.errors import DataError, RequestError
from coterie.eval.chosen import choose
from coterie.eval.rows import Files
from coterie.eval.task import Context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    for name in ("piqa", "copa"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    return Files(tmp_path)


def test_each_task_once_in_order_and_why_the_others_are_not(files: Files) -> None:
    tasks, left_out = choose(["copa", "multiple-choice"], Context(files))
    assert [task.name for task in tasks] == ["copa", "piqa"]
    assert "hellaswag needs hellaswag.jsonl, which is not in the data folder" in left_out


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        (["piqa"], {"limit": 0}, "limit is 0, expected a whole number from 1"),
        (["piqa"], {"seed": -1}, "seed is -1"),
        (["piqa"], {"samples": True}, "samples is True"),
        (["mmlu"], {}, r"mmlu\.jsonl is not in"),
        (["truthfulqa"], {}, "nothing of truthfulqa can run: truthfulqa.en needs"),
        (["piqa"], {"settings": {"x": "1"}}, "no setting 'x' for these tasks, and none of these tasks has any"),
    ],
)
def test_mistakes(files: Files, asked: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises((RequestError, DataError), match=message):
        choose(asked, Context(files, **options))


def test_two_files_of_one_name_would_share_a_place_in_the_report(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "mine.jsonl" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(json.dumps({"text": "a"}) + "\n")
    with pytest.raises(RequestError, match=r"a/mine.jsonl and .*b/mine.jsonl would both be called mine: rename a file"):
        choose([str(path) for path in paths], Context(Files(None)))
    assert len(choose([str(paths[0])] * 2, Context(Files(None)))[0]) == 1


def test_a_file_need_not_be_in_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"text": "a"}) + "\n")
    (task,), _ = choose([str(path)], Context(Files(None)))
    assert task.name == "mine"
