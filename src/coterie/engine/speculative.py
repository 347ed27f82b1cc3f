"""Drafts from a sequence's own text (prompt lookup, n-grams), and the governor that judges whether they pay.

Where the last few tokens stood before, what followed them then may follow now. The next tokens are guessed so, read in
one pass with the token that is due, and kept as far as each is the one that is chosen after the token before it: the
text is that without drafts, whatever was guessed. What costs is that more rows touch more experts, whose weights
come from memory: a dense model reads the same bytes for one row as for five, a mixture does not.

Example: after `a b c d ... a b c`, the n-gram (a, b, c) was followed by `d`; the draft is `d ...`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from coterie.quant.report import bits_of
from coterie.routing import Routing

__all__ = ["Drafter", "Governor", "distinct_experts"]

_GRAM = 3  # tokens that must agree
_SHORTEST, _LONGEST = 2, 8  # tokens of a draft
_MEMORY = 32  # passes with drafts that the sums remember
_TRIAL = 8  # passes before the first judgement
_FIRST_PAUSE, _LONGEST_PAUSE = 64, 4096  # passes


class Drafter:
    """The text of one sequence, and where each n-gram in it was last seen; a draft grows where drafts come true."""

    def __init__(self, ids: Sequence[int]):
        self._ids = list(ids)
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> the place that follows it
        self._n = _SHORTEST * 2
        for place in range(_GRAM, len(self._ids)):
            self._after[tuple(self._ids[place - _GRAM : place])] = place

    def push(self, token_id: int) -> None:
        """The text goes on with this token."""
        if len(self._ids) >= _GRAM:
            self._after[tuple(self._ids[-_GRAM:])] = len(self._ids)
        self._ids.append(token_id)

    def draft(self, most: int) -> list[int]:
        """What may come next, at most so many tokens; often nothing."""
        place = self._after.get(tuple(self._ids[-_GRAM:]))
        if place is None or most < 1:
            return []
        draft = self._ids[place : place + min(self._n, most)]
        while len(draft) < min(self._n, most):  # the text ends here: it may repeat itself
            draft += draft[: min(self._n, most) - len(draft)]
        return draft

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        """Longer drafts after one that came true, shorter ones after one that did not."""
        self._n = min(_LONGEST, 2 * self._n) if n_accepted == n_drafted else max(_SHORTEST, n_accepted + 1)


class Governor:
    """Whether drafting is on. It compares tokens for each byte of weights read, with drafts and had there been none.

    Sums fade, so that it follows the text. Where drafts lose, it pauses, twice as long each time in a row, and tries
    again.
    """

    def __init__(self, expert_bytes: float, dense_bytes: float):
        self._expert_bytes, self._dense_bytes = expert_bytes, dense_bytes
        self._pause = self._wait = 0  # passes
        self._passes = 0  # with drafts, since they were last switched on
        self._tokens = self._tokens_without = self._bytes = self._bytes_without = 0.0

    @staticmethod
    def of(model: nn.Module, n_layers: int, n_experts: int) -> "Governor":
        """With the bytes of an expert and of all that every token reads, as they are in memory."""
        found = bits_of(model)
        experts = sum(b.nbytes for b in found if b.part == "experts")
        has_head = any(b.part == "head" for b in found)  # a tied one is the embedding, otherwise read a row at a time
        dense = sum(b.nbytes for b in found if b.part != "experts" and not (has_head and b.part == "embedding"))
        return Governor(experts / max(1, n_layers * n_experts), dense)

    def may_draft(self) -> bool:
        """Asked once a pass."""
        if self._wait:
            self._wait -= 1
        return not self._wait

    def judge(self, n_tokens: int, n_accepted: int, n_experts: int, n_experts_without: int) -> None:
        """A pass with drafts: tokens it would have given without, drafted ones that came true, (layer, expert) pairs
        that its rows touched, and those of them that the drafts' rows did not add."""
        keep = 1 - 1 / _MEMORY
        self._passes += 1
        if self._passes == 1:
            self._tokens = self._tokens_without = self._bytes = self._bytes_without = 0.0
        self._tokens = keep * self._tokens + n_tokens + n_accepted
        self._tokens_without = keep * self._tokens_without + n_tokens
        self._bytes = keep * self._bytes + self._cost(n_experts)
        self._bytes_without = keep * self._bytes_without + self._cost(n_experts_without)
        if self._passes < _TRIAL:
            return
        if self._tokens * self._bytes_without <= self._tokens_without * self._bytes:
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause or _FIRST_PAUSE)
            self._wait, self._passes = self._pause, 0
        elif self._passes >= 2 * _MEMORY:
            self._pause = 0

    def _cost(self, n_experts: int) -> float:
        return self._dense_bytes + n_experts * self._expert_bytes


def distinct_experts(routings: Sequence[Routing], is_draft_T: Sequence[bool]) -> tuple[int, int]:
    """(layer, expert) pairs that a pass touched, with and without the rows of drafts."""
    due = np.flatnonzero(~np.array(is_draft_T))
    n_all = n_due = 0
    for routing in routings:
        ids_TK = routing.ids_TK.cpu().numpy()
        n_all += _n_distinct(ids_TK)
        n_due += _n_distinct(ids_TK[due])
    return n_all, n_due


def _n_distinct(ids_TK: NDArray[np.int32]) -> int:
    return int(np.count_nonzero(np.bincount(ids_TK.reshape(-1) + 1)[1:]))  # -1 is an unused slot
