import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from coterie.errors import DataError
from coterie.eval.rows import Files, answer_of, choices_of, read_rows, text_of, texts_of


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_rows_keep_the_numbers_of_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": 1}\n\n{"x": 2}\n', encoding="utf-8")
    read = read_rows(path)
    assert read.rows == [{"x": 1}, {"x": 2}] and read.where(1) == f"{path}, line 3"
    assert len(read.sha256) == 64


def test_files_are_found_in_the_folder_or_its_eval_and_text(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "a.jsonl.gz").write_bytes(gzip.compress(b'{"x": 1}\n'))
    write(tmp_path / "b.jsonl", {"x": 2})
    write(tmp_path / "text" / "c.jsonl", {"x": 3})
    files = Files(tmp_path)
    assert [files.rows(name).rows[0]["x"] for name in "abc"] == [1, 2, 3]
    assert files.names() == ["a", "b", "c"]
    assert files.rows("a") is files.rows("a")
    assert Files(None).find("a") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (b'{"x": 1}\n{"x"\n', "line 2 is no JSON"),
        (b"[1]\n", "line 1 is a JSON list"),
        (b'{"x": "\xff"}\n', "not UTF-8"),
        (b"[" * 100_000 + b"\n", "line 1 is no JSON"),
        (b'{"q": "a"}\n{"id": "a\\ud800"}\n', "line 2: id has half of a surrogate pair"),
        (b'{"deep": [{"choices": ["\\UDFFF", "\\udfff"]}]}\n'.replace(b"\\U", b"\\u"), "line 1: deep has half of"),
        (b'{"\\udc00": 1}\n', r"line 1: .udc00 has half of a surrogate pair"),
    ],
)
def test_a_file_that_is_no_rows_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(path)


@pytest.mark.parametrize("damage", [lambda b: b[:-6], lambda b: b"x" + b, lambda b: b[:20] + b"\0\0\0" + b[23:]])
def test_a_damaged_archive_is_refused(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(damage(gzip.compress(b'{"x": 1}\n' * 50)))
    with pytest.raises(DataError, match="damaged gzip"):
        read_rows(path)


def test_what_is_missing_is_named_with_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "piqa.jsonl", {"x": 1})
    with pytest.raises(DataError, match=r"arc\.jsonl is not in .*it has piqa"):
        Files(tmp_path).rows("arc")
    with pytest.raises(DataError, match="COTERIE_DATA"):
        Files(None).rows("arc")
    with pytest.raises(DataError, match="is no folder"):
        Files(tmp_path / "none").rows("arc")


def test_fields_are_what_they_should_be() -> None:
    row = {"q": "a", "blank": " ", "choices": ["x", "y"], "answer": 1, "n": 2}
    assert text_of(row, "q", "f, line 1") == "a" and texts_of(row, "choices", "f") == ["x", "y"]
    assert choices_of(row, "f") == ["x", "y"] and answer_of(row, 2, "f") == 1
    for call, message in (
        (lambda: text_of(row, "none", "f, line 1"), "f, line 1: there is no field 'none', only 'q', 'blank'"),
        (lambda: text_of(row, "blank", "f"), "blank is ' ', expected text"),
        (lambda: text_of(row, "n", "f"), "n is 2, expected text"),
        (lambda: texts_of(row, "q", "f"), "q is 'a', expected a list"),
        (lambda: choices_of({"choices": ["x", " "]}, "f"), "empty text at place 1"),
        (lambda: choices_of(row, "f", exactly=(4,)), "choices has 2 texts, expected 4"),
        (lambda: answer_of(row, 1, "f"), "answer is 1, expected a whole number from 0 to 0"),
        (lambda: answer_of({"answer": True}, 2, "f"), "answer is True"),
        (lambda: answer_of({"answer": "1"}, 2, "f"), "answer is '1'"),
        (lambda: answer_of({"answer": -1}, 2, "f"), "answer is -1"),
    ):
        with pytest.raises(DataError, match=message):
            call()  # type: ignore[no-untyped-call]
