"""A real server process (`server`, `start_server`), and the application without a network (`asgi`)."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from coterie.errors import RequestError
from coterie.server.body import read_json

READY = re.compile(r"serving \S+ on (http://\S+)")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A process of `coterie serve`; `log` is what it has written to stderr so far."""

    url: str
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 60
    ) -> Answer:
        """One request on a connection of its own; a `body` that is no bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = {} if data is None else {"content-type": "application/json"}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)) as connection:
            connection.request(method, path, data, {**kind, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.request("POST", path, body, headers)

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """The first line of the log with this text."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in list(self.log):
                if text in line:
                    return line
            time.sleep(0.01)
        raise AssertionError(f"{text!r} did not come within {seconds} s: {''.join(self.log)[-3000:]}")

    def stop(self, seconds: float = 30) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


def launch(*flags: str, model: str = "demo") -> Server:
    """Start a server on a free port and wait until it serves."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(
        [sys.executable, "-m", "coterie", "serve", model, "--port", "0", *flags],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    server = Server("", process)
    threading.Thread(target=_collect, args=(process, server.log), daemon=True).start()
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for line in list(server.log):
            if match := READY.search(line):
                server.url = match[1]
                return server
        if process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    process.wait()
    raise AssertionError(f"the server did not start: {''.join(server.log)[-3000:]}")


def _collect(process: subprocess.Popen[str], log: list[str]) -> None:
    assert process.stderr is not None
    with process.stderr:
        log.extend(iter(process.stderr.readline, ""))


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[..., Server]]:
    """`start_server(*flags, model="demo")`; whatever still runs at the end is killed."""
    servers: list[Server] = []

    def start(*flags: str, model: str = "demo") -> Server:
        servers.append(launch(*flags, model=model))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Server]) -> Server:
    """One server of the demo for all tests that leave it as it was."""
    return start_server()


async def call_app(
    app: Any,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    *,
    leave: asyncio.Event | None = None,
    parts: list[bytes] | None = None,
) -> Answer:
    """One request to an ASGI application; `leave` set means that the client is gone; `parts` come one by one."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    given = {"host": "localhost", **({} if body is None else {"content-type": "application/json"}), **(headers or {})}
    messages = [{"type": "http.request", "body": p, "more_body": True} for p in parts or []]
    messages.append({"type": "http.request", "body": data, "more_body": False})
    raw_path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": raw_path,
        "raw_path": raw_path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    answer = Answer(0, {}, b"")
    is_over = leave or asyncio.Event()

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await is_over.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {k.decode().lower(): v.decode("latin-1") for k, v in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    await app(scope, receive, send)
    return answer


@pytest.fixture(scope="session")
def asgi() -> Callable[..., Any]:
    """`await asgi(app, "POST", path, body, headers)` -> Answer."""
    return call_app


@pytest.fixture(scope="session")
def serving() -> Callable[..., Any]:
    """`async with serving(lm_or_loader, **settings) as app`: the application with its worker, in this process."""

    @contextlib.asynccontextmanager
    async def start(
        source: Any = "demo", *, keys: Any = None, metrics: Any = None, **settings: Any
    ) -> AsyncIterator[Any]:
        from coterie import load
        from coterie.server.app import build_app
        from coterie.server.keys import Keys
        from coterie.server.models import Models
        from coterie.server.settings import Settings

        chosen = Settings(**{"access_log": False, **settings})
        find = (lambda _: load("demo")) if source == "demo" else lambda _: source
        models = Models({"demo": "demo"}, find, chosen, None if metrics is None else metrics.of_model)
        await models.start()
        try:
            yield build_app(models, chosen, keys or Keys(), metrics)
        finally:
            await models.close()

    return start


class Probe:
    """A module of routes: an echo, failures of each kind, and one that never ends."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def routes(self, state: Any) -> list[Route]:
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
            Route("/metrics", nothing, methods=["GET"]),
        ]


async def nothing(request: Request) -> Response:
    return Response("")


@pytest.fixture
def probe() -> Probe:
    """Routes of the tests, and what happened in them."""
    return Probe()


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, probe: Probe) -> Callable[..., Any]:
    """`build(keys, metrics, **settings)`: the application with the probe's routes too, and no model."""
    from coterie.server import app as application
    from coterie.server.keys import Keys
    from coterie.server.models import Models
    from coterie.server.settings import Settings

    monkeypatch.setattr(application, "ROUTE_MODULES", (*application.ROUTE_MODULES, probe))

    def build(keys: Any = None, metrics: Any = None, **fields: Any) -> Any:
        settings = Settings(**{"access_log": False, **fields})
        return application.build_app(
            Models({"demo": "demo"}, lambda _: None, settings), settings, keys or Keys(), metrics
        )  # type: ignore[arg-type, return-value]

    return build
