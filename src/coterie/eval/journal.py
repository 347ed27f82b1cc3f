"""Lines of JSON that are added one at a time and survive being cut off: what an interrupted run has done already.

A last line without its end, or one that is not JSON, was cut off while it was written: it goes, and nothing else does.
Without a path nothing is kept.
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from coterie.errors import DataError

__all__ = ["Journal"]

Row = dict[str, Any]


class Journal:
    """`rows` are those found at the start and those added since. Use it as a context: leaving it forces it to disk."""

    def __init__(self, path: Path | None):
        self.rows: list[Row] = []
        self._file: BinaryIO | None = None
        if path is not None:
            n_good = self._read(path) if path.exists() else 0
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
            self._file.truncate(n_good)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        if self._file is not None:
            text = json.dumps(row, ensure_ascii=False, allow_nan=False)
            self._file.write(text.encode(errors="backslashreplace") + b"\n")  # a file's name need not be UTF-8
            self._file.flush()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()

    def _read(self, path: Path) -> int:
        """Fill `rows` and say how many bytes of the file are good."""
        lines = path.read_bytes().split(b"\n")
        n_good = 0
        for number, line in enumerate(lines[:-1], 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                if number == len(lines) - 1:
                    break
                raise DataError(f"{path}, line {number}, is not what a run wrote there: remove the file to begin again")
            self.rows.append(row)
            n_good += len(line) + 1
        return n_good
