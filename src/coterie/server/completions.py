"""POST /v1/completions: text or token ids continued, one or several prompts, and the best of several samples."""

from collections import Counter
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coterie.engine.request import Request as EngineRequest
from coterie.server.answer import Answer, Part
from coterie.server.body import read_json
from coterie.server.experts_request import edits_of
from coterie.server.failures import ApiError
from coterie.server.identity import system_fingerprint
from coterie.server.logprob_answer import text_logprobs
from coterie.server.mistral import find_dialect
from coterie.server.models import Served
from coterie.server.prompts import fit, in_thread, params_of
from coterie.server.schema import ignored_header, read
from coterie.server.schema_text import CompletionBody
from coterie.server.sse import EventStream
from coterie.server.state import State
from coterie.server.structured import grammar_of
from coterie.server.tokens import load_vocabulary
from coterie.server.writer import Context, Writer

__all__ = ["TextWriter", "routes"]

_DEFAULT = 16  # tokens, as OpenAI has it


def routes(state: State) -> list[Route]:
    async def complete(request: Request) -> Response:
        return await _complete(request, state)

    return [Route("/v1/completions", complete, methods=["POST"])]


async def _complete(request: Request, state: State) -> Response:
    values = await read_json(request)
    dialect = find_dialect(request, values)
    body = read(CompletionBody, values, is_strict=state.settings.strict_api)
    body.check(state.settings)
    if body.echo:
        raise ApiError(501, "echo is not supported: the prompt is not repeated", code="not_supported", param="echo")
    served = await state.models.get(body.model)
    owner = request.state.key.name
    request.state.log["model"] = served.id
    bound = ("max_tokens", body.max_tokens)
    asked = [fit(r, body, served, "prompt", bound, _DEFAULT) for r in await _requests(body, served, owner)]
    is_ranked = _n_each(body) > body.n_samples
    tokenizer = served.lm.tokenizer if body.logprobs is not None or body.return_routing or is_ranked else None
    if tokenizer is not None:
        await load_vocabulary(tokenizer)
    answer = Answer("cmpl", served.id, await system_fingerprint(served), _n_each(body))
    for one in asked:
        answer.add(served.worker.submit(one.request), tokenizer)
    writer = TextWriter(answer, body, asked, Context(dialect, owner, state.shelf, request.state.log), tokenizer)
    headers = ignored_header(body.ignored())
    if body.stream:
        return EventStream(writer.stream(), writer.failure, state.settings.ping_interval, headers)
    return JSONResponse(await writer.whole(), headers=headers)


async def _requests(body: CompletionBody, served: Served, owner: str) -> list[EngineRequest]:
    edits = edits_of(body.experts, served)
    n_each = _n_each(body)
    logprobs = 0 if body.logprobs is None and n_each > body.n_samples else body.logprobs
    params = params_of(body, n=n_each, logprobs=logprobs)
    grammar = await grammar_of(body, served)
    prompts = body.prompts
    size = sum(len(p) for p in prompts if isinstance(p, str))
    found = await in_thread(size, lambda: [served.lm.request(p, params) for p in prompts], "prompt")
    more: dict[str, Any] = {"owner": owner, "grammar": grammar, "experts": edits}
    more |= {"cache_salt": body.cache_salt or "", "wants_progress": bool(body.return_progress)}
    return [replace(r, **more) for r in found]


def _n_each(body: CompletionBody) -> int:
    return body.n_samples if body.best_of is None else body.best_of


class TextWriter(Writer):
    kind = chunk_kind = "text_completion"
    body: CompletionBody

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._offsets: Counter[int] = Counter()  # characters of each choice's tokens so far; its text may be ahead

    def opening(self, index: int) -> None:
        return None

    def delta(self, part: Part) -> dict[str, Any]:
        logprobs = self._logprobs(part)
        self._offsets[part.index] += sum(len(token.text) for token in part.tokens)
        return {"index": part.index, "text": part.text, "logprobs": logprobs, "finish_reason": None}

    def ending(self, part: Part) -> dict[str, Any]:
        return {"index": part.index, "text": "", "logprobs": None, "finish_reason": self.finish_word(part)}

    def choice(self, part: Part) -> dict[str, Any]:
        logprobs, finish = self._logprobs(part), self.finish_word(part)
        return {"index": part.index, "text": part.text, "logprobs": logprobs, "finish_reason": finish}

    def chosen(self, parts: list[Part]) -> list[Part]:
        """Of `best_of` samples the `n` whose tokens are the likeliest on average, best first."""
        n_each, n = self.answer.n_each, self.body.n_samples
        if n == n_each:
            return parts
        best: list[Part] = []
        for first in range(0, len(parts), n_each):
            best += sorted(parts[first : first + n_each], key=_mean_logprob, reverse=True)[:n]
        return [replace(part, index=place) for place, part in enumerate(best)]

    def _logprobs(self, part: Part) -> dict[str, Any] | None:
        if self.words is None or self.body.logprobs is None:
            return None
        return text_logprobs(part.tokens, self.words, self._offsets[part.index], self.body.logprobs)


def _mean_logprob(part: Part) -> float:
    values = [t.logprob.logprob for t in part.tokens if t.logprob is not None]
    return sum(values) / len(values) if values else -float("inf")
