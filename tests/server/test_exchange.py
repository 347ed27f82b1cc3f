"""What every answer has, and what becomes of failures and of clients that leave, on the probe's routes."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from coterie.server.models import Models

Ask = Callable[..., Any]


def ask(call: Awaitable[Any]) -> Any:
    return asyncio.run(asyncio.wait_for(call, 20))  # type: ignore[arg-type]


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


@pytest.mark.parametrize(("path", "said"), [("/v1/endless", "cancelled"), ("/v1/stream", "closed")])
def test_who_leaves_is_not_worked_for(build: Ask, asgi: Ask, probe: Any, path: str, said: str) -> None:
    """A handler that does not stream heard of it only at the end (litellm #37140, vLLM #54947)."""

    async def leave_soon() -> None:
        leave = asyncio.Event()
        asyncio.get_running_loop().call_later(0.02, leave.set)
        app, tasks = build(), asyncio.all_tasks()
        await asgi(app, "POST", path, {}, leave=leave)
        await asyncio.sleep(0.02)  # a generator that was dropped is closed by the loop
        assert probe.seen == [said] and app.state.n_in_flight == 0
        assert asyncio.all_tasks() == tasks

    asyncio.run(asyncio.wait_for(leave_soon(), 20))


def test_a_failure_in_the_midst_of_an_answer_tears_it(build: Ask, asgi: Ask) -> None:
    with pytest.raises(ConnectionAbortedError):
        ask(asgi(build(), "POST", "/v1/torn", {}))


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
