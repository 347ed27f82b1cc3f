"""Text tokenised once, in parallel, into memory-mapped shards.

An entry of a recipe (a file, or a folder of files) becomes a folder NAME-KEY: `manifest.json`, and for each shard its
ids (`00000.ids`) and where its documents end (`00000.ends`). KEY stands for the files (place, size, time) and the
vocabulary. A shard counts once the manifest names it, and the manifest is replaced in one rename: after a kill, what
is whole is kept, the rest done again, and the result is the same bytes. Shards that are not what the manifest says,
also by their hashes, are made anew.
"""

import hashlib
import json
import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np

from coterie.checkpoint.atomic import disk_errors, new_file
from coterie.errors import DataError
from coterie.tokenizer.protocol import Tokenizer
from coterie.train.recipe import token_file_name
from coterie.train.texts import files_below, read_files
from coterie.train.token_worker import Block, Workers, encode_block, vocabulary_digest

__all__ = ["Joined", "TokenFile", "tokenize_path"]

Progress: TypeAlias = Callable[[int, int], None]

_FORMAT = 1
_SHARD = 1 << 24  # tokens, after which a shard ends with its block
_BLOCK = 1 << 18  # characters that are tokenised in one go: 50 ms
_PARALLEL = 3 << 19  # bytes of files for each process; starting one takes as long as tokenising a megabyte
_MOST_WORKERS = 32


class Joined(Sequence[int]):
    """Arrays that read as one: `len`, an index, or a slice, which is a new array."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self._arrays = list(arrays)
        self._starts = np.cumsum([0, *map(len, arrays)]).tolist()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload  # type: ignore[override]  # an array has all that is asked of the slice
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> np.ndarray: ...
    def __getitem__(self, at: int | slice) -> int | np.ndarray:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            pieces = [a[max(0, start - s) : max(0, stop - s)] for s, a in zip(self._starts, self._arrays, strict=False)]
            joined: np.ndarray = np.concatenate([p for p in pieces if len(p)] or [self._arrays[0][:0]])
            return joined[::step]
        i = bisect_right(self._starts, at) - 1
        if not 0 <= i < len(self._arrays):
            raise IndexError(at)
        return int(self._arrays[i][at - self._starts[i]])


@dataclass(frozen=True)
class TokenFile:
    """All texts of an entry, each ending with EOS where the vocabulary has one, as one row of ids.

    `ends` are the places after each document's last id; `digest` is of all ids, empty where they never were in a file.
    """

    name: str
    ids: np.ndarray | Joined
    n_bytes: int
    ends: np.ndarray | Joined = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    digest: str = ""

    def documents(self, start: int, stop: int) -> np.ndarray:
        """int64 [stop - start]: which document each id belongs to, the first one here being 0.

        Example: documents of 3, 2 and 4 ids end at 3, 5 and 9; ids 2 to 6 belong to documents 0, 1, 1, 2, 2.
        """
        first = bisect_right(self.ends, start)
        ends = np.asarray(self.ends[first : first + stop - start])
        return np.searchsorted(ends, np.arange(start, stop), side="right")


def tokenize_path(
    path: Path, tokenizer: Tokenizer, cache: Path, progress: Progress, *, source: Path | None = None, workers: int = 0
) -> TokenFile:
    """Tokenise a file or folder into `cache`, or map what is there; `progress(bytes of the files read, of all)`.

    `source` is where other processes load the same tokenizer from: without it there are none. `workers` is how many,
    0 as many as pay. Raises `DataError` for text that cannot be read, `ResourceError` for a full disk.
    """
    files = files_below(path)
    vocabulary = vocabulary_digest(tokenizer)
    key = _key(files, vocabulary)
    name = token_file_name(os.path.abspath(path))
    folder = cache / f"{name}-{key}"
    manifest = _read_manifest(folder)
    if not manifest["is_complete"]:
        total = sum(file.stat().st_size for file in files)
        blocks = _blocks(read_files(files, lambda n: progress(n, total)), skip=_sum(manifest, "documents"))
        n_workers = (workers or _n_workers(total)) if source is not None else 1
        with _cleaning(folder):
            _write_shards(folder, manifest, _encoded(blocks, tokenizer, source, n_workers, vocabulary), tokenizer)
            if not _sum(manifest, "bytes"):
                raise DataError(f"{path} holds no text; give it some, or leave it out of the recipe")
            if _key(files, vocabulary) != key:
                raise DataError(f"{path} has changed while it was read; run it again when it does not")
            _write_manifest(folder, manifest | {"is_complete": True})
    return _open(name, folder, manifest)


def _key(files: list[Path], vocabulary: bytes) -> str:
    """16 hex digits for where the files are, their sizes and times, and the vocabulary."""
    state = hashlib.sha256(vocabulary)
    for file in files:
        stat = file.stat()
        state.update(f"\n{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode(errors="surrogateescape"))
    return state.hexdigest()[:16]


def _n_workers(n_bytes: int) -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus, n_bytes // _PARALLEL, _MOST_WORKERS))


def _blocks(texts: Iterator[str], skip: int) -> Iterator[list[str]]:
    """The texts after the first `skip`, as many together as make a block: the same ones however often it is resumed."""
    block, size = [], 0
    for text in islice(texts, skip, None):
        block.append(text)
        size += len(text)
        if size >= _BLOCK or len(block) >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _encoded(
    blocks: Iterator[list[str]], tokenizer: Tokenizer, source: Path | None, n_workers: int, vocabulary: bytes
) -> Generator[Block, None, None]:
    if source is None or n_workers < 2:
        yield from (encode_block(tokenizer, block) for block in blocks)
        return
    with Workers(source, n_workers, vocabulary) as running:
        yield from running.encode(blocks)


def _write_shards(
    folder: Path, manifest: dict[str, Any], blocks: Generator[Block, None, None], tokenizer: Tokenizer
) -> None:
    """Adds to the manifest, in memory and on disk, a shard for every `_SHARD` tokens and one for the rest."""
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    shard, n_tokens = list[Block](), 0
    with closing(blocks):
        for block in blocks:
            shard.append(block)
            n_tokens += len(block.ids)
            if n_tokens >= _SHARD:
                _write_shard(folder, manifest, shard, dtype)
                shard, n_tokens = [], 0
        if n_tokens:
            _write_shard(folder, manifest, shard, dtype)


def _write_shard(folder: Path, manifest: dict[str, Any], blocks: list[Block], dtype: str) -> None:
    ids = np.concatenate([block.ids for block in blocks]).astype(dtype)
    lengths = np.concatenate([block.lengths for block in blocks])
    ends = (_sum(manifest, "tokens") + np.cumsum(lengths)).astype("<i8")
    number, data = len(manifest["shards"]), ids.tobytes()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{number:05}.*"):  # of a process that was killed
            old.unlink()
        for kind, content in (("ids", data), ("ends", ends.tobytes())):
            with new_file(folder / f"{number:05}.{kind}") as out:
                out.write(content)
    manifest["dtype"] = dtype
    manifest["shards"].append(
        {
            "tokens": len(ids),
            "documents": len(ends),
            "bytes": sum(block.n_bytes for block in blocks),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    )
    _write_manifest(folder, manifest)


def _sum(manifest: dict[str, Any], key: str) -> int:
    return sum(shard[key] for shard in manifest["shards"])


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    with disk_errors(folder), new_file(folder / "manifest.json") as out:
        out.write(json.dumps(manifest, indent=1).encode() + b"\n")


def _read_manifest(folder: Path) -> dict[str, Any]:
    """What is in `folder` already; an empty one where there is none, or where a shard beside it is not what it says."""
    empty: dict[str, Any] = {"format": _FORMAT, "is_complete": False, "dtype": "<u2", "shards": []}
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        size = np.dtype(manifest["dtype"]).itemsize
        for i, shard in enumerate(manifest["shards"]):
            n_ids, n_ends = ((folder / f"{i:05}.{kind}").stat().st_size for kind in ("ids", "ends"))
            if (n_ids, n_ends) != (size * shard["tokens"], 8 * shard["documents"]):
                return empty
            with (folder / f"{i:05}.ids").open("rb") as ids:
                if hashlib.file_digest(ids, "sha256").hexdigest() != shard["sha256"]:
                    return empty
        return manifest if manifest["format"] == _FORMAT and "is_complete" in manifest else empty
    except (OSError, ValueError, KeyError, TypeError):
        return empty


@contextmanager
def _cleaning(folder: Path) -> Iterator[None]:
    """Whole shards stay when work is cut short; nothing does where there is none, or where the text is at fault."""
    try:
        yield
    except BaseException as e:
        if isinstance(e, DataError) or not (folder / "manifest.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _open(name: str, folder: Path, manifest: dict[str, Any]) -> TokenFile:
    shards = range(len(manifest["shards"]))
    ids = [np.memmap(folder / f"{i:05}.ids", dtype=manifest["dtype"], mode="r") for i in shards]
    ends = [np.memmap(folder / f"{i:05}.ends", dtype="<i8", mode="r") for i in shards]
    digest = hashlib.sha256("".join(shard["sha256"] for shard in manifest["shards"]).encode()).hexdigest()
    return TokenFile(name, _joined(ids), _sum(manifest, "bytes"), _joined(ends), digest)


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray | Joined:
    return arrays[0] if len(arrays) == 1 else Joined(arrays)
