"""Requests in, tokens out: sequences are admitted, their prompts read in chunks, and all of them decoded together.

Every call of `step` is one forward pass: over prompts while any is unread, else over one new token of each live
sequence. Live sequences sit in slots 0..B-1; when one ends, the last moves into its place. The n samples of a request
share the reading of its prompt. A step's events come in no order between sequences.
"""

import os
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from coterie.engine.request import Request
from coterie.engine.runner import CHUNK, Runner
from coterie.engine.sampling import choose, choose_greedy
from coterie.engine.sequence import Event, Sequence
from coterie.engine.trace import stack_routings
from coterie.model import Output, Transformer
from coterie.tokenizer import Tokenizer

__all__ = ["Engine"]


class Engine:
    """`add` requests, then `step` until `is_idle`; or `run` a list of them."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer | None = None, *, max_live: int = 32, chunk: int = CHUNK
    ):
        self.runner = Runner(model)
        self._tokenizer = tokenizer
        self._max_live, self._chunk = max_live, chunk
        self._waiting: deque[Sequence] = deque()  # one for each request: its sample 0
        self._live: list[Sequence] = []  # by slot
        self._n_requests = 0

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._live

    def add(self, request: Request) -> int:
        """Queue a request (checked against the model here) and return its number."""
        config = self.runner.model.config
        request.params.check_model(config, len(request.prompt_ids))
        seed = request.params.seed
        if seed is None:
            seed = int.from_bytes(os.urandom(7), "little")
        number, self._n_requests = self._n_requests, self._n_requests + 1
        self._waiting.append(Sequence.of(number, request, 0, seed, config.eos_ids, self._tokenizer))
        return number

    def run(self, requests: Items[Request]) -> Iterator[Event]:
        """Events of all of them until the last has ended; the requests are numbered from 0."""
        for request in requests:
            self.add(request)
        while not self.is_idle:
            yield from self.step()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One forward pass and what it brought."""
        self._admit()
        work = self._unread()
        return self._read(work) if work else self._decode()

    def cancel(self, number: int) -> None:
        """Forget a request wherever it is; no more events come from it."""
        self._waiting = deque(s for s in self._waiting if s.number != number)
        for s in self._live:
            if s.number == number:
                s.finish_reason, s.pending = "stop", None
        self._drop_done()

    def _admit(self) -> None:
        n_slots = sum(1 if s.is_prompt_read else s.request.params.n for s in self._live)
        while self._waiting:
            first = self._waiting[0]
            n_slots += first.request.params.n
            if n_slots > self._max_live and self._live:
                return
            first.slot = len(self._live)
            self._live.append(self._waiting.popleft())
            self.runner.cache.reserve(len(self._live), 0)
            self.runner.cache.clear(first.slot)

    def _unread(self) -> list[tuple[Sequence, Items[int]]]:
        """The next prompt tokens, at most `chunk` of them, of the sequences that come first."""
        room = self._chunk
        work: list[tuple[Sequence, Items[int]]] = []
        for s in self._live:
            if room and not s.is_prompt_read:
                part = s.request.prompt_ids[s.n_read : s.n_read + room]
                work.append((s, part))
                room -= len(part)
        return work

    def _read(self, work: Items[tuple[Sequence, Items[int]]]) -> list[Event]:
        output = self.runner.feed([(s.slot, part) for s, part in work])
        row, ready, rows = -1, [], []
        for s, part in work:
            row += len(part)
            s.n_read += len(part)
            if s.is_prompt_read:
                ready.append(s)
                rows.append(row)
        if not ready:
            return []
        hidden_BD = output.hidden_TD[rows]
        families = [[s, *self._forks(s)] for s in ready]
        logits_BV = self.runner.logits(hidden_BD)[[i for i, family in enumerate(families) for _ in family]]
        return self._write([s for f in families for s in f], logits_BV)

    def _forks(self, first: Sequence) -> list[Sequence]:
        """The other samples of a request whose prompt has just been read, each with a copy of its keys and values."""
        eos_ids = self.runner.model.config.eos_ids
        forks = []
        for sample in range(1, first.request.params.n):
            s = Sequence.of(first.number, first.request, sample, first.draw.seed, eos_ids, self._tokenizer)
            s.slot, s.n_read = len(self._live), first.n_read
            self._live.append(s)
            self.runner.cache.reserve(len(self._live), 0)
            self.runner.cache.copy(first.slot, s.slot)
            forks.append(s)
        return forks

    def _decode(self) -> list[Event]:
        if not self._live:
            return []
        output = self.runner.step([s.next_id for s in self._live])
        routed = self._routed(output)
        return routed + self._write(self._live, self.runner.logits(output.hidden_TD))

    def _routed(self, output: Output) -> list[Event]:
        """The events that were waiting for the routing of this pass."""
        waiting = [s for s in self._live if s.pending is not None]
        if not waiting:
            return []
        experts, weights = stack_routings(output.routings, len(self._live))
        events = []
        for s in waiting:
            assert s.pending is not None
            s.pending.routing = experts[s.slot : s.slot + 1], weights[s.slot : s.slot + 1]
            events.append(s.pending)
            s.pending = None
        return events

    def _write(self, sequences: Items[Sequence], logits_BV: Tensor) -> list[Event]:
        """Choose a token for each sequence that wants one; its event, unless it waits for its routing."""
        greedy = choose_greedy(logits_BV) if any(s.is_plain for s in sequences) else []
        events = []
        for row, s in enumerate(sequences):
            if s.finish_reason is not None:
                continue
            if s.request.params.max_tokens == 0:
                s.finish_reason = "length"
                events.append(Event(s.number, s.sample, None, "", "length"))
                continue
            token, logprob = (greedy[row], None) if s.is_plain else choose(logits_BV[row], s.draw, s.n_written)
            event = s.write(token, logprob)
            if s.wants_routing:
                s.pending = event
            else:
                events.append(event)
        self._drop_done()
        return events

    def _drop_done(self) -> None:
        """Close the holes of ended sequences with the last ones, so that slots stay 0..B-1."""
        for slot in reversed(range(len(self._live))):
            if self._live[slot].is_done:
                last = self._live.pop()
                if last.slot != slot:
                    self.runner.cache.move(last.slot, slot)
                    self._live[slot], last.slot = last, slot
