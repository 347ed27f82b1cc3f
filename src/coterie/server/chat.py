"""POST /v1/chat/completions in OpenAI's and Mistral's dialects, and POST /apply-template, which shows the prompt."""

from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coterie.engine.request import Request as EngineRequest
from coterie.server.answer import Answer, Part
from coterie.server.body import read_json
from coterie.server.conversation import turns_of
from coterie.server.experts_request import edits_of
from coterie.server.failures import refused
from coterie.server.identity import system_fingerprint
from coterie.server.logprob_answer import chat_logprobs
from coterie.server.mistral import deprecation_header, find_dialect
from coterie.server.models import Served
from coterie.server.prompts import fit, in_thread, params_of
from coterie.server.schema import ignored_header, read
from coterie.server.schema_chat import ChatBody, Conversation
from coterie.server.schema_messages import unknown_keys
from coterie.server.sse import EventStream
from coterie.server.state import State
from coterie.server.structured import grammar_of
from coterie.server.writer import Context, Writer

__all__ = ["ChatWriter", "encoded", "routes"]


def routes(state: State) -> list[Route]:
    async def chat(request: Request) -> Response:
        return await _chat(request, state)

    return [Route("/v1/chat/completions", chat, methods=["POST"])]


async def _chat(request: Request, state: State) -> Response:
    values = await read_json(request)
    dialect = find_dialect(request, values)
    body = read(ChatBody, values, is_strict=state.settings.strict_api)
    body.check(state.settings)
    bound = body.most_tokens
    if bound[1] == 0 and dialect != "mistral":
        raise refused(bound[0], f"{bound[0]} is 0, expected a whole number of at least 1")
    served = await state.models.get(body.model)
    owner = request.state.key.name
    request.state.log["model"] = served.id
    asked = fit(await _request(body, served, owner), body, served, "messages", bound)
    context = Context(dialect, owner, state.shelf)
    needs_tokens = body.logprobs or body.return_routing
    tokenizer = served.lm.tokenizer if needs_tokens else None
    answer = Answer("chatcmpl", served.id, await system_fingerprint(served), body.n_samples)
    answer.add(served.worker.submit(asked.request), tokenizer)
    writer = ChatWriter(answer, body, [asked], context, tokenizer)
    ignored = [*body.ignored(), *unknown_keys(values["messages"])]
    headers = {**ignored_header(ignored), **deprecation_header(values)}
    if body.stream:
        return EventStream(writer.stream(), writer.failure, state.settings.ping_interval, headers)
    return JSONResponse(await writer.whole(), headers=headers)


async def _request(body: ChatBody, served: Served, owner: str) -> EngineRequest:
    """All of the engine's request but the bound on its tokens."""
    edits = edits_of(body.experts, served)
    params = params_of(body, logprobs=(body.top_logprobs or 0) if body.logprobs else None)
    grammar = await grammar_of(body, served)
    request = await encoded(body, served, params)
    return replace(
        request,
        owner=owner,
        grammar=grammar,
        experts=edits,
        cache_salt=body.cache_salt or "",
        wants_progress=bool(body.return_progress),
    )


async def encoded(body: Conversation, served: Served, params: Any) -> EngineRequest:
    """The conversation in the model's chat form; a base model continues its text."""
    turns = turns_of(body)
    size = sum(len(turn["content"]) for turn in turns)
    keys = ("role", "content", "prefix")
    plain: list[dict[str, Any]] = [{key: turn[key] for key in keys if key in turn} for turn in turns]
    return await in_thread(size, lambda: served.lm.chat_request(plain, params), "messages")


class ChatWriter(Writer):
    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any]:
        return _streamed(index, {"role": "assistant", "content": ""})

    def delta(self, part: Part) -> dict[str, Any]:
        return _streamed(part.index, {"content": part.text}, self._logprobs(part))

    def ending(self, part: Part) -> dict[str, Any]:
        return {**_streamed(part.index, {}), "finish_reason": self.finish_word(part)}

    def choice(self, part: Part) -> dict[str, Any]:
        message = {"role": "assistant", "content": part.text, "refusal": None}
        finish = self.finish_word(part)
        return {"index": part.index, "message": message, "logprobs": self._logprobs(part), "finish_reason": finish}

    def _logprobs(self, part: Part) -> dict[str, Any] | None:
        if self.words is None or not getattr(self.body, "logprobs", None):
            return None
        return chat_logprobs(part.tokens, self.words)


def _streamed(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
