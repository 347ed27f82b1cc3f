"""What generation gives back: a whole `Completion`, or `Delta`s of one as they come."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from coterie.engine.sampling import TokenLogprob
from coterie.engine.sequence import Event
from coterie.engine.trace import RoutingTrace

__all__ = ["Completion", "Delta", "Usage", "collect", "delta"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written; the BOS counts, and so does the id that ended the text."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation. `token_ids` are all tokens chosen, the stop id or the tokens of the stop string included, as in
    transformers; `text` has neither. `logprobs` and `routing` have one entry for each token; None where not asked for.
    """

    text: str
    token_ids: list[int]
    finish_reason: str  # "stop": a stop id or string; "length": max_tokens
    usage: Usage
    logprobs: list[TokenLogprob] | None = None
    routing: RoutingTrace | None = None
    others: list["Completion"] = field(default_factory=list)  # samples 2..n


@dataclass(frozen=True, slots=True)
class Delta:
    """What came since the last one; `finish_reason` is None until the last. Text may lag behind its tokens."""

    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] | None = None
    routing: RoutingTrace | None = None


@dataclass(slots=True)
class _Draft:
    """A completion in the making."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    routings: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    finish_reason: str = ""

    def take(self, event: Event) -> None:
        self.texts.append(event.text)
        if event.token_id is not None:
            self.token_ids.append(event.token_id)
        if event.logprob is not None:
            self.logprobs.append(event.logprob)
        if event.routing is not None:
            self.routings.append(event.routing)
        self.finish_reason = event.finish_reason or self.finish_reason

    def done(self, n_prompt: int, has_logprobs: bool, has_routing: bool, others: list[Completion]) -> Completion:
        return Completion(
            "".join(self.texts),
            self.token_ids,
            self.finish_reason,
            Usage(n_prompt, len(self.token_ids)),
            self.logprobs if has_logprobs else None,
            RoutingTrace.of(self.token_ids, self.routings) if has_routing else None,
            others,
        )


def collect(
    events: Iterable[Event], n_prompts: list[int], n_samples: int, has_logprobs: bool, has_routing: bool
) -> list[Completion]:
    """The completions of requests 0.., whose prompts have these lengths, from the events of all of them."""
    drafts = [[_Draft() for _ in range(n_samples)] for _ in n_prompts]
    for event in events:
        drafts[event.request][event.sample].take(event)
    completions = []
    for n_prompt, (first, *rest) in zip(n_prompts, drafts, strict=True):
        others = [d.done(n_prompt, has_logprobs, has_routing, []) for d in rest]
        completions.append(first.done(n_prompt, has_logprobs, has_routing, others))
    return completions


def delta(event: Event) -> Delta:
    """The event of a single sequence, as its reader sees it."""
    ids = [] if event.token_id is None else [event.token_id]
    logprobs = None if event.logprob is None else [event.logprob]
    routing = None if event.routing is None else RoutingTrace.of(ids, [event.routing])
    return Delta(event.text, ids, event.finish_reason, logprobs, routing)
