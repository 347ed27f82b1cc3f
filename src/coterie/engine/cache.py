"""Keys and values of many sequences in pages of 64 tokens, which sequences that begin alike share.

A sequence has a slot; its table names the page of each 64 positions. Position p lies in page table[p // 64] at place
p % 64: positions are absolute, a sliding window only gives back the pages that no later query looks at. A page is
copied before it is written to if somebody else counts on what lies there: another slot, or the tree of what was
remembered (`prefix.py`). Where things lie changes no bit of any result.

Example, slots 0 and 1 after `copy(0, 1)` of 70 tokens: both tables are [4, 9]. Slot 1 gets token 70: page 9 goes to 2
in six places, and its table is [4, 2]. `truncate(1, 64)` gives page 2 back.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from coterie.config import ModelConfig
from coterie.engine.pages import PagePool
from coterie.engine.plan import Plan
from coterie.engine.prefix import NOWHERE, PrefixTree
from coterie.errors import ResourceError
from coterie.kernels.pages import PAGE, Pages

__all__ = ["CHUNK", "PagedCache"]

CHUNK = 512  # most prompt tokens of one pass: bounds memory, and the wait of sequences that are decoding


class PagedCache:
    """`lengths[slot]` is the number of tokens a slot has been fed. `n_pages` None: the cache grows by doubling; else a
    pass that finds no page raises `ResourceError`. `dtype` torch.int8 keeps 8 bits a number and a scale a key."""

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, device: torch.device | str = "cpu", n_pages: int | None = None
    ):
        c = config
        self.window = c.sliding_window
        self.lengths: list[int] = []
        self.store = Pages(c.num_hidden_layers, c.num_key_value_heads, c.head_dim, dtype, torch.device(device))
        self._tree = PrefixTree(self.window)
        self._pool = PagePool(self.store, self._tree, n_pages)
        self._held: list[list[int]] = []  # by slot: the page of each 64 positions, -1 out of the window
        self._room: list[int] = []  # by slot: positions below can be written to without further ado
        self._tables = torch.zeros((1, 8), dtype=torch.int32)  # `_held` as kernels read it
        self.reserve(1)

    @property
    def k(self) -> list[Tensor]:
        """Per layer [pages, 64, G, P]."""
        return self.store.k

    @property
    def v(self) -> list[Tensor]:
        return self.store.v

    @property
    def n_pages(self) -> int:
        return self._pool.n_pages

    @property
    def n_free(self) -> int:
        """Pages that no slot holds; what is remembered in them goes when they are needed."""
        return self._pool.n_free

    def pages_for(self, n_tokens: int, chunk: int = CHUNK) -> int:
        """The most pages that a sequence of so many tokens holds at once, read in passes of at most `chunk` tokens."""
        n_pages = -(-n_tokens // PAGE)
        if self.window is None:
            return n_pages
        return min(n_pages, (self.window + chunk - 3) // PAGE + 2)  # of positions anywhere: ceil((n - 1) / 64) + 1

    def reserve(self, n_slots: int, n_tokens: int = 0) -> None:
        """So many slots and, where the cache grows, room for so many tokens more."""
        n_new = n_slots - len(self.lengths)
        if n_new > 0:
            self.lengths += [0] * n_new
            self._room += [0] * n_new
            self._held += [[] for _ in range(n_new)]
            self._widen(n_slots, 0)
        if n_tokens:
            self._pool.reserve(self.pages_for(n_tokens))

    def clear(self, slot: int) -> None:
        self._cut(slot, 0)
        self.lengths[slot] = self._room[slot] = 0

    def truncate(self, slot: int, n: int) -> None:
        """Forget all but the first n tokens, as if the others had never been fed."""
        assert 0 <= n <= self.lengths[slot]
        held, oldest = self._held[slot], 0 if self.window is None else max(0, n - self.window + 1)
        assert n == 0 or held[min(oldest, n - 1) // PAGE] >= 0, "the window has given back what these tokens would see"
        self._cut(slot, -(-n // PAGE))
        self.lengths[slot] = self._room[slot] = n

    def copy(self, source: int, target: int) -> None:
        """`target` becomes the same text as `source`, in the same pages."""
        if source == target:
            return
        self.clear(target)
        n = self.lengths[source]
        self._held[target] = self._held[source][: -(-n // PAGE)]
        for page in self._held[target]:
            if page >= 0:
                self._pool.hold(page)
        self.lengths[target] = self._room[target] = self._room[source] = n
        self._show(target)

    def move(self, source: int, target: int) -> None:
        """`target` takes over the sequence of `source`, which becomes empty."""
        if source != target:
            self.clear(target)
            self._held[target], self._held[source] = self._held[source], []
            self.lengths[target], self._room[target] = self.lengths[source], self._room[source]
            self._show(target)
        self.clear(source)

    def match(self, ids: Sequence[int], salt: str = "") -> int:
        """How many of the first tokens are at hand; at least the last one is left to read."""
        return self._tree.find(ids, salt).n

    def adopt(self, slot: int, ids: Sequence[int], salt: str = "") -> int:
        """Make a slot begin with these tokens, as far as they are at hand: how many."""
        self.clear(slot)
        match = self._tree.find(ids, salt)
        held = self._held[slot] = [*match.pages, *([match.partial] if match.n_copied else [])]
        for page in held:
            if page >= 0:
                self._pool.hold(page)
        if match.n_copied:
            try:
                held[-1] = self._pool.own(match.partial, match.n_copied)
            except ResourceError:
                self.clear(slot)
                raise
        self.lengths[slot] = self._room[slot] = match.n
        self._show(slot)
        return match.n

    def remember(self, slot: int, ids: Sequence[int], salt: str = "") -> None:
        """What a slot holds, its tokens being `ids`, may be the beginning of other texts from now on."""
        n = min(len(ids), self.lengths[slot])
        self._tree.insert(ids[:n], self._held[slot], salt)

    def held(self, layer: int, slot: int) -> tuple[Tensor, Tensor]:
        """Keys and values that the next token may look at and itself takes no place of: [positions, G, P] each."""
        n = self.lengths[slot]
        at = torch.arange(0 if self.window is None else max(0, n - self.window), n)
        rows = self._tables[slot].long()[at // PAGE] * PAGE + at % PAGE
        return self.store.read(layer, rows.to(self.store.device))

    def prefill(self, work: Sequence[tuple[int, int]]) -> Plan:
        """Plan a pass over (slot, new tokens) pairs, whose rows follow one another in that order."""
        self.reserve(max(slot for slot, _ in work) + 1)
        lengths, room = self.lengths, self._room
        sequences = [(slot, lengths[slot], n) for slot, n in work]
        for slot, first, n in sequences:
            if first + n > room[slot]:
                self._prepare(slot, first, n)
        for slot, first, n in sequences:
            lengths[slot] = first + n
        return Plan(self.store, self._tables, sequences, self.window)

    def decode(self, n_sequences: int) -> Plan:
        """Plan a pass of one new token for each of the slots 0..n_sequences-1."""
        return self.prefill([(slot, 1) for slot in range(n_sequences)])

    def _prepare(self, slot: int, first: int, n: int) -> None:
        """Pages for n tokens from `first` on that nobody else counts on; those out of the window go."""
        held = self._held[slot]
        try:
            if self.window is not None:
                i = max(0, first - self.window + 1) // PAGE - 1
                while i >= 0 and held[i] >= 0:
                    self._pool.release(held[i])
                    held[i] = NOWHERE
                    i -= 1
            at, place = divmod(first, PAGE)
            if place:
                held[at] = self._pool.own(held[at], place)
            self._pool.reserve(-(-(first + n) // PAGE) - len(held))
            while len(held) * PAGE < first + n:
                held.append(self._pool.take())
        finally:
            self._show(slot)
        self._room[slot] = len(held) * PAGE

    def _cut(self, slot: int, n_pages: int) -> None:
        held = self._held[slot]
        while len(held) > n_pages:
            page = held.pop()
            if page >= 0:
                self._pool.release(page)

    def _show(self, slot: int) -> None:
        held = self._held[slot]
        self._widen(len(self.lengths), len(held))
        self._tables[slot, : len(held)] = torch.tensor(held, dtype=torch.int32)

    def _widen(self, n_slots: int, n_pages: int) -> None:
        old_slots, old_pages = self._tables.shape
        if n_slots > old_slots or n_pages > old_pages:
            n_slots = max(n_slots, old_slots if n_slots <= old_slots else 2 * old_slots)
            n_pages = max(n_pages, old_pages if n_pages <= old_pages else 2 * old_pages)
            tables = torch.zeros((n_slots, n_pages), dtype=torch.int32)
            tables[:old_slots, :old_pages] = self._tables
            self._tables = tables
