"""A judge on this machine: a real HTTP server whose behaviour each test chooses, and which remembers what it got."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Say = Callable[[dict[str, Any], BaseHTTPRequestHandler], str | None]


@dataclass
class FakeJudge:
    """`say(body, handler)` gives the answer's text, or None where it has sent something itself (or nothing)."""

    say: Say
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    models: list[str] | None = None
    most_at_once: int = 0
    now: int = 0


class _Handler(BaseHTTPRequestHandler):
    judge: FakeJudge

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        judge = self.judge
        judge.asked.append({"path": self.path, **body})
        judge.headers.append(dict(self.headers))
        judge.now += 1
        judge.most_at_once = max(judge.most_at_once, judge.now)
        try:
            text = judge.say(body, self)
            if text is not None:
                reply(self, 200, {"choices": [{"message": {"role": "assistant", "content": text}}]})
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            judge.now -= 1

    def do_GET(self) -> None:
        if self.path == "/v1/models" and self.judge.models is not None:
            reply(self, 200, {"data": [{"id": name} for name in self.judge.models]})
        else:
            reply(self, 404, {"error": {"message": "no such page"}})

    def log_message(self, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        pass


def reply(handler: BaseHTTPRequestHandler, status: int, document: object, **headers: str) -> None:
    """Send a JSON document; header names have underscores for dashes."""
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(raw)))
    handler.end_headers()
    handler.wfile.write(raw)


@contextmanager
def fake_judge(say: Say, models: list[str] | None = None) -> Iterator[FakeJudge]:
    judge = FakeJudge(say, models=models)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"judge": judge}))
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
