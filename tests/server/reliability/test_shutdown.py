"""SIGTERM in the middle of everything, 100 times: what was taken in is answered or told that it is not, and the exit is
clean and in time.
"""

import json
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from load import body_of
from processes import Forking
from raw_http import Connection, Reply, Stream, request_bytes

N_STREAMS, N_WHOLE = 4, 2
PATIENCE = 0.4  # --drain of every second server: shorter than the longest answers


class Client(threading.Thread):
    """One request, and how it ended: `ending` is a finish_reason, a status of 4xx or 5xx, or what went wrong."""

    def __init__(self, url: str, body: dict[str, Any], *, is_streamed: bool):
        super().__init__(daemon=True)
        self._url, self._body, self._is_streamed = url, body, is_streamed
        self.ending = "nothing"
        self.start()

    def run(self) -> None:
        try:
            self.ending = self._stream() if self._is_streamed else self._whole()
        except ConnectionRefusedError:
            self.ending = "not taken"
        except Exception as e:
            self.ending = f"torn: {type(e).__name__} {e}"

    def _stream(self) -> str:
        with Stream(self._url, "/v1/completions", self._body, wait=60) as stream:
            if stream.status != 200:
                return _refusal(stream.rest())
            *frames, done = list(stream)
        assert done == "[DONE]", done
        last = [json.loads(frame) for frame in frames if '"choices":[]' not in frame.replace(" ", "")][-1]
        reason = last["choices"][0]["finish_reason"]
        assert (reason == "error") == ("error" in last), last
        return str(reason)

    def _whole(self) -> str:
        with Connection(self._url, 60) as connection:
            connection.send(request_bytes("POST", "/v1/completions", self._body))
            reply = connection.reply()
        return str(reply.json()["choices"][0]["finish_reason"]) if reply.status == 200 else _refusal(reply)


def _refusal(reply: Reply) -> str:
    body = reply.json()
    assert reply.status == 503 and body["code"] == "draining" and body["object"] == "error", (reply, body)
    return "503"


@pytest.fixture(scope="module")
def forking() -> Iterator[Forking]:
    servers = Forking()
    yield servers
    servers.close()


@pytest.mark.parametrize("drain", [PATIENCE, 30.0])
def test_sigterm_with_requests_in_flight(forking: Forking, drain: float, is_full: bool, figure: Any) -> None:
    n, endings, slowest, seed = 50 if is_full else 5, [], 0.0, random.randrange(1 << 30)
    print(f"seed {seed}")
    for run in range(n):
        chance = random.Random(seed + run)
        url = forking.start("--drain", str(drain), "--max-live", "3")
        long = 1500 if drain == PATIENCE else 60
        clients = [
            Client(url, body_of(chance.choice((1, 20, long)), seed=i), is_streamed=i < N_STREAMS)
            for i in range(N_STREAMS + N_WHOLE)
        ]
        time.sleep(chance.uniform(0, 0.6))
        begun = time.monotonic()
        forking.signal(signal.SIGTERM)
        late = Client(url, body_of(4), is_streamed=True)
        code = forking.exit_code(drain + 15)
        slowest = max(slowest, time.monotonic() - begun)
        for client in (*clients, late):
            client.join(10)
        found = [client.ending for client in clients]
        allowed = {"length", "stop", "503", "not taken"} | ({"error"} if drain == PATIENCE else set())
        assert set(found) <= allowed, (seed + run, found, forking.log[-2000:])
        assert late.ending in allowed or "ConnectionResetError" in late.ending, late.ending
        assert code == 0, (code, forking.log[-2000:])
        endings += found
    assert slowest < drain + 10
    figure(
        f"SIGTERM, --drain {drain:g}", runs=n, requests=len(endings), clean_exits=n, slowest_s=slowest,
        answered=sum(e in ("length", "stop") for e in endings), told=sum(e in ("error", "503") for e in endings),
    )  # fmt: skip


def test_while_it_drains_it_is_not_ready_and_takes_nothing(start_server: Callable[..., Any]) -> None:
    server = start_server("--drain", "20")
    with Stream(server.url, "/v1/completions", body_of(1200), wait=60) as stream:
        frames = iter(stream)
        next(frames)
        with Connection(server.url) as kept, Connection(server.url) as other:
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            kept.send(request_bytes("GET", "/ready"))
            ready = kept.reply()
            other.send(request_bytes("POST", "/v1/completions", body_of(4)))
            refused = other.reply()
        server.process.send_signal(signal.SIGTERM)  # and now at once
        last = list(frames)
    assert ready.status == 503 and int(ready.headers["retry-after"]) >= 1
    assert refused.status == 503 and refused.headers["x-should-retry"] == "true"
    assert last[-1] == "[DONE]" and json.loads(last[-2])["choices"][0]["finish_reason"] == "error"
    assert server.process.wait(10) == 0
    with pytest.raises(ConnectionError), socket.create_connection(("127.0.0.1", server.port), 2):
        pass
