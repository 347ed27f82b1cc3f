import asyncio
from collections.abc import Callable
from typing import Any

import pytest

Ask = Callable[..., Any]
PATHS = ("/ready", "/health", "/v1/health")


def test_before_the_model_is_there(build: Ask, asgi: Ask) -> None:
    async def check() -> None:
        app = build()
        assert (await asgi(app, "GET", "/live")).status == 200
        for path in PATHS:
            answer = await asgi(app, "GET", path)
            assert answer.status == 503 and answer.json["code"] == "loading" and answer.headers["retry-after"]

    asyncio.run(check())


@pytest.mark.parametrize(
    ("what", "code"), [("is_draining", "draining"), ("is_ready", "engine_failed"), ("is_open", "queue_full")]
)
def test_with_a_model(serving: Ask, asgi: Ask, monkeypatch: pytest.MonkeyPatch, what: str, code: str) -> None:
    async def check() -> None:
        async with serving() as app:
            for path in PATHS:
                assert (await asgi(app, "GET", path)).json == {"status": "ok"}
            if what == "is_draining":
                app.state.is_draining = True
            else:
                monkeypatch.setattr(type(app.state.models.loaded[0].worker), what, False)
            for path in PATHS:
                answer = await asgi(app, "GET", path)
                assert answer.status == 503 and answer.json["code"] == code
            assert (await asgi(app, "GET", "/live")).status == 200
            monkeypatch.undo()

    asyncio.run(check())
