"""GET /v1/models and /v1/models/{id}, in a shape that both official clients accept.

Mistral's client fails without `capabilities` and `type`; what is ours stands under `coterie`. A model that is served
but not in memory is listed with what is known of it, and asking for it alone does not load it.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coterie.errors import nearest
from coterie.server.failures import ApiError
from coterie.server.models import Models, Served
from coterie.server.state import State
from coterie.server.tools import call_mark

__all__ = ["routes"]


def routes(state: State) -> list[Route]:
    async def models(request: Request) -> Response:
        cards = [_card(name, state) for name in state.models.names]
        return JSONResponse({"object": "list", "data": cards})

    async def model(request: Request) -> Response:
        name = request.path_params["id"]
        if name not in state.models.names:
            raise _unknown(name, state.models)
        return JSONResponse(_card(name, state))

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{id:path}", model, methods=["GET"]),
    ]


def _card(name: str, state: State) -> dict[str, Any]:
    served = next((s for s in state.models.loaded if s.id == name), None)
    card = {
        "id": name,
        "object": "model",
        "created": 0 if served is None else served.created,
        "owned_by": "coterie",
        "root": name,
        "parent": None,
        "type": "base",
        "name": name,
        "description": None,
        "aliases": [],
        "deprecation": None,
        "default_model_temperature": 1.0,
        "capabilities": _capabilities(served, state),
        "coterie": {"is_loaded": served is not None},
    }
    return card if served is None else card | _shape(served)


def _capabilities(served: Served | None, state: State) -> dict[str, bool]:
    can_call = state.settings.tool_emulation or (served is not None and call_mark(served.lm) is not None)
    return {
        "completion_chat": True,
        "completion_fim": False,
        "function_calling": can_call,
        "fine_tuning": False,
        "vision": False,
        "classification": False,
    }


def _shape(served: Served) -> dict[str, Any]:
    config = served.lm.config
    router = config.router if config.is_sparse else None
    ours = {
        "is_loaded": True,
        "is_sparse": config.is_sparse,
        "n_layers": config.num_hidden_layers,
        "n_experts": config.num_local_experts or 0,
        "top_k": config.num_experts_per_tok if config.is_sparse else 0,
        "router": None if router is None else router.kind,
        "vocab_size": config.vocab_size,
        "chat_form": None if served.lm.chat_form is None else served.lm.chat_form.name,
    }
    context = config.max_position_embeddings
    return {"max_model_len": context, "max_context_length": context, "coterie": ours}


def _unknown(name: str, models: Models) -> ApiError:
    shown = name if len(name) <= 80 else name[:77] + "..."
    known = ", ".join(models.names)
    message = f"the model {shown!r} is not served here, expected one of {known}{nearest(name[:80], models.names)}"
    return ApiError(404, message, code="model_not_found", param="model")
