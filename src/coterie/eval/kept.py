"""What a task that does its own work has found so far, kept in the run's folder: an interrupted run goes on from there.

A finding is known again by a digest of all that decides it (the model, the tokens, the windows), so another model or
another setting finds nothing and nothing wrong.
"""

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any

from coterie.eval.journal import Journal

__all__ = ["Kept"]


class Kept:
    """A context. `decided_by`: what all findings depend on; values are JSON. Without a folder nothing is kept."""

    def __init__(self, folder: Path | None, name: str, decided_by: object):
        self._journal = Journal(None if folder is None else folder / f"{name}.jsonl")
        self._decided_by = decided_by
        self._known = {row["key"]: row["value"] for row in self._journal.rows if row.keys() >= {"key", "value"}}

    def __enter__(self) -> "Kept":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._journal.__exit__(kind, error, at)

    def find(self, *key: object) -> Any:
        """What was kept under the key, or None."""
        return self._known.get(self._digest(key))

    def add(self, value: Any, *key: object) -> None:
        digest = self._digest(key)
        self._known[digest] = value
        self._journal.add({"key": digest, "value": value})

    def _digest(self, key: tuple[object, ...]) -> str:
        return hashlib.sha256(json.dumps([self._decided_by, key]).encode()).hexdigest()
