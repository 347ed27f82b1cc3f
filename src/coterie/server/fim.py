"""POST /v1/fim/completions: 501, since no Mixtral has the tokens that fill in the middle of a text."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from coterie.server.body import read_json
from coterie.server.failures import ApiError
from coterie.server.mistral import find_dialect
from coterie.server.schema import read
from coterie.server.schema_text import FimBody
from coterie.server.state import State

__all__ = ["routes"]


def routes(state: State) -> list[Route]:
    async def complete(request: Request) -> Response:
        values = await read_json(request)
        find_dialect(request, values)
        body = read(FimBody, values)
        served = await state.models.get(body.model)
        message = f"{served.id} cannot fill in the middle of a text: its tokenizer has no tokens for it"
        raise ApiError(501, message, code="fim_not_supported", param="suffix")

    return [Route("/v1/fim/completions", complete, methods=["POST"])]
