"""One sample of one request on its way: what has been read, what has been written, and when it ends.

Text comes out later than tokens: half a UTF-8 character waits for its other half, and what may become a stop string
waits until it cannot.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from torch import Tensor

from coterie.engine.request import Request
from coterie.engine.sampling import Draw, TokenLogprob
from coterie.engine.speculative import Drafter
from coterie.engine.stops import StopFilter
from coterie.errors import CoterieError
from coterie.tokenizer import TextStream, Tokenizer

__all__ = ["Event", "Sequence", "told"]


@dataclass(slots=True)
class Event:
    """What one token brought: its text (perhaps none yet), and on the last one why the sequence ended.

    `token_id` is None for an answer without tokens, a failure, and progress. `routing` is that of this token when it is
    read in its turn, experts and weights [1, L, K] each: where it is asked for, an event comes one pass later, the last
    one too. After an event with a `finish_reason` no other comes from its sample.
    """

    request: int
    sample: int
    token_id: int | None
    text: str
    finish_reason: str | None = None  # "stop", "length" or "error"
    logprob: TokenLogprob | None = None
    routing: tuple[Tensor, Tensor] | None = None
    error: str | None = None  # one sentence for the user
    n_cached: int = 0  # prompt tokens that were at hand; on progress and on a sample's first token
    progress: tuple[int, int] | None = None  # prompt tokens done, of all; then there is neither token nor text
    cause: Exception | None = None  # of the error
    own_text: str = ""  # what the token itself adds, before what may become a stop string is held back or cut off


@dataclass(slots=True, eq=False)
class Sequence:
    """`n_read` tokens of the prompt are in the cache; `next_id` is the token to feed next."""

    number: int  # of the request
    request: Request
    sample: int
    draw: Draw
    stop_ids: frozenset[int]
    stream: TextStream | None
    stops: StopFilter
    salt: str  # who may share what it has read
    eos_ids: Items[int]
    tokenizer: Tokenizer | None
    slot: int = -1
    n_read: int = 0
    n_cached: int = 0  # of the prompt, when it was taken up
    next_id: int = -1
    output_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    pending: Event | None = None  # waits for its routing
    drafter: Drafter | None = None
    is_plain: bool = field(init=False)
    wants_routing: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_plain = self.draw.params.is_plain_greedy and self.draw.matcher is None
        self.wants_routing = self.draw.params.routing

    @staticmethod
    def of(
        number: int, request: Request, sample: int, seed: int, eos_ids: Items[int], tokenizer: Tokenizer | None
    ) -> "Sequence":
        params, grammar = request.params, request.grammar
        stop_ids = frozenset((*(() if params.ignore_eos else eos_ids), *params.stop_token_ids))
        matcher = None if grammar is None else grammar.matcher(request.context_ids, (*eos_ids, *params.stop_token_ids))
        return Sequence(
            number=number,
            request=request,
            sample=sample,
            draw=Draw(params, seed, sample, request.prompt_ids, stop_ids=stop_ids, matcher=matcher),
            stop_ids=stop_ids,
            stream=None if tokenizer is None else TextStream(tokenizer, request.context_ids),
            stops=StopFilter(params.stop, params.include_stop),
            salt=request.salt,
            eos_ids=eos_ids,
            tokenizer=tokenizer,
        )

    def sibling(self, sample: int) -> "Sequence":
        """Another sample of its request, which has written nothing yet."""
        return Sequence.of(self.number, self.request, sample, self.draw.seed, self.eos_ids, self.tokenizer)

    @property
    def n_written(self) -> int:
        return len(self.output_ids)

    @property
    def is_prompt_read(self) -> bool:
        return self.n_read == len(self.request.prompt_ids)

    @property
    def is_done(self) -> bool:
        return self.finish_reason is not None and self.pending is None

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and output; the last of them is not in the cache yet."""
        return (*self.request.prompt_ids, *self.output_ids)

    @property
    def n_fed(self) -> int:
        """Tokens that the cache holds between passes."""
        return self.n_read + max(0, len(self.output_ids) - 1)

    @property
    def most_tokens(self) -> int:
        """The longest that it may become."""
        return len(self.request.prompt_ids) + self.request.params.max_tokens

    def draft(self) -> list[int]:
        """Guesses of what follows the token that is due; none where the text has ended."""
        if self.drafter is None or self.finish_reason is not None:
            return []
        return self.drafter.draft(self.request.params.max_tokens - len(self.output_ids) - 1)

    def write(self, token_id: int, logprob: TokenLogprob | None) -> Event:
        """Take the next token; the event says what it brought. A stop id adds no text."""
        params = self.draw.params
        self.output_ids.append(token_id)
        n = len(self.output_ids)
        self.next_id = token_id
        if not self.is_plain:
            self.draw.counts[token_id] = self.draw.counts.get(token_id, 0) + 1
            if (matcher := self.draw.matcher) is not None:
                matcher.accept(token_id)
                self.finish_reason = "stop" if matcher.is_done else None
        if self.drafter is not None:
            self.drafter.push(token_id)
        if token_id in self.stop_ids:
            self.finish_reason = "stop"
        own = text = self._own_text(token_id)
        if n >= params.min_tokens:
            text = self.stops.push(text)
            if self.stops.is_stopped:
                self.finish_reason = "stop"
        if self.finish_reason is None and n >= params.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            tail, rest = self.rest()
            own, text = own + tail, text + rest
        n_cached = self.n_cached if n == 1 else 0
        return Event(
            self.number, self.sample, token_id, text, self.finish_reason, logprob, n_cached=n_cached, own_text=own
        )

    def _own_text(self, token_id: int) -> str:
        """What the token adds to the text; a stop id only where it shall be shown."""
        if self.stream is None or (token_id in self.stop_ids and not self.draw.params.include_stop):
            return ""
        return self.stream.push([token_id])

    def rest(self) -> tuple[str, str]:
        """At the end: half a character, which is of the last token, and all the text that was held back."""
        if self.stream is None:
            return "", ""
        tail = self.stream.finish()
        text = self.stops.push(tail)
        return tail, text if self.stops.is_stopped else text + self.stops.finish()

    def end(self, reason: str, cause: Exception | None = None) -> Event:
        """The last event of a sequence that ends without a token."""
        self.finish_reason, self.pending = reason, None
        text = "" if cause is not None else self.rest()[1]
        error = None if cause is None else told(cause)
        return Event(self.number, self.sample, None, text, reason, error=error, n_cached=self.n_cached, cause=cause)


def told(cause: Exception) -> str:
    """A failure as one sentence for the user."""
    if isinstance(cause, CoterieError):
        return str(cause)
    return f"the model failed while it worked on this request ({type(cause).__name__}): try it again"
