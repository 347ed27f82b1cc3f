"""One forward pass over new rows of some sequences: the `KeyValueCache` that attention sees.

Native kernels and those of a card find keys through the page tables. For torch's attention `extend` writes the new
keys, gathers those a sequence may look at, and says in segments who attends to what: neighbours of one new token each
are one segment, any other sequence is its own. Example, window 4, 6 tokens in the cache, 3 more: keys 3..8 are
gathered, under the mask
    key    3 4 5 6 7 8
    query 6  1 1 1 1 . .
    query 7  . 1 1 1 1 .
    query 8  . . 1 1 1 1

Shapes: T tokens of all sequences, B sequences, S new positions of one, C keys, G key/value heads, P head width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coterie.kernels import cached_attention, gpu, is_native
from coterie.kernels.pages import PAGE, Pages
from coterie.model.attention import Rotary, Segment, attend_segments, window_mask

if TYPE_CHECKING:
    from coterie.kernels.triton_attention import Batch

__all__ = ["Plan"]


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows start..stop of T and where the keys lie that they may look at: [C] of one sequence, or [B, C]."""

    start: int
    stop: int
    rows: Tensor | slice
    mask_BSC: Tensor | None
    is_causal: bool


class Plan:
    """`sequences`: slot, first position and number of new rows of each; `tables` [slots, pages of one], int32."""

    def __init__(self, store: Pages, tables: Tensor, sequences: Sequence[tuple[int, int, int]], window: int | None):
        self.store, self.tables, self.window = store, tables, window
        self.sequences = sequences
        self._rows_T: Tensor | None = None
        self._parts: list[_Part] = []

    @cached_property
    def positions_T(self) -> Tensor:
        at = [p for _, first, n in self.sequences for p in range(first, first + n)]
        return torch.tensor(at, device=self.store.device)

    @cached_property
    def sequences_B3(self) -> Tensor:
        return torch.tensor(self.sequences, dtype=torch.int64)

    @cached_property
    def batch(self) -> "Batch":
        """What the kernels of a card need to know, there."""
        return gpu.batch_of(self.tables, self.sequences, self.store.device)

    def attend(self, layer: int, qkv: Tensor, rotary: Rotary, n_kv_heads: int) -> Tensor:
        if is_native(qkv):
            return cached_attention(qkv, rotary, self.store, layer, self.tables, self.sequences_B3, self.window)
        if gpu.is_usable(qkv):
            return gpu.attention(qkv, rotary, self.store, layer, self.batch, self.window)
        return attend_segments(self, layer, qkv, rotary, n_kv_heads)

    def extend(self, layer: int, k_TGP: Tensor, v_TGP: Tensor) -> list[Segment]:
        """Keep the new keys and values; who may look at what."""
        if self._rows_T is None:  # the same in every layer
            self._rows_T = torch.cat([self._rows(slot, first, n) for slot, first, n in self.sequences])
            self._parts = list(self._planned())
        self.store.write(layer, self._rows_T, k_TGP, v_TGP)
        segments = []
        for part in self._parts:
            k, v = self.store.read(layer, part.rows)
            if k.ndim == 3:
                k, v = k.unsqueeze(0), v.unsqueeze(0)
            segments.append(Segment(part.start, part.stop, k, v, part.mask_BSC, part.is_causal))
        return segments

    def _rows(self, slot: int, first: int, n: int) -> Tensor:
        """Where n positions of a slot lie: [n]."""
        at = torch.arange(first, first + n)
        return (self.tables[slot].long()[at // PAGE] * PAGE + at % PAGE).to(self.store.device)

    def _planned(self) -> Iterator[_Part]:
        row, singles = 0, list[tuple[int, int, int]]()
        for slot, first, n in [*self.sequences, (0, 0, 0)]:
            if n != 1 and singles:
                yield self._singles(row - len(singles), singles)
                singles = []
            if n == 1:
                singles.append((slot, first, n))
            elif n:
                yield self._chunk(row, slot, first, n)
            row += n

    def _oldest(self, first: int) -> int:
        return 0 if self.window is None else max(0, first - self.window + 1)

    def _chunk(self, row: int, slot: int, first: int, n: int) -> _Part:
        oldest, stop = self._oldest(first), first + n
        keys = self._view(slot, oldest, stop)
        if n == 1:
            return _Part(row, row + 1, keys, None, False)
        if first == 0 and (self.window is None or n <= self.window):
            return _Part(row, row + n, keys, None, True)
        at = torch.arange(oldest, stop, device=self.store.device)
        return _Part(row, row + n, keys, window_mask(at[first - oldest :], at, self.window), False)

    def _view(self, slot: int, oldest: int, stop: int) -> Tensor | slice:
        """The keys of one sequence: a slice, which copies nothing, where its pages follow one another."""
        pages = self.tables[slot, oldest // PAGE : (stop - 1) // PAGE + 1].tolist()
        if pages == list(range(pages[0], pages[0] + len(pages))):
            start = pages[0] * PAGE + oldest % PAGE
            return slice(start, start + stop - oldest)
        return self._rows(slot, oldest, stop - oldest)

    def _singles(self, row: int, sequences: Sequence[tuple[int, int, int]]) -> _Part:
        """One new token for each of some sequences; a mask only where they see different numbers of keys."""
        if len(sequences) == 1:
            return self._chunk(row, *sequences[0])
        rows = [self._rows(slot, self._oldest(first), first + 1 - self._oldest(first)) for slot, first, _ in sequences]
        C = max(map(len, rows))
        # what is missing is the sequence's own last key: nobody meets numbers of another, not even behind a mask
        rows_BC = torch.stack([torch.cat((r, r[-1:].expand(C - len(r)))) for r in rows])
        mask_B1C = None
        if min(map(len, rows)) < C:
            seen_B11 = torch.tensor([len(r) for r in rows], device=self.store.device)[:, None, None]
            mask_B1C = torch.arange(C, device=self.store.device) < seen_B11
        return _Part(row, row + len(rows), rows_BC, mask_B1C, False)
