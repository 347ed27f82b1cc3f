from pathlib import Path

import pytest

from coterie.errors import DataError
from coterie.eval.journal import Journal


def test_rows_stay_and_more_come(tmp_path: Path) -> None:
    path = tmp_path / "run" / "j.jsonl"
    with Journal(path) as journal:
        journal.add({"a": "é\n"})
    with Journal(path) as journal:
        assert journal.rows == [{"a": "é\n"}]
        journal.add({"b": 2})
        assert path.read_text().count("\n") == 2  # on the way to the disk at once
    with Journal(path) as journal:
        assert journal.rows == [{"a": "é\n"}, {"b": 2}]


@pytest.mark.parametrize("torn", [b'{"b": ', b'{"b": "\xc3', b'{"b": 2}', b"{nonsense}\n", b"7\n"])
def test_a_torn_last_line_goes(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"a": 1}\n' + torn)
    with Journal(path) as journal:
        assert journal.rows == [{"a": 1}]
        journal.add({"c": 3})
    assert path.read_bytes() == b'{"a": 1}\n{"c": 3}\n'


def test_a_wrong_line_in_the_midst_is_no_accident(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"a": 1}\nhello\n{"b": 2}\n')
    with pytest.raises(DataError, match=r"j\.jsonl, line 2, is not what a run wrote there"):
        Journal(path)
    assert path.read_bytes().startswith(b'{"a": 1}\nhello')


def test_without_a_path_nothing_is_kept() -> None:
    with Journal(None) as journal:
        journal.add({"a": 1})
        assert journal.rows == [{"a": 1}]
