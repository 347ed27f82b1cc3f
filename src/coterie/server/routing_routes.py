"""GET /v1/routing/{id}: the routing of a recent answer. GET /v1/routing/stream: tokens that each expert reads, live.

An answer's routing is there for who asked for the answer, for a while, if it was asked with `return_routing`. The
stream counts everybody's tokens, prompts too, and says nothing of whose they are.
"""

import asyncio
from collections.abc import AsyncGenerator

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coterie.server.failures import ApiError, refused
from coterie.server.models import Served
from coterie.server.sse import DONE, EventStream, frame
from coterie.server.state import State

__all__ = ["routes"]

_LEAST, _MOST, _DEFAULT = 0.1, 60.0, 0.5  # seconds between frames


def routes(state: State) -> list[Route]:
    async def stream(request: Request) -> Response:
        served = await state.models.get(request.query_params.get("model"))
        if not served.lm.config.is_sparse:
            message = f"{served.id} is dense: it has no experts to count"
            raise ApiError(501, message, code="not_supported", param="model")
        interval = _interval(request.query_params.get("interval"))
        frames = _counts(served, state, interval)
        return EventStream(frames, lambda error: DONE, state.settings.ping_interval)

    async def routing(request: Request) -> Response:
        answer_id = request.path_params["id"]
        kept = state.shelf.get(answer_id, request.state.key.name)
        if kept is None:
            message = (
                "there is no routing under this id: it is kept for the last answers that were asked with "
                "return_routing, and for the key that asked"
            )
            raise ApiError(404, message, code="routing_not_found", param="id")
        return JSONResponse(await asyncio.to_thread(kept.to_json, answer_id))

    return [
        Route("/v1/routing/stream", stream, methods=["GET"]),
        Route("/v1/routing/{id}", routing, methods=["GET"]),
    ]


async def _counts(served: Served, state: State, interval: float) -> AsyncGenerator[str, None]:
    """One frame now, of what has been counted so far, and one at each interval in which something was."""
    before = _counted(served)
    yield frame({"object": "routing.counts", "model": served.id, "expert_tokens": before.tolist(), "is_total": True})
    while not state.is_draining:
        await asyncio.sleep(interval)
        now = _counted(served)
        if (new := now - before).any():
            counts = np.maximum(new, 0).tolist()  # a model that was loaded anew begins at 0
            yield frame({"object": "routing.counts", "model": served.id, "expert_tokens": counts, "is_total": False})
        before = now
    yield DONE


def _counted(served: Served) -> NDArray[np.int64]:
    return served.worker.engine.stats.expert_tokens_LE


def _interval(text: str | None) -> float:
    if text is None:
        return _DEFAULT
    try:
        value = float(text[:20])
    except ValueError:
        value = float("nan")
    if not _LEAST <= value <= _MOST:
        raise refused(
            "interval", f"interval is {text[:20]!r}, expected a number of seconds between {_LEAST} and {_MOST}"
        )
    return value
