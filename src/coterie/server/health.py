"""/live: the process answers. /ready, /health: a model is loaded, the queue is open, the engine steps.

None of them needs a key, and none touches the model.
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coterie.server.failures import ApiError, unavailable
from coterie.server.state import State

__all__ = ["routes"]


def routes(state: State) -> list[Route]:
    async def live(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        if (error := _why_not(state)) is not None:
            raise error
        return JSONResponse({"status": "ok"})

    return [
        Route("/live", live, methods=["GET"]),
        *(Route(path, ready, methods=["GET"]) for path in ("/ready", "/health", "/v1/health")),
    ]


def _why_not(state: State) -> ApiError | None:
    if state.is_draining:
        return unavailable("the server is shutting down", state.settings.drain, code="draining")
    if not state.models.is_started:
        return unavailable("the model is being loaded", 2, code="loading")
    if not all(served.worker.is_open for served in state.models.loaded):
        return unavailable("as many requests wait as may", 5, code="queue_full")
    if not all(served.worker.is_ready for served in state.models.loaded):
        return unavailable(
            "the engine does not step, or has failed three times in ten minutes", 10, code="engine_failed"
        )
    return None
