"""POST /v1/chat/completions in OpenAI's and Mistral's dialects, and POST /apply-template, which shows the prompt."""

from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coterie.engine.request import Request as EngineRequest
from coterie.engine.request import SamplingParams
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
from coterie.server.schema import ignored_header, read, refuse_unread
from coterie.server.schema_chat import ChatBody, Conversation
from coterie.server.schema_messages import unknown_keys
from coterie.server.sse import EventStream
from coterie.server.state import State
from coterie.server.structured import compiled, grammar_of
from coterie.server.tokens import load_vocabulary
from coterie.server.tool_reader import Piece
from coterie.server.tools import ToolUse, prepare
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
    odd_keys = unknown_keys(values["messages"])
    if state.settings.strict_api:
        refuse_unread(odd_keys, ())
    bound = body.most_tokens
    if bound[1] == 0 and dialect != "mistral":
        raise refused(bound[0], f"{bound[0]} is 0, expected a whole number of at least 1")
    served = await state.models.get(body.model)
    owner = request.state.key.name
    request.state.log["model"] = served.id
    request_, use = await _request(body, served, owner)
    asked = fit(request_, body, served, "messages", bound)
    if use.is_emulated:
        asked = replace(asked, told={**asked.told, "x_tool_emulation": True})
    context = Context(dialect, owner, state.shelf, request.state.log)
    needs_tokens = body.logprobs or body.return_routing
    tokenizer = served.lm.tokenizer if needs_tokens else None
    if tokenizer is not None:
        await load_vocabulary(tokenizer)
    answer = Answer("chatcmpl", served.id, await system_fingerprint(served), body.n_samples)
    in_parts = bool(body.stream) and dialect != "mistral"  # Mistral's client wants each call whole
    answer.add(served.worker.submit(asked.request), tokenizer, lambda: use.reader(in_parts))
    writer = ChatWriter(answer, body, [asked], context, tokenizer)
    ignored = [*body.ignored(), *odd_keys]
    headers = {**ignored_header(ignored), **deprecation_header(values)}
    if body.stream:
        return EventStream(writer.stream(), writer.failure, state.settings.ping_interval, headers)
    return JSONResponse(await writer.whole(), headers=headers)


async def _request(body: ChatBody, served: Served, owner: str) -> tuple[EngineRequest, ToolUse]:
    """All of the engine's request but the bound on its tokens, and how tools are used."""
    edits = edits_of(body.experts, served)
    params = params_of(body, logprobs=(body.top_logprobs or 0) if body.logprobs else None)
    grammar = await grammar_of(body, served)
    request, use = await encoded(body, served, params)
    if use.grammar is not None:
        if grammar is not None:
            raise refused("tools", "tools are given beside a form of the answer, expected at most one of the two")
        grammar = await compiled(("tools", *use.grammar), served)
    whole = replace(
        request,
        owner=owner,
        grammar=grammar,
        experts=edits,
        cache_salt=body.cache_salt or "",
        wants_progress=bool(body.return_progress),
    )
    return whole, use


async def encoded(body: Conversation, served: Served, params: SamplingParams) -> tuple[EngineRequest, ToolUse]:
    """The conversation in the model's chat form; a base model continues its text."""
    lm = served.lm
    use = prepare(
        body.tools,
        body.tool_choice,
        turns_of(body),
        lm,
        emulate=served.settings.tool_emulation,
        parallel=body.parallel_tool_calls,
    )
    size = sum(len(turn["content"]) for turn in use.messages)
    request = await in_thread(size, lambda: lm.chat_request(use.messages, params, tools=use.tools), "messages")
    return use.begin(request), use


class ChatWriter(Writer):
    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any]:
        return _streamed(index, {"role": "assistant", "content": ""})

    def delta(self, part: Part) -> dict[str, Any]:
        delta: dict[str, Any] = {"content": part.text} if part.text or not part.calls else {}
        if part.calls:
            delta["tool_calls"] = [_streamed_call(piece) for piece in part.calls]
        return _streamed(part.index, delta, self._logprobs(part))

    def ending(self, part: Part) -> dict[str, Any]:
        return {**_streamed(part.index, {}), "finish_reason": self.finish_word(part)}

    def choice(self, part: Part) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": part.text, "refusal": None}
        if part.calls:
            message |= {"content": part.text or None, "tool_calls": _whole_calls(part.calls)}
        finish = self.finish_word(part)
        return {"index": part.index, "message": message, "logprobs": self._logprobs(part), "finish_reason": finish}

    def _logprobs(self, part: Part) -> dict[str, Any] | None:
        if self.words is None or not getattr(self.body, "logprobs", None):
            return None
        return chat_logprobs(part.tokens, self.words)


def _streamed(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _streamed_call(piece: Piece) -> dict[str, Any]:
    """The first part of a call has its id and name."""
    function = {"arguments": piece.arguments}
    if piece.name is None:
        return {"index": piece.index, "function": function}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": {"name": piece.name, **function}}


def _whole_calls(pieces: list[Piece]) -> list[dict[str, Any]]:
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        assert piece.index is not None
        if piece.index not in calls:
            function = {"name": piece.name, "arguments": ""}
            calls[piece.index] = {"id": piece.id, "type": "function", "function": function}
        calls[piece.index]["function"]["arguments"] += piece.arguments
    return list(calls.values())
