"""20 ways to write a line of one's own into the log, or into an answer's headers: a request stays one line of JSON."""

import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from raw_http import ask

FORGED = '{"at": "2026-01-01T00:00:00Z", "status": 200, "key": "forged"}'
PAYLOADS = (
    *(f"a\n{FORGED}", f"a\r{FORGED}", f"a\r\n{FORGED}", f"a\x0b{FORGED}", f"a\x0c{FORGED}", f"a\x85{FORGED}"),
    *(f"a\u2028{FORGED}", f"a\u2029{FORGED}", "a\x1b[2J\x1b[31mforged", "a\x1b]0;forged\x07", "a\x9b31mforged"),
    "a\x08\x08\x08forged",
    *("a\x00forged", 'a", "key": "forged', 'a"}\nforged', "a\\nforged", "a\\u000aforged", "${jndi:ldap://127.0.0.1/forged}"),
    *("%n%n%s%s forged", "{forged.__class__}", "\u202eforged", "a" * 20_000 + "forged"),
)  # fmt: skip


@pytest.fixture(scope="module")
def logged(start_server: Callable[..., Any]) -> Any:
    """A server of its own, whose log only these tests write to."""
    return start_server()


def test_there_are_twenty() -> None:
    assert len(set(PAYLOADS)) >= 20


def test_one_request_is_one_line(logged: Any) -> None:
    begin, n = len(logged.log), 0
    for payload in PAYLOADS:
        header = "".join(c if " " <= c <= "~" else "?" for c in payload)[:5000]
        for method, path, body, headers in (
            ("GET", "/v1/" + quote(payload)[:9000], None, {}),
            ("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1, "model": payload}, {}),
            ("POST", "/v1/completions", {"prompt": payload[:200], "max_tokens": 1, "user": payload}, {}),
            ("GET", "/v1/models", None, {"user-agent": header, "referer": header}),
            ("GET", "/v1/models", None, {"x-request-id": header}),
        ):
            reply = ask(logged.url, method, path, body, headers)
            assert reply.status < 500, (payload, reply)
            assert all(c >= " " for value in reply.headers.values() for c in value)
            n += 1
    for line in lines(logged, begin + n)[begin:]:
        entry = json.loads(line)
        assert line.isascii() and line.count("\n") == 1 and len(line) < 2000, line
        assert all(c.isprintable() for c in line[:-1])
        assert entry["key"] == "" and entry["status"] >= 100, entry


def test_a_request_id_is_taken_only_when_it_is_one(logged: Any) -> None:
    assert ask(logged.url, "GET", "/live", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for wrong in ("a b", "a" * 65, "<b>", "é", ""):
        found = ask(logged.url, "GET", "/live", headers={"x-request-id": wrong}).headers["x-request-id"]
        assert found != wrong and found.startswith("req_")


def test_neither_prompt_nor_answer_is_in_the_log(logged: Any) -> None:
    begin = len(logged.log)
    secret = "the treasure is under the oak"
    answer = ask(logged.url, "POST", "/v1/completions", {"prompt": secret, "max_tokens": 8, "temperature": 0}).json()
    ask(logged.url, "POST", "/v1/completions", {"prompt": secret, "max_tokens": "8"})
    text = "".join(lines(logged, begin + 2)[begin:])
    assert "treasure" not in text and answer["choices"][0]["text"] not in text


def lines(server: Any, n: int) -> list[str]:
    """The log once it has so many lines: they come a moment after the answers."""
    end = time.monotonic() + 10
    while len(server.log) < n and time.monotonic() < end:
        time.sleep(0.02)
    assert len(server.log) == n, "".join(server.log[n - 3 :])[-2000:]
    return list(server.log)
