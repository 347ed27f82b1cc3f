"""Write a trace: arrays come in as they are recorded, whole blocks go out, the end of the file says what is in it.

The file appears when it is whole: whatever goes wrong on the way leaves nothing behind (`checkpoint/atomic.py`).
Shapes: T tokens, L sparse layers, K slots, E experts, V vocabulary.
"""

import json
import math
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.trace_columns import pack_bitmap, pack_ids, pack_weights
from coterie.analysis.trace_form import (
    ALIGN,
    BLOCK,
    BLOCK_MAGIC,
    GUESS_UNUSED,
    INDEX,
    MOST_DOCUMENTS,
    MOST_DOMAINS,
    TRAILER,
    TRAILER_MAGIC,
    UNUSED,
    Form,
    block_tokens,
    header_bytes,
)
from coterie.checkpoint.atomic import disk_errors, new_file
from coterie.errors import DataError

__all__ = ["Rows", "TraceWriter", "make_trace"]

_Any = NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """Tokens that follow each other in one window of one document."""

    token_ids: _Any  # int [T]
    experts_TLK: _Any  # int, best first, -1 unused
    weights_TLK: _Any  # float
    domain: str
    document: int
    position: int = 0  # of the first
    guesses_TLK: _Any | None = None  # int, -1 in layer 0
    logits_TLE: _Any | None = None


@dataclass
class _End:
    """What is written last."""

    domains: dict[str, int] = field(default_factory=dict)
    n_documents: int = 0
    index: list[tuple[int, int]] = field(default_factory=list)  # of each block where it begins, and its tokens


class TraceWriter:
    """`with TraceWriter(path, form, pieces) as writer: writer.add(rows)`; documents come in ascending order."""

    def __init__(self, path: Path, form: Form, pieces: Sequence[str] | None = None):
        self.path, self.form = Path(path), form.check(str(path))
        self._pieces = None if pieces is None else list(pieces)
        self._end, self._waiting, self._n_waiting, self._document = _End(), deque[Rows](), 0, -1
        self._most = block_tokens(form)

    def __enter__(self) -> "TraceWriter":
        with ExitStack() as stack:
            stack.enter_context(disk_errors(self.path))
            self._file: BinaryIO = stack.enter_context(new_file(self.path))
            self._file.write(header_bytes(self.form))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        with self._stack:
            if error[0] is None:
                self._finish()
            else:
                self._stack.__exit__(*error)

    @property
    def n_tokens(self) -> int:
        """Of all that was added."""
        return sum(n for _, n in self._end.index) + self._n_waiting

    def add(self, rows: Rows) -> None:
        """Raises `DataError` for ids or weights that no trace can hold."""
        if len(rows.token_ids) == 0:
            return
        self._check(rows)
        self._waiting.append(rows)
        self._n_waiting += len(rows.token_ids)
        while self._n_waiting >= self._most:
            self._flush(self._most)

    def add_block(self, head: Sequence[Any], payload: bytes) -> None:
        """A block as another trace has it, its spans already renumbered (`trace_merge.py`)."""
        self._flush(self._n_waiting)
        n_tokens, n_spans, flags, scale = head
        self._write_block(n_tokens, n_spans, flags, scale, payload)

    def number_of(self, domain: str) -> int:
        """The number of a domain, a new one for a name that is new."""
        number = self._end.domains.setdefault(domain, len(self._end.domains))
        if number >= MOST_DOMAINS:
            raise DataError(f"{self.path}: more than {MOST_DOMAINS} domains; give texts fewer labels")
        return number

    def count_documents(self, n: int) -> None:
        """There are at least so many."""
        if n > MOST_DOCUMENTS:
            raise DataError(f"{self.path}: more than {MOST_DOCUMENTS} documents; record fewer")
        self._end.n_documents = max(self._end.n_documents, n)

    def _check(self, rows: Rows) -> None:
        form, T = self.form, len(rows.token_ids)
        shape = (T, form.n_layers, form.top_k)
        assert rows.experts_TLK.shape == rows.weights_TLK.shape == shape, (rows.experts_TLK.shape, shape)
        assert rows.document >= self._document, "documents come in ascending order"
        self._document = rows.document
        self.count_documents(rows.document + 1)
        self.number_of(rows.domain)
        for ids, least, bound, what in (
            (rows.experts_TLK, -1, form.n_experts, "experts"),
            (rows.guesses_TLK, -1, form.n_experts, "guesses"),
            (rows.token_ids, 0, form.vocab_size, "token ids"),
        ):
            if ids is not None and not (least <= ids.min() and ids.max() < bound):
                raise DataError(f"{self.path}: {what} go from {ids.min()} to {ids.max()}, expected below {bound}")
        assert form.has_guesses == (rows.guesses_TLK is not None) and form.has_logits == (rows.logits_TLE is not None)
        if not math.isfinite(float(rows.weights_TLK.sum())):
            raise DataError(f"{self.path}: the router's weights are not finite; check the model: coterie verify")

    def _flush(self, n: int) -> None:
        """A block of the first n tokens that wait."""
        taken = list[Rows]()
        while n:
            first = self._waiting.popleft()
            size = len(first.token_ids)
            if size > n:
                self._waiting.appendleft(_part(first, n, size))
                first, size = _part(first, 0, n), n
            taken.append(first)
            n, self._n_waiting = n - size, self._n_waiting - size
        if taken:
            self._write(taken)

    def _write(self, rows: list[Rows]) -> None:
        form, flags = self.form, 0
        tokens = np.concatenate([r.token_ids for r in rows])
        experts = _joined([r.experts_TLK for r in rows])
        weights, scale = pack_weights(np.concatenate([r.weights_TLK for r in rows]).astype(np.float32))
        spans = self._spans(rows)
        columns = [spans, tokens.astype(f"<u{form.token_bytes}"), pack_ids(experts, form.id_bits), weights]
        if (experts < 0).any():
            flags |= UNUSED
            columns.append(pack_bitmap(experts < 0))
        if form.has_guesses:
            guesses = _joined([r.guesses_TLK for r in rows])[:, 1:]
            columns.append(pack_ids(guesses, form.id_bits))
            if (guesses < 0).any():
                flags |= GUESS_UNUSED
                columns.append(pack_bitmap(guesses < 0))
        if form.has_logits:
            logits = np.concatenate([r.logits_TLE for r in rows if r.logits_TLE is not None])
            columns.append(np.ascontiguousarray(logits.transpose(1, 0, 2)).astype("<f2"))
        payload = b"".join(_padded(column.tobytes()) for column in columns)
        self._write_block(len(tokens), len(spans), flags, scale, payload)

    def _spans(self, rows: list[Rows]) -> _Any:
        """[S, 4] of u32: first row, document, position of the first row, domain. Rows that go on make one span."""
        spans, first, expected = list[tuple[int, int, int, int]](), 0, None
        for r in rows:
            key = (r.document, r.position, self.number_of(r.domain))
            if key != expected:
                spans.append((first, *key))
            first += len(r.token_ids)
            expected = (r.document, r.position + len(r.token_ids), key[2])
        return np.array(spans, dtype="<u4")

    def _write_block(self, n_tokens: int, n_spans: int, flags: int, scale: float, payload: bytes) -> None:
        fields = (BLOCK_MAGIC, n_tokens, n_spans, flags, scale, zlib.crc32(payload), len(payload), 0)
        own = zlib.crc32(BLOCK.pack(*fields, 0))
        self._end.index.append((self._file.tell(), n_tokens))
        self._file.write(BLOCK.pack(*fields, own))
        self._file.write(payload + bytes(-len(payload) % 64))

    def _finish(self) -> None:
        self._flush(self._n_waiting)
        end = self._end
        document = {"domains": list(end.domains), "n_documents": end.n_documents, "pieces": self._pieces}
        raw = json.dumps(document, ensure_ascii=False).encode()
        tail = zlib.compress(raw, 6)
        tail_at, index = self._file.tell(), b"".join(INDEX.pack(*entry) for entry in end.index)
        index_at, checksum = tail_at + len(tail), zlib.crc32(index, zlib.crc32(tail))
        n_tokens = sum(n for _, n in end.index)
        fields = (tail_at, len(tail), len(raw), index_at, len(end.index), n_tokens, checksum)
        own = zlib.crc32(TRAILER.pack(*fields, 0, TRAILER_MAGIC))
        self._file.write(tail + index + TRAILER.pack(*fields, own, TRAILER_MAGIC))


def make_trace(
    path: Path, *, experts_TLK: Any, weights_TLK: Any, token_ids: Any, n_experts: int, documents: Any = None,
    positions: Any = None, domains: Sequence[str] | None = None, domain_of_T: Any = None, guesses_TLK: Any = None,
    logits_TLE: Any = None, pieces: Sequence[str] | None = None, vocab_size: int | None = None,
    model: str = "planted", fingerprint: str = "0" * 32, **header: Any,
) -> Path:  # fmt: skip
    """Write arrays as a trace: for planted data, and for routing that was recorded elsewhere.

    `domains` names a domain for each token, or, with `domain_of_T`, the domains it counts; None: all one "text".
    """
    experts, weights, tokens = (np.asarray(a) for a in (experts_TLK, weights_TLK, token_ids))
    T, L, K = experts.shape
    of_T = np.zeros(T, dtype=np.int64) if documents is None else np.asarray(documents)
    names = _names(T, domains, domain_of_T)
    order, label_T = list(dict.fromkeys(names)), np.zeros(T, dtype=np.int64)
    if names:
        numbers: Mapping[str, int] = {name: n for n, name in enumerate(order)}
        label_T = np.array([numbers[name] for name in names], dtype=np.int64)
    starts = np.flatnonzero(np.append(True, (np.diff(of_T) != 0) | (np.diff(label_T) != 0))[:T])
    places = _places(of_T) if positions is None else np.asarray(positions)
    starts = np.union1d(starts, np.flatnonzero(np.append(False, np.diff(places) != 1)[:T]))
    V = vocab_size or max(int(tokens.max(initial=0)) + 1, len(pieces or ()))
    form = Form(
        model=model, fingerprint=fingerprint, n_experts=n_experts, top_k=K, n_layers=L, vocab_size=V,
        has_logits=logits_TLE is not None, has_guesses=guesses_TLK is not None, **header,
    )  # fmt: skip
    with TraceWriter(path, form, pieces) as writer:
        for name in domains or () if domain_of_T is not None else ():
            writer.number_of(name)
        for first, last in zip(starts, [*starts[1:], T], strict=False):
            at = slice(first, last)
            optional = [None if a is None else np.asarray(a)[at] for a in (guesses_TLK, logits_TLE)]
            writer.add(
                Rows(tokens[at], experts[at], weights[at], names[first], int(of_T[first]), int(places[first]),
                     *optional)
            )  # fmt: skip
    return Path(path)


def _names(T: int, domains: Sequence[str] | None, domain_of_T: Any) -> list[str]:
    if domain_of_T is not None:
        assert domains is not None
        return [domains[d] for d in np.asarray(domain_of_T).tolist()]
    return ["text"] * T if domains is None else list(domains)


def _places(documents_T: _Any) -> _Any:
    """0, 1, 2 ... in each document."""
    at = np.arange(len(documents_T))
    is_first = np.append(True, np.diff(documents_T) != 0)[: len(at)]
    places: _Any = at - np.maximum.accumulate(np.where(is_first, at, 0))
    return places


def _joined(parts: Sequence[_Any | None]) -> NDArray[np.int16]:
    return np.concatenate([p for p in parts if p is not None]).astype(np.int16)


def _part(rows: Rows, start: int, stop: int) -> Rows:
    at = slice(start, stop)
    optional = [None if a is None else a[at] for a in (rows.guesses_TLK, rows.logits_TLE)]
    return Rows(
        rows.token_ids[at], rows.experts_TLK[at], rows.weights_TLK[at], rows.domain, rows.document,
        rows.position + start, *optional,
    )  # fmt: skip


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % ALIGN)
