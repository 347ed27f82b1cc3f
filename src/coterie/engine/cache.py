"""Keys and values of many sequences: one slot each, growing to the text's length or, with a window, a ring of its size.

`prefill` and `decode` plan one forward pass; the plan is the `KeyValueCache` that attention sees. Native kernels read
and write the slots themselves; for torch's attention `extend` does it and says in segments what each row may look at.
Decoding sequences must sit in slots 0..B-1, so that they are one segment and no key is copied; `move` closes a hole.

Position p lives at place p % W of its slot (W the window; without one W is infinite, so place p).
Example, W = 4, after 6 tokens: places [4, 5, 2, 3]; token 6 goes to place 2, over token 2, which it may not see:
key j is visible to query i where 0 <= i - j < W, as in transformers. A chunk of 3 more tokens (6, 7, 8) attends to the
past 3..5, read from the ring before anything is overwritten, and to itself, under the mask
    key    3 4 5 6 7 8
    query 6  1 1 1 1 . .
    query 7  . 1 1 1 1 .
    query 8  . . 1 1 1 1
and leaves places [8, 5, 6, 7]. Of a chunk longer than W, only the last W tokens are kept.

Shapes: T tokens of all sequences, B sequences, S new positions of one, C places, G key/value heads, P head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.config import ModelConfig
from coterie.kernels import cached_attention, is_native
from coterie.model.attention import Rotary, Segment, attend_segments, window_mask

__all__ = ["Decode", "Prefill", "SlotCache"]

_SMALLEST = 64  # places; capacity doubles from here


class SlotCache:
    """`lengths[slot]` is the number of tokens a slot has been fed; the store grows by doubling, up to the window."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device | str = "cpu"):
        self._config, self._dtype, self.device = config, dtype, torch.device(device)
        self.window = config.sliding_window
        self.lengths: list[int] = []
        self.k: list[Tensor] = []  # per layer, [slots, places, G, P]
        self.v: list[Tensor] = []
        self.reserve(1, _SMALLEST)

    @property
    def n_places(self) -> int:
        return self.k[0].shape[1]

    def reserve(self, n_slots: int, n_positions: int) -> None:
        """Room for this many sequences of this many tokens; what is there stays."""
        n_places = n_positions if self.window is None else min(n_positions, self.window)
        old_slots, old_places = self.k[0].shape[:2] if self.k else (0, 0)
        if n_slots <= old_slots and n_places <= old_places:
            return
        n_slots = max(n_slots, old_slots)
        if n_places > old_places:
            n_places = max(n_places, 2 * old_places)
            n_places = n_places if self.window is None else min(n_places, self.window)
        n_places = max(n_places, old_places)
        self.lengths += [0] * (n_slots - len(self.lengths))
        self.k = self._grown(self.k, n_slots, n_places)
        self.v = self._grown(self.v, n_slots, n_places)

    def _grown(self, stores: list[Tensor], n_slots: int, n_places: int) -> list[Tensor]:
        c = self._config
        grown = []
        for layer in range(c.num_hidden_layers):
            # zeros, because 0 · NaN is NaN: a masked place must hold a number
            new = torch.zeros(
                (n_slots, n_places, c.num_key_value_heads, c.head_dim), dtype=self._dtype, device=self.device
            )
            if stores:
                old = stores[layer]
                new[: old.shape[0], : old.shape[1]] = old
                stores[layer] = new  # the old one goes before the next is made
            grown.append(new)
        return grown

    def clear(self, slot: int) -> None:
        self.lengths[slot] = 0

    @torch.inference_mode()
    def copy(self, source: int, target: int) -> None:
        """Make `target` a copy of `source`."""
        n = min(self.lengths[source], self.n_places)
        for store in (*self.k, *self.v):
            store[target, :n] = store[source, :n]
        self.lengths[target] = self.lengths[source]

    def move(self, source: int, target: int) -> None:
        """`target` takes over the sequence of `source`, which becomes empty."""
        if source != target:
            self.copy(source, target)
        self.clear(source)

    def held(self, layer: int, slot: int) -> tuple[Tensor, Tensor]:
        """Keys and values that a slot still holds, oldest first: [positions, G, P] each."""
        n = self.lengths[slot]
        first = 0 if self.window is None else max(0, n - self.window)
        places = self.places(first, n)
        return self.k[layer][slot].index_select(0, places), self.v[layer][slot].index_select(0, places)

    def places(self, start: int, stop: int) -> Tensor:
        """Where positions start..stop-1 live in their slot."""
        positions = torch.arange(start, stop, device=self.device)
        return positions if self.window is None else positions % self.window

    def prefill(self, work: Sequence[tuple[int, int]]) -> "Prefill":
        """Plan a pass over (slot, new tokens) pairs, whose rows follow one another in that order."""
        self.reserve(max(slot for slot, _ in work) + 1, 0)
        self.reserve(0, max(self.lengths[slot] + n for slot, n in work))
        return Prefill(self, work)

    def decode(self, n_sequences: int) -> "Decode":
        """Plan a pass of one new token for each of the slots 0..n_sequences-1."""
        self.reserve(n_sequences, max(self.lengths[:n_sequences], default=0) + 1)
        return Decode(self, n_sequences)


class _Plan:
    """One pass over new rows of some slots. `sequences_B3`: slot, first position and number of rows of each."""

    def __init__(self, cache: SlotCache, sequences: Sequence[tuple[int, int, int]]):
        self.cache = cache
        self.sequences_B3 = torch.tensor(sequences, dtype=torch.int64)

    def attend(self, layer: int, qkv: Tensor, rotary: Rotary, n_kv_heads: int) -> Tensor:
        cache = self.cache
        if is_native(qkv):
            return cached_attention(qkv, rotary, cache.k[layer], cache.v[layer], self.sequences_B3, cache.window)
        return attend_segments(self, layer, qkv, rotary, n_kv_heads)

    def extend(self, layer: int, k_TGP: Tensor, v_TGP: Tensor) -> Sequence[Segment]:
        raise NotImplementedError


class Decode(_Plan):
    """One new token for each of B sequences: one segment; a mask only where lengths differ."""

    def __init__(self, cache: SlotCache, n_sequences: int):
        lengths = cache.lengths[:n_sequences]
        cache.lengths[:n_sequences] = [n + 1 for n in lengths]
        super().__init__(cache, [(slot, n, 1) for slot, n in enumerate(lengths)])
        self._B = n_sequences
        window, stride = cache.window or (1 << 62), cache.n_places
        self._C = min(max(lengths) + 1, window)
        self.positions_T = torch.tensor(lengths, device=cache.device)
        self._rows_B = torch.tensor([slot * stride + n % window for slot, n in enumerate(lengths)], device=cache.device)
        self._first_row = lengths[0] % window
        seen = [min(n + 1, window) for n in lengths]
        self._mask_B1C = None
        if min(seen) < self._C:
            seen_B11 = torch.tensor(seen, device=cache.device)[:, None, None]
            self._mask_B1C = torch.arange(self._C, device=cache.device) < seen_B11

    def extend(self, layer: int, k_TGP: Tensor, v_TGP: Tensor) -> tuple[Segment]:
        B, C = self._B, self._C
        k, v = self.cache.k[layer], self.cache.v[layer]
        k_TGP, v_TGP = k_TGP.to(k.dtype), v_TGP.to(v.dtype)
        if B == 1:  # the same in fewer calls
            k_1CGP, v_1CGP = k.narrow(0, 0, 1).narrow(1, 0, C), v.narrow(0, 0, 1).narrow(1, 0, C)
            k_1CGP.select(1, self._first_row).copy_(k_TGP)
            v_1CGP.select(1, self._first_row).copy_(v_TGP)
            return (Segment(0, 1, k_1CGP, v_1CGP, None, False),)
        k.flatten(0, 1).index_copy_(0, self._rows_B, k_TGP)
        v.flatten(0, 1).index_copy_(0, self._rows_B, v_TGP)
        return (Segment(0, B, k[:B, :C], v[:B, :C], self._mask_B1C, False),)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One sequence's part of a prefill: rows start..stop of T, and where they go."""

    slot: int
    start: int
    stop: int
    first: int  # position of its first token
    past: Tensor | None  # places to read before writing; None: the chunk and its past fit unwrapped
    mask_1SC: Tensor | None
    kept: int  # rows written: the last `kept` of the chunk
    places: Tensor | None  # where they go; None: at `first`, one after the other


class Prefill(_Plan):
    """Several new tokens for each of some sequences: one segment per sequence."""

    def __init__(self, cache: SlotCache, work: Sequence[tuple[int, int]]):
        super().__init__(cache, [(slot, cache.lengths[slot], n) for slot, n in work])
        self._chunks: list[_Chunk] = []
        positions, row = [], 0
        for slot, n in work:
            first = cache.lengths[slot]
            cache.lengths[slot] += n
            positions.append(torch.arange(first, first + n, device=cache.device))
            self._chunks.append(self._plan(slot, row, first, n))
            row += n
        self.positions_T = torch.cat(positions)

    def _plan(self, slot: int, row: int, first: int, n: int) -> _Chunk:
        cache, W = self.cache, self.cache.window
        queries = torch.arange(first, first + n, device=cache.device)
        if W is None or first + n <= W:
            keys = torch.arange(first + n, device=cache.device)
            mask = None if first == 0 or n == 1 else window_mask(queries, keys, None)
            return _Chunk(slot, row, row + n, first, None, mask, n, None)
        oldest = max(0, first - W + 1)
        keys = torch.arange(oldest, first + n, device=cache.device)
        kept = min(n, W)
        return _Chunk(
            slot,
            row,
            row + n,
            first,
            cache.places(oldest, first),
            window_mask(queries, keys, W),
            kept,
            cache.places(first + n - kept, first + n),
        )

    def extend(self, layer: int, k_TGP: Tensor, v_TGP: Tensor) -> list[Segment]:
        k, v = self.cache.k[layer], self.cache.v[layer]
        k_TGP, v_TGP = k_TGP.to(k.dtype), v_TGP.to(v.dtype)
        return [
            self._extend(c, k[c.slot], v[c.slot], k_TGP[c.start : c.stop], v_TGP[c.start : c.stop])
            for c in self._chunks
        ]

    def _extend(self, c: _Chunk, k_CGP: Tensor, v_CGP: Tensor, k_SGP: Tensor, v_SGP: Tensor) -> Segment:
        n = c.stop - c.start
        if c.past is None or c.places is None:
            k_CGP[c.first : c.first + n], v_CGP[c.first : c.first + n] = k_SGP, v_SGP
            k, v = k_CGP[: c.first + n], v_CGP[: c.first + n]
            return Segment(c.start, c.stop, k[None], v[None], c.mask_1SC, c.mask_1SC is None and n > 1)
        k = torch.cat((k_CGP.index_select(0, c.past), k_SGP))
        v = torch.cat((v_CGP.index_select(0, c.past), v_SGP))
        k_CGP.index_copy_(0, c.places, k_SGP[n - c.kept :])
        v_CGP.index_copy_(0, c.places, v_SGP[n - c.kept :])
        return Segment(c.start, c.stop, k[None], v[None], c.mask_1SC, False)
