"""One forward pass over parts of sequences; when it fails, smaller ones, until what fails is alone.

A pass takes the next tokens of any sequences, and a row's result does not depend on its company, so a pass may be
divided at will. What a failed pass has left in the cache lies beyond the lengths that it is put back to.
"""

import logging
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.engine.live import Live
from coterie.engine.runner import Runner
from coterie.engine.scheduler import shares
from coterie.engine.sequence import Sequence
from coterie.engine.trace import stack_routings
from coterie.errors import ResourceError
from coterie.model import Output

__all__ = ["Part", "Result", "forward", "parts_of", "restore"]

_log = logging.getLogger("coterie.engine")


@dataclass(frozen=True, slots=True)
class Part:
    """The tokens of one sequence in a pass: some of its prompt, or the token that is due and a draft of those after."""

    sequence: Sequence
    ids: Items[int]
    n_drafted: int = 0  # the last so many are guesses

    @property
    def n_logits(self) -> int:
        """How many of its rows are followed by a choice: none inside a prompt, one at its end, else all."""
        s = self.sequence
        if s.is_prompt_read:
            return len(self.ids)
        return int(s.n_read + len(self.ids) == len(s.request.prompt_ids))


@dataclass(slots=True)
class Result:
    """`logits_NV`: of the rows that parts want, in their order. Or the only part's `error`."""

    parts: Items[Part]
    output: Output | None = None
    logits_NV: Tensor | None = None
    error: Exception | None = None
    _routings: tuple[Tensor, Tensor] | None = None

    def routing(self, row: int) -> tuple[Tensor, Tensor]:
        """Experts and weights [1, L, K] of one row of the pass."""
        assert self.output is not None
        if self._routings is None:
            self._routings = stack_routings(self.output.routings, len(self.output.hidden_TD))
        experts, weights = self._routings
        return experts[row : row + 1], weights[row : row + 1]


def parts_of(live: Live, chunk: int, drafts: Items[list[int]] = ()) -> list[Part]:
    """Each decoding sequence's due token, with its draft if there are drafts, and shares of the unread prompts.

    At most `chunk` rows, a quarter of that where somebody waits for a token.
    """
    decoding = [s for s in live.sequences if s.is_prompt_read]
    drafts = drafts or [[]] * len(decoding)
    parts = [Part(s, [s.next_id, *d], len(d)) for s, d in zip(decoding, drafts, strict=True)]
    if live.reading:
        room = max(1, (chunk // 4 if parts else chunk) - len(parts))
        for s, n in zip(live.reading, shares(live.reading, room), strict=True):
            if n:
                parts.append(Part(s, s.request.prompt_ids[s.n_read : s.n_read + n]))
    return parts


def forward(runner: Runner, parts: Items[Part]) -> Iterator[Result]:
    """All parts in one pass, or in as many as it takes."""
    result = _tried(runner, parts)
    if result is not None:
        yield result
        return
    half = len(parts) // 2
    yield from forward(runner, parts[:half])
    yield from forward(runner, parts[half:])


def _tried(runner: Runner, parts: Items[Part]) -> Result | None:
    """None where the parts are to be tried apart: not within `except`, where what failed still holds its tensors."""
    try:
        edits = [p.sequence.request.experts for p in parts]
        work = [(p.sequence.slot, p.ids) for p in parts]
        output = runner.feed(work, edits if any(e is not None for e in edits) else None)
        rows = _rows_of_logits(parts)
        all_rows = len(rows) == len(output.hidden_TD)
        logits = runner.logits(output.hidden_TD if all_rows else output.hidden_TD[rows]) if rows else None
    except Exception as e:
        restore(runner, [p.sequence for p in parts])
        if len(parts) > 1:
            return None
        _log.warning("request %d failed in a pass", parts[0].sequence.number, exc_info=e)
        return Result(parts, error=_of_user(e, len(parts[0].ids)))
    return Result(parts, output, logits)


def _of_user(e: Exception, n_tokens: int) -> Exception:
    """What the caller can do something about, where that is so."""
    if not isinstance(e, torch.OutOfMemoryError):
        return e
    return ResourceError(
        f"the card's memory did not suffice for a pass of {n_tokens} tokens: leave it more, by a smaller cache "
        "(serve: --cache-gb), fewer bits (quantize) or no other program on the card"
    )


def restore(runner: Runner, sequences: Items[Sequence]) -> None:
    """Put the cache back to what each of them has read."""
    for s in sequences:
        if runner.cache.lengths[s.slot] > s.n_fed:
            runner.cache.truncate(s.slot, s.n_fed)


def _rows_of_logits(parts: Items[Part]) -> list[int]:
    rows: list[int] = []
    stop = 0
    for part in parts:
        stop += len(part.ids)
        rows += range(stop - part.n_logits, stop)
    return rows
