import json
from pathlib import Path

import pytest

from coterie.errors import DataError, RequestError
from coterie.eval.registry import GROUPS, TASKS, is_file, make, names_of
from coterie.eval.rows import Files
from coterie.eval.task import Context


def context(folder: Path | None) -> Context:
    return Context(Files(folder))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_what_a_report_says_of_it(name: str) -> None:
    task = make(name, context(None))
    assert task.name == name and task.metric and task.protocol and not task.protocol.endswith(".")


def test_groups_are_of_tasks() -> None:
    assert {name for members in GROUPS.values() for name in members} <= set(TASKS)
    assert not set(GROUPS) & set(TASKS) and "all" not in TASKS


def test_a_group_is_what_can_run_with_a_reason_for_the_rest(tmp_path: Path) -> None:
    (tmp_path / "copa.jsonl").write_text("{}\n")
    names, left_out = names_of("multiple-choice", context(tmp_path))
    assert names == ["copa"] and len(left_out) == len(GROUPS["multiple-choice"]) - 1
    assert "piqa needs piqa.jsonl, which is not in the data folder" in left_out


def test_an_unknown_name_gets_the_nearest_and_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "copa.jsonl").write_text("{}\n")
    with pytest.raises(RequestError, match=r"'helaswag' is no task; did you mean 'hellaswag'\?.*here are copa"):
        names_of("helaswag", context(tmp_path))


def test_a_file_is_a_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"question": "q", "choices": ["a", "b"], "answer": 0}) + "\n")
    assert is_file(str(path)) and is_file("x.jsonl.gz") and not is_file("piqa")
    assert names_of(str(path), context(None)) == ([str(path)], [])
    assert make(str(path), context(None)).name == "mine"
    path.write_text('{"colour": "red"}\n')
    with pytest.raises(DataError, match=r"mine\.jsonl, line 1 has 'colour': expected question, choices and answer"):
        make(str(path), context(None))
