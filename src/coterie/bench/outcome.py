"""One request of a load, as its sender sees it.

Times are vLLM's: to the first token from the moment of sending to the first piece of text, between tokens the gaps
between pieces (a server that sends two tokens in one piece has one gap for them), end to end to the last piece. A
piece without text (a role, an empty delta) is not a token. Numbers of tokens are what the server's `usage` says.
"""

import json
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from coterie.bench.client import Client, Failure
from coterie.bench.prompts import Prompt

__all__ = ["Outcome", "ask"]


@dataclass(slots=True)
class Outcome:
    """Times in seconds of one clock. What failed has an `error` and counts nowhere else."""

    started: float
    ended: float = 0.0
    times: list[float] = field(default_factory=list)  # of pieces of text
    n_prompt: int = 0
    n_output: int = 0
    text: str = ""
    error: str | None = None

    @property
    def ttft(self) -> float:
        return (self.times[0] if self.times else self.ended) - self.started

    @property
    def e2el(self) -> float:
        return self.ended - self.started

    @property
    def tpot(self) -> float | None:
        """A token after the first, on average; None where there is no second one."""
        return (self.e2el - self.ttft) / (self.n_output - 1) if self.n_output > 1 else None

    @property
    def itls(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


async def ask(client: Client, endpoint: str, prompt: Prompt, body: Mapping[str, Any]) -> Outcome:
    """Send it, read the stream to its end; failures are in the outcome."""
    outcome = Outcome(time.perf_counter(), n_prompt=prompt.n_tokens or 0)
    reader = _Reader(outcome)
    try:
        async with aclosing(client.events(endpoint, {**body, **prompt.body})) as events:
            async for at, data in events:
                reader.take(at, data)
        reader.finish()
    except Failure as e:
        outcome.error = str(e)
        outcome.ended = time.perf_counter()
    return outcome


class _Reader:
    """The events of a stream into an outcome."""

    def __init__(self, outcome: Outcome):
        self._outcome = outcome
        self._texts: list[str] = []
        self._has_ended = False
        self._n_output: int | None = None

    def take(self, at: float, data: bytes) -> None:
        if data == b"[DONE]":
            self._has_ended = True
            return
        if not data:
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise Failure("the stream has an event that is not JSON") from None
        if not isinstance(event, dict):
            raise Failure("the stream has an event that is not an object")
        if event.get("error"):
            error = event["error"]
            raise Failure(f"failed in the middle: {error.get('message', error) if isinstance(error, dict) else error}")
        self._outcome.ended = at
        self._count(event.get("usage"))
        choices = event.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            self._choice(at, choices[0])

    def finish(self) -> None:
        outcome = self._outcome
        if not self._has_ended:
            raise Failure("the stream ended without a last event")
        outcome.n_output = len(outcome.times) if self._n_output is None else self._n_output
        if not outcome.n_output:
            raise Failure("the answer has no token")
        outcome.text = "".join(self._texts)

    def _choice(self, at: float, choice: dict[str, Any]) -> None:
        part = choice.get("delta")
        part = part if isinstance(part, dict) else choice
        text = part.get("content") or part.get("text") or part.get("reasoning_content")
        if isinstance(text, str) and text:
            self._outcome.times.append(at)
            self._texts.append(text)
        self._has_ended |= choice.get("finish_reason") is not None

    def _count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        n_prompt, n_output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if type(n_prompt) is int and n_prompt >= 0:
            self._outcome.n_prompt = n_prompt
        if type(n_output) is int and n_output >= 0:
            self._n_output = n_output
