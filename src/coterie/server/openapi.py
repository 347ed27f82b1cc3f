"""GET /openapi.json: what this server takes and gives, out of the models that read the requests.

What is true of every server is made once, at the first request for it; `openapi_bounds` adds what is true of this one.
Every route may refuse with the statuses of `_REFUSALS`, all in one shape.
"""

from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coterie import __version__
from coterie.server.openapi_bounds import narrowed
from coterie.server.schema import Body
from coterie.server.schema_chat import ChatBody, Conversation
from coterie.server.schema_text import CompletionBody, DetokenizeBody, EmbeddingBody, FimBody, TokenizeBody
from coterie.server.state import State

__all__ = ["document", "routes"]

_REFUSALS = {
    400: "a value that is not allowed (OpenAI's dialect), or no JSON",
    401: "the key is missing or unknown",
    403: "the key, host or origin may not ask this",
    404: "no such model, answer or route",
    405: "the route does not take this method",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the body is not application/json",
    422: "a value that is not allowed (Mistral's dialect)",
    429: "too many requests wait; Retry-After says for how long",
    431: "the headers are too large",
    500: "the server failed",
    501: "not supported by this model",
    503: "loading, shutting down or out of memory",
    504: "it took longer than the server allows",
}
_ANSWER = ("id", "object", "created", "model", "choices", "usage")
_POST: dict[str, tuple[type[Body], str, tuple[str, ...]]] = {  # the body, what it does, what the answer has
    "/v1/chat/completions": (ChatBody, "answer a conversation", _ANSWER),
    "/v1/completions": (CompletionBody, "continue text", _ANSWER),
    "/v1/fim/completions": (FimBody, "fill in the middle (501: no Mixtral can)", ()),
    "/v1/embeddings": (EmbeddingBody, "embed texts (experimental)", ("object", "model", "data", "usage")),
    "/tokenize": (TokenizeBody, "text or messages to token ids", ("count", "max_model_len", "tokens")),
    "/detokenize": (DetokenizeBody, "token ids to text", ("prompt",)),
    "/apply-template": (Conversation, "the prompt that messages make", ("prompt", "tokens")),
}  # fmt: skip
_GET: dict[str, tuple[str, tuple[str, ...], tuple[dict[str, Any], ...]]] = {
    "/v1/models": ("the models that are served", ("object", "data"), ()),
    "/v1/models/{id}": ("one of them", ("id", "object", "created", "owned_by"), ({"name": "id", "in": "path"},)),
    "/v1/routing/{id}": ("routing of a recent answer", ("id", "choices"), ({"name": "id", "in": "path"},)),
    "/live": ("the process answers", ("status",), ()),
    "/ready": ("a model can be asked", ("status",), ()),
    "/health": ("a model can be asked", ("status",), ()),
}
_STREAMED = ("/v1/chat/completions", "/v1/completions")
_TEXT = {"type": "string"}
_NULLABLE_TEXT = {"type": ["string", "null"]}
_FAILURE = {
    "type": "object",
    "properties": {"message": _TEXT, "type": _TEXT, "param": _NULLABLE_TEXT, "code": _NULLABLE_TEXT},
    "required": ["message", "type", "param", "code"],
}  # fmt: skip
_ERROR = {
    "type": "object",
    "properties": {
        "object": {"const": "error"},
        **_FAILURE["properties"],  # type: ignore[dict-item]
        "error": _FAILURE,
        "detail": {"type": "array", "items": {"type": "object", "required": ["loc", "msg", "type"]}},
    },
    "required": ["object", "message", "type", "param", "code", "error"],
}


def routes(state: State) -> list[Route]:
    async def openapi(request: Request) -> Response:
        return JSONResponse(narrowed(document(), state))

    return [Route("/openapi.json", openapi, methods=["GET"])]


@cache
def document() -> dict[str, Any]:
    """The whole of it. OpenAPI 3.1, whose schemas are JSON Schema."""
    bodies = dict.fromkeys(body for body, _, _ in _POST.values())
    _, definitions = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    schemas = {**definitions["$defs"], "Error": _ERROR}
    for body in bodies:
        if body.between:
            schemas[body.__name__]["allOf"] = list(body.between)
    paths: dict[str, Any] = {path: {"post": _post(path)} for path in _POST}
    paths |= {path: {"get": _get(path)} for path in _GET}
    return {
        "openapi": "3.1.0",
        "info": {"title": "coterie", "version": __version__, "description": "OpenAI's and Mistral's API; docs/api.md"},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
        "security": [{}, {"bearer": []}, {"header": []}],
    }


def _post(path: str) -> dict[str, Any]:
    body, summary, fields = _POST[path]
    reference = {"$ref": f"#/components/schemas/{body.__name__}"}
    return {
        "summary": summary,
        "operationId": _name(path),
        "requestBody": {"required": True, "content": {"application/json": {"schema": reference}}},
        "responses": _responses(fields, is_streamed=path in _STREAMED),
    }


def _get(path: str) -> dict[str, Any]:
    summary, fields, parameters = _GET[path]
    given = [{**p, "required": True, "schema": {"type": "string", "minLength": 1}} for p in parameters]
    return {
        "summary": summary,
        "operationId": _name(path),
        "parameters": given,
        "responses": _responses(fields),
    }


def _responses(fields: tuple[str, ...], *, is_streamed: bool = False) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object", "required": list(fields)}}}
    if is_streamed:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    refusal = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refusals = {str(status): {"description": what, "content": refusal} for status, what in _REFUSALS.items()}
    return {"200": {"description": "done", "content": content}, **refusals}


def _name(path: str) -> str:
    return path.strip("/").replace("/", "_").replace("{", "").replace("}", "").replace("-", "_")
