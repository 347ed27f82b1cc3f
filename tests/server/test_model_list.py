"""The list of models: OpenAI's and Mistral's fields in one, ours beside them."""

import asyncio
from collections.abc import Callable
from typing import Any


def test_what_is_listed(asgi: Callable[..., Any], serving: Callable[..., Any]) -> None:
    async def ask() -> list[Any]:
        async with serving() as app:
            paths = ("/v1/models", "/v1/models/demo", "/v1/models/gpt-4", "/v1/models/../../etc/passwd")
            return [await asgi(app, "GET", path) for path in paths]

    models, demo, unknown, odd = asyncio.run(ask())
    (card,) = models.json["data"]
    assert models.json["object"] == "list" and card == demo.json
    assert {"id": "demo", "object": "model", "owned_by": "coterie", "type": "base"}.items() <= card.items()
    assert card["capabilities"]["completion_chat"] is True and card["capabilities"]["function_calling"] is False
    assert card["max_model_len"] == card["max_context_length"] == 2048
    shape = card["coterie"]
    assert shape["is_loaded"] and shape["is_sparse"] and shape["n_experts"] > shape["top_k"] >= 1 <= shape["n_layers"]
    assert unknown.status == odd.status == 404
    assert (unknown.json["code"], unknown.json["param"]) == ("model_not_found", "model")
    assert "demo" in unknown.json["message"]
