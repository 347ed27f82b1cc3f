"""Walk through a trace once, whatever is asked of it: each `Reader` sees every chunk and answers at the end.

Chunks keep memory small (a trace of Mixtral's shape is 100 bytes a token on disk and 400 as arrays) and each column is
read once, also for ten statistics. Ids lie slot by slot, layer by layer [K, L, T] in a chunk, so that counting walks
through memory in order. Counts are over (row, expert) for each layer: `count` is the one place that makes them.
Shapes: T tokens of a chunk, L sparse layers, K slots, E experts, R rows (blocks, tokens of the vocabulary, ...).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.blocks import Blocks, starts_of_text
from coterie.analysis.section import Section
from coterie.analysis.trace import Trace

__all__ = ["Chunk", "Progress", "Reader", "chunks", "count", "read_through", "shown_layers"]

_TOKENS, _SLOTS = 65_536, 4 << 20  # of a chunk, at most
Progress = Callable[[int, int], None]  # (done, total), in tokens


@dataclass(frozen=True)
class Chunk:
    """Tokens `start` to `start + T` of a trace; `follows_T` says which of them follow the token before in one text."""

    trace: Trace
    blocks: Blocks
    start: int
    stop: int
    follows_T: NDArray[np.bool_]

    def __len__(self) -> int:
        return self.stop - self.start

    @cached_property
    def ids_KLT(self) -> NDArray[np.int16]:
        """-1 is an unused slot; best first."""
        return np.ascontiguousarray(self.trace.experts(self.start, self.stop).transpose(2, 1, 0))

    @cached_property
    def weights_KLT(self) -> NDArray[np.float32]:
        """Made to add up to 1; 0 for unused slots."""
        weights_KLT = np.ascontiguousarray(self.trace.weights(self.start, self.stop).transpose(2, 1, 0))
        weights_KLT[self.ids_KLT < 0] = 0
        return np.asarray(weights_KLT / np.maximum(weights_KLT.sum(0), 1e-9))

    @cached_property
    def tokens_T(self) -> NDArray[np.int64]:
        return np.asarray(self.trace.token_ids[self.start : self.stop], dtype=np.int64)

    @cached_property
    def positions_T(self) -> NDArray[np.int64]:
        return np.asarray(self.trace.positions[self.start : self.stop], dtype=np.int64)

    @cached_property
    def block_T(self) -> NDArray[np.int64]:
        return self.blocks.of_T[self.start : self.stop].astype(np.int64)

    @cached_property
    def domain_T(self) -> NDArray[np.int64]:
        return self.blocks.domain_B[self.block_T]

    @cached_property
    def half_T(self) -> NDArray[np.int64]:
        return self.blocks.half_B[self.block_T]


class Reader(Protocol):
    """A statistic: it sees the chunks in order, then says what they show."""

    def add(self, chunk: Chunk) -> None: ...

    def sections(self) -> list[Section]: ...


def chunks(trace: Trace, blocks: Blocks, progress: Progress | None = None) -> Iterator[Chunk]:
    """The whole trace in order."""
    follows_T = ~starts_of_text(trace)
    step = max(min(_TOKENS, _SLOTS // max(trace.n_layers * trace.top_k, 1)), 1)
    for start in range(0, len(trace), step):
        stop = min(start + step, len(trace))
        yield Chunk(trace, blocks, start, stop, follows_T[start:stop])
        if progress:
            progress(stop, len(trace))


def read_through(
    trace: Trace, blocks: Blocks, readers: Sequence[Reader], progress: Progress | None = None
) -> list[Section]:
    """All that the readers find, in their order."""
    for chunk in chunks(trace, blocks, progress):
        for reader in readers:
            reader.add(chunk)
    return [section for reader in readers for section in reader.sections()]


def count(rows: NDArray[np.int64], ids_LT: NDArray[np.int16], n_rows: int, n_experts: int) -> NDArray[np.int64]:
    """How often each row met each expert, by layer: int64 [L, R, E]. `rows` is [T], or [L, T]; -1 in either: no count.

    Rows [0, 0, 1] and ids [[2, -1, 2]] are [[[0, 0, 1], [0, 0, 1]]]: row 0 met expert 2 once, so did row 1.
    """
    wide, size = n_experts + 1, (n_rows + 1) * (n_experts + 1)
    found = np.empty((len(ids_LT), n_rows, n_experts), dtype=np.int64)
    shared = (rows + 1) * wide + 1 if rows.ndim == 1 else None
    for layer, ids_T in enumerate(ids_LT):
        base_T = shared if shared is not None else (rows[layer] + 1) * wide + 1
        counts = np.bincount(base_T + ids_T, minlength=size).reshape(n_rows + 1, wide)
        found[layer] = counts[1:, 1:]
    return found


def shown_layers(n_layers: int, most: int = 8) -> list[int]:
    """The layers that tables by domain show: all of a few, else first, middle and last (of 32: 0, 15 and 31)."""
    return list(range(n_layers)) if n_layers <= most else [0, (n_layers - 1) // 2, n_layers - 1]
