"""GGUF files of the Mixtral family, one or split, opened as any other checkpoint: only their heads are read.

Old files have a tensor for each expert, later ones one for the gate rows of all experts of a layer and one for the up
rows, the newest both in one, gate first. Each becomes one entry an expert, so whoever reads on need not know.
Query and key rows are interleaved as in Mistral's own files; whole quantised rows may be moved.
"""

import mmap
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coterie.checkpoint.gguf_header import Header, TensorInfo, parse_header
from coterie.checkpoint.gguf_metadata import check_kind, config_from_metadata
from coterie.checkpoint.names import Naming, Place, is_ignorable, naming_of
from coterie.checkpoint.numbers import FILE_DTYPES
from coterie.checkpoint.opened import Checkpoint, main_code, match
from coterie.checkpoint.safetensors import Entry
from coterie.config import ModelConfig
from coterie.errors import CheckpointError
from coterie.tokenizer import Tokenizer
from coterie.tokenizer.gguf import gguf_tokenizer

__all__ = ["GgufCheckpoint", "is_first_part", "open_gguf", "parts_of", "read_header"]

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_MOST_FILES = 10_000
_EMBED, _HEAD, _ROPE = "token_embd.weight", "output.weight", "rope_freqs.weight"


@dataclass(frozen=True)
class GgufCheckpoint(Checkpoint):
    """`uncut`: the tensors as the files have them; `entries`: the same cut into experts. `metadata`: all keys."""

    uncut: tuple[Entry, ...] = field(kw_only=True)
    metadata: dict[str, Any] = field(kw_only=True)
    _maps: "dict[Path, np.ndarray[Any, np.dtype[np.uint8]]]" = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def listed(self) -> tuple[Entry, ...]:
        return self.uncut

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the file carries, if any."""
        return gguf_tokenizer(self.metadata, str(self.path))

    @property
    def chat_template(self) -> str | None:
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None

    def mapped(self, entry: Entry) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """The bytes of an entry, mapped into memory (each file once), read-only."""
        if entry.file not in self._maps:
            self._maps[entry.file] = np.memmap(entry.file, np.uint8, "r")
        return self._maps[entry.file][entry.offset : entry.offset + entry.nbytes]

    def release(self, entry: Entry) -> None:
        """Give the mapped pages that lie wholly in an entry back; they come again when they are read again."""
        mapping: Any = getattr(self._maps.get(entry.file), "_mmap", None)
        first = -(-entry.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (entry.offset + entry.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if mapping is not None and hasattr(mapping, "madvise") and first < last:
            mapping.madvise(mmap.MADV_DONTNEED, first, last - first)


def open_gguf(path: Path) -> GgufCheckpoint:
    """Open and check a file, or the first of several; `ConfigError` or `CheckpointError` say what is wrong."""
    path = Path(path)
    files = parts_of(path)
    headers = [read_header(file) for file in files]
    _check_parts(files, headers)
    infos = _by_name(files, headers)
    entries = {name: Entry(name, t.type.name, t.shape, file, t.offset, t.nbytes) for name, (file, t) in infos.items()}
    _check_rope(entries.pop(_ROPE, None))
    config = _config(path, headers[0].metadata, entries)
    naming = _naming(entries)
    matched = match(path, {name: e.shape for name, e in entries.items()}, config, naming)
    pairs = [pair for name, filled in matched.items() for pair in _cut(entries[name], filled)]
    pairs.sort(key=lambda pair: (pair[0].file, pair[0].offset))
    return GgufCheckpoint(
        path,
        "gguf",
        naming,
        config,
        tuple(e for e, _ in pairs),
        tuple(p for _, p in pairs),
        uncut=tuple(sorted(entries.values(), key=lambda e: (e.file, e.offset))),
        metadata=headers[0].metadata,
    )


def read_header(path: Path) -> Header:
    """The head of one file; `CheckpointError` where it is no sound GGUF file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a named pipe must not make us wait
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path} is not a regular file")
            if status.st_size == 0:
                return parse_header(b"", str(path))
            return parse_header(mmap.mmap(fd, 0, access=mmap.ACCESS_READ), str(path))
        finally:
            os.close(fd)
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror}") from None


def is_first_part(path: Path) -> bool:
    """Whether a file is a model, or the part of one by which it is named."""
    part = _PART.fullmatch(path.name)
    return part is None or int(part[2]) == 1


def parts_of(path: Path) -> list[Path]:
    """The file, or all of a split model in their order, given the first."""
    part = _PART.fullmatch(path.name)
    if part is None:
        return [path]
    stem, number, count = part[1], int(part[2]), int(part[3])
    files = [path.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, min(count, _MOST_FILES) + 1)]
    if number != 1:
        raise CheckpointError(f"{path} is part {number} of {count}; name the first, {files[0].name if files else ''}")
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"{path} is one of {count} parts, and {len(missing)} are not there ({missing[0]} first)")
    return files


def _check_parts(files: list[Path], headers: list[Header]) -> None:
    """What the parts say of each other agrees with their names."""
    for i, (file, header) in enumerate(zip(files, headers, strict=True)):
        number, count = (header.metadata.get(f"split.{key}") for key in ("no", "count"))
        if len(files) == 1 and count in (None, 1):
            return
        if (number, count) != (i, len(files)):
            raise CheckpointError(
                f"{file} says it is part {number} (from 0) of {count}, and by its name it is part {i} of {len(files)}; "
                "give the parts their names back"
            )
    n_tensors, total = headers[0].metadata.get("split.tensors.count"), sum(len(h.tensors) for h in headers)
    if n_tensors is not None and n_tensors != total:
        raise CheckpointError(f"{files[0]} announces {n_tensors} tensors in all parts, and they hold {total}")


def _by_name(files: list[Path], headers: list[Header]) -> dict[str, tuple[Path, TensorInfo]]:
    found: dict[str, tuple[Path, TensorInfo]] = {}
    for file, header in zip(files, headers, strict=True):
        for t in header.tensors:
            if t.name in found:
                raise CheckpointError(f"the tensor {t.name!r} is in both {found[t.name][0]} and {file}")
            if not is_ignorable(t.name):
                found[t.name] = file, t
    return found


def _check_rope(entry: Entry | None) -> None:
    """Factors of the rotary frequencies change nothing where all are one."""
    if entry is None:
        return
    is_small = entry.dtype == "F32" and entry.nbytes <= 1 << 14
    if not is_small or (np.fromfile(entry.file, "<f4", entry.nbytes // 4, offset=entry.offset) != 1).any():
        raise CheckpointError(
            f"{entry.file}: {_ROPE!r} scales the rotary embedding, which is not supported; a model without it is needed"
        )


def _config(path: Path, metadata: dict[str, Any], entries: dict[str, Entry]) -> ModelConfig:
    check_kind(metadata, str(path))
    embed = entries.get(_EMBED)
    if embed is None or len(embed.shape) != 2:
        raise CheckpointError(f"{path} has no tensor {_EMBED!r} of two dimensions; is it a whole model?")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > embed.shape[0]:
        raise CheckpointError(f"{path} has {len(tokens):,} tokens, and {embed.shape[0]:,} rows in its embedding")
    dtype = FILE_DTYPES.get(main_code(entries.values()), "bfloat16")
    return config_from_metadata(
        metadata, str(path), vocab_size=embed.shape[0], is_tied=_HEAD not in entries, dtype=dtype
    )


def _naming(names: Iterable[str]) -> Naming:
    naming = naming_of(names)
    return naming if naming.startswith("gguf") else "gguf"


def _cut(entry: Entry, filled: list[Place]) -> list[tuple[Entry, Place]]:
    """The stretches of a tensor that holds something of every expert, each with its place."""
    step = entry.nbytes // len(filled)
    return [
        (Entry(entry.name, entry.dtype, place.shape, entry.file, entry.offset + i * step, step), place)
        for i, place in enumerate(filled)
    ]
