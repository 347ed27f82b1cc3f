import gzip
import hashlib
import json
from pathlib import Path

import pytest

from coterie.errors import DataError
from coterie.eval.rows import Files
from coterie.eval.text_files import domain_of, evenly, read_domains


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    rows = {
        "text/de.valid.jsonl.gz": [{"text": "eins", "lang": "de"}, {"text": "", "lang": "de"}, {"text": "zwei"}],
        "text/de.train.jsonl.gz": [{"text": "nie"}],
        "text/py.valid.jsonl": [{"text": f"x = {i}", "domain": "python", "lang": "en"} for i in range(6)],
        "chat.valid.jsonl": [{"messages": []}],
    }
    for name, lines in rows.items():
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return tmp_path


def test_the_held_out_texts_of_the_data_folder_with_their_domains(folder: Path) -> None:
    found = read_domains(Files(folder))
    assert found == [("de", "eins"), ("de", "zwei"), *(("python", f"x = {i}") for i in range(6))]


def test_a_limit_takes_texts_of_each_file_evenly(folder: Path) -> None:
    assert read_domains(Files(folder), limit=2) == [
        ("de", "eins"),
        ("de", "zwei"),
        ("python", "x = 0"),
        ("python", "x = 3"),
    ]
    assert evenly(list(range(10)), 4) == [0, 2, 5, 7] and evenly([1], None) == [1]


def test_files_by_path_or_by_their_name_there(folder: Path) -> None:
    note = folder / "note.txt"
    note.write_text("a note", encoding="utf-8")
    files = Files(folder)
    assert read_domains(files, ["de.train", str(note)]) == [("de", "nie"), ("note", "a note")]
    assert files.read[str(note)].sha256 == hashlib.sha256(b"a note").hexdigest()
    assert domain_of({"subject": 3, "lang": "it"}, note) == "it" and domain_of({}, note) == "note"


def test_nothing_there_and_rows_without_text_are_errors(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(DataError, match=r"no text to score.*--set files=FILE"):
        read_domains(Files(tmp_path_factory.mktemp("empty")))
    with pytest.raises(DataError, match="line 1: there is no field 'text', only 'messages'"):
        read_domains(Files(folder), ["chat.valid"])
    with pytest.raises(DataError, match="is not a file or a folder"):
        read_domains(Files(folder), ["nowhere"])
    (folder / "bad.jsonl").write_text('{"text": "\\ud800"}\n')
    with pytest.raises(DataError, match="line 1: text has half of a surrogate pair"):
        read_domains(Files(folder), ["bad"])
