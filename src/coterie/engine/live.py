"""The sequences at work and their slots 0..B-1: how they begin, divide into samples, and leave.

Decoding reads slots 0..B-1 in one piece, so when a sequence ends, the last one moves into its place. What has been read
is kept for those who begin alike (`share`), also when a sequence is cancelled; not when it failed, since that may be
why.
"""

from coterie.engine.cache import PagedCache
from coterie.engine.memory import Memory
from coterie.engine.sequence import Event, Sequence
from coterie.engine.stats import EngineStats
from coterie.errors import ResourceError

__all__ = ["Live"]


class Live:
    """`sequences` by slot; `reading` are those of them whose prompt is not read yet."""

    def __init__(self, cache: PagedCache, max_live: int, memory: Memory | None, stats: EngineStats, share: bool):
        self._cache, self._memory, self._stats = cache, memory, stats
        self._max_live, self._share = max_live, share
        self.sequences: list[Sequence] = []
        self.reading: list[Sequence] = []
        self.has_edits = False  # some of them change the router for themselves

    def begin(self, s: Sequence) -> bool:
        """Take it up in a slot that begins with what is at hand of its prompt; False: there is no room for it yet."""
        n_slots = sum(1 if other.is_prompt_read else other.request.params.n for other in self.sequences)
        if self.sequences and n_slots + s.request.params.n > self._max_live:
            return False
        s.slot, ids = len(self.sequences), s.request.prompt_ids
        self._cache.reserve(s.slot + 1)
        self._cache.clear(s.slot)
        n = self._adopt(s)
        if self._memory is not None and not self._memory.has_room(s, self.sequences):
            self._cache.clear(s.slot)
            if self.sequences:
                return False
            n = 0  # alone it has room, if it may take the pages that it would have shared
        s.n_read = s.n_cached = n
        self.sequences.append(s)
        self.reading.append(s)
        self.has_edits = self.has_edits or s.request.experts is not None
        self._stats.prompt_tokens += len(ids)
        self._stats.prefix_queries += len(ids) if self._share else 0
        self._stats.cached_tokens += n
        return True

    def _adopt(self, s: Sequence) -> int:
        if not self._share:
            return 0
        try:
            return self._cache.adopt(s.slot, s.request.prompt_ids, s.salt)
        except ResourceError:  # a copy of a page that is not full may take more than there is: then without
            return 0

    def fork(self, first: Sequence, events: list[Event]) -> list[Sequence]:
        """The other samples of a request whose prompt has just been read, each beginning with its keys and values."""
        forks = []
        for sample in range(1, first.request.params.n):
            s = first.sibling(sample)
            s.slot, s.n_read, s.n_cached = len(self.sequences), first.n_read, first.n_cached
            self._cache.reserve(s.slot + 1)
            try:
                self._cache.copy(first.slot, s.slot)
            except Exception as e:
                self._cache.clear(s.slot)
                events.append(s.end("error", e))
                continue
            self.sequences.append(s)
            forks.append(s)
        return forks

    def remember(self, s: Sequence) -> None:
        """Keep what it has read for those who begin alike."""
        if self._share:
            self._cache.remember(s.slot, s.ids[: self._cache.lengths[s.slot]], s.salt)

    def drop_done(self) -> None:
        """Close the holes of ended sequences with the last ones, so that slots stay 0..B-1."""
        for slot in reversed(range(len(self.sequences))):
            s = self.sequences[slot]
            if not s.is_done:
                continue
            if s.finish_reason != "error":
                self.remember(s)
            self._cache.clear(slot)
            last = self.sequences.pop()
            if last is not s:
                self._cache.move(last.slot, slot)
                self.sequences[slot], last.slot = last, slot
        self.reading = [s for s in self.reading if not s.is_done]
        self.has_edits = any(s.request.experts is not None for s in self.sequences)
