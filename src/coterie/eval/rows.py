"""Rows of a `.jsonl` or `.jsonl.gz` file, and where files are: every mistake is named with file, line and field."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.errors import DataError

__all__ = ["ENDINGS", "Files", "Read", "answer_of", "choices_of", "read_rows", "text_of", "texts_of"]

ENDINGS = (".jsonl", ".jsonl.gz")
_LONGEST = 16 << 20  # characters of a line
_MOST = 1 << 20  # rows of a file


@dataclass(frozen=True)
class Read:
    """A file as it was read: `sha256` of its bytes on disk; `lines_R` are the numbers of the rows' lines."""

    path: Path
    sha256: str
    rows: list[dict[str, Any]]
    lines: list[int]

    def where(self, number: int) -> str:
        """The place of a row, for a message."""
        return f"{self.path}, line {self.lines[number]}"


class Files:
    """The folder of `--data`: files lie in it, or in its `eval` and `text`."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.read: dict[str, Read] = {}  # what has been read, by path

    def names(self) -> list[str]:
        """The stems of the files that are there."""
        paths = [path for folder in self._folders() for path in folder.iterdir() if path.name.endswith(ENDINGS)]
        return sorted({path.name.removesuffix(".gz").removesuffix(".jsonl") for path in paths})

    def find(self, stem: str) -> Path | None:
        """STEM.jsonl or STEM.jsonl.gz, or None."""
        found = (folder / f"{stem}{ending}" for folder in self._folders() for ending in ENDINGS)
        return next((path for path in found if path.is_file()), None)

    def rows(self, stem: str) -> Read:
        """The rows of a file; a `DataError` that says what is there where it is not."""
        path = self.find(stem)
        if path is None:
            raise DataError(f"{stem}.jsonl is not {self._there()}")
        return self.open(path)

    def open(self, path: Path) -> Read:
        """The rows of a file anywhere, read once."""
        if str(path) not in self.read:
            self.read[str(path)] = read_rows(path)
        return self.read[str(path)]

    def _there(self) -> str:
        if self.folder is None:
            return "anywhere, because no data folder was named: pass --data DIR, or set COTERIE_DATA to it"
        names = self.names()
        listed = f"it has {', '.join(names[:40])}" if names else "it has no .jsonl file"
        return f"in {self.folder} (nor in its eval or text folder), {listed}"

    def _folders(self) -> list[Path]:
        if self.folder is None:
            return []
        if not self.folder.is_dir():
            raise DataError(f"{self.folder} is no folder: --data expects one that holds .jsonl files, or COTERIE_DATA")
        return [f for f in (self.folder / "eval", self.folder / "text", self.folder) if f.is_dir()]


def read_rows(path: Path) -> Read:
    """Every row of a file, blank lines left out; a `DataError` names the line that is no JSON object."""
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        rows, lines = [], []
        for number, line in _lines(path):
            rows.append(_row(line, path, number))
            lines.append(number)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file ({error}): copy it again") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start} of a block): expected one JSON object a line"
        ) from None
    if not rows:
        raise DataError(f"{path} has no rows: expected one JSON object a line")
    return Read(path, sha256, rows, lines)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        number = 0
        while line := file.readline(_LONGEST + 1):
            number += 1
            if len(line) > _LONGEST:
                raise DataError(f"{path}, line {number} is longer than {_LONGEST} characters: expected a JSON object")
            if number > _MOST:
                raise DataError(f"{path} has more than {_MOST} lines: cut it into files")
            if line.strip():
                yield number, line


def _row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number} is no JSON ({error}): expected one object a line") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number} is a JSON {type(row).__name__}, expected an object with fields")
    for field, value in row.items() if "\\u" in line else ():
        _check_unicode(value, field, f"{path}, line {number}")
    return row


def text_of(row: Mapping[str, Any], field: str, where: str, *, may_be_empty: bool = False) -> str:
    """A field that must be text."""
    value = _value(row, field, where)
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise DataError(f"{where}: {field} is {_shown(value)}, expected text")
    return value


def texts_of(row: Mapping[str, Any], field: str, where: str, *, fewest: int = 1) -> list[str]:
    """A field that must be a list of texts."""
    value = _value(row, field, where)
    if not isinstance(value, list) or len(value) < fewest or not all(isinstance(v, str) for v in value):
        raise DataError(f"{where}: {field} is {_shown(value)}, expected a list of at least {fewest} texts")
    return value


def choices_of(row: Mapping[str, Any], where: str, *, exactly: Sequence[int] = ()) -> list[str]:
    """`choices`, each of which must be a text that is not empty; `exactly`: how many there may be."""
    choices = texts_of(row, "choices", where, fewest=2)
    if not all(choice.strip() for choice in choices):
        raise DataError(
            f"{where}: choices has an empty text at place {[bool(c.strip()) for c in choices].index(False)}"
        )
    if exactly and len(choices) not in exactly:
        expected = " or ".join(map(str, exactly))
        raise DataError(f"{where}: choices has {len(choices)} texts, expected {expected}")
    return choices


def answer_of(row: Mapping[str, Any], n: int, where: str, field: str = "answer") -> int:
    """A field that must be the place of one of `n` choices, from 0."""
    value = _value(row, field, where)
    if type(value) is not int or not 0 <= value < n:
        raise DataError(f"{where}: {field} is {_shown(value)}, expected a whole number from 0 to {n - 1}")
    return value


def _check_unicode(value: Any, field: str, where: str) -> None:
    """JSON can spell half a character (\\ud800), which no tokenizer can take and no file can hold."""
    try:
        json.dumps([field, value], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        name = ascii(field)[1:-1]
        raise DataError(f"{where}: {name} has half of a surrogate pair, expected whole characters") from None


def _value(row: Mapping[str, Any], field: str, where: str) -> Any:
    if field not in row:
        raise DataError(f"{where}: there is no field {field!r}, only {_listed(row)}")
    return row[field]


def _listed(names: Iterable[str]) -> str:
    listed = [repr(str(name)[:40]) for name in names]
    return ", ".join(listed[:12]) + (", ..." if len(listed) > 12 else "") if listed else "an empty object"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
