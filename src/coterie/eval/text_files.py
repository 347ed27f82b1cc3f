"""The texts that `perplexity` and `quantized` read: files of rows, plain text or Parquet, each text with its domain.

A row's own `domain`, `subject` or `lang` names the domain; else the file's name does, without `.valid` and endings.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coterie.errors import DataError
from coterie.eval.rows import ENDINGS, Files, Read, text_of
from coterie.train.texts import files_below, read_texts

__all__ = ["domain_of", "evenly", "has_texts", "read_domains"]

_KEYS = ("domain", "subject", "lang")


def read_domains(files: Files, names: Sequence[str] = (), *, limit: int | None = None) -> list[tuple[str, str]]:
    """(domain, text) of the files or folders named, or of every `*.valid` file of the data folder.

    `limit` takes so many texts of each file, evenly spaced. What has been read is in `files.read`, with its hash.
    """
    found = []
    for path in _paths(files, names):
        read = _open(files, path)
        pairs = [(domain_of(row, path), _text(row, read, number)) for number, row in enumerate(read.rows)]
        found += evenly([pair for pair in pairs if pair[1]], limit)
    return found


def domain_of(row: Mapping[str, Any], path: Path) -> str:
    """What a row calls its domain, or what its file is called; "?" for what is not UTF-8 in it."""
    named = (row.get(key) for key in _KEYS)
    name = next((name for name in named if isinstance(name, str) and name), path.name.split(".")[0] or path.name)
    return name.encode(errors="replace").decode()


def evenly(items: list[Any], n: int | None) -> list[Any]:
    """At most n of them, evenly spaced: of 0..9 and n = 4, 0, 2, 5 and 7."""
    return items if n is None or len(items) <= n else [items[i * len(items) // n] for i in range(n)]


def has_texts(files: Files) -> bool:
    """Whether the data folder has a `*.valid` file of texts."""
    return any(stem.endswith(".valid") and not _is_chat(files, stem) for stem in files.names())


def _paths(files: Files, names: Sequence[str]) -> list[Path]:
    if names:
        return [path for name in names for path in _named(files, name)]
    stems = [stem for stem in files.names() if stem.endswith(".valid") and not _is_chat(files, stem)]
    paths = [path for stem in stems if (path := files.find(stem)) is not None]
    if not paths:
        raise DataError(
            "there is no text to score: no *.valid.jsonl file is in the data folder; name a text with --set files=FILE "
            "or a folder that has some with --data DIR"
        )
    return paths


def _is_chat(files: Files, stem: str) -> bool:
    """Whether a file's rows have no text: messages, pairs of answers."""
    return "text" not in files.rows(stem).rows[0]


def _named(files: Files, name: str) -> list[Path]:
    path = Path(name).expanduser()
    if not path.exists() and (found := files.find(name)) is not None:
        return [found]
    return files_below(path)


def _open(files: Files, path: Path) -> Read:
    if path.name.endswith(ENDINGS):
        return files.open(path)
    if str(path) not in files.read:
        rows = [{"text": text} for text in read_texts(path)]
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        files.read[str(path)] = Read(path, sha256, rows, list(range(1, len(rows) + 1)))
    return files.read[str(path)]


def _text(row: Mapping[str, Any], read: Read, number: int) -> str:
    return text_of(row, "text", read.where(number), may_be_empty=True)
