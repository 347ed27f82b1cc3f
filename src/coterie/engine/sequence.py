"""One sample of one request on its way: what has been read, what has been written, and when it ends.

Text comes out later than tokens: half a UTF-8 character waits for its other half, and what may become a stop string
waits until it cannot.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from torch import Tensor

from coterie.engine.request import Request
from coterie.engine.sampling import Draw, TokenLogprob
from coterie.engine.stops import StopFilter
from coterie.tokenizer import TextStream, Tokenizer

__all__ = ["Event", "Sequence"]


@dataclass(slots=True)
class Event:
    """What one token brought: its text (perhaps none yet), and on the last one why the sequence ended.

    `token_id` is None only for an answer of max_tokens 0. `routing` is that of this token when it is read in its turn,
    experts and weights [1, L, K] each: where it is asked for, an event comes one pass later, the last one too.
    """

    request: int
    sample: int
    token_id: int | None
    text: str
    finish_reason: str | None = None  # "stop", "length" or "error"
    logprob: TokenLogprob | None = None
    routing: tuple[Tensor, Tensor] | None = None
    error: str | None = None  # one sentence for the user
    n_cached: int = 0  # prompt tokens that were at hand; on a sample's first event
    progress: tuple[int, int] | None = None  # prompt tokens done, of all; then there is neither token nor text


@dataclass(slots=True)
class Sequence:
    """`n_read` tokens of the prompt are in the cache; `next_id` is the token to feed next."""

    number: int  # of the request
    request: Request
    sample: int
    draw: Draw
    stop_ids: frozenset[int]
    stream: TextStream | None
    stops: StopFilter
    slot: int = -1
    n_read: int = 0
    n_written: int = 0
    next_id: int = -1
    finish_reason: str | None = None
    pending: Event | None = None  # waits for its routing
    is_plain: bool = field(init=False)
    wants_routing: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_plain = self.draw.params.is_plain_greedy
        self.wants_routing = self.draw.params.routing

    @staticmethod
    def of(
        number: int, request: Request, sample: int, seed: int, eos_ids: Items[int], tokenizer: Tokenizer | None
    ) -> "Sequence":
        params = request.params
        stream = None if tokenizer is None else TextStream(tokenizer, request.context_ids)
        return Sequence(
            number=number,
            request=request,
            sample=sample,
            draw=Draw(params, seed, sample, request.prompt_ids),
            stop_ids=frozenset((*eos_ids, *params.stop_token_ids)),
            stream=stream,
            stops=StopFilter(params.stop),
        )

    @property
    def is_prompt_read(self) -> bool:
        return self.n_read == len(self.request.prompt_ids)

    @property
    def is_done(self) -> bool:
        return self.finish_reason is not None and self.pending is None

    def write(self, token_id: int, logprob: TokenLogprob | None) -> Event:
        """Take the next token; the event says what it brought. A stop id adds no text."""
        params = self.draw.params
        self.n_written += 1
        self.next_id = token_id
        if not self.is_plain:
            self.draw.counts[token_id] = self.draw.counts.get(token_id, 0) + 1
        text = ""
        if token_id in self.stop_ids:
            self.finish_reason = "stop"
        elif self.stream is not None:
            text = self.stops.push(self.stream.push([token_id]))
            if self.stops.is_stopped:
                self.finish_reason = "stop"
        if self.finish_reason is None and self.n_written >= params.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            text += self.rest()
        return Event(self.number, self.sample, token_id, text, self.finish_reason, logprob)

    def rest(self) -> str:
        """The text still held back at the end."""
        if self.stream is None or self.stops.is_stopped:
            return ""
        text = self.stops.push(self.stream.finish())
        return text if self.stops.is_stopped else text + self.stops.finish()
