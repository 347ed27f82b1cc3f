"""A text cut into windows of the context, and how surprising each scored token is in its window.

A window is one reading: BOS, then text. Neighbours overlap, so that a scored token has seen at least `context - stride`
tokens before it and every token is scored once; only the first window of a text scores tokens that have seen fewer,
for there are no more. Example, context 4, stride 2, a text a b c d e f g:
    reads BOS a b c   scores a b c d
    reads BOS c d e   scores e f         after 3 and 4 tokens
    reads BOS d e f   scores g           after 4
Windows are read as sequences are when the model generates (`engine/runner.py`), several short ones in a pass.
Shapes: T tokens of a pass, n scored rows of a window, D model width, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.config import ModelConfig
from coterie.engine.request import require_decoding
from coterie.engine.runner import CHUNK, Runner
from coterie.errors import CheckpointError, RequestError
from coterie.model import Output, Transformer
from coterie.routing import Assignment, Routing

__all__ = ["Nats", "Reader", "Seen", "Window", "check_context", "cut", "ending_at", "prefix_id"]

Nats = np.ndarray[Any, np.dtype[np.float64]]
Seen = Callable[["Window", Output], None]  # the pass's rows that predict a window's targets, for a trace

_BLOCK = 256  # rows whose logits exist together


@dataclass(frozen=True, slots=True)
class Window:
    """`ids` are read; the last `len(targets)` of them are followed by `targets`, which are scored.

    `first`: the position in the text of the first target; `text`: a number for that text.
    """

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    first: int = 0
    text: int = 0


def prefix_id(config: ModelConfig) -> int:
    """What stands before a text: BOS, or EOS where a model has no BOS, or id 0 where it has neither."""
    return next((i for i in (config.bos_token_id, *config.eos_ids) if i is not None), 0)


def check_context(context: int, limit: int, name: str = "context") -> int:
    """`context`, or a `RequestError` where the model has never seen so long a text."""
    if type(context) is not int or not 2 <= context <= limit:
        raise RequestError(
            f"{name} is {context!r}, expected a whole number of tokens from 2 to {limit}, the model's context"
        )
    return context


def cut(ids: Sequence[int], *, context: int, stride: int, prefix: int, text: int = 0) -> Iterator[Window]:
    """The windows of one text; together their targets are `ids`, each once and in order."""
    assert 1 <= stride <= context
    scored = 0
    while scored < len(ids):
        stop = min(scored + (stride if scored else context), len(ids))
        yield ending_at(ids, stop, context=context, n_scored=stop - scored, prefix=prefix, text=text)
        scored = stop


def ending_at(ids: Sequence[int], stop: int, *, context: int, n_scored: int, prefix: int, text: int = 0) -> Window:
    """The window whose last target is `ids[stop - 1]`, read after `context` tokens, `prefix` among them."""
    start = max(0, stop - context)
    return Window((prefix, *ids[start : stop - 1]), tuple(ids[stop - n_scored : stop]), stop - n_scored, text)


class Reader:
    """A model that reads windows: short ones share a pass, a long one is read a chunk at a time."""

    def __init__(self, model: Transformer):
        require_decoding(model.config)
        self._runner = Runner(model)

    @torch.inference_mode()
    def read(self, windows: Iterable[Window], seen: Seen | None = None) -> Iterator[tuple[Window, Tensor]]:
        """Each window with its scored rows [n, D], in order; `seen` gets the routing of those rows as well."""
        for group in _passes(windows):
            yield from _scored_rows(group, self._pass(group), seen)

    @torch.inference_mode()
    def logits(self, hidden_nD: Tensor) -> Iterator[Tensor]:
        """float32 logits of the rows, at most 256 at a time; a `CheckpointError` where they are not numbers."""
        for block_D in torch.split(hidden_nD, _BLOCK):
            logits_V = self._runner.logits(block_D).float()
            if not bool(torch.isfinite(logits_V.amax(-1)).all()):
                raise CheckpointError(
                    "the model answers with logits that are not numbers (NaN or infinity), so nothing can be scored: "
                    "its weights are damaged (try: coterie verify MODEL) or overflow in this dtype (try float32)"
                )
            yield logits_V

    @torch.inference_mode()
    def nats(self, hidden_nD: Tensor, targets: Sequence[int]) -> Nats:
        """-log p of each target."""
        target_n1 = torch.tensor(targets, device=hidden_nD.device)[:, None]
        blocks = zip(self.logits(hidden_nD), torch.split(target_n1, _BLOCK), strict=True)
        parts = [-logits.log_softmax(-1).gather(-1, target)[:, 0].double() for logits, target in blocks]
        return torch.cat(parts).cpu().numpy()

    def _pass(self, group: list[Window]) -> Output:
        runner = self._runner
        runner.cache.reserve(len(group))
        for slot in range(len(group)):
            runner.cache.clear(slot)
        if len(group[0].ids) > CHUNK:
            return _joined(list(runner.feed_all(0, group[0].ids)))
        return runner.feed([(slot, window.ids) for slot, window in enumerate(group)])


def _passes(windows: Iterable[Window]) -> Iterator[list[Window]]:
    """Neighbours that fit a pass of `CHUNK` tokens; a longer window is alone, and read a chunk at a time."""
    group: list[Window] = []
    room = CHUNK
    for window in windows:
        if group and len(window.ids) > room:
            yield group
            group, room = [], CHUNK
        group.append(window)
        room -= len(window.ids)
    if group:
        yield group


def _scored_rows(group: list[Window], output: Output, seen: Seen | None) -> Iterator[tuple[Window, Tensor]]:
    row = 0
    for window in group:
        row += len(window.ids)
        scored = slice(row - len(window.targets), row)
        if seen is not None:
            seen(window, Output(output.hidden_TD[scored], [_rows_of(r, scored) for r in output.routings]))
        yield window, output.hidden_TD[scored]


def _joined(outputs: list[Output]) -> Output:
    """Passes that followed one another, as one."""
    layers = zip(*(output.routings for output in outputs), strict=True)
    return Output(torch.cat([output.hidden_TD for output in outputs]), [_joined_routing(layer) for layer in layers])


def _joined_routing(parts: Sequence[Routing]) -> Assignment:
    ids, weights, logits = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("ids_TK", "weights_TK", "logits_TE")
    )
    return Assignment(ids, weights, logits, {})


def _rows_of(routing: Routing, rows: slice) -> Assignment:
    return Assignment(routing.ids_TK[rows], routing.weights_TK[rows], routing.logits_TE[rows], {})
