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

    assert asyncio.run(ask()).json == document()


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
