"""Tokens to batches: cut into windows, drawn in a fixed order, mixed by weight.

Batch `step` is a function of (seed, step) alone, so a resumed run goes on at the very token where it stopped.
Every row starts with BOS: evaluation windows and prompts do too. Shapes: B rows, S positions.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from coterie.errors import DataError
from coterie.train.tokens import TokenFile

__all__ = ["Batch", "Batches"]

_NOT_COUNTED = -1


class Batch(NamedTuple):
    """Row = [BOS, window without its last], target = window; int64 [B, S] each. A target of -1 is not trained on."""

    ids_BS: Tensor
    targets_BS: Tensor
    documents_BS: Tensor | None  # where attention is masked between documents: the number of each position's one

    def map(self, f: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch of what `f` makes of each tensor."""
        return Batch(f(self.ids_BS), f(self.targets_BS), None if self.documents_BS is None else f(self.documents_BS))

    def to(self, device: torch.device) -> "Batch":
        """On a card without waiting for what it is doing."""
        return self.map(
            lambda t: t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t.to(device)
        )

    def chunk(self, n: int) -> "list[Batch]":
        """The rows in n equal parts: a step's micro-batches."""
        size = len(self.ids_BS) // n
        return [self.map(lambda t, at=at: t[at : at + size]) for at in range(0, n * size, size)]  # type: ignore[misc]


class Batches:
    """Windows of every file in a seeded order without replacement, mixed by weight.

    `plan` is [(first step, sequence length), ...]; `tokens` is B·S of a step, the same in every phase. `is_masked`:
    rows say where their documents are, and a document's last token (EOS) is not asked how the next one begins.
    """

    def __init__(
        self,
        files: Sequence[TokenFile],
        weights: Sequence[float],
        plan: list[tuple[int, int]],
        steps: int,
        tokens: int,
        bos: int,
        seed: int,
        *,
        is_masked: bool = False,
    ):
        self.files, self.plan, self.bos, self.tokens = list(files), plan, bos, tokens
        self.is_masked = is_masked
        share = np.array(weights if weights else [len(f.ids) for f in files], dtype=np.float64)
        ends = [start for start, _ in plan[1:]] + [steps]
        self._phases = [
            self._draw(np.random.default_rng([seed, i]), share / share.sum(), (end - start) * tokens // length, length)
            for i, ((start, length), end) in enumerate(zip(plan, ends, strict=True))
        ]

    def _draw(self, rng: np.random.Generator, share: np.ndarray, n_rows: int, length: int) -> np.ndarray:
        """int32 [n_rows, 2]: file and window of each row; a file's windows are all used before one comes again."""
        chosen = rng.choice(len(self.files), size=n_rows, p=share).astype(np.int32)
        rows = np.stack([chosen, np.zeros_like(chosen)], axis=1)
        for i, file in enumerate(self.files):
            n_windows, mine = len(file.ids) // length, np.flatnonzero(chosen == i)
            if n_windows == 0 and share[i] > 0 and n_rows:  # also where chance would pass it by
                raise DataError(
                    f"{file.name} has {len(file.ids)} tokens, fewer than one sequence of {length}; give it more text "
                    "or choose a shorter [train] sequence"
                )
            orders = [rng.permutation(n_windows) for _ in range(-(-len(mine) // max(1, n_windows)))]
            if orders:
                rows[mine, 1] = np.concatenate(orders)[: len(mine)]
        return rows

    def sequence(self, step: int) -> int:
        """The length of the sequences of a step."""
        return self.plan[self._phase(step)][1]

    def _phase(self, step: int) -> int:
        return max(i for i, (start, _) in enumerate(self.plan) if start <= step)

    def batch(self, step: int) -> Batch:
        """The rows of a step."""
        places = self._windows(step)
        windows = [file.ids[at : at + n].astype(np.int64) for file, at, n in places]
        targets_BS = torch.from_numpy(np.stack(windows))
        ids_BS = torch.cat((torch.full((len(windows), 1), self.bos), targets_BS[:, :-1]), 1)
        if not self.is_masked:
            return Batch(ids_BS, targets_BS, None)
        pairs = [_documents(file, at, n) for file, at, n in places]
        documents_BS, is_next_BS = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
        return Batch(ids_BS, targets_BS.masked_fill(is_next_BS, _NOT_COUNTED), documents_BS)

    def rows(self, step: int) -> list[dict[str, Any]]:
        """Where each row of a step comes from: `{"file": name, "first_token": n, "tokens": S}`."""
        return [{"file": file.name, "first_token": at, "tokens": n} for file, at, n in self._windows(step)]

    def _windows(self, step: int) -> list[tuple[TokenFile, int, int]]:
        """File, first token and number of tokens of each row."""
        phase = self._phase(step)
        first, length = self.plan[phase]
        n_rows = self.tokens // length
        drawn = self._phases[phase][(step - first) * n_rows :][:n_rows]
        return [(self.files[f], int(window) * length, length) for f, window in drawn]


def _documents(file: TokenFile, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a row's positions: the document each belongs to, and whether its target is in the next one already (bool).

    Position j holds id start + j - 1 of the file, and BOS, at 0, belongs to what follows it. Example: ids a b EOS c d
    of two documents are the row BOS a b EOS c with documents 0 0 0 0 1; its EOS is not asked for c.
    """
    document = file.documents(start, start + length)
    return np.r_[document[:1], document[:-1]], np.r_[False, document[1:] != document[:-1]]
