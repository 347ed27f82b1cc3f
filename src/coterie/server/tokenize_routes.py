"""POST /tokenize, /detokenize (vLLM's shapes, llama-server's names too) and /apply-template, which shows a prompt.

A prompt has one BOS unless `add_special_tokens` is false; llama-server's `content` has none unless `add_special`.
"""

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coterie.server.body import read_json
from coterie.server.chat import encoded
from coterie.server.failures import refused
from coterie.server.mistral import find_dialect
from coterie.server.models import Served
from coterie.server.prompts import in_thread, params_of
from coterie.server.schema import ignored_header, read
from coterie.server.schema_chat import Conversation
from coterie.server.schema_text import DetokenizeBody, TokenizeBody
from coterie.server.state import State
from coterie.tokenizer import Tokenizer

__all__ = ["routes"]


def routes(state: State) -> list[Route]:
    async def tokenize(request: Request) -> Response:
        body = read(TokenizeBody, await read_json(request), is_strict=state.settings.strict_api)
        body.check()
        served = await state.models.get(body.model)
        ids = await _ids(body, served, state)
        shown = bool(body.return_token_strs or body.with_pieces)
        return JSONResponse(_tokens(ids, served, shown=shown), headers=ignored_header(body.ignored()))

    async def detokenize(request: Request) -> Response:
        body = read(DetokenizeBody, await read_json(request), is_strict=state.settings.strict_api)
        served = await state.models.get(body.model)
        size = served.lm.config.vocab_size
        for place, i in enumerate(body.tokens):
            if i >= size:
                raise refused(f"tokens.{place}", f"tokens.{place} is {i}, expected an id below {size}, the vocabulary")
        tokenizer = served.lm.tokenizer
        text = await in_thread(len(body.tokens), lambda: tokenizer.decode(body.tokens), "tokens")
        return JSONResponse({"prompt": text, "content": text}, headers=ignored_header(body.ignored()))

    async def apply_template(request: Request) -> Response:
        values = await read_json(request)
        find_dialect(request, values)
        body = read(Conversation, values, is_strict=state.settings.strict_api)
        body.check(state.settings)
        served = await state.models.get(body.model)
        ids = (await encoded(body, served, params_of(body)))[0].prompt_ids
        form = served.lm.chat_form
        answer = {
            "prompt": "".join(_shown(i, served.lm.tokenizer) for i in ids),
            "chat_form": None if form is None else form.name,
            **_tokens(ids, served, shown=True),
        }
        return JSONResponse(answer, headers=ignored_header(body.ignored()))

    return [
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/apply-template", apply_template, methods=["POST"]),
    ]


async def _ids(body: TokenizeBody, served: Served, state: State) -> Sequence[int]:
    if body.messages is not None:
        names = ("messages", "add_generation_prompt", "continue_final_message")
        given = {name: getattr(body, name) for name in names if getattr(body, name) is not None}
        conversation = read(Conversation, given)
        conversation.check(state.settings)
        return (await encoded(conversation, served, params_of(conversation)))[0].prompt_ids
    tokenizer = served.lm.tokenizer
    text, name = (body.prompt, "prompt") if body.prompt is not None else (body.content or "", "content")
    flags = [f for f in (body.add_special_tokens, body.add_special) if f is not None]
    bos = flags[0] if flags else name == "prompt"
    return await in_thread(len(text), lambda: tokenizer.encode(text, bos=bos), name)


def _tokens(ids: Sequence[int], served: Served, *, shown: bool) -> dict[str, Any]:
    pieces = [served.lm.tokenizer.piece(i) for i in ids] if shown else None
    context = served.lm.config.max_position_embeddings
    return {"count": len(ids), "max_model_len": context, "tokens": list(ids), "token_strs": pieces}


def _shown(token_id: int, tokenizer: Tokenizer) -> str:
    """A token in a prompt that is shown: control tokens by name, spaces as spaces, bytes as they are in the file."""
    return tokenizer.piece(token_id).replace("▁", " ")
