"""Read the parts of a trace file that say where everything is, believing none of them.

Sizes are compared with the file's before anything is read. Spans: S of a block, each a run of tokens of one document
and one domain. Shapes: S spans, N blocks.
"""

import json
import os
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.trace_form import (
    ALIGN,
    BLOCK,
    BLOCK_MAGIC,
    INDEX,
    MAGIC,
    MOST_BLOCK,
    MOST_DOCUMENTS,
    MOST_DOMAINS,
    MOST_HEADER,
    MOST_TAIL,
    PREFIX,
    TRAILER,
    TRAILER_MAGIC,
    Form,
    column_sizes,
    parse_header,
)
from coterie.checkpoint.json_text import parse_object
from coterie.errors import DataError

__all__ = ["Block", "TraceEnd", "read_block", "read_end"]


@dataclass(frozen=True)
class Block:
    """`places`: of each column where its bytes begin in the file, and how many they are. `spans_S4` int64: first row,
    document, position of the first row, domain."""

    n_tokens: int
    flags: int
    scale: float
    offset: int  # of the payload
    n_bytes: int
    places: dict[str, tuple[int, int]]
    spans_S4: NDArray[np.int64]


@dataclass(frozen=True)
class TraceEnd:
    """What stands behind the blocks."""

    domains: list[str]
    n_documents: int
    pieces: list[str] | None
    offset_N: list[int]
    tokens_N: list[int]
    blocks_end: int  # where the last block must have ended


def read_end(fd: int, path: Path) -> tuple[Form, TraceEnd]:
    """The header and the end of a file. `DataError` where it is no trace, cut off or damaged."""
    size = os.fstat(fd).st_size
    form, first = _read_header(fd, path, size)
    raw = _read(fd, path, size - TRAILER.size, TRAILER.size) if size >= first + TRAILER.size else b""
    if not raw.endswith(TRAILER_MAGIC):
        raise DataError(f"{path} is cut off: a trace has its index at the end; record it again, or copy it again")
    *fields, own, magic = TRAILER.unpack(raw)
    tail_at, tail_bytes, raw_bytes, index_at, n_blocks, n_tokens, checksum = fields
    index_bytes = n_blocks * INDEX.size
    fits = first <= tail_at and tail_at + tail_bytes == index_at and index_at + index_bytes == size - TRAILER.size
    if own != zlib.crc32(TRAILER.pack(*fields, 0, magic)) or not fits or raw_bytes > MOST_TAIL:
        raise _damaged(path, "the last 64 bytes do not fit the file")
    tail, index = _read(fd, path, tail_at, tail_bytes), _read(fd, path, index_at, index_bytes)
    if zlib.crc32(index, zlib.crc32(tail)) != checksum:
        raise _damaged(path, "the checksum of the index is another")
    places = list(INDEX.iter_unpack(index))
    bounds = [*(at for at, _ in places), tail_at]
    is_in_order = all(a + BLOCK.size <= b for a, b in pairwise(bounds)) and bounds[0] >= first
    if not is_in_order or any(not 0 < n <= MOST_BLOCK for _, n in places) or sum(n for _, n in places) != n_tokens:
        raise _damaged(path, "the index names blocks that cannot be")
    domains, n_documents, pieces = _read_tail(tail, raw_bytes, path, form)
    return form, TraceEnd(domains, n_documents, pieces, bounds[:-1], [n for _, n in places], tail_at)


def read_block(fd: int, path: Path, form: Form, end: TraceEnd, n: int) -> Block:
    """The n-th block's head and spans, after its checksum was tested."""
    at, n_tokens = end.offset_N[n], end.tokens_N[n]
    limit = end.offset_N[n + 1] if n + 1 < len(end.offset_N) else end.blocks_end
    raw = _read(fd, path, at, BLOCK.size)
    *fields, own = BLOCK.unpack(raw)
    magic, tokens, n_spans, flags, scale, checksum, n_bytes, _ = fields
    if magic != BLOCK_MAGIC or own != zlib.crc32(BLOCK.pack(*fields, 0)) or tokens != n_tokens:
        raise _damaged(path, f"block {n} does not begin where the index says")
    if not 0 < n_spans <= tokens or flags > 3 or not 1 <= scale < 1e30:
        raise _damaged(path, f"the head of block {n} makes no sense")
    places, offset = {}, at + BLOCK.size
    for name, size in column_sizes(form, tokens, n_spans, flags).items():
        places[name] = offset, size
        offset += size + -size % ALIGN
    if offset - at - BLOCK.size != n_bytes or offset > limit:
        raise _damaged(path, f"block {n} has {n_bytes:,} bytes, which does not fit its {tokens:,} tokens")
    payload = _read(fd, path, at + BLOCK.size, n_bytes)
    if zlib.crc32(payload) != checksum:
        raise _damaged(path, f"the checksum of block {n} is another")
    spans_S4 = np.frombuffer(payload, "<u4", n_spans * 4).reshape(-1, 4).astype(np.int64)
    _check_spans(spans_S4, tokens, end, f"{path}, block {n}")
    return Block(tokens, flags, scale, at + BLOCK.size, n_bytes, places, spans_S4)


def _check_spans(spans_S4: NDArray[np.int64], n_tokens: int, end: TraceEnd, where: str) -> None:
    first, document, position, domain = spans_S4.T
    is_fine = first[0] == 0 and (np.diff(first) > 0).all() and first[-1] < n_tokens
    is_fine &= bool(document.max() < max(1, end.n_documents) and (np.diff(document) >= 0).all())
    is_fine &= bool(position.max() < MOST_DOCUMENTS - MOST_BLOCK and domain.max() < len(end.domains))
    if not is_fine:
        raise DataError(f"{where} is damaged: the list of documents makes no sense; record it again")


def _read_header(fd: int, path: Path, size: int) -> tuple[Form, int]:
    """The form, and where the blocks begin."""
    prefix = os.pread(fd, PREFIX.size, 0)
    if len(prefix) < PREFIX.size or not prefix.startswith(MAGIC):
        raise DataError(f"{path} is no routing trace: expected a file that 'coterie trace record' wrote")
    _, n, checksum = PREFIX.unpack(prefix)
    if n > MOST_HEADER or PREFIX.size + n > size:
        raise DataError(f"{path} is cut off: it ends inside its header; record it again, or copy it again")
    raw = _read(fd, path, PREFIX.size, n)
    if zlib.crc32(raw) != checksum:
        raise _damaged(path, "the checksum of the header is another")
    return parse_header(_parsed(raw, path), str(path)), PREFIX.size + n


def _read_tail(tail: bytes, raw_bytes: int, path: Path, form: Form) -> tuple[list[str], int, list[str] | None]:
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(tail, raw_bytes + 1)
    except zlib.error:
        raise _damaged(path, "its list of domains cannot be unpacked") from None
    if len(raw) != raw_bytes:
        raise _damaged(path, "its list of domains has another length than it says")
    document = _parsed(raw, path)
    domains: Any = document.get("domains")
    pieces: Any = document.get("pieces")
    n_documents = document.get("n_documents")
    if not _are_texts(domains) or len(domains) > MOST_DOMAINS or len(set(domains)) != len(domains):
        raise _damaged(path, "its list of domains is none")
    if type(n_documents) is not int or not 0 <= n_documents <= MOST_DOCUMENTS:
        raise _damaged(path, "its number of documents is none")
    if pieces is not None and (not _are_texts(pieces) or len(pieces) > form.vocab_size):
        raise _damaged(path, "its vocabulary does not fit the model's")
    return domains, n_documents, pieces


def _parsed(raw: bytes, path: Path) -> dict[str, Any]:
    """JSON whose names can be written again: an escape may spell half a surrogate pair."""
    document = parse_object(raw, str(path), DataError)
    try:
        json.dumps(document if b"\\u" in raw else None, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _damaged(path, "a name in it has half of a surrogate pair") from None
    return document


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _read(fd: int, path: Path, offset: int, n: int) -> bytes:
    raw = os.pread(fd, n, offset)
    if len(raw) != n:
        raise DataError(f"{path} is cut off: {n:,} bytes were expected at byte {offset:,}; copy or record it again")
    return raw


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path} is damaged: {what}; record it again, or copy it again")
