"""What the kernels of attention need to know of a pass, on the card: made once, used by every layer.

Sequences of one new row come before those of several, since each kind has kernels of its own; `start_B` says where
the rows of each lie. Everything goes there in one copy that nobody waits for.
Example: sequences (slot 2, first 7, n 3) and (slot 0, first 64, n 1), with tables 0: [4, 9] and 2: [5, 0], become
    start_B [3, 0], first_B [64, 7], count_B [1, 3], tables [[4, 9], [5, 0]], n_single 1

Shapes: T rows of all sequences, B sequences.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from coterie.kernels.pages import PAGE

__all__ = ["Batch"]

_Part = tuple[int, int, int, int]  # slot, first position, number of rows, first row
_ALIGNED = 4  # int32 numbers: each part begins at 16 bytes, so that a kernel is compiled once; tables end in pairs


class Batch:
    """`tables` int32 [B, n]: the page of each 64 positions; `longest`: the most new rows of a sequence."""

    def __init__(self, n_sequences: int, n_pages: int, device: torch.device):
        B, width = n_sequences, _aligned(max(1, n_pages))
        at = _aligned(B)
        self._on_card = torch.zeros(3 * at + B * width, dtype=torch.int32, device=device)
        self.start_B, self.first_B, self.count_B, self.tables = _parts(self._on_card, B, at)
        self.n_rows, self.n_single, self.longest, self.is_decode = B, B, 1, True
        self._arrivals: Tensor | None = None

    @staticmethod
    def of(tables: Tensor, sequences: Sequence[tuple[int, int, int]], device: torch.device) -> "Batch":
        """`sequences`: slot, first position and number of new rows, as their rows follow one another in T."""
        n_pages = max((-(-(first + n) // PAGE) for _, first, n in sequences), default=1)
        parts, row = list[_Part](), 0
        for slot, first, n in sequences:
            if n:
                parts.append((slot, first, n, row))
            row += n
        batch = Batch(len(parts), n_pages, device)
        batch._fill(tables, parts)
        return batch

    @staticmethod
    def empty(n_sequences: int, n_pages: int, device: torch.device) -> "Batch":
        """For `fill`: one row a sequence, again and again in the same memory, as a graph wants it."""
        return Batch(n_sequences, n_pages, device)

    def fill(self, tables: Tensor, sequences: Sequence[tuple[int, int, int]]) -> None:
        """Other sequences, of one row each or none; those that are left have none. Rows of T without one give 0."""
        B = len(self.start_B)
        assert len(sequences) <= B and all(n <= 1 for _, _, n in sequences)
        parts = [(*sequence, row) for row, sequence in enumerate(sequences)]
        self._fill(tables, [*parts, *[(0, 0, 0, row) for row in range(len(parts), B)]])

    def arrivals(self, n: int) -> Tensor:
        """Counters that are 0 between two kernels; the first call makes them."""
        if self._arrivals is None or len(self._arrivals) < n:
            self._arrivals = torch.zeros(n, dtype=torch.int32, device=self._on_card.device)
        return self._arrivals

    def _fill(self, tables: Tensor, parts: list["_Part"]) -> None:
        B, width = self.tables.shape
        parts.sort(key=lambda part: part[2] > 1)  # stable
        counts_of = [n for _, _, n, _ in parts]
        self.n_single = sum(n <= 1 for n in counts_of)
        self.n_rows = sum(max(n, 1) for n in counts_of)
        self.longest = max(counts_of, default=0)
        self.is_decode = self.n_single == B
        is_card = self._on_card.device.type == "cuda"
        host = torch.zeros(len(self._on_card), dtype=torch.int32, pin_memory=is_card)
        start, first_, count, wanted = _parts(host, B, _aligned(B))
        if parts:
            slots, firsts, counts, starts = zip(*parts, strict=True)
            start.copy_(torch.tensor(starts))
            first_.copy_(torch.tensor(firsts))
            count.copy_(torch.tensor(counts))
            n_pages = min(width, tables.shape[1])
            wanted[:, :n_pages] = tables[torch.tensor(slots), :n_pages]
        self._on_card.copy_(host, non_blocking=is_card)  # torch keeps pinned memory until the copy is done


def _aligned(n: int) -> int:
    return -(-n // _ALIGNED) * _ALIGNED


def _parts(x: Tensor, B: int, at: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x[:B], x[at : at + B], x[2 * at : 2 * at + B], x[3 * at :].view(B, -1) if B else x.view(0, 4)
