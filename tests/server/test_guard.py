"""The guard around the routes of the probe: who is let in, and who is told what."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.server.guard import is_public
from coterie.server.keys import Keys, add_key

Ask = Callable[..., Any]


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


def test_draining_turns_away(build: Ask, asgi: Ask) -> None:
    app = build()
    app.state.is_draining = True
    answer = ask(asgi(app, "POST", "/v1/echo", {}))
    assert (
        answer.status == 503 and answer.headers["x-should-retry"] == "true" and int(answer.headers["retry-after"]) > 0
    )
    assert ask(asgi(app, "GET", "/live")).status == 200
    assert ask(asgi(app, "GET", "/live")).headers["connection"] == "close"
