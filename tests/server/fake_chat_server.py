"""A server of the chat page whose answers are given: deterministic tokens, experts and failures, and no model.

`python tests/server/fake_chat_server.py` serves it on port 8470, to look at the page with models of any shape.
"""

import asyncio
import contextlib
import json
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from re import findall
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from coterie.server import page
from coterie.server.failures import ApiError

SHAPES = {  # layers, experts, experts a token, chat form
    "chat": (6, 8, 2, "mistral-v1"),
    "wide": (32, 16, 4, "mistral-v3"),
    "base": (4, 8, 2, None),
    "dense": (4, 0, 0, "mistral-v1"),
}
FAILURES = {
    "busy": ApiError(429, "256 requests wait", code="queue_full", headers={"retry-after": "7"}),
    "locked": ApiError(401, "no key", code="invalid_api_key"),
    "too long": ApiError(
        400,
        "the prompt is 3000 tokens",
        code="context_length_exceeded",
        extra={"n_prompt_tokens": 3000, "n_ctx": 2048},
    ),
}


@dataclass
class FakeChat:
    """`say` is what the next answers are, `asked` what was asked; `pause` is between tokens, `key` if one is needed.

    A question that is a name of `FAILURES` fails so; "break" ends the connection in the middle, "fail" the stream.
    """

    say: str = "A mixture of experts reads each token with a few of its experts only."
    pause: float = 0.0
    key: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    hits: list[str] = field(default_factory=list)  # every path that was asked for
    url: str = ""

    def app(self) -> Starlette:
        routes: list[Any] = [
            *page.routes(None),  # type: ignore[arg-type]
            Route("/v1/models", self.models),
            Route("/v1/models/{id}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/apply-template", self.template, methods=["POST"]),
            Route("/{rest:path}", self.missing, methods=["GET", "POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={ApiError: _failed})

    def check(self, request: Request) -> None:
        self.hits.append(request.url.path)
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            raise FAILURES["locked"]

    async def missing(self, request: Request) -> Response:
        self.hits.append(request.url.path)
        raise ApiError(404, "there is no such route", code="not_found")

    async def models(self, request: Request) -> Response:
        self.check(request)
        return JSONResponse({"object": "list", "data": [_card(name) for name in SHAPES]})

    async def model(self, request: Request) -> Response:
        self.check(request)
        return JSONResponse(_card(request.path_params["id"]))

    async def template(self, request: Request) -> Response:
        self.check(request)
        body = await request.json()
        pieces = ["<s>", *tokens_of(" ".join(m["content"] for m in body["messages"]))]
        shown = [p.replace(" ", "▁") for p in pieces]
        form = SHAPES[body["model"]][3]
        return JSONResponse({"count": len(pieces), "max_model_len": 2048, "token_strs": shown, "chat_form": form})

    async def chat(self, request: Request) -> Response:
        self.check(request)
        body = await request.json()
        self.asked.append(body)
        question = next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user")
        if question in FAILURES:
            raise FAILURES[question]
        return StreamingResponse(self.frames(body, question), media_type="text/event-stream")

    async def frames(self, body: dict[str, Any], question: str) -> AsyncIterator[str]:
        yield ": ping\n\n"
        yield _frame({"delta": {"role": "assistant", "content": ""}})
        texts = tokens_of(self.say)[: body.get("max_tokens", 1000)]
        for place, text in enumerate(texts):
            if question == "break" and place == 5:
                await asyncio.sleep(0.3)  # a browser drops what it has not read yet
                raise ConnectionResetError
            if question == "fail" and place == 5:
                error = {"message": "the logits are not finite", "code": "engine_error"}
                yield _frame({"delta": {}, "finish_reason": "error"}, error=error) + "data: [DONE]\n\n"
                return
            yield _frame(_choice(text, place, body))
            await asyncio.sleep(self.pause)
        is_cut = len(texts) == body.get("max_tokens")
        yield _frame({"delta": {}, "finish_reason": "length" if is_cut else "stop"})
        yield f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': len(texts)}})}\n\n"
        yield "data: [DONE]\n\n"


def tokens_of(text: str) -> list[str]:
    """Words with the space before them, and every other character alone."""
    return findall(r" ?[^\W_]+|\s|[^\w\s]|_", text)


def _choice(text: str, place: int, body: dict[str, Any]) -> dict[str, Any]:
    choice: dict[str, Any] = {"delta": {"content": text}}
    if body.get("logprobs"):
        others = [(" other", -2.5), ("\N{REPLACEMENT CHARACTER}", -3.5), ("</s>", -4.0)]
        raw = {"\N{REPLACEMENT CHARACTER}": [195], "</s>": []}
        top = [{"token": t, "logprob": v, "bytes": raw.get(t, list(t.encode()))} for t, v in [(text, -0.3), *others]]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    n_layers, n_experts, top_k, _ = SHAPES[body["model"]]
    if body.get("return_routing") == "stream" and n_experts:
        start = zlib.crc32(text.encode())
        banned = {tuple(b) for b in body.get("experts", {}).get("ban", [])}
        experts = [_experts(start, layer, n_experts, top_k, banned) for layer in range(n_layers)]
        weights = [[round(2 ** -(k + 1.0), 5) for k in range(top_k)] for _ in range(n_layers)]
        choice["routing"] = {"experts": [experts], "weights": [weights], "tokens": [text], "token_ids": [place]}
    return choice


def _experts(start: int, layer: int, n_experts: int, top_k: int, banned: set[tuple[int, ...]]) -> list[int]:
    order = [(start // (layer + 1) + layer * 3 + k) % n_experts for k in range(n_experts)]
    return [e for e in order if (layer, e) not in banned][:top_k]


def _frame(choice: dict[str, Any], **more: Any) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, **choice}], **more}, ensure_ascii=False)}\n\n"


def _card(name: str) -> dict[str, Any]:
    n_layers, n_experts, top_k, form = SHAPES[name]
    ours = {"n_layers": n_layers, "n_experts": n_experts, "top_k": top_k, "is_sparse": n_experts > 0, "chat_form": form}
    return {"id": name, "object": "model", "coterie": {"is_loaded": True, **ours}}


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


@contextlib.contextmanager
def running(port: int = 0) -> Iterator[FakeChat]:
    """The fake on a thread of its own, with its `url`."""
    fake = FakeChat()
    with socket.create_server(("127.0.0.1", port)) as sock:
        fake.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        config = uvicorn.Config(
            fake.app(), log_level="critical", lifespan="off", ws="none", http="h11", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
        thread.start()
        try:
            yield fake
        finally:
            server.should_exit = True
            thread.join(10)


if __name__ == "__main__":
    with running(8470) as fake:
        fake.pause = 0.03
        fake.say = (
            "## Why it is fast\n\nA **mixture of experts** keeps many feed-forward blocks and reads each token with a "
            "*few* of them:\n\n1. a router scores the experts,\n2. the best two are taken,\n3. their outputs are added "
            "by weight.\n\n```python\ny = sum(w[e] * expert[e](x) for e in best)\n```\n\n| model | experts | read |\n"
            "|---|--:|--:|\n| small | 8 | 2 |\n| wide | 16 | 4 |\n\nSee [the paper](https://arxiv.org/abs/2401.04088).\n"
        )
        print(fake.url)
        threading.Event().wait()
