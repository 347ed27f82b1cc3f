"""From a request's body to requests for the engine: encoded, within the context, with all that may be refused refused.

Nothing here starts any work. Long texts are encoded in a thread, since SentencePiece takes a second for megabytes.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from coterie.engine.request import Request, SamplingParams
from coterie.errors import CoterieError, RequestError
from coterie.server.failures import ApiError, translated
from coterie.server.models import Served
from coterie.server.schema_sampling import MOST_TOKENS, Sampled

__all__ = ["Asked", "fit", "in_thread", "params_of"]

_LONG = 20_000  # characters: a few milliseconds
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that may be submitted. `is_to_the_brim`: its bound is the context's end; `told`: what its answer says
    once, such as what was cut."""

    request: Request
    is_to_the_brim: bool = False
    told: dict[str, Any] = field(default_factory=dict)


def params_of(body: Sampled, **more: Any) -> SamplingParams:
    """As if the answer had no bound; `fit` gives it one."""
    try:
        return SamplingParams.of({"max_tokens": MOST_TOKENS, **body.sampling(), **more})
    except RequestError as e:
        raise translated(e) from None


async def in_thread(n_characters: int, work: Callable[[], T], param: str) -> T:
    """`work()`, elsewhere where it takes long; what it refuses is about `param`."""
    try:
        return await asyncio.to_thread(work) if n_characters > _LONG else work()
    except CoterieError as e:
        raise translated(e, param) from None


def fit(
    request: Request,
    body: Sampled,
    served: Served,
    prompt: str,
    bound: tuple[str, int | None],
    most: int | None = None,
) -> Asked:
    """The request with its bound on new tokens. `prompt` and `bound` are the fields to blame; `most` is the bound where
    none is given, the server's own where that is None.

    Raises `ApiError` 400 `context_length_exceeded` with `n_prompt_tokens` and `n_ctx`, unless the middle may be cut.
    """
    context = served.lm.config.max_position_embeddings
    if most is None:  # no more than leaves room for others and for the prompt
        most = min(served.settings.max_tokens_default, max(1, served.worker.cache_tokens // 4))
    name, given = bound
    told: dict[str, Any] = {}
    if body.truncate == "middle":
        request, told = _truncated(request, context, min(most, context // 4) if given is None else given)
    n, room = len(request.prompt_ids), context - len(request.prompt_ids)
    limit = min(most, max(room, 0)) if given is None else given
    if limit > room or (given is None and room < 1):
        raise _overflow(n, context, given, name if n < context else prompt)
    try:
        params = replace(request.params, max_tokens=limit)
        params.check_model(served.lm.config, n)
    except CoterieError as e:
        raise translated(e) from None
    return Asked(replace(request, params=params), given is None and limit == room, told)


def _truncated(request: Request, context: int, n_new: int) -> tuple[Request, dict[str, Any]]:
    """Without the middle of its prompt, as much of it as does not fit."""
    ids, keep = request.prompt_ids, context - n_new
    if len(ids) <= keep or keep < 2:
        return request, {}
    head = keep // 2
    end = len(ids) - (keep - head)
    kept = ids[:head] + ids[end:]
    seen = kept if request.context_ids == ids else request.context_ids
    where = {"truncated": {"dropped_tokens": end - head, "where": [head, end]}}
    return replace(request, prompt_ids=kept, context_ids=seen), where


def _overflow(n: int, context: int, given: int | None, param: str) -> ApiError:
    more = "" if given is None else f" plus {param if param.startswith('max') else 'max_tokens'} {given}"
    advice = f"set {param} to at most {context - n}" if param.startswith("max") else f"shorten {param}"
    message = f"{param}: the prompt's {n} tokens{more} are beyond the model's context of {context}: {advice}"
    return ApiError(
        400,
        message,
        code="context_length_exceeded",
        param=param,
        detail=[{"loc": ["body", param], "msg": message, "type": "value_error"}],
        extra={"n_prompt_tokens": n, "n_ctx": context},
    )
