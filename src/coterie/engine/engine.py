"""Requests in, tokens out: sequences join and leave at every step, prompts are read while others decode.

A call of `step` is one forward pass: one new token of every sequence that is decoding, with a draft of those after it
where drafts are on, and beside them prompt tokens: up to `chunk` rows in all, a quarter of that where somebody waits
for a token. The n samples of a request share the reading of its prompt, and requests that begin alike share what the
cache has kept. What goes wrong with one sequence is its own end and nobody else's. A step's events come in no order
between sequences.
"""

import os
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import replace

import torch
from torch import Tensor

from coterie.engine.choosing import at_hand, greedy_ids, next_event
from coterie.engine.live import Live
from coterie.engine.memory import Memory
from coterie.engine.passes import Part, Result, forward, parts_of, restore
from coterie.engine.request import Request
from coterie.engine.runner import Runner
from coterie.engine.scheduler import Waiting
from coterie.engine.sequence import Event, Sequence
from coterie.engine.speculative import Drafter, Governor, distinct_experts
from coterie.engine.stats import EngineStats
from coterie.errors import RequestError
from coterie.kernels.pages import PAGE
from coterie.model import Transformer
from coterie.tokenizer import Tokenizer

__all__ = ["Engine"]

_CACHE_TYPES = {"auto": None, "int8": torch.int8}


class Engine:
    """`add` requests, then `step` until `is_idle`; or `run` a list of them.

    `cache_tokens` None: the cache grows with the texts. A number: it holds so many tokens, and a request waits until it
    can be carried to its end. `chunk`: most prompt tokens of a pass; None: what the device likes. `cache_type` "int8"
    keeps keys and values in 8 bits. `speculate`: drafts from the text itself, where they pay. `share`: begin with what
    the cache has kept of earlier prompts and texts.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        *,
        max_live: int = 32,
        chunk: int | None = None,
        cache_tokens: int | None = None,
        cache_type: str = "auto",
        speculate: bool = False,
        share: bool = True,
    ):
        if cache_type not in _CACHE_TYPES:
            raise RequestError(f"cache_type is {cache_type!r}, expected {' or '.join(_CACHE_TYPES)}")
        if cache_tokens is not None and cache_tokens < 1:
            raise RequestError(f"cache_tokens is {cache_tokens}, expected 1 or more, or None for a cache that grows")
        n_pages = None if cache_tokens is None else -(-cache_tokens // PAGE)
        self.runner = Runner(model, n_pages=n_pages, cache_dtype=_CACHE_TYPES[cache_type])
        self._cache = self.runner.cache
        self._tokenizer = tokenizer
        self._chunk = chunk = chunk or self.runner.chunk
        config = model.config
        n_layers, n_experts = (config.num_hidden_layers, config.num_local_experts or 0) if config.is_sparse else (0, 0)
        self.stats = EngineStats.of(n_layers, n_experts)
        self._governor = Governor.of(model, n_layers, n_experts) if speculate else None
        self._memory = None if n_pages is None else Memory(self._cache, max(chunk, 16))
        self._live = Live(self._cache, max_live, self._memory, self.stats, share)
        self._waiting = Waiting()
        self._blocked: Sequence | None = None  # its turn, but there is no room; nothing has ended since
        self._n_requests = 0

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._live.sequences

    @property
    def n_running(self) -> int:
        """Requests at work."""
        return len({s.number for s in self._live.sequences})

    @property
    def n_waiting(self) -> int:
        return self._waiting.n_requests

    @property
    def n_waiting_tokens(self) -> int:
        """Of their prompts."""
        return self._waiting.n_tokens

    @property
    def cache_usage(self) -> float:
        """The share of pages, 0 to 1, that sequences at work hold."""
        return 1 - self._cache.n_free / self._cache.n_pages

    def add(self, request: Request) -> int:
        """Queue a request (checked against the model here) and return its number."""
        config = self.runner.model.config
        request.params.check_model(config, len(request.prompt_ids))
        if request.experts is not None:
            request.experts.check(config)
        if self._memory is not None:
            self._memory.check(request)
        seed = request.params.seed
        if seed is None:
            seed = int.from_bytes(os.urandom(7), "little")
        self._waiting.add(Sequence.of(self._n_requests, request, 0, seed, config.eos_ids, self._tokenizer))
        self._n_requests += 1
        return self._n_requests - 1

    def run(self, requests: Items[Request]) -> Iterator[Event]:
        """Events of all of them until the last has ended; the requests are numbered from 0. A failure is raised."""
        for request in requests:
            self.add(request)
        while not self.is_idle:
            for event in self.step():
                if event.cause is not None:
                    raise event.cause
                yield event

    @torch.inference_mode()
    def cancel(self, number: int) -> None:
        """Forget a request wherever it is; no more events come from it."""
        self._waiting.cancel(number)
        for s in self._live.sequences:
            if s.number == number:
                s.finish_reason, s.pending = "stop", None
        self._drop_done()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One forward pass and what it brought."""
        if self._waiting.n_requests:
            self._admit()
        if not self._live.sequences:
            return []
        events = self._pass()
        has_ended = False
        for event in events:
            if event.token_id is not None:
                self.stats.generated_tokens += 1
            if event.finish_reason is not None:
                has_ended = True
        if has_ended:
            self._drop_done()
        return events

    def _admit(self) -> None:
        """Take up those whose turn it is, while there is room for them."""
        while self._waiting and (s := self._waiting.next(self._live.sequences)) is not self._blocked:
            if not self._live.begin(s):
                self._blocked = s
                return
            self._waiting.take(s)

    def _drop_done(self) -> None:
        self._live.drop_done()
        self._blocked = None
        if not self._live.sequences:
            self.stats.count()

    def _pass(self) -> list[Event]:
        if not self._live.reading:
            if self._governor is None or not self._governor.may_draft():
                return self._decode()
            drafts = [s.draft() for s in self._live.sequences]
            return self._mixed(parts_of(self._live, self._chunk, drafts)) if any(drafts) else self._decode()
        return self._mixed(parts_of(self._live, self._chunk))

    def _decode(self) -> list[Event]:
        """One new token of each sequence: what `_mixed` does in fewer calls, where nothing is special."""
        live, output = self._live.sequences, None
        try:
            edits = [s.request.experts for s in live] if self._live.has_edits else None
            output = self.runner.step([s.next_id for s in live], edits)
            logits_BV = self.runner.logits(output.hidden_TD)
        except Exception:
            restore(self.runner, live)
            output = None
        if output is None:  # not within `except`, where what failed still holds its tensors
            return self._mixed(parts_of(self._live, self._chunk))
        self.stats.add_pass(output.routings)
        events: list[Event] = []
        if waiting := [s for s in live if s.pending is not None]:
            result = Result((), output)
            for s in waiting:
                self._release(s, result.routing(s.slot), events)
        greedy = greedy_ids(logits_BV)
        logits_BV = at_hand(logits_BV, live)
        for s in live:
            if s.finish_reason is None:
                self._hold(s, next_event(s, logits_BV, s.slot, greedy), events)
        return events

    def _mixed(self, parts: list[Part]) -> list[Event]:
        """A pass of any parts of sequences, or several where one fails."""
        events: list[Event] = []
        for result in forward(self.runner, parts):
            if result.error is not None:
                self._fail(result.parts[0].sequence, result.error, events)
            else:
                self._take(result, events)
        return events

    def _take(self, result: Result, events: list[Event]) -> None:
        """Go on with each sequence by what the pass has brought."""
        assert result.output is not None
        self.stats.add_pass(result.output.routings)
        greedy = [] if result.logits_NV is None else greedy_ids(result.logits_NV)
        if result.logits_NV is not None:
            result.logits_NV = at_hand(result.logits_NV, [part.sequence for part in result.parts])
        row = at = n_accepted = 0
        for part in result.parts:
            n_logits = part.n_logits
            if part.sequence.is_prompt_read:
                n_accepted += self._advance(part, result, greedy, row, at, events)
            else:
                self._read(part, result, greedy, at, events)
            row += len(part.ids)
            at += n_logits
        if any(part.n_drafted for part in result.parts):
            self._judge(result, n_accepted)

    def _read(self, part: Part, result: Result, greedy: list[int], at: int, events: list[Event]) -> None:
        """A part of a prompt; at its end all samples begin to write."""
        s = part.sequence
        s.n_read += len(part.ids)
        if s.request.wants_progress:
            progress = s.n_read, len(s.request.prompt_ids)
            events.append(Event(s.number, 0, None, "", n_cached=s.n_cached, progress=progress))
        if not s.is_prompt_read:
            return
        assert result.logits_NV is not None
        self._live.reading.remove(s)
        self._live.remember(s)
        for member in (s, *self._live.fork(s, events)):
            if self._governor is not None and member.draw.matcher is None:
                member.drafter = Drafter(s.request.prompt_ids)
            self._hold(member, next_event(member, result.logits_NV, at, greedy), events)

    def _advance(self, part: Part, result: Result, greedy: list[int], row: int, at: int, events: list[Event]) -> int:
        """The token that was due and those of the draft that come true; how many of the draft did."""
        s, n_before = part.sequence, part.sequence.n_fed
        assert result.logits_NV is not None
        n_used = 0
        for token_id in part.ids:
            if token_id != s.next_id:
                break
            if s.pending is not None:
                self._release(s, result.routing(row + n_used), events)
            n_used += 1
            if s.finish_reason is not None:
                break
            self._hold(s, next_event(s, result.logits_NV, at + n_used - 1, greedy), events)
            if s.is_done:
                break
        if part.n_drafted:
            self._cache.truncate(s.slot, n_before + n_used)
            self.stats.drafted += part.n_drafted
            self.stats.accepted += n_used - 1
            if s.drafter is not None:
                s.drafter.learn(part.n_drafted, n_used - 1)
        return n_used - 1

    def _judge(self, result: Result, n_accepted: int) -> None:
        assert result.output is not None and self._governor is not None
        is_draft_T = [i > 0 for part in result.parts for i in range(len(part.ids))]
        self._governor.judge(len(result.parts), n_accepted, *distinct_experts(result.output.routings, is_draft_T))

    def _hold(self, s: Sequence, event: Event, events: list[Event]) -> None:
        """Give the event out, or keep it until its token's routing is known."""
        if s.wants_routing and event.token_id is not None:
            s.pending = event
        else:
            events.append(event)

    def _release(self, s: Sequence, routing: tuple[Tensor, Tensor], events: list[Event]) -> None:
        assert s.pending is not None
        s.pending.routing = routing
        events.append(s.pending)
        s.pending = None

    def _fail(self, s: Sequence, error: Exception, events: list[Event]) -> None:
        """End a sequence, and with a prompt all samples that were to come."""
        events.append(s.end("error", error))
        for sample in range(1, 1 if s.is_prompt_read else s.request.params.n):
            events.append(replace(events[-1], sample=sample))
