"""Every route × every method × no key, a wrong one, a user's, an admin's: what is not public by name is closed.

The routes are those of the application itself, so that a new one is in the matrix on the day it comes. CVE-2026-48710
(a Host that changes the path) and prefix lists that forget a route were how others were entered.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Any

import pytest
from raw_http import Connection, Reply, ask, request_bytes
from refusals import check_body, check_refusal

from coterie.server.app import ROUTE_MODULES
from coterie.server.keys import Keys
from coterie.server.models import Models
from coterie.server.settings import Settings
from coterie.server.state import State

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
PUBLIC = re.compile(r"/|/live|/ready|/health|/v1/health|/page/.*")
BAD_KEYS = (
    "",
    "x",
    "ck-",
    "null",
    "undefined",
    "*",
    "ck-user\x7f",
    "é",
    "Bearer",
    "a" * 4000,
    "'; --",
    "ck-use",
    "CK-USER",
)
ADMIN = ("/metrics", "/v1/routing/stream")  # what tells of everybody
KEYS = {"user": "ck-user", "admin": "ck-admin"}
ADMIN_PATHS = (
    *("/metrics", "/%6detrics", "/metrics?a=b", "//metrics", "/metrics/", "/./metrics", "/METRICS", "/metrics%00"),
    *("/health/../metrics", "/live/../metrics", "/page/../metrics", "/page/..%2fmetrics", "/metrics;a", "/metrics%20"),
    *(
        "/health/..%2f..%2fmetrics",
        "/page/%2e%2e/metrics",
        "/;/metrics",
        "/%2fmetrics",
        "/metrics%23",
        "/live%0a/metrics",
    ),
)


@pytest.fixture(scope="module")
def guarded(start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a server with keys."""
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    lines = [f"{name} {name} {hashlib.sha256(key.encode()).hexdigest()}\n" for name, key in KEYS.items()]
    file.write_text("".join(lines))
    url: str = start_server("--api-key-file", str(file)).url
    return url


def all_paths() -> list[str]:
    settings = Settings()
    state = State(Models({"demo": "demo"}, lambda name: pytest.fail(name), settings), settings, Keys())
    paths = [route.path for module in ROUTE_MODULES for route in module.routes(state)]
    return sorted({re.sub(r"\{[^}]*\}", "demo", path) for path in paths})


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def try_path(url: str, method: str, path: str, headers: dict[str, str]) -> Reply:
    """The answer; of one that is no refusal only its beginning, since some have no end."""
    body = None if method in ("GET", "HEAD", "OPTIONS", "TRACE", "CONNECT") else {}
    with Connection(url) as connection:
        connection.send(request_bytes(method, path, body, headers))
        status, found = connection.head()
        is_refusal = status >= 400 and method != "HEAD"
        return Reply(status, found, b"".join(connection.pieces(found)) if is_refusal else b"", 0.0)


def test_nothing_answers_without_a_key_but_what_is_public(guarded: str) -> None:
    wrong = []
    for path in [*all_paths(), "/v1/nothing", "/admin", "/v1", "/docs", "/v2/models"]:
        for method in METHODS:
            for headers in ({}, bearer("ck-wrong"), {"x-api-key": "ck-wrong"}, {"authorization": "Basic Y2stdXNlcjo="}):
                reply = try_path(guarded, method, path, headers)
                is_public = PUBLIC.fullmatch(path) is not None
                if (is_public and reply.status == 401) or (not is_public and reply.status not in (400, 401)):
                    wrong.append((method, path, headers, reply.status))
    assert not wrong, wrong


def test_a_user_reaches_all_but_what_is_the_admins(guarded: str) -> None:
    wrong, n = [], 0
    for path in all_paths():
        for method in METHODS:
            for name, key in KEYS.items():
                reply = try_path(guarded, method, path, bearer(key))
                n += 1
                is_closed = name == "user" and path in ADMIN
                if (is_closed != (reply.status == 403) and reply.status not in (400, 405)) or reply.status == 401:
                    wrong.append((name, method, path, reply.status))
                if reply.status >= 400 and method != "HEAD":
                    check_body(reply.json())
                assert reply.status < 500 or reply.status == 501, (name, method, path, reply)
    assert not wrong and n > 50, wrong


@pytest.mark.parametrize("key", BAD_KEYS)
def test_wrong_keys(guarded: str, key: str) -> None:
    for headers in (bearer(key), {"x-api-key": key}):
        assert ask(guarded, "GET", "/v1/models", headers=headers).status in (400, 401)


def test_both_headers_and_the_right_key(guarded: str) -> None:
    for headers in (bearer("ck-user"), {"authorization": "bearer ck-user"}, {"x-api-key": "ck-user"}):
        assert ask(guarded, "GET", "/v1/models", headers=headers).status == 200, headers


def test_two_keys_at_once_are_none(guarded: str) -> None:
    """Two readers of one header must not see two different keys."""
    with Connection(guarded) as connection:
        lines = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        connection.send(lines + b"Authorization: Bearer ck-wrong\r\nAuthorization: Bearer ck-user\r\n\r\n")
        assert connection.reply().status == 401


@pytest.mark.parametrize("path", ADMIN_PATHS)
def test_no_spelling_of_a_path_opens_what_is_the_admins(guarded: str, path: str) -> None:
    for headers in ({}, bearer("ck-wrong"), bearer("ck-user")):
        reply = ask(guarded, "GET", path, headers=headers)
        assert reply.status in (400, 401, 403, 404), (headers, reply)
        assert "coterie_" not in reply.text


def test_the_admin_reads_the_metrics(guarded: str) -> None:
    assert "coterie_" in ask(guarded, "GET", "/metrics", headers=bearer("ck-admin")).text


def test_a_wrong_key_says_nothing_of_the_right_ones(guarded: str) -> None:
    body = check_refusal(ask(guarded, "POST", "/v1/chat/completions", {}, bearer("ck-secret-guess")), 401)
    assert body["code"] == "invalid_api_key" and "ck-secret" not in str(body)
