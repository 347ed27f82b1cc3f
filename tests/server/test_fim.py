"""Filling in the middle: 501, after the body has been looked at."""

import asyncio
from collections.abc import Callable
from typing import Any


def test_it_is_not_there(asgi: Callable[..., Any], serving: Callable[..., Any]) -> None:
    async def ask() -> list[Any]:
        async with serving() as app:
            bodies = (
                {"prompt": "def f(", "suffix": "return a"},
                {"suffix": "a"},
                {"prompt": "a", "model": "codestral"},
            )
            return [await asgi(app, "POST", "/v1/fim/completions", body) for body in bodies]

    there, wrong, unknown = asyncio.run(ask())
    assert (there.status, there.json["type"], there.json["code"]) == (501, "not_supported_error", "fim_not_supported")
    assert (wrong.status, wrong.json["param"]) == (400, "prompt") and unknown.status == 404
