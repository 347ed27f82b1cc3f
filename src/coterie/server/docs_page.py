"""GET /docs: /openapi.json for people: one page of HTML, made of that document, without scripts or files from afar."""

import json
from collections.abc import Iterator
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from coterie.server.guard import is_public
from coterie.server.openapi import document
from coterie.server.openapi_bounds import narrowed
from coterie.server.page import HEADERS
from coterie.server.state import State

__all__ = ["page_of", "routes", "said"]

_EXAMPLES = {
    "/v1/chat/completions": '{"messages": [{"role": "user", "content": "Bonjour"}], "max_tokens": 20}',
    "/v1/completions": '{"prompt": "Il était une fois", "max_tokens": 20, "return_routing": "final"}',
    "/v1/embeddings": '{"input": "Bonjour"}',
    "/tokenize": '{"prompt": "Bonjour"}',
    "/detokenize": '{"tokens": [1, 2, 3]}',
    "/apply-template": '{"messages": [{"role": "user", "content": "Bonjour"}]}',
}


def routes(state: State) -> list[Route]:
    async def docs(request: Request) -> Response:
        url = str(request.base_url).rstrip("/")
        return HTMLResponse(page_of(narrowed(document(), state), url, needs_key=state.keys.are_needed), headers=HEADERS)

    return [Route("/docs", docs, methods=["GET"])]


def page_of(told: dict[str, Any], url: str, *, needs_key: bool = False) -> str:
    """The page. `told` is an OpenAPI document, `url` where examples are sent, with a key where the path needs one."""
    info = told["info"]
    operations = [(path, verb, o) for path, verbs in told["paths"].items() for verb, o in verbs.items()]
    links = "".join(
        f'<li><a href="#{o["operationId"]}"><code>{verb.upper()} {escape(path)}</code></a></li>'
        for path, verb, o in operations
    )
    parts = "".join(
        _operation(told, url, path, verb, o, has_key=needs_key and not is_public(path.encode()))
        for path, verb, o in operations
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>coterie: API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="/page/icon.svg"><link rel="stylesheet" href="/page/docs.css"></head><body><main>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}. "
        'For programs: <a href="/openapi.json">/openapi.json</a>. To chat: <a href="/">the page</a>.</p>'
        f"<nav><ul>{links}</ul></nav>{parts}</main></body></html>"
    )


def _operation(
    told: dict[str, Any], url: str, path: str, verb: str, operation: dict[str, Any], *, has_key: bool
) -> str:
    answers = ", ".join(operation["responses"]["200"]["content"]["application/json"]["schema"]["required"])
    body = operation.get("requestBody")
    parts = [
        f'<section id="{operation["operationId"]}"><h2><code>{verb.upper()} {escape(path)}</code></h2>',
        f"<p>{escape(operation['summary'])}</p>",
        f"<pre>{escape(_command(url, path, has_body=body is not None, has_key=has_key))}</pre>",
    ]
    if body is not None:
        parts.append(_fields(told, body["content"]["application/json"]["schema"]))
    if answers:
        parts.append(f"<p>Answers with <code>{escape(answers)}</code>.</p>")
    return "".join(parts) + "</section>"


def _command(url: str, path: str, *, has_body: bool, has_key: bool) -> str:
    key = ' -H "Authorization: Bearer $COTERIE_API_KEY"' if has_key else ""
    if not has_body:
        return f"curl {url}{path}{key}"
    return f"curl {url}{path}{key} -H 'Content-Type: application/json' \\\n  -d '{_EXAMPLES.get(path, '{}')}'"


def _fields(told: dict[str, Any], schema: dict[str, Any]) -> str:
    model = _resolved(told, schema)
    needed = set(model.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' (required)' if name in needed else ''}</td>"
        f"<td>{escape(said(told, field))}</td></tr>"
        for name, field in model["properties"].items()
    )
    return f"<table><thead><tr><th>field</th><th>takes</th></tr></thead><tbody>{rows}</tbody></table>"


def _resolved(told: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = told["components"]["schemas"][name] if name else schema
    return found


def said(told: dict[str, Any], schema: dict[str, Any], depth: int = 0) -> str:
    """A schema in words. Example: "integer from 1 to 128", "string of at most 256, or list of at most 16 (string)"."""
    schema = _resolved(told, schema)
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return ", or ".join(dict.fromkeys(said(told, c, depth) for c in choices if c.get("type") != "null"))
    if "const" in schema or "enum" in schema:
        return "one of " + ", ".join(json.dumps(v) for v in schema.get("enum", [schema.get("const")]))
    kinds = schema.get("type", "anything")
    named = [{"array": "list", "null": "nothing"}.get(k, k) for k in ([kinds] if isinstance(kinds, str) else kinds)]
    words = " ".join([" or ".join(k for k in named if k != "nothing" or len(named) == 1), *_bounds(schema)])
    if depth < 3 and "items" in schema:
        words += f" ({said(told, schema['items'], depth + 1)})"
    if depth < 3 and "properties" in schema:
        words += " {" + "; ".join(f"{n}: {said(told, s, depth + 1)}" for n, s in schema["properties"].items()) + "}"
    return words


def _bounds(schema: dict[str, Any]) -> Iterator[str]:
    low, above, high = (schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    if above is not None:
        yield f"above {above}"
    if low is not None:
        yield f"from {low}"
    if high is not None:
        yield f"to {high}"
    least = schema.get("minLength") or schema.get("minItems")
    most = schema.get("maxLength") or schema.get("maxItems")
    if most:
        yield f"of {least} to {most}" if least else f"of at most {most}"
    elif least:
        yield f"of at least {least}"
