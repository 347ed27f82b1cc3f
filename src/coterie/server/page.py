"""The chat page: files of the wheel under `/` and `/page/NAME`, which need no key and hold no secret.

Read once, only names that are there; a path is never joined to anything. The policy lets the page load and ask this
server alone, and has no script, style or HTML made out of text: what a model writes stays text even if the page erred.
"""

from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from coterie.server.failures import ApiError
from coterie.server.state import State

__all__ = ["HEADERS", "POLICY", "read_page", "routes"]

POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",
}
_KINDS = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


class PageFile(NamedTuple):
    body: bytes
    kind: str
    tag: str  # changes with the body: browsers ask each time, and are told that they have it


def read_page() -> dict[str, PageFile]:
    """Every file of the page by its name."""
    found = {}
    for entry in files("coterie.server").joinpath("page").iterdir():
        kind = _KINDS.get(entry.name.rpartition(".")[2])
        if kind is not None and entry.is_file():
            body = entry.read_bytes()
            found[entry.name] = PageFile(body, kind, f'"{sha256(body).hexdigest()[:32]}"')
    return found


def routes(state: State) -> list[Route]:
    page = read_page()

    async def index(request: Request) -> Response:
        return _answer(request, page["index.html"])

    async def file(request: Request) -> Response:
        found = page.get(request.path_params["name"])
        if found is None:
            raise ApiError(404, "there is no such file of the page", code="not_found")
        return _answer(request, found)

    return [Route("/", index, methods=["GET"]), Route("/page/{name}", file, methods=["GET"])]


def _answer(request: Request, file: PageFile) -> Response:
    headers = {**HEADERS, "etag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.kind, headers=headers)
