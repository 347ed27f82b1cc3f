"""The guard around a few routes of the tests: who is let in, what is told to whom, who is cancelled."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from coterie.errors import RequestError
from coterie.server import app as application
from coterie.server.app import build_app
from coterie.server.body import read_json
from coterie.server.guard import is_public
from coterie.server.keys import Keys, add_key
from coterie.server.models import Models
from coterie.server.settings import Settings
from coterie.server.state import State

Ask = Callable[..., Any]


class Routes:
    """A module of routes: an echo, failures of each kind, and one that never ends."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def routes(self, state: State) -> list[Route]:
        async def echo(request: Request) -> Response:
            return JSONResponse({"body": await read_json(request), "key": request.state.key.name})

        async def fail(request: Request) -> Response:
            if request.path_params["how"] == "ours":
                raise RequestError("temperature is 3, expected 2")
            raise ZeroDivisionError("/secret/path/0x7f00")

        async def endless(request: Request) -> Response:
            try:
                await asyncio.sleep(3600)
            finally:
                self.seen.append("cancelled")
            return Response()

        async def stream(request: Request) -> Response:
            async def parts() -> Any:
                try:
                    while True:
                        yield b"data: x\n\n"
                        await asyncio.sleep(0.001)
                finally:
                    self.seen.append("closed")

            return StreamingResponse(parts())

        async def torn(request: Request) -> Response:
            async def parts() -> Any:
                yield b"x"
                raise ValueError

            return StreamingResponse(parts())

        return [
            Route("/v1/echo", echo, methods=["POST"]),
            Route("/v1/fail/{how}", fail, methods=["GET"]),
            Route("/v1/endless", endless, methods=["POST"]),
            Route("/v1/stream", stream, methods=["POST"]),
            Route("/v1/torn", torn, methods=["POST"]),
            Route("/metrics", stream_nothing, methods=["GET"]),
        ]


async def stream_nothing(request: Request) -> Response:
    return Response("")


@pytest.fixture
def routes() -> Routes:
    return Routes()


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, routes: Routes) -> Callable[..., Any]:
    monkeypatch.setattr(application, "ROUTE_MODULES", (*application.ROUTE_MODULES, routes))

    def build(keys: Keys | None = None, metrics: Any = None, **fields: Any) -> Any:
        settings = Settings(**{"access_log": False, **fields})
        return build_app(Models({"demo": "demo"}, lambda _: None, settings), settings, keys or Keys(), metrics)  # type: ignore[arg-type, return-value]

    return build


def ask(call: Awaitable[Any]) -> Any:
    return asyncio.run(asyncio.wait_for(call, 20))  # type: ignore[arg-type]


@pytest.fixture
def key_file(tmp_path: Path) -> tuple[Keys, dict[str, str | None]]:
    file = tmp_path / "keys.txt"
    user, admin = add_key(file, "alice"), add_key(file, "root", "admin")
    return Keys(file), {"none": None, "bad": "ck-bad", "user": user, "admin": admin}


PUBLIC = ("/live", "/", "/page/app.js", "/page/sub/style-1.css")
PRIVATE = ("/v1/echo", "/v1/models", "/docs", "/openapi.json", "/nothing", "/v1", "//live", "/live/", "/Live", "/page")
TRICKS = ("/page/../v1/echo", "/page/..", "/page//x", "/page/.", "/page/%2e%2e/v1", "/page/x?", "/live%00", "/page/a b")


@pytest.mark.parametrize("who", ["none", "bad", "user", "admin"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_only_what_is_listed_is_open(
    build: Ask, asgi: Ask, key_file: tuple[Keys, dict[str, str | None]], who: str, method: str
) -> None:
    app, key = build(key_file[0]), key_file[1][who]
    for number, path in enumerate((*PUBLIC, *PRIVATE, *TRICKS[:4], "/metrics")):
        header = ("x-api-key", key) if number % 2 else ("authorization", f"Bearer {key}")
        answer = ask(asgi(app, method, path, headers={} if key is None else dict([header])))
        if path in PUBLIC:
            assert answer.status in (200, 404, 405), path
        elif who in ("none", "bad"):
            assert answer.status == 401 and answer.json["code"] == "invalid_api_key", path
        elif path == "/metrics":
            expected = {"user": (403,), "admin": (200, 405)}[who]
            assert answer.status in expected
        else:
            assert answer.status not in (401, 403, 500), path


def test_paths_that_look_public() -> None:
    assert all(is_public(p.encode()) for p in PUBLIC)
    assert not any(is_public(p.encode()) for p in (*PRIVATE, *TRICKS))


GOOD_HOSTS = ("localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:1", "[::1]", "[::1]:8000")
FOREIGN_HOSTS = (
    *("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil", "0.0.0.0", "10.0.0.1", "[::2]"),
    *("a-127.0.0.1", "127.1", "0x7f000001", "2130706433"),
)
NO_HOSTS = (
    *("", " ", "/", "?", "#", "localhost/", "localhost#", "localhost?", "localhost:", "localhost:x", "*", "a" * 300),
    *("user@localhost", "localhost@evil", "localhost, evil", "localhost evil", "[::1", "::1", "[::1]]", "localhost\t"),
    *("http://localhost", "localhost:80:80", "localhost.", ".localhost", "-", "a_b", "%6cocalhost", "local\x00host"),
    *("é", "localhost\\evil", "localhost:123456"),
)
HOSTS = {200: GOOD_HOSTS, 403: FOREIGN_HOSTS, 400: NO_HOSTS}


@pytest.mark.parametrize("status", list(HOSTS))
def test_hosts(build: Ask, asgi: Ask, status: int) -> None:
    """DNS rebinding: a name of somebody else that leads to 127.0.0.1 (CVE-2024-28224); BadHost, CVE-2026-48710."""
    app = build()
    for host in HOSTS[status]:
        assert ask(asgi(app, "GET", "/live", headers={"host": host})).status == status, host


def test_more_hosts(build: Ask, asgi: Ask, key_file: tuple[Keys, Any]) -> None:
    app = build(allowed_hosts=("gpu.lan",))
    assert ask(asgi(app, "GET", "/live", headers={"host": "gpu.lan:8000"})).status == 200
    keys, key = key_file[0], key_file[1]["user"]
    elsewhere = {"host": "10.1.2.3:8000", "x-api-key": key}
    assert ask(asgi(build(keys, host="0.0.0.0"), "GET", "/v1/x", headers=elsewhere)).status == 404
    limited = build(keys, host="0.0.0.0", allowed_hosts=("gpu.lan",))
    assert ask(asgi(limited, "GET", "/v1/x", headers=elsewhere)).status == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        *(
            ("http://localhost", 200),
            ("https://localhost", 200),
            ("http://evil.example", 403),
            ("null", 403),
            ("", 403),
        ),
        *(("http://localhost.evil", 403), ("file://localhost", 403), ("http://localhost:81", 403), ("localhost", 403)),
    ],
)
def test_another_site_cannot_post(build: Ask, asgi: Ask, origin: str, status: int) -> None:
    answer = ask(asgi(build(), "POST", "/v1/echo", {}, {"origin": origin}))
    assert answer.status == status and "access-control-allow-origin" not in answer.headers


def test_cors_is_closed_but_for_a_list(build: Ask, asgi: Ask, key_file: tuple[Keys, Any]) -> None:
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    answer = ask(asgi(build(), "OPTIONS", "/v1/echo", headers=preflight))
    assert answer.status == 403 and "access-control-allow-origin" not in answer.headers
    app = build(key_file[0], cors_origins=("https://a.example",))
    answer = ask(asgi(app, "OPTIONS", "/v1/echo", headers=preflight))
    assert answer.status == 204 and answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-credentials" not in answer.headers
    answer = ask(asgi(app, "POST", "/v1/echo", {}, {"origin": "https://a.example"}))
    assert answer.status == 401 and answer.headers["access-control-allow-origin"] == "https://a.example"
    answer = ask(asgi(app, "OPTIONS", "/v1/echo", headers={**preflight, "origin": "https://b.example"}))
    assert answer.status == 403 and "access-control-allow-origin" not in answer.headers


def test_every_answer_has_an_id_and_safe_headers(build: Ask, asgi: Ask) -> None:
    for path in ("/live", "/nothing", "/v1/fail/so"):
        answer = ask(asgi(build(), "GET", path, headers={"x-request-id": "mine-1"}))
        assert answer.headers["x-request-id"] == "mine-1" and answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    for given in ("a b", "x" * 65, "a\r\nb", ""):
        assert ask(asgi(build(), "GET", "/live", headers={"x-request-id": given})).headers["x-request-id"][:4] == "req_"


def test_routes_that_are_not_there_answer_in_json(build: Ask, asgi: Ask) -> None:
    answer = ask(asgi(build(), "GET", "/v1/nothing"))
    assert answer.status == 404 and answer.json["error"]["type"] == "not_found_error"
    answer = ask(asgi(build(), "GET", "/v1/echo"))
    assert answer.status == 405 and answer.headers["allow"] == "POST" and "expected POST" in answer.json["message"]


def test_a_fault_is_an_id_and_nothing_else(build: Ask, asgi: Ask, caplog: pytest.LogCaptureFixture) -> None:
    answer = ask(asgi(build(), "GET", "/v1/fail/so"))
    assert answer.status == 500 and answer.headers["x-request-id"] in answer.json["message"]
    assert b"secret" not in answer.body and b"Zero" not in answer.body
    assert "ZeroDivisionError" in caplog.text


def test_a_refusal_of_the_engine_in_both_dialects(build: Ask, asgi: Ask) -> None:
    answer = ask(asgi(build(), "GET", "/v1/fail/ours"))
    assert answer.status == 400 and answer.json["param"] == "temperature"
    answer = ask(asgi(build(), "GET", "/v1/fail/ours", headers={"user-agent": "mistral-client-python/3.7.0"}))
    assert answer.status == 422 and answer.json["detail"][0]["loc"] == ["body", "temperature"]


def test_bodies(build: Ask, asgi: Ask) -> None:
    app = build(max_body=100)
    assert ask(asgi(app, "POST", "/v1/echo", {"a": 1})).json == {"body": {"a": 1}, "key": ""}
    answer = ask(asgi(app, "POST", "/v1/echo", b"x" * 101, {"content-length": "101"}))
    assert answer.status == 413 and answer.headers["connection"] == "close"
    parts = {"transfer-encoding": "chunked"}
    assert ask(asgi(app, "POST", "/v1/echo", b"", parts, parts=[b"x" * 60] * 2)).status == 413
    assert ask(asgi(app, "POST", "/v1/echo", b"{}", {"content-type": "text/plain"})).status == 415


def test_a_refused_request_ends_its_connection_where_the_body_was_not_read(
    build: Ask, asgi: Ask, key_file: tuple[Keys, Any]
) -> None:
    answer = ask(asgi(build(key_file[0]), "POST", "/v1/echo", {"a": 1}, {"content-length": "8"}))
    assert answer.status == 401 and answer.headers["connection"] == "close"


@pytest.mark.parametrize(("path", "said"), [("/v1/endless", "cancelled"), ("/v1/stream", "closed")])
def test_who_leaves_is_not_worked_for(build: Ask, asgi: Ask, routes: Routes, path: str, said: str) -> None:
    """A handler that does not stream heard of it only at the end (litellm #37140, vLLM #54947)."""

    async def leave_soon() -> None:
        leave = asyncio.Event()
        asyncio.get_running_loop().call_later(0.02, leave.set)
        app, tasks = build(), asyncio.all_tasks()
        await asgi(app, "POST", path, {}, leave=leave)
        await asyncio.sleep(0.02)  # a generator that was dropped is closed by the loop
        assert routes.seen == [said] and app.state.n_in_flight == 0
        assert asyncio.all_tasks() == tasks

    asyncio.run(asyncio.wait_for(leave_soon(), 20))


def test_a_failure_in_the_midst_of_an_answer_tears_it(build: Ask, asgi: Ask) -> None:
    with pytest.raises(ConnectionAbortedError):
        ask(asgi(build(), "POST", "/v1/torn", {}))


def test_draining_turns_away(build: Ask, asgi: Ask) -> None:
    app = build()
    app.state.is_draining = True
    answer = ask(asgi(app, "POST", "/v1/echo", {}))
    assert (
        answer.status == 503 and answer.headers["x-should-retry"] == "true" and int(answer.headers["retry-after"]) > 0
    )
    assert ask(asgi(app, "GET", "/live")).status == 200
    assert ask(asgi(app, "GET", "/live")).headers["connection"] == "close"


def test_the_log_has_a_line_for_each_and_no_text(build: Ask, asgi: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    app = build(access_log=True)
    ask(asgi(app, "POST", "/v1/echo?q=secret", {"secret": "secret"}))
    ask(asgi(app, "GET", "/v1/a\nb"))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(e["status"], e["path"]) for e in lines] == [(200, "/v1/echo"), (404, "/v1/a\nb")]
    assert "secret" not in json.dumps(lines)


def test_routes_are_counted_by_their_pattern(build: Ask, asgi: Ask) -> None:
    class Counts:
        seen: list[tuple[str, str, int]] = []  # noqa: RUF012

        def watch(self, models: Models) -> None: ...

        def on_response(self, route: str, method: str, status: int, seconds: float) -> None:
            self.seen.append((route, method, status))

    app = build(metrics=Counts())
    for path in ("/v1/fail/ours", "/no/such/path"):
        ask(asgi(app, "GET", path))
    assert Counts.seen == [("/v1/fail/{how}", "GET", 400), ("unknown", "GET", 404)]
