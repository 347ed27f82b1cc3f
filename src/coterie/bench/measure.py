"""A whole measurement of a server: which model, prompts that fit it, a warm-up, the load."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coterie.bench.client import Client, Failure
from coterie.bench.load import Run, arrivals, run_load
from coterie.bench.outcome import ask
from coterie.bench.prompts import Lengths, Prompt, find_model, is_chat, random_prompts, read_prompts, words_of

__all__ = ["Plan", "measure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked of a server, and how. `rate` in requests a second; `dataset` goes before random prompts."""

    seed: int
    lengths: Lengths
    n_prompts: int = 100
    endpoint: str = "/v1/completions"
    model: str | None = None  # None: the first that the server lists
    dataset: Path | None = None
    rate: float = math.inf
    max_concurrency: int | None = None
    n_warmups: int = 1
    ignore_eos: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)  # more fields of each request

    def body(self, model: str) -> dict[str, Any]:
        """What all requests have: greedy, streamed, with usage at the end."""
        fixed = {"model": model, "temperature": 0.0, "stream": True, "stream_options": {"include_usage": True}}
        return fixed | ({"ignore_eos": True} if self.ignore_eos else {}) | dict(self.extra)

    def settings(self, model: str) -> dict[str, Any]:
        """Under vLLM's names, for a record of the run."""
        return {
            "backend": "openai-chat" if is_chat(self.endpoint) else "openai",
            "model_id": model,
            "num_prompts": self.n_prompts,
            "request_rate": "inf" if math.isinf(self.rate) else self.rate,
            "burstiness": 1.0,
            "max_concurrency": self.max_concurrency,
            "seed": self.seed,
        }


async def measure(
    client: Client,
    plan: Plan,
    on_done: Callable[[int, int], None] = lambda done, total: None,
    stop: asyncio.Event | None = None,
) -> tuple[Run, str]:
    """The run and the model's name. Raises `Failure` where not even the warm-up succeeds, `DataError`."""
    model, n_vocabulary = await find_model(client, plan.model)
    warmups, prompts = await _prompts(client, plan, model, n_vocabulary)
    body = plan.body(model)
    for prompt in warmups:
        if (error := (await ask(client, plan.endpoint, prompt, body)).error) is not None:
            raise Failure(error)
    run = await run_load(
        client,
        plan.endpoint,
        prompts,
        body,
        due=arrivals(len(prompts), plan.rate, plan.seed),
        max_concurrency=plan.max_concurrency,
        on_done=on_done,
        stop=stop,
    )
    return run, model


async def _prompts(
    client: Client, plan: Plan, model: str, n_vocabulary: int | None
) -> tuple[list[Prompt], list[Prompt]]:
    """To warm up, and to measure; random ones are never in both, so that no cache helps."""
    n, n_warm = plan.n_prompts, plan.n_warmups
    if plan.dataset is not None:
        prompts = read_prompts(plan.dataset, n, plan.lengths.n_output, plan.endpoint)
        return [prompts[i % n] for i in range(n_warm)], prompts
    words = await words_of(client, plan.endpoint, model, n_vocabulary)
    made = random_prompts(words, plan.lengths, n_warm + n, plan.seed, plan.endpoint)
    return made[:n_warm], made[n_warm:]
