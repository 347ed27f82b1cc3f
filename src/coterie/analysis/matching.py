"""The best way to pair the rows of a square table with its columns, one each: the sum of the chosen cells is largest.

The Hungarian method as shortest augmenting paths (Jonker and Volgenant 1987): rows are added one after the other, each
along the path that costs least under prices of the columns. O(E³), exact. [[1, 5], [4, 9]] gives [0, 1], a sum of 10.
Shapes: E rows and columns.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_matching"]


def best_matching(gain_EE: NDArray[Any]) -> NDArray[np.int64]:
    """For each row its column [E]."""
    cost = -np.asarray(gain_EE, dtype=np.float64)
    E = len(cost)
    row_price, column_price = np.zeros(E), np.zeros(E)
    row_of = np.full(E, -1, dtype=np.int64)  # of each column
    for row in range(E):
        came_from = np.full(E, -1, dtype=np.int64)  # the column before on the path; -1: the path begins at `row`
        reach, is_done = np.full(E, np.inf), np.zeros(E, dtype=bool)
        at, column, travelled = row, -1, 0.0
        while True:
            ahead = travelled + cost[at] - row_price[at] - column_price
            is_nearer = ~is_done & (ahead < reach)
            reach[is_nearer], came_from[is_nearer] = ahead[is_nearer], column
            column = int(np.where(is_done, np.inf, reach).argmin())
            travelled, is_done[column] = float(reach[column]), True
            if row_of[column] < 0:
                break
            at = int(row_of[column])
        _reprice(row_price, column_price, row, row_of, reach, is_done, travelled)
        while column >= 0:
            before = int(came_from[column])
            row_of[column] = row if before < 0 else row_of[before]
            column = before
    matched = np.empty(E, dtype=np.int64)
    matched[row_of] = np.arange(E)
    return matched


def _reprice(
    row_price: NDArray[np.float64],
    column_price: NDArray[np.float64],
    row: int,
    row_of: NDArray[np.int64],
    reach: NDArray[np.float64],
    is_done: NDArray[np.bool_],
    travelled: float,
) -> None:
    """Keep every chosen cell at reduced cost 0: what was reached before the end pays the difference."""
    row_price[row] += travelled
    passed = np.flatnonzero(is_done & (row_of >= 0))
    row_price[row_of[passed]] += travelled - reach[passed]
    column_price[passed] -= travelled - reach[passed]
