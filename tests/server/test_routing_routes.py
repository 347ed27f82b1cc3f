"""Routing beside the answers: of recent ones, to whom they belong, and counted live."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from coterie import load
from coterie.server.keys import Keys, add_key

CHAT = {"messages": [{"role": "user", "content": "Once"}], "max_tokens": 4, "return_routing": "final"}


def test_it_is_there_for_the_key_that_asked(
    asgi: Callable[..., Any], serving: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "keys.txt"
    mine, yours = ({"x-api-key": add_key(path, name)} for name in ("me", "you"))

    async def ask() -> list[Any]:
        async with serving(keys=Keys(path)) as app:
            made = (await asgi(app, "POST", "/v1/chat/completions", CHAT, mine)).json["id"]
            return [await asgi(app, "GET", f"/v1/routing/{made}", headers=h) for h in (mine, yours, {})]

    own, other, nobody = asyncio.run(ask())
    assert own.status == 200 and len(own.json["choices"][0]["experts"]) == 4
    assert (other.status, other.json["code"], nobody.status) == (404, "routing_not_found", 401)


def test_counts_as_they_grow(asgi: Callable[..., Any], serving: Callable[..., Any]) -> None:
    async def watch() -> Any:
        async with serving() as app:
            leave = asyncio.Event()
            stream = asyncio.ensure_future(asgi(app, "GET", "/v1/routing/stream?interval=0.1", leave=leave))
            await asyncio.sleep(0.2)
            await asgi(app, "POST", "/v1/chat/completions", CHAT)
            await asyncio.sleep(0.4)
            leave.set()
            return await stream

    answer = asyncio.run(watch())
    assert answer.headers["content-type"].startswith("text/event-stream")
    first, *later = [json.loads(f[6:]) for f in answer.body.decode().split("\n\n")[:-1]]
    config = load().config
    assert first["is_total"] and np.array(first["expert_tokens"]).sum() == 0
    counted = sum(np.array(frame["expert_tokens"]) for frame in later)
    assert counted.shape == (config.num_hidden_layers, config.num_local_experts)
    assert set(counted.sum(1)) == {counted.sum(1)[0]} and counted.sum() > 0  # every layer read as many tokens


def test_a_wrong_interval(asgi: Callable[..., Any], serving: Callable[..., Any]) -> None:
    async def ask() -> list[Any]:
        async with serving() as app:
            texts = ("0", "nan", "x", "1e9", "-1", "9" * 5000)
            return [await asgi(app, "GET", f"/v1/routing/stream?interval={t}") for t in texts]

    assert {(a.status, a.json["param"]) for a in asyncio.run(ask())} == {(400, "interval")}
