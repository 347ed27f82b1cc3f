"""The ASGI application: one list of route tables, with the guard before them."""

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from coterie.server import (
    chat,
    completions,
    docs_page,
    embeddings,
    fim,
    health,
    metrics,
    model_list,
    openapi,
    page,
    routing_routes,
    tokenize_routes,
)
from coterie.server.failures import ApiError
from coterie.server.guard import Guard
from coterie.server.keys import Keys
from coterie.server.metrics import Metrics
from coterie.server.models import Models
from coterie.server.settings import Settings
from coterie.server.state import State

__all__ = ["ROUTE_MODULES", "App", "build_app"]

ROUTE_MODULES = (  # each has `routes(state) -> list[Route]`
    *(chat, completions, docs_page, embeddings, fim, health, metrics, model_list, openapi, page),
    *(routing_routes, tokenize_routes),
)


class App:
    """`state` is what `run` drains and reloads."""

    def __init__(self, state: State):
        self.state = state
        routes: list[Route] = [route for module in ROUTE_MODULES for route in module.routes(state)]
        self.guard: ASGIApp = Guard(_Marked(Router(routes, redirect_slashes=False, default=_no_route)), state)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.guard(scope, receive, send)


class _Marked:
    """Tells starlette that somebody turns its exceptions into answers, and that sending to who has left may fail."""

    def __init__(self, router: Router):
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        scope["asgi"] = {**scope.get("asgi", {}), "spec_version": "2.4"}
        await self._router(scope, receive, send)


def build_app(models: Models, settings: Settings, keys: Keys, metrics: Metrics | None = None) -> App:
    """The application for these models; the `metrics` are those that observe them."""
    return App(State(models, settings, keys, metrics))


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:
    raise ApiError(404, "there is no such route", code="not_found")
