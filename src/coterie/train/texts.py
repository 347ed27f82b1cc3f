"""Files and folders of text to a stream of documents, a few megabytes in memory at a time.

One document per line of a .jsonl file, per row of a .parquet file, per .txt file (one longer than 4 million characters
is cut at a line end). Whatever cannot be read is one `DataError` with the file and the line.
"""

import codecs
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from coterie.errors import DataError
from coterie.train.compressed import missing_package, open_stream, reading_errors

__all__ = ["files_below", "read_files", "read_mixture", "read_rows", "read_texts"]

Seen = Callable[[int], None]

_COMPRESSED = ("", ".gz", ".zst")
_FORMATS = {f"{kind}{packed}": (kind, packed) for kind in (".txt", ".jsonl") for packed in _COMPRESSED}
_FORMATS[".parquet"] = (".parquet", "")
_NAMES = ".txt and .jsonl files (each also as .gz or .zst) and .parquet files"
_COLUMN = "text"
_BLOCK = 1 << 20  # bytes
_LONGEST_LINE = 1 << 28  # bytes of a line of JSON; what is longer is no line
_LONGEST_TEXT = 1 << 22  # characters of a document of a .txt file
_ROWS = 256  # of a .parquet file at a time
_MOST_REPEATS = 16
_BOM = b"\xef\xbb\xbf"


def files_below(path: Path) -> list[Path]:
    """`path` itself, or the files of a known format in and below the folder it is, sorted; hidden ones are left out.

    Links to folders are followed, each folder once.
    """
    if path.is_file():
        _format_of(path)
        return [path]
    if not path.is_dir():
        raise DataError(
            f"{path} is not a file or a folder; paths are relative to where the command runs, and recipes find the "
            "training text through COTERIE_DATA"
        )
    found, others, known = list[Path](), list[Path](), set[str]()
    for folder, folders, names in os.walk(path, onerror=_refuse_folder, followlinks=True):
        if (real := os.path.realpath(folder)) in known:  # a link leads back to it
            folders.clear()
            continue
        known.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith("."):
                (found if _known_format(name) else others).append(Path(folder, name))
    if not found:
        instead = f"only {min(others).name} and the like" if others else "nothing"
        raise DataError(f"{path} has no text in or below it: expected {_NAMES}, found {instead}")
    return sorted(found)


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {(error.strerror or str(error)).lower()}")


def read_files(paths: Sequence[Path], seen: Seen = lambda n: None) -> Iterator[str]:
    """The texts of several files; `seen(bytes of all files read so far)`."""
    before = 0
    for path in paths:
        yield from read_texts(path, lambda n, before=before: seen(before + n))  # type: ignore[misc]
        before += path.stat().st_size
        seen(before)


def read_texts(path: Path, seen: Seen = lambda n: None) -> Iterator[str]:
    """The texts of one file, in order; `seen(bytes of the file read so far)` now and then."""
    for row in read_rows(path, (), seen):
        yield row[_COLUMN]


def read_rows(path: Path, labels: Sequence[str], seen: Seen = lambda n: None) -> Iterator[dict[str, Any]]:
    """The same with what else a row has: all of a JSON object, the columns `labels` of a .parquet file.

    The text is `row["text"]`.
    """
    kind, packed = _format_of(path)
    if kind == ".parquet":
        yield from _parquet_rows(path, labels, seen)
        return
    with reading_errors(path), open_stream(path, packed) as (stream, file):
        for row in _plain_rows(stream, path) if kind == ".txt" else _json_lines(stream, path):
            yield row
            seen(file.tell())


def _plain_rows(stream: BinaryIO, path: Path) -> Iterator[dict[str, Any]]:
    for text in _plain_text(stream, path):
        yield {_COLUMN: text}


def read_mixture(entries: Sequence[Path], weights: Sequence[float], most_bytes: int | None = None) -> Iterator[str]:
    """The texts of files and folders in about the proportions they are trained on: what is drawn from more comes again.

    Example: two files of 4 MB with weights 0.1 and 0.3 give the first once and the second three times. No weights: each
    once. An entry of weight 0 is left out, and none comes more than `_MOST_REPEATS` times. Where all that would be more
    than `most_bytes` of UTF-8, evenly spaced texts stand for the rest.
    """
    files = [files_below(entry) for entry in entries]
    sizes = [sum(len(text.encode()) for text in read_files(f)) for f in files] if weights or most_bytes else []
    rates = [weight / max(1, size) for weight, size in zip(weights, sizes, strict=False)] or [1.0] * len(files)
    least = min((rate for rate in rates if rate > 0), default=1.0)
    times = [float(min(_MOST_REPEATS, round(rate / least))) for rate in rates]
    total = sum(n * size for n, size in zip(times, sizes, strict=False))
    share = most_bytes / total if most_bytes is not None and total > most_bytes else 1.0
    for paths, n in zip(files, times, strict=True):
        yield from _evenly(paths, n * share)


def _evenly(paths: list[Path], times: float) -> Iterator[str]:
    """Each text `times` times on average: whole rounds, then every 1/fraction-th text once more."""
    for _ in range(int(times)):
        yield from read_files(paths)
    fraction, due = times % 1, 0.5
    if fraction:
        for text in read_files(paths):
            due += fraction
            if due >= 1:
                due -= 1
                yield text


def _known_format(name: str) -> str | None:
    return next((end for end in sorted(_FORMATS, key=len, reverse=True) if name.lower().endswith(end)), None)


def _format_of(path: Path) -> tuple[str, str]:
    known = _known_format(path.name)
    if known is None:
        raise DataError(f"{path} is of no format that text is read from: expected {_NAMES}")
    return _FORMATS[known]


def _json_lines(stream: BinaryIO, path: Path) -> Iterator[dict[str, Any]]:
    number = 0
    while True:
        number += 1
        with reading_errors(path, f", line {number},"):
            line = stream.readline(_LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > _LONGEST_LINE:
            raise DataError(f"{path}, line {number}: has no end within {_LONGEST_LINE >> 20} MB; expected JSON lines")
        if number == 1:
            line = line.removeprefix(_BOM)
        if not line.isspace():
            yield _row_of(line, path, number)


def _row_of(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(line.decode())
        text = row[_COLUMN]
        if type(text) is not str:
            raise TypeError
        text.encode()  # half a surrogate pair, which JSON can spell, is no text
    except UnicodeDecodeError as e:
        raise _not_utf8(path, number, e) from None
    except UnicodeEncodeError:
        raise DataError(f"{path}, line {number}: its text holds half a surrogate pair, which is no Unicode") from None
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        has = f", found only {', '.join(map(repr, list(row)[:8])) or 'an empty one'}" if isinstance(e, KeyError) else ""
        raise DataError(f'{path}, line {number}: expected a JSON object with a string "{_COLUMN}"{has}') from None
    return row


def _plain_text(stream: BinaryIO, path: Path) -> Iterator[str]:
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    line, text, is_first = 1, "", True
    while True:
        with reading_errors(path, f", line {line},"):
            block = stream.read(_BLOCK)
        try:
            new = decoder.decode(block.removeprefix(_BOM) if is_first else block, final=not block)
        except UnicodeDecodeError as e:
            raise _not_utf8(path, line + e.object[: e.start].count(b"\n"), e) from None
        if "\0" in new:
            line += new[: new.index("\0")].count("\n")
            raise DataError(f"{path}, line {line}: cannot be read: it holds a zero byte, so this is no text file")
        text, line, is_first = text + new, line + new.count("\n"), False
        while len(text) > _LONGEST_TEXT:
            cut = text.rfind("\n", 0, _LONGEST_TEXT) + 1 or _LONGEST_TEXT
            yield text[:cut]
            text = text[cut:]
        if not block:
            break
    if text:
        yield text


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start]
    return DataError(
        f"{path}, line {line}: cannot be read: byte 0x{byte:02X} is not UTF-8; convert the file (iconv -t UTF-8) or "
        "remove that line"
    )


def _parquet_rows(path: Path, labels: Sequence[str], seen: Seen) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise missing_package(path, "pyarrow") from None
    size, n_read = path.stat().st_size, 0
    try:
        with parquet.ParquetFile(path) as file:
            _check_column(file.schema_arrow, path)
            n_rows = max(1, file.metadata.num_rows)
            columns = [_COLUMN, *(name for name in labels if name in file.schema_arrow.names)]
            for batch in file.iter_batches(_ROWS, columns=columns):
                for row in batch.to_pylist():
                    n_read += 1
                    if row[_COLUMN] is None:
                        raise DataError(f'{path}, row {n_read}: its "{_COLUMN}" is null, expected a string')
                    yield row
                seen(size * n_read // n_rows)
    except UnicodeDecodeError:
        raise DataError(f'{path}, after row {n_read}: the column "{_COLUMN}" holds bytes that are not UTF-8') from None
    except (pyarrow.ArrowException, OSError) as e:
        reason = str(e).splitlines()[0].rstrip(".") if str(e) else type(e).__name__
        raise DataError(
            f"{path}, after row {n_read}, cannot be read as Parquet: {reason}; fetch or make the file again"
        ) from None


def _check_column(schema: Any, path: Path) -> None:
    from pyarrow import types

    if _COLUMN not in schema.names:
        raise DataError(f'{path} has no column "{_COLUMN}", only {", ".join(schema.names[:8]) or "none at all"}')
    kind = schema.field(_COLUMN).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if str(kind) not in ("string", "large_string", "string_view"):
        raise DataError(f'{path}: the column "{_COLUMN}" holds {kind}, expected strings')
