"""Texts that begin alike as a tree: what they share is one node, read once.

Made of sorted sequences, so that what is alike is adjacent. A share shorter than `_FEWEST` tokens is not worth a node:
another pass and a copy of the keys cost more than reading it again. Example, with shares of any length:
    a b c d       a b ┬ c d
    a b c e   →       │ └ (c shared) e
    a b x             └ x
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Node", "grow"]

_FEWEST = 8  # tokens shared that are worth a node of their own


@dataclass(slots=True, eq=False)
class Node:
    """Tokens `ids` after those of `parent`, at positions from `first`. `texts` end inside it or at its end."""

    ids: Sequence[int]
    first: int
    parent: "Node | None" = None
    children: list["Node"] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)  # places in what `grow` was given


def grow(texts: Sequence[Sequence[int]], fewest: int = _FEWEST) -> list[Node]:
    """The trees of these texts, none of which is empty; a text is what lies between a root and the node that has it."""
    order = sorted(range(len(texts)), key=lambda place: tuple(texts[place]))
    roots: list[Node] = []
    start = 0
    while start < len(order):  # texts with the same first token have a tree of their own
        stop = start + 1
        while stop < len(order) and texts[order[stop]][0] == texts[order[start]][0]:
            stop += 1
        _split(texts, order[start:stop], 0, None, roots, fewest)
        start = stop
    return roots


def _split(
    texts: Sequence[Sequence[int]], order: list[int], first: int, parent: Node | None, into: list[Node], fewest: int
) -> None:
    """Nodes for sorted texts that are alike up to `first`, all of them longer than that."""
    work = [(order, first, parent, into)]
    while work:
        order, first, parent, into = work.pop()
        for group, alike in _groups(texts, order, first, fewest):
            longest = texts[group[-1]]
            node = Node(longest[first:alike], first, parent)
            into.append(node)
            node.texts = [place for place in group if len(texts[place]) <= alike]
            rest = [place for place in group if len(texts[place]) > alike]
            if rest:
                work.append((rest, alike, node, node.children))


def _groups(texts: Sequence[Sequence[int]], order: list[int], first: int, fewest: int) -> list[tuple[list[int], int]]:
    """Neighbours that share at least `fewest` tokens from `first` on, each group with where its share ends."""
    groups: list[tuple[list[int], int]] = []
    for place in order:
        if groups:
            group, alike = groups[-1]
            shared = _alike(texts[group[-1]], texts[place], first)
            # the share of a whole group shrinks with every text that joins it
            joined = min(alike, shared)
            if joined - first >= fewest or joined == len(texts[group[0]]):
                groups[-1] = ([*group, place], joined)
                continue
        groups.append(([place], len(texts[place])))
    return groups


def _alike(a: Sequence[int], b: Sequence[int], first: int) -> int:
    """Up to which position two texts are alike."""
    stop = min(len(a), len(b))
    while first < stop and a[first] == b[first]:
        first += 1
    return first
