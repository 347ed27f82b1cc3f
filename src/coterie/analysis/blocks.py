"""The blocks of a trace: pieces of text that may be taken for independent of each other, which single tokens may not.

Neighbouring tokens are alike, so a million tokens of forty documents say about as much as forty numbers do. Every
interval and test here therefore counts blocks. A block is a document. Where a domain has many, neighbours are put
together; where it has few, they are cut into pieces, and the intervals are then too narrow in so far as pieces of a
document are alike (`is_cut` says so). Shapes: T tokens, B blocks, N segments (runs of one document in one domain).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.trace import Trace

__all__ = ["Blocks", "blocks_of", "starts_of_segments", "starts_of_text"]

_MOST, _LEAST, _PIECES, _SHORTEST = 2000, 8, 32, 32  # blocks of all domains; of a domain; when cut; tokens of a piece


@dataclass(frozen=True)
class Blocks:
    """`of_T` int32, the block of each token; `domain_B`; `half_B` 0 or 1, so that a rule may be learnt on one half of
    the blocks and tried on the other."""

    of_T: NDArray[np.int32]
    domain_B: NDArray[np.int64]
    half_B: NDArray[np.int64]
    is_cut: bool
    n_documents: int

    def __len__(self) -> int:
        return len(self.domain_B)

    def of_domain(self, domain: int | None) -> NDArray[np.int64]:
        """The blocks of a domain, or all."""
        return np.flatnonzero(self.domain_B == domain) if domain is not None else np.arange(len(self))


def starts_of_text(trace: Trace) -> NDArray[np.bool_]:
    """Which tokens follow nothing: the first of a document, of a window, and of a domain. -> bool [T]."""
    starts_T = np.ones(len(trace), dtype=bool)
    if len(trace) > 1:
        positions_T = trace.positions
        starts_T[1:] = _changes(trace) | (positions_T[1:] != positions_T[:-1] + 1)
    return starts_T


def starts_of_segments(trace: Trace) -> NDArray[np.int64]:
    """Where each run of one document in one domain begins [N]."""
    return np.flatnonzero(np.append(True, _changes(trace))[: len(trace)])


def blocks_of(trace: Trace, *, most: int = _MOST) -> Blocks:
    """At most about `most` blocks in all; at least 8 of each domain, where it has 32 tokens for each."""
    start_N = starts_of_segments(trace)
    length_N = np.diff(np.append(start_N, len(trace)))
    domain_N = np.asarray(trace.domain_of_T)[start_N].astype(np.int64)
    of_T = np.empty(len(trace), dtype=np.int32)
    domains, ranks, n_blocks, is_cut = [], [], 0, False
    per_domain = max(most // max(len(trace.domains), 1), _LEAST)
    for domain in range(len(trace.domains)):
        mine = np.flatnonzero(domain_N == domain)
        if len(mine) == 0:
            continue
        cut = len(mine) < _LEAST and int(length_N[mine].sum()) >= _LEAST * _SHORTEST
        block_of = _pieces(length_N[mine]) if cut else _together(length_N[mine], per_domain)
        for n, block in zip(mine, block_of, strict=True):
            of_T[start_N[n] : start_N[n] + length_N[n]] = block + n_blocks
        found = int(block_of[-1][-1]) + 1
        domains += [domain] * found
        ranks += list(range(found))
        n_blocks, is_cut = n_blocks + found, is_cut or cut
    half_B = np.array(ranks, dtype=np.int64) % 2
    return Blocks(of_T, np.array(domains, dtype=np.int64), half_B, is_cut, len(start_N))


def _changes(trace: Trace) -> NDArray[np.bool_]:
    """Where a token has another document or domain than the one before it: bool [T - 1]."""
    documents_T, domain_T = np.asarray(trace.documents), np.asarray(trace.domain_of_T)
    return np.asarray((documents_T[1:] != documents_T[:-1]) | (domain_T[1:] != domain_T[:-1]))


def _together(length_N: NDArray[np.int64], most: int) -> list[NDArray[np.int64]]:
    """A block for each document; where there are more than `most`, blocks of about as many tokens each."""
    block_N = np.arange(len(length_N))
    if len(length_N) > most:
        middle_N = np.cumsum(length_N) - length_N / 2
        block_N = np.unique((middle_N * most / length_N.sum()).astype(np.int64), return_inverse=True)[1]
    return list(block_N[:, None])


def _pieces(length_N: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Documents cut into about 32 pieces in all, none over a document's end: for each the block of each token."""
    piece = max(int(length_N.sum()) // _PIECES, _SHORTEST)
    blocks, first = [], 0
    for length in length_N:
        n = max(round(length / piece), 1)
        blocks.append(first + np.arange(length) * n // length)
        first += n
    return blocks
