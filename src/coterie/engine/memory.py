"""Pages that sequences may yet need, so that no sequence is begun that memory could not carry to its end.

A sequence needs pages for its prompt and all of `max_tokens`; with a sliding window, for the window and what one pass
brings. Samples share the full pages of their prompt, where no window gives them back. What a sequence holds already,
also together with others, is not needed again; but its last page counts as not held, since others may hold it too, and
then it is copied when it is written to.
"""

from collections.abc import Iterable

from coterie.engine.cache import PagedCache
from coterie.engine.request import Request
from coterie.engine.sequence import Sequence
from coterie.errors import ResourceError
from coterie.kernels.pages import PAGE

__all__ = ["Memory"]


class Memory:
    """Over a cache of a fixed number of pages; `chunk` is the most tokens that a pass brings to one sequence."""

    def __init__(self, cache: PagedCache, chunk: int):
        self._cache, self._chunk = cache, chunk

    def worst(self, request: Request) -> int:
        """Pages of all samples at their longest."""
        n_prompt = len(request.prompt_ids)
        pages = self._most(n_prompt + request.params.max_tokens)
        shared = max(0, self._most(n_prompt + 1) - 1) if self._cache.window is None else 0  # full ones
        return pages + (request.params.n - 1) * (pages - shared)

    def check(self, request: Request) -> None:
        """Raises `ResourceError` for one that could not even be carried alone."""
        pages, n_pages, params = self.worst(request), self._cache.n_pages, request.params
        if pages > n_pages:
            raise ResourceError(
                f"the prompt's {len(request.prompt_ids)} tokens plus max_tokens {params.max_tokens}, n {params.n}, may "
                f"take {pages * PAGE} tokens of the cache, which has {n_pages * PAGE}: shorten the prompt, lower "
                "max_tokens or n, or give the cache more memory"
            )

    def has_room(self, s: Sequence, live: Iterable[Sequence]) -> bool:
        """Whether this one, whose slot holds what it shares with others, can be begun beside those at work."""
        return sum(self._owed(other) for other in live) + self._owed(s) <= self._cache.n_free

    def _owed(self, s: Sequence) -> int:
        """Pages that it may still take."""
        length, window = self._cache.lengths[s.slot], self._cache.window
        seen = length if window is None else min(length, window - 1)
        held = max(0, self._cache.pages_for(seen) - 1)
        return (self._most(s.most_tokens) if s.is_prompt_read else self.worst(s.request)) - held

    def _most(self, n_tokens: int) -> int:
        return self._cache.pages_for(n_tokens, self._chunk)
