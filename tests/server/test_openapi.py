"""The published document: complete, and what it says about bodies is what the models do."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from coterie.server.app import ROUTE_MODULES
from coterie.server.openapi import document
from coterie.server.state import State


def test_it_is_served(asgi: Callable[..., Any], serving: Callable[..., Any]) -> None:
    async def ask() -> Any:
        async with serving() as app:
            return await asgi(app, "GET", "/openapi.json")

    told = asyncio.run(ask()).json
    assert told["paths"].keys() == document()["paths"].keys()
    assert told["components"]["schemas"].keys() == document()["components"]["schemas"].keys()


def test_every_route_that_takes_json_is_in_it() -> None:
    state = State(None, None, None)  # type: ignore[arg-type]
    routes = [route for module in ROUTE_MODULES for route in module.routes(state)]
    posts = {route.path for route in routes if "POST" in (route.methods or ())}
    assert posts == {path for path, methods in document()["paths"].items() if "post" in methods}


def test_references_lead_somewhere_and_refusals_are_listed() -> None:
    told = document()
    names = set(told["components"]["schemas"])

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"].rpartition("/")[2]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*(references(v) for v in value.values()))
        return set().union(*(references(v) for v in value)) if isinstance(value, list) else set()

    assert references(told) <= names
    for methods in told["paths"].values():
        for operation in methods.values():
            assert {"200", "400", "401", "404", "422", "429", "500", "501", "503"} <= set(operation["responses"])


def test_bodies_are_those_of_the_models() -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    told = document()
    chat = {"$ref": "#/components/schemas/ChatBody", "components": told["components"]}
    check = validator(chat)
    hello = {"messages": [{"role": "user", "content": "a"}]}
    assert check.is_valid({**hello, "temperature": 1, "stop": ["a"], "logit_bias": {"5": 1}, "return_routing": "final"})
    for wrong in ({"temperature": 3}, {"n": 0}, {"stop": 5}, {"logit_bias": {"a": 1}}, {"return_routing": True}):
        assert not check.is_valid({**hello, **wrong}), wrong
    assert not check.is_valid({}) and not check.is_valid({"messages": []})


FITTING: list[dict[str, Any]] = [
    {"model": "demo", "n": 16},
    {"model": None, "stream_options": None, "guided_json": None, "guided_choice": ["a"]},
    {"stream": True, "stream_options": {"include_usage": True}, "stream_interval": 4},
    {"response_format": {"type": "text"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
    {"structured_outputs": {"regex": "[ab]"}, "response_format": None},
    {"guided_json": '{"type": "object"}'},
    {"experts": {"ban": [[0, 7]], "bias": [[5, 0, 1.5]], "top_k": 3}},
    {"tool_choice": "none", "tools": None, "chat_template_kwargs": {}},
    {"messages": [{"role": "developer", "content": ""}, {"role": "user", "content": "a", "name": None}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "prefix": True}]},
]
WRONG: list[dict[str, Any]] = [
    {"model": "other"},
    {"n": 17},
    {"max_tokens": 2049},
    {"stream_options": {"include_usage": True}},
    {"stream_interval": 4, "stream": False},
    {"guided_json": {}, "guided_regex": "a"},
    {"grammar": "root ::= [a]", "response_format": {"type": "json_object"}},
    {"response_format": {"type": "xml"}},
    {"response_format": {"type": "json_schema"}},
    {"structured_outputs": {"regex": "a", "choice": ["a"]}},
    {"guided_choice": []},
    {"guided_regex": ""},
    {"experts": {"ban": [[0, 8]]}},
    {"experts": {"ban": [[6, 0]]}},
    {"experts": {"ban": [[0]]}},
    {"experts": {"bias": [[0, 0, 1e9]]}},
    {"experts": {"drop": []}},
    {"stop_token_ids": [8192]},
    {"chat_template": "{{ a }}"},
    {"chat_template_kwargs": {"a": 1}},
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"tool_choice": "auto"},
    {"modalities": ["audio"]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": ""}]},
    {"messages": [{"role": "user", "content": None}]},
    {"messages": [{"role": "user", "content": "a", "tool_call_id": "b"}]},
    {"messages": [{"role": "user", "content": "a", "prefix": True}]},
]


OTHER_FITTING: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [{"prompt": [[5]], "max_tokens": 1, "echo": False, "suffix": ""}],
    "/v1/embeddings": [{"input": "a"}, {"inputs": [[1, 2]], "input": None}],
    "/tokenize": [{"content": "a"}, {"prompt": "a", "content": None}],
    "/detokenize": [{"tokens": [8191]}],
}
OTHER_WRONG: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [
        {"prompt": "a", "echo": True},
        {"prompt": "a", "suffix": "b"},
        {"prompt": "a", "max_tokens": 0},
    ],
    "/v1/embeddings": [{"input": [8192]}, {"input": "a", "inputs": "a"}, {"input": "a", "dimensions": 5}],
    "/tokenize": [{}, {"prompt": None}, {"prompt": "a", "content": "a"}],
    "/detokenize": [{"tokens": [8192]}],
}


def test_what_fits_the_document_of_a_server_is_answered_and_nothing_else(
    asgi: Callable[..., Any], serving: Callable[..., Any]
) -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    hello = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    fitting = {**OTHER_FITTING, "/v1/chat/completions": [{**hello, **body} for body in FITTING]}
    wrong = {**OTHER_WRONG, "/v1/chat/completions": [{**hello, **body} for body in WRONG]}

    async def ask() -> None:
        async with serving() as app:
            told = (await asgi(app, "GET", "/openapi.json")).json
            for path in fitting:
                content = told["paths"][path]["post"]["requestBody"]["content"]
                check = validator({**content["application/json"]["schema"], "components": told["components"]})
                for body in (*fitting[path], *wrong[path]):
                    fits = body in fitting[path]
                    assert check.is_valid(body) == fits, (path, body)
                    answer = await asgi(app, "POST", path, body)
                    assert (answer.status == 200) == fits, (path, body, answer.body)

    asyncio.run(ask())


def test_what_the_server_was_started_with_is_in_it(asgi: Callable[..., Any], serving: Callable[..., Any]) -> None:
    async def ask(**settings: Any) -> Any:
        async with serving(**settings) as app:
            return (await asgi(app, "GET", "/openapi.json")).json["components"]["schemas"]["ChatBody"]["properties"]

    fields = asyncio.run(ask(max_n=3, tool_emulation=True, expert_edits=False))
    assert fields["n"]["anyOf"][0]["maximum"] == 3 and fields["tools"]["anyOf"][0]["type"] == "array"
    assert fields["experts"] == {"type": "null"}
