"""Record the routing of forward passes into a trace.

    with Recorder(lm, path) as recorder:
        recorder.add(ids, output, "fr")      # the output of any pass over exactly these tokens

Only plain models with experts that each token chooses can be recorded: a soft router mixes tokens. What is added is
copied at once and packed a block at a time. Shapes: T tokens, L sparse layers, K slots, E experts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from coterie.analysis.trace_form import Form
from coterie.analysis.trace_writer import Rows, TraceWriter
from coterie.config import ModelConfig
from coterie.engine.fingerprint import fingerprint, text_digest
from coterie.engine.guesses import watch
from coterie.engine.runner import CHUNK, Runner
from coterie.engine.trace import stack_routings
from coterie.errors import DataError, RequestError
from coterie.model import Output, Transformer
from coterie.routing import Assignment
from coterie.tokenizer import Tokenizer

__all__ = ["Recordable", "Recorder", "Window", "read_windows", "require_recordable"]

_MOST_TOGETHER = 32  # windows of one pass


class Recordable(Protocol):
    """What a recorder needs of a language model."""

    name: str
    model: Transformer

    @property
    def has_tokenizer(self) -> bool: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens that are read from an empty cache; `continues`: they go on in the document of the window before."""

    ids: Sequence[int]
    domain: str
    continues: bool = False


def require_recordable(config: ModelConfig, name: str) -> None:
    """`RequestError` for a model that has no choice of experts to record."""
    if not config.is_sparse:
        raise RequestError(f"{name} is a dense model: it has no experts, so there is no routing to record")
    if config.router.kind == "soft":
        raise RequestError(
            f"{name} has a soft router, whose experts read mixtures of tokens: no token is sent to an expert, so there "
            "is no routing to record"
        )


class Recorder:
    """A trace that is being written; `close`, or the end of the with block, makes the file, an exception none."""

    def __init__(self, lm: Recordable, path: Path, *, logits: bool = False, guess: bool = False):
        config = lm.model.config
        require_recordable(config, lm.name)
        E = config.num_local_experts or 0
        self._slots = E if config.router.kind == "expert_choice" else config.num_experts_per_tok
        pieces = _pieces(lm.tokenizer, config.vocab_size) if lm.has_tokenizer else None
        form = Form(
            model=lm.name, fingerprint=fingerprint(lm.model), tokenizer=text_digest(pieces) if pieces else "",
            n_experts=E, top_k=self._slots, n_layers=config.num_hidden_layers, vocab_size=config.vocab_size,
            has_logits=logits, has_guesses=guess, is_normalised=_is_normalised(config),
        )  # fmt: skip
        self.model, self._guesses = watch(lm.model) if guess else (lm.model, [])
        self._document = -1
        self._writer = TraceWriter(Path(path), form, pieces)
        self._writer.__enter__()
        self._is_open = True

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._is_open:
            self._is_open = False
            self._writer.__exit__(*error)

    def close(self) -> None:
        """Finish the file."""
        self.__exit__(None, None, None)

    @property
    def form(self) -> Form:
        """What the header says."""
        return self._writer.form

    @property
    def n_tokens(self) -> int:
        return self._writer.n_tokens

    @property
    def n_documents(self) -> int:
        return self._document + 1

    def add(
        self, ids: Sequence[int], output: Output, domain: str, *, position: int = 0, continues: bool | None = None
    ) -> None:
        """The tokens of a pass, the first of them at a `position` in what the model read. `continues`: they are of the
        same document as the last ones, and not another; None: where the position is not 0."""
        self.add_pass([(ids, domain, position, position > 0 if continues is None else continues)], output)

    def add_pass(self, parts: Iterable[tuple[Sequence[int], str, int, bool]], output: Output) -> None:
        """A pass over several texts: (ids, domain, position, continues) of each, in the order of the rows."""
        experts, weights = stack_routings(output.routings, len(output.hidden_TD))
        logits = self._logits(output) if self._writer.form.has_logits else None
        experts, weights = self._filled(experts, -1), self._filled(weights, 0)
        guesses = self._take_guesses(experts) if self._writer.form.has_guesses else None
        start = 0
        for ids, domain, position, continues in parts:
            at = slice(start, start := start + len(ids))
            if self._document < 0 or not continues:
                self._document += 1
            optional = [None if t is None else t[at].numpy() for t in (guesses, logits)]
            columns = np.array(ids), experts[at].numpy(), weights[at].numpy()
            self._writer.add(Rows(*columns, domain, self._document, position, *optional))
        assert start == len(experts), f"{start} ids of {len(experts)} rows"

    def _logits(self, output: Output) -> Tensor:
        routings = [r for r in output.routings if isinstance(r, Assignment)]
        return torch.stack([r.logits_TE for r in routings], 1).half().cpu()

    def _take_guesses(self, experts_TLK: Tensor) -> Tensor:
        """As the experts; nothing says anything to layer 0."""
        taken = [self._filled(ids.cpu(), -1) for ids in self._guesses]
        self._guesses.clear()
        n_layers = self._writer.form.n_layers
        if len(taken) != n_layers - 1:
            raise DataError("guesses come from passes of the recorder's own model only: run recorder.model")
        return torch.stack([torch.full_like(experts_TLK[:, 0], -1), *taken], 1)

    def _filled(self, t: Tensor, filler: int) -> Tensor:
        """As many slots as the trace has, by unused ones at the end."""
        missing = self._slots - t.shape[-1]
        return pad(t, (0, missing), value=filler) if missing > 0 else t


def read_windows(recorder: Recorder, windows: Iterable[Window]) -> Iterator[int]:
    """Read each window from an empty cache and record it; yields the tokens of each pass. Short ones share a pass."""
    runner = Runner(recorder.model)
    config = recorder.model.config
    most = _MOST_TOGETHER if config.router.can_decode else 1
    for group in _groups(windows, most):
        for slot in range(len(group)):
            runner.cache.reserve(slot + 1)
            runner.cache.clear(slot)
        if len(group) > 1 or not config.router.can_decode:
            recorder.add_pass(
                [(w.ids, w.domain, 0, w.continues) for w in group],
                runner.feed([(slot, w.ids) for slot, w in enumerate(group)]),
            )
            yield sum(len(w.ids) for w in group)
            continue
        (window,), position = group, 0
        for output in runner.feed_all(0, window.ids):
            part = window.ids[position : position + len(output.hidden_TD)]
            recorder.add(part, output, window.domain, position=position, continues=window.continues or position > 0)
            position += len(part)
            yield len(part)


def _groups(windows: Iterable[Window], most: int) -> Iterator[list[Window]]:
    """Neighbours that fit a pass together; a longer one alone."""
    group: list[Window] = []
    n = 0
    for window in windows:
        if group and (n + len(window.ids) > CHUNK or len(group) == most):
            yield group
            group, n = [], 0
        group.append(window)
        n += len(window.ids)
    if group:
        yield group


def _is_normalised(config: ModelConfig) -> bool:
    """Whether the weights of a token add up to 1."""
    kind = config.router.kind
    if kind in ("topk", "noisy_topk", "sigmoid_bias"):
        return config.norm_topk_prob and config.router.scale == 1
    return kind in ("gshard", "hash", "random", "dense")


def _pieces(tokenizer: Tokenizer, vocab_size: int) -> list[str]:
    return [tokenizer.piece(i) for i in range(min(vocab_size, tokenizer.vocab_size))]
