"""The next token of each sequence after a pass; a sequence for which there is none ends, and no other.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Iterable

from torch import Tensor

from coterie.engine.sampling import choose, choose_greedy
from coterie.engine.sequence import Event, Sequence
from coterie.errors import CheckpointError

__all__ = ["at_hand", "greedy_ids", "next_event"]

_NONE = -1


def greedy_ids(logits_BV: Tensor) -> list[int]:
    """The argmax of each row, all at once; -1 where a row's logits are not finite."""
    try:
        return choose_greedy(logits_BV)
    except CheckpointError:
        return [_greedy_or_none(row_V) for row_V in logits_BV]


def at_hand(logits_BV: Tensor, sequences: Iterable[Sequence]) -> Tensor:
    """The logits where choosing computes, in one copy, if any sequence needs more than the argmax."""
    if logits_BV.is_cpu or all(s.is_plain for s in sequences):
        return logits_BV
    return logits_BV.float().cpu()


def _greedy_or_none(logits_V: Tensor) -> int:
    try:
        return choose_greedy(logits_V[None])[0]
    except CheckpointError:
        return _NONE


def next_event(s: Sequence, logits_BV: Tensor, row: int, greedy: list[int]) -> Event:
    """Choose a token by this row and write it; `greedy` has the rows' argmax. A failure is an event too."""
    try:
        if s.is_plain and greedy[row] != _NONE and s.request.params.max_tokens:
            return s.write(greedy[row], None)
        if s.request.params.max_tokens == 0:
            return s.end("length")
        if s.draw.matcher is not None and s.draw.matcher.is_done:
            return s.end("stop")
        return s.write(*choose(logits_BV[row], s.draw, len(s.output_ids)))
    except Exception as e:
        return s.end("error", e)
