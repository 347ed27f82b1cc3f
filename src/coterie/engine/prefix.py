"""Which pages hold which tokens: a tree whose path from the root is a text, a page of it at each node.

A node is a page of 64 tokens, or fewer at an end; its children are what followed. Tokens are compared, not digests, so
no two texts are ever taken for one another. Under different salts nothing is shared. A page that a sliding window or an
eviction took leaves a hole: the node stays while it has children, and a text may be continued across it where the
window sees no hole.

Example, pages of 4, after "a b c d e f" and "a b c d e x y z u": root - (abcd) - (ef) and (abcd) - (exyz) - (u). Of the
text "a b c d e f g", 6 tokens are at hand: the page (abcd) and 2 tokens to copy of (ef).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from coterie.kernels.pages import PAGE

__all__ = ["NOWHERE", "Match", "PrefixTree"]

Tokens = tuple[int, ...]
NOWHERE = -1


@dataclass(slots=True, eq=False)
class _Node:
    tokens: Tokens
    parent: "_Node | None"
    page: int = NOWHERE
    children: "dict[Tokens, _Node]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Match:
    """The first `n` tokens are at hand: in `pages` (-1 where the window no longer looks) and, the last `n_copied` of
    them, at the beginning of page `partial`."""

    n: int
    pages: list[int]
    partial: int = NOWHERE
    n_copied: int = 0


class PrefixTree:
    """`find` a beginning, `insert` pages; `n_known[page]` tokens of a page are in the tree."""

    def __init__(self, window: int | None = None):
        self._window = window
        self._roots: dict[str, _Node] = {}
        self._at: dict[int, _Node] = {}  # by page

    def n_known(self, page: int) -> int:
        """How many tokens of a page must stay what they are; 0: it is in no text."""
        node = self._at.get(page)
        return 0 if node is None else len(node.tokens)

    def find(self, ids: Sequence[int], salt: str = "") -> Match:
        """The longest beginning that can be used and leaves one token to read."""
        node, path = self._roots.get(salt), list[_Node]()
        limit = len(ids) - 1
        while node is not None and (len(path) + 1) * PAGE <= limit:
            node = node.children.get(tuple(ids[len(path) * PAGE : (len(path) + 1) * PAGE]))
            if node is not None:
                path.append(node)
        hole = [NOWHERE]  # by how many pages: the last of them that is not there
        for i, x in enumerate(path):
            hole.append(i if x.page < 0 else hole[-1])
        for n_pages in range(len(path), -1, -1):
            at = path[n_pages - 1] if n_pages else self._roots.get(salt)
            n_copied, partial = self._best_child(at, ids[n_pages * PAGE : min(limit, (n_pages + 1) * PAGE)])
            for n, page in ((n_pages * PAGE + n_copied, partial), (n_pages * PAGE, NOWHERE)):
                first = min(n_pages, 0 if self._window is None else max(0, n - self._window + 1) // PAGE)
                if n and hole[n_pages] < first:
                    pages = [NOWHERE] * first + [x.page for x in path[first:n_pages]]
                    return Match(n, pages, page, n - n_pages * PAGE)
        return Match(0, [])

    @staticmethod
    def _best_child(node: _Node | None, ids: Sequence[int]) -> tuple[int, int]:
        """How many of the next tokens some child's page begins with, and that page."""
        best, page = 0, NOWHERE
        for child in node.children.values() if node is not None and len(ids) else ():
            if child.page >= 0 and child.tokens[0] == ids[0] and (n := _n_common(child.tokens, ids)) > best:
                best, page = n, child.page
        return best, page

    def insert(self, ids: Sequence[int], pages: Sequence[int], salt: str = "") -> None:
        """These pages hold these tokens, the last one perhaps not full. What is known already stays where it is."""
        node = self._roots.setdefault(salt, _Node((), None))
        for start, page in zip(range(0, len(ids), PAGE), pages, strict=False):
            tokens = tuple(ids[start : start + PAGE])
            child = node.children.get(tokens)
            if child is None:
                child = self._extended(node, tokens, page) or self._added(node, tokens)
            if child.page < 0 <= page and page not in self._at:
                child.page, self._at[page] = page, child
            node = child
        self._prune(node)

    def _extended(self, parent: _Node, tokens: Tokens, page: int) -> _Node | None:
        """The node of this page, which held the first of these tokens when it was last seen."""
        node = self._at.get(page)
        if node is None or node.parent is not parent or node.tokens != tokens[: len(node.tokens)]:
            return None
        del parent.children[node.tokens]
        node.tokens, parent.children[tokens] = tokens, node
        return node

    @staticmethod
    def _added(parent: _Node, tokens: Tokens) -> _Node:
        node = parent.children[tokens] = _Node(tokens, parent)
        return node

    def forget(self, page: int) -> None:
        """The page will hold something else."""
        node = self._at.pop(page)
        node.page = NOWHERE
        self._prune(node)

    def _prune(self, node: _Node) -> None:
        """Holes that lead nowhere go."""
        while node.parent is not None and node.page < 0 and not node.children:
            del node.parent.children[node.tokens]
            node = node.parent
        if node.parent is None and not node.children:
            self._roots = {salt: root for salt, root in self._roots.items() if root is not node}


def _n_common(a: Sequence[int], b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)
