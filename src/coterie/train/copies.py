"""Copying exercises: rows in which a shuffled piece of text comes again and again.

A model learns late, and from few places in ordinary text, to look for what followed the last time it saw a token
(induction heads, arXiv 2209.11895), though that is half of predicting code. In these rows nothing else helps: the
piece has no grammar, and its length differs from row to row, so neither habit nor position gives the next token away.
The first time round nothing can be known and nothing is counted.
"""

from typing import Any

import numpy as np

__all__ = ["NOT_COUNTED", "copying_row"]

NOT_COUNTED = -1
_SHORTEST, _LONGEST = 12, 160  # tokens of a piece; lengths are log-uniform
Ids = np.ndarray[Any, Any]


def copying_row(ids: Ids, length: int, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """A row [length] of a shuffled piece of `ids` again and again, and its targets (int64).

    Example, a piece 7 5 9 in a row of 8: the row is 7 5 9 7 5 9 7 5, its targets - - - 7 5 9 7 5 (-: `NOT_COUNTED`).
    """
    longest = max(1, min(_LONGEST, len(ids), length // 2))
    n = int(np.exp(rng.uniform(np.log(min(_SHORTEST, longest)), np.log(longest))))
    start = int(rng.integers(len(ids) - n + 1))
    piece = rng.permutation(np.asarray(ids[start : start + n], dtype=np.int64))
    row = np.tile(piece, -(-length // n))[:length]
    targets = row.copy()
    targets[:n] = NOT_COUNTED
    return row, targets
