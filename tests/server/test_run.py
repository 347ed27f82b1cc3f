"""A real process: starting, being told to stop or to read again, keys, several models."""

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.errors import ConfigError
from coterie.server.keys import add_key
from coterie.server.run import check_address, open_socket
from coterie.server.settings import Settings

Start = Callable[..., Any]
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Il était une fois"}]
LONG = {"messages": MESSAGES, "max_tokens": 400, "stream": True, "logit_bias": {"2": -100}}  # never ends by itself


def test_it_serves(server: Any) -> None:
    for path in ("/live", "/ready", "/health", "/v1/health"):
        answer = server.get(path)
        assert answer.status == 200 and answer.json == {"status": "ok"}
    assert server.get("/v1/health", host="evil.example").status == 403


def test_an_address_that_others_reach_needs_keys() -> None:
    with pytest.raises(ConfigError) as e:
        check_address(Settings(host="0.0.0.0"))
    assert "--api-key-file" in str(e.value)
    check_address(Settings(host="0.0.0.0", api_key_file="keys.txt"))
    for host in ("127.0.0.1", "::1", "localhost"):
        check_address(Settings(host=host))


def test_a_port_in_use_is_one_sentence(server: Any) -> None:
    with pytest.raises(ConfigError) as e:
        open_socket(Settings(port=server.port))
    assert f"port {server.port} of 127.0.0.1" in str(e.value) and "--port" in str(e.value)
    with pytest.raises(ConfigError, match="--host"):
        open_socket(Settings(host="no.such.host.invalid"))


class Stream:
    """A streamed answer, read to its end in a thread of its own."""

    def __init__(self, server: Any, body: dict[str, Any], key: str = ""):
        self.text, self.status, self.error = b"", 0, None
        self.has_begun = threading.Event()
        self._server, self._body, self._key = server, body, key
        self.thread = threading.Thread(target=self._read)
        self.thread.start()
        assert self.has_begun.wait(30)

    def _read(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)
        try:
            headers = {"content-type": "application/json", "x-api-key": self._key}
            connection.request("POST", CHAT, json.dumps(self._body), headers)
            response = connection.getresponse()
            self.status = response.status
            while part := response.read1(65536):
                self.text += part
                self.has_begun.set()
        except OSError as e:
            self.error = e
        finally:
            self.has_begun.set()
            connection.close()


def test_sigterm_lets_what_it_holds_finish(start_server: Start) -> None:
    server = start_server()
    stream = Stream(server, LONG)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for("finishing 1 request")
    assert server.get("/live").status == 200 and server.get("/ready").status == 503
    answer = server.post(CHAT, LONG)
    assert answer.status == 503 and answer.headers["x-should-retry"] == "true" and "retry-after" in answer.headers
    assert server.process.wait(30) == 0
    stream.thread.join(5)
    assert stream.text.endswith(b"data: [DONE]\n\n") and b'"length"' in stream.text


@pytest.mark.parametrize("how", ["after the drain", "by a second signal"])
def test_what_does_not_finish_is_told(start_server: Start, how: str) -> None:
    server = start_server("--drain", "0.3s" if how == "after the drain" else "30s")
    stream = Stream(server, {**LONG, "max_tokens": 1800})
    server.process.send_signal(signal.SIGTERM)
    if how == "by a second signal":
        server.wait_for("finishing 1 request")
        server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    stream.thread.join(5)
    assert b"shutting down" in stream.text and stream.text.endswith(b"data: [DONE]\n\n")


def test_sighup_reads_keys_and_models_anew_and_drops_no_stream(start_server: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    first = add_key(file, "alice")
    server = start_server("--api-key-file", str(file))
    second = add_key(file, "bob")
    assert server.get("/v1/nothing", **{"x-api-key": second}).status == 401
    stream = Stream(server, {**LONG, "max_tokens": 600}, first)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("read again: demo")
    assert server.get("/v1/nothing", **{"x-api-key": second}).status == 404
    stream.thread.join(60)
    assert stream.text.endswith(b"data: [DONE]\n\n") and b'"error"' not in stream.text
    file.write_text("nonsense")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("the keys stay as they were")
    assert server.get("/v1/nothing", authorization=f"Bearer {first}").status == 404
    assert server.get("/ready").status == 200 and server.stop() == 0


def test_a_model_that_cannot_be_loaded_is_one_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(tiny_folder, tmp_path / "broken")
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    command = [sys.executable, "-m", "coterie", "serve", str(folder), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr and weights.name in done.stderr


def chat(max_tokens: int, **fields: Any) -> bytes:
    """A whole request, to be sent by hand."""
    body = json.dumps({**LONG, "max_tokens": max_tokens, **fields}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def test_who_leaves_is_forgotten(start_server: Start) -> None:
    """One answer at a time: a last one comes only where the others have been given up."""
    server = start_server("--max-live", "1")
    for is_stream in (True, False, True, False):
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(chat(2000, stream=is_stream))
            time.sleep(0.05)
    assert server.post(CHAT, {"messages": MESSAGES, "max_tokens": 1}).status == 200
    assert sum('"status": 499' in line for line in server.log) == 4
    assert server.stop() == 0


def test_who_does_not_read_is_ended(start_server: Start, tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("send-timeout = 0.5\nreader-buffer = 20000\nmax-live = 1\n")
    server = start_server("--config", str(file))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(chat(2000, logprobs=True, top_logprobs=20, return_routing="stream"))
        assert server.post(CHAT, {"messages": MESSAGES, "max_tokens": 1}).status == 200
        server.wait_for('"status": 499', 30)
    assert server.stop() == 0


def test_several_models_by_name_and_ctrl_c(start_server: Start, tiny_folder: Path) -> None:
    server = start_server(f"other={tiny_folder}", "--idle-unload", "0.2s")
    assert [m["id"] for m in server.get("/v1/models").json["data"]] == ["demo", "other"]
    for name in ("other", "demo", None):
        answer = server.post(CHAT, {"messages": MESSAGES, "max_tokens": 2, **({"model": name} if name else {})})
        assert answer.status == 200 and answer.json["model"] == (name or "demo")
        time.sleep(0.1)
    answer = server.post(CHAT, {"messages": MESSAGES, "model": "../../etc"})
    assert answer.status == 404 and answer.json["code"] == "model_not_found"
    time.sleep(2.5)  # both are unloaded by now
    assert server.get("/ready").status == 200
    assert server.post(CHAT, {"messages": MESSAGES, "max_tokens": 2}).status == 200
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 130 and not any("Traceback" in line for line in server.log)


def test_sigterm_while_it_loads(tmp_path: Path) -> None:
    """The thread that loads does not hold up the end."""
    code = (
        "import sys, time, coterie.cli.serve as s; s.load_with_bar = lambda source: time.sleep(600); "
        "from coterie.cli.main import main; sys.exit(main(['serve', '--config', sys.argv[1]]))"
    )
    file = tmp_path / "serve.toml"
    with open_socket(Settings(port=0)) as sock:
        port = sock.getsockname()[1]
    file.write_text(f"port = {port}\n")
    process = subprocess.Popen([sys.executable, "-c", code, str(file)], stderr=subprocess.DEVNULL)
    for _ in range(1000):
        with contextlib.suppress(OSError), contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as live:
            live.request("GET", "/ready")
            assert live.getresponse().status == 503
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
