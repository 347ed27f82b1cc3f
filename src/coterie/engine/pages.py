"""Who holds which page: free ones, those of sequences (several may share one), and those nobody holds but that a new
text may begin with, which go when room is needed, the one that was released longest ago first.

A sequence releases its last page first, so of two that lie in one text the later is forgotten before the earlier.
"""

from coterie.engine.prefix import PrefixTree
from coterie.errors import ResourceError
from coterie.kernels.pages import PAGE, Pages

__all__ = ["PagePool"]


class PagePool:
    """`take` a page, `hold` it once more, `release` it. `n_pages` None: the store grows by doubling."""

    def __init__(self, store: Pages, tree: PrefixTree, n_pages: int | None):
        self._store, self._tree, self._can_grow = store, tree, n_pages is None
        self._holders: list[int] = []  # by page
        self._free: list[int] = []  # the lowest last
        self._unused: dict[int, None] = {}  # known to the tree, held by nobody, the oldest first
        self._grow(1 if n_pages is None else n_pages)

    @property
    def n_pages(self) -> int:
        return len(self._holders)

    @property
    def n_free(self) -> int:
        """Pages that can be taken before the store has to grow."""
        return len(self._free) + len(self._unused)

    def _grow(self, n_pages: int) -> None:
        self._free = [*range(n_pages - 1, self.n_pages - 1, -1), *self._free]
        self._holders += [0] * (n_pages - self.n_pages)
        self._store.grow(n_pages)

    def reserve(self, n: int) -> None:
        """Room for n more pages, where the store grows."""
        if self._can_grow and n > self.n_free:
            self._grow(max(2 * self.n_pages, self.n_pages + n - self.n_free))

    def take(self) -> int:
        """A page to write to. Raises `ResourceError` where all are held."""
        self.reserve(1)
        if not self._free:
            if not self._unused:
                raise ResourceError(
                    f"the cache is full: all {self.n_pages} pages of {PAGE} tokens are in use; give it more memory or "
                    "admit fewer sequences"
                )
            page = next(iter(self._unused))
            del self._unused[page]
            self._tree.forget(page)
            self._free.append(page)
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """One more sequence has it."""
        self._unused.pop(page, None)
        self._holders[page] += 1

    def release(self, page: int) -> None:
        self._holders[page] -= 1
        if self._holders[page] == 0:
            if self._tree.n_known(page):
                self._unused[page] = None
            else:
                self._free.append(page)

    def own(self, page: int, n: int) -> int:
        """A page that begins like this held one, whose places from n on nobody else counts on: itself, or a copy.

        Without a page to spare, what was remembered in it is forgotten; `ResourceError` where others hold it.
        """
        if self._holders[page] == 1:
            if self._tree.n_known(page) > n and not self._can_grow and not self.n_free:
                self._tree.forget(page)
            if self._tree.n_known(page) <= n:
                return page
        new = self.take()
        self._store.copy(page, new, n)
        self.release(page)
        return new
