"""POST /v1/embeddings, experimental: hidden states of a language model, which was not trained to be an embedding.

The last layer's states, normed, averaged over the tokens (`pooling: "mean"`) or the last token's, made unit length.
OpenAI's client asks for base64 (little-endian float32) unless it is told otherwise. One request at a time is read, in a
thread of its own; the engine goes on meanwhile.
"""

import asyncio
import base64
from typing import Any
from weakref import WeakKeyDictionary

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from torch import Tensor
from torch.nn.functional import normalize

from coterie.engine.request import check_ids
from coterie.engine.runner import Runner
from coterie.errors import CoterieError
from coterie.model import Transformer
from coterie.server.body import read_json
from coterie.server.failures import ApiError, refused, translated
from coterie.server.mistral import find_dialect
from coterie.server.models import Served
from coterie.server.prompts import in_thread
from coterie.server.schema import ignored_header, read
from coterie.server.schema_text import EmbeddingBody
from coterie.server.state import State

__all__ = ["routes"]

_locks: "WeakKeyDictionary[Transformer, asyncio.Lock]" = WeakKeyDictionary()


def routes(state: State) -> list[Route]:
    async def embed(request: Request) -> Response:
        values = await read_json(request)
        find_dialect(request, values)
        body = read(EmbeddingBody, values, is_strict=state.settings.strict_api)
        body.check()
        served = await state.models.get(body.model)
        request.state.log["model"] = served.id
        answer = await _answer(body, served)
        headers = {"x-experimental": "embeddings", **ignored_header(body.ignored())}
        return JSONResponse(answer, headers=headers)

    return [Route("/v1/embeddings", embed, methods=["POST"])]


async def _answer(body: EmbeddingBody, served: Served) -> dict[str, Any]:
    name = "inputs" if body.input is None else "input"
    texts = body.texts
    size = sum(len(t) for t in texts if isinstance(t, str))
    inputs = await in_thread(size, lambda: [served.lm.encode(t) for t in texts], name)
    _check(inputs, body, served, name)
    lock = _locks.setdefault(served.lm.model, asyncio.Lock())
    async with lock:
        vectors = [await asyncio.to_thread(_embedded, ids, served, body.pooling or "mean") for ids in inputs]
    n_tokens = sum(len(ids) for ids in inputs)
    return {
        "id": f"embd-{served.id}",
        "object": "list",
        "model": served.id,
        "data": [
            {"object": "embedding", "index": i, "embedding": _written(v, body.encoding_format or "float")}
            for i, v in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": n_tokens, "completion_tokens": 0, "total_tokens": n_tokens},
        "experimental": True,
    }


def _check(inputs: list[tuple[int, ...]], body: EmbeddingBody, served: Served, name: str) -> None:
    config, limit = served.lm.config, served.settings.max_queue_tokens
    for field in ("dimensions", "output_dimension"):
        value = getattr(body, field)
        if value is not None and value != config.hidden_size:
            raise refused(field, f"{field} is {value}, expected {config.hidden_size}, the model's own")
    for ids in inputs:
        if len(ids) > config.max_position_embeddings:
            context = config.max_position_embeddings
            raise ApiError(
                400,
                f"{name} has a text of {len(ids)} tokens, expected at most {context}, the model's context",
                code="context_length_exceeded",
                param=name,
                extra={"n_prompt_tokens": len(ids), "n_ctx": context},
            )
    if (n := sum(len(ids) for ids in inputs)) > limit:
        raise refused(name, f"{name} has {n} tokens in all, expected at most {limit}")


@torch.inference_mode()
def _embedded(ids: tuple[int, ...], served: Served, pooling: str) -> Tensor:
    """float32 [D]."""
    try:
        check_ids(ids, served.lm.config.vocab_size, "input")
        model = served.lm.model
        total, last = torch.zeros(served.lm.config.hidden_size), torch.zeros(served.lm.config.hidden_size)
        for output in Runner(model).feed_all(0, ids):
            normed_TD = model.head.norm(output.hidden_TD).float().cpu()
            total += normed_TD.sum(0)
            last = normed_TD[-1]
    except CoterieError as e:
        raise translated(e, "input") from None
    return normalize(last if pooling == "last" else total / len(ids), dim=0)


def _written(vector_D: Tensor, encoding: str) -> Any:
    if encoding == "base64":
        return base64.b64encode(vector_D.numpy().astype("<f4").tobytes()).decode()
    return vector_D.tolist()
