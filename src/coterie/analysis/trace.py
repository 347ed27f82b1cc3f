"""A routing trace, opened: arrays of which experts read which token, read from the file when they are asked for.

    trace = open_trace("run.trace")
    trace.experts(0, 1000)      # int16 [1000, L, K], best first, -1 an unused slot

Opening reads the header and the end of the file; a block's checksum is tested when the block is first read, so damage
is always found, and late. In memory stay what was asked for of tokens, documents, positions and domains (14 bytes a
token), and of each column by layer the last piece.
Shapes: T tokens, L sparse layers, K slots, E experts, V vocabulary, N blocks.
"""

import os
import weakref
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.trace_columns import unpack_bitmap, unpack_ids
from coterie.analysis.trace_file import Block, TraceEnd, read_block, read_end
from coterie.analysis.trace_form import Form
from coterie.analysis.trace_writer import make_trace
from coterie.errors import DataError

__all__ = ["Trace", "make_trace", "open_trace"]


def open_trace(path: str | Path) -> "Trace":
    """Raises `DataError` for what is no trace, is cut off, damaged or of another version."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; 'coterie trace record' writes a trace")
    if not path.is_file():
        raise DataError(f"{path} is a folder or a device; expected a trace that 'coterie trace record' wrote")
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as e:
        raise DataError(f"{path} cannot be read: {(e.strerror or str(e)).lower()}") from None
    try:
        form, end = read_end(fd, path)
        return Trace(path, fd, form, end)
    except BaseException:
        os.close(fd)
        raise


class Trace:
    """`start`, `stop`: tokens as in a slice; `layer`: one of the L sparse layers, None for all."""

    def __init__(self, path: Path, fd: int, form: Form, end: TraceEnd):
        self.path, self.form, self._fd, self._end = path, form, fd, end
        self._close = weakref.finalize(self, os.close, fd)
        self._first_N = np.concatenate([[0], np.cumsum(end.tokens_N)]).astype(np.int64)
        self._blocks: dict[int, Block] = {}
        self._last: dict[str, tuple[int, NDArray[np.uint8]]] = {}
        self.model, self.fingerprint = form.model, form.fingerprint
        self.n_experts, self.top_k, self.n_layers = form.n_experts, form.top_k, form.n_layers
        self.vocab_size = form.vocab_size
        self.domains, self.n_documents = end.domains, end.n_documents
        self.header: dict[str, Any] = asdict(form)

    def __len__(self) -> int:
        return int(self._first_N[-1])

    def close(self) -> None:
        """The file; also done when nobody holds the trace any more."""
        self._close()

    @property
    def pieces(self) -> list[str] | None:
        """The vocabulary's V pieces as its file spells them; None where the model had no tokenizer."""
        return self._end.pieces

    @cached_property
    def token_ids(self) -> NDArray[np.int32]:
        """int32 [T]."""
        ids_T = np.empty(len(self), dtype=np.int32)
        for n, at, part, _ in self._walk(0, len(self)):
            ids_T[at] = self._column(n, "tokens").view(f"<u{self.form.token_bytes}")[part]
        if len(ids_T) and not 0 <= ids_T.min() <= ids_T.max() < self.vocab_size:
            raise self._damaged("a token id beyond the vocabulary")
        return ids_T

    @cached_property
    def documents(self) -> NDArray[np.int32]:
        """int32 [T], ascending: which document a token is of."""
        return self._of_spans(1)

    @cached_property
    def positions(self) -> NDArray[np.int32]:
        """int32 [T]: a token's place in its window; the next window of a long document begins at 0 again."""
        return self._of_spans(2) + np.arange(len(self), dtype=np.int32) - self._of_spans(0)

    @cached_property
    def domain_of_T(self) -> NDArray[np.int16]:
        """int16 [T], an index into `domains`."""
        return self._of_spans(3).astype(np.int16)

    def experts(self, start: int = 0, stop: int | None = None, layer: int | None = None) -> NDArray[np.int16]:
        """int16 [T, L, K], or [T, K] of a layer: best first, -1 an unused slot."""
        return self._ids("experts", "unused", start, stop, layer, self.n_layers)

    def weights(self, start: int = 0, stop: int | None = None, layer: int | None = None) -> NDArray[np.float32]:
        """float32 as `experts`, in steps of 1/255 (of the largest in a block, where weights exceed 1)."""
        first, last, layers = self._asked(start, stop, layer)
        found = np.empty((last - first, len(layers), self.top_k), dtype=np.float32)
        for n, at, part, T in self._walk(first, last):
            raw = self._column(n, "weights").reshape(self.n_layers, T, self.top_k)
            step = np.float32(self.block(n).scale / 255)
            found[at] = raw[layers.start : layers.stop, part].transpose(1, 0, 2) * step
        return found if layer is None else found[:, 0]

    def logits(self, start: int = 0, stop: int | None = None, layer: int | None = None) -> NDArray[np.float32] | None:
        """float32 [T, L, E] or [T, E], kept in 16 bits; None where they were not recorded."""
        if not self.form.has_logits:
            return None
        first, last, layers = self._asked(start, stop, layer)
        found = np.empty((last - first, len(layers), self.n_experts), dtype=np.float32)
        for n, at, part, T in self._walk(first, last):
            raw = self._column(n, "logits").view("<f2").reshape(self.n_layers, T, self.n_experts)
            found[at] = raw[layers.start : layers.stop, part].transpose(1, 0, 2)
        return found if layer is None else found[:, 0]

    def guesses(self, start: int = 0, stop: int | None = None, layer: int | None = None) -> NDArray[np.int16] | None:
        """int16 as `experts`: what each layer's router says to the input of the layer before; -1 in layer 0."""
        if not self.form.has_guesses:
            return None
        first, last, _ = self._asked(start, stop, layer)
        none = np.full((last - first, 1, self.top_k), -1, dtype=np.int16)
        if self.n_layers == 1 or layer in (0, -self.n_layers):
            return none if layer is None else none[:, 0]
        inner = None if layer is None else layer % self.n_layers - 1
        found = self._ids("guesses", "guess_unused", first, last, inner, self.n_layers - 1)
        return np.concatenate([none, found], axis=1) if layer is None else found

    def block(self, n: int) -> Block:
        """The n-th block's head and spans, its checksum tested."""
        if n not in self._blocks:
            self._blocks[n] = read_block(self._fd, self.path, self.form, self._end, n)
        return self._blocks[n]

    @property
    def n_blocks(self) -> int:
        return len(self._end.tokens_N)

    def payload(self, n: int) -> bytes:
        """The bytes of the n-th block, for whoever copies it."""
        block = self.block(n)
        return os.pread(self._fd, block.n_bytes, block.offset)

    def _ids(
        self, name: str, unused: str, start: int, stop: int | None, layer: int | None, n_layers: int
    ) -> NDArray[np.int16]:
        first, last, layers = self._asked(start, stop, layer, n_layers)
        K = self.top_k
        found = np.empty((last - first, len(layers), K), dtype=np.int16)
        for n, at, part, _ in self._walk(first, last):
            slots = part.start * K, part.stop * K
            packed = self._column(n, name).reshape(n_layers, -1)[layers.start : layers.stop]
            ids_LN = unpack_ids(packed, self.form.id_bits, *slots)
            if ids_LN.max(initial=0) >= self.n_experts or ids_LN.min(initial=0) < 0:
                raise self._damaged("the id of an expert that the model does not have")
            if unused in self.block(n).places:
                bitmap = self._column(n, unused).reshape(n_layers, -1)[layers.start : layers.stop]
                ids_LN[unpack_bitmap(bitmap, *slots)] = -1
            found[at] = ids_LN.reshape(len(layers), -1, K).transpose(1, 0, 2)
        return found if layer is None else found[:, 0]

    def _asked(
        self, start: int, stop: int | None, layer: int | None, n_layers: int | None = None
    ) -> tuple[int, int, range]:
        first, last, _ = slice(start, stop).indices(len(self))
        layers = range(self.n_layers if n_layers is None else n_layers)
        if layer is not None:
            layers = range(layers[layer], layers[layer] + 1)
        return first, max(first, last), layers

    def _walk(self, first: int, last: int) -> Iterator[tuple[int, slice, slice, int]]:
        """(block, where in the answer, where in the block, tokens of the block)."""
        origin, n = first, int(np.searchsorted(self._first_N, first, side="right")) - 1
        while first < last:
            begin, end = int(self._first_N[n]), int(self._first_N[n + 1])
            stop = min(end, last)
            if stop > first:
                yield n, slice(first - origin, stop - origin), slice(first - begin, stop - begin), end - begin
            first, n = stop, n + 1

    def _column(self, n: int, name: str) -> NDArray[np.uint8]:
        """The bytes of a column of a block; the last one of each column is kept."""
        if name in self._last and self._last[name][0] == n:
            return self._last[name][1]
        offset, size = self.block(n).places[name]
        raw = os.pread(self._fd, size, offset)
        if len(raw) != size:
            raise self._damaged("fewer bytes than when it was opened")
        self._last[name] = n, np.frombuffer(raw, np.uint8)
        return self._last[name][1]

    def _of_spans(self, field: int) -> NDArray[np.int32]:
        """One of (first row of the span, document, position of the first row, domain) for each token."""
        found_T = np.empty(len(self), dtype=np.int32)
        for n, at, _, T in self._walk(0, len(self)):
            spans_S4 = self.block(n).spans_S4
            lengths_S = np.diff(np.append(spans_S4[:, 0], T))
            values_S = spans_S4[:, field] + (self._first_N[n] if field == 0 else 0)
            found_T[at] = np.repeat(values_S, lengths_S)
        return found_T

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self.path} is damaged: it holds {what}; record it again")
