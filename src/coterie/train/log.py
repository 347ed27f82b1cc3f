"""log.jsonl: a JSON line for every step, each step once.

A killed run has logged steps that its last saved state has not seen; they will be trained again, so a resumed run
first takes them, and a half-written last line, out of the log.
"""

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from coterie.checkpoint.atomic import disk_errors, new_file

__all__ = ["TIMES", "Log"]

TIMES = frozenset({"seconds", "tokens_per_s", "operations_per_s", "peak_share", "alarms"})
"""What of a record depends on the clock or on how long the process has run: two equal runs differ in it."""


class Log:
    """Open for one run from step `first` on; `write` reaches the operating system at once.

    JSON has no NaN and no infinity: they are null. Without a path (a rank that leaves it to rank 0) nothing is written.
    """

    def __init__(self, path: Path | None, first: int):
        path = path or Path(os.devnull)
        with disk_errors(path):
            if path.is_file():
                _keep_before(path, first)
            self._file = path.open("ab", buffering=0)  # what a full disk did not take must not be tried again later
        self._path = path

    def write(self, record: dict[str, Any]) -> None:
        with disk_errors(self._path):
            left = (json.dumps(_plain(record)) + "\n").encode()
            while left:
                left = left[self._file.write(left) :]

    def sync(self) -> None:
        """Force the lines to disk: a checkpoint that survives a power cut must not know more steps than the log."""
        if self._path.is_file():
            with disk_errors(self._path):
                os.fsync(self._file.fileno())

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _keep_before(path: Path, first: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and _step(line) < first]
    if len(kept) < len(lines):
        with new_file(path) as file:
            file.writelines(kept)


def _step(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
