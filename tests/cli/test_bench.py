"""`coterie bench serve` against a server of a few lines: what is printed, what is refused, what Ctrl-C leaves."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from coterie.cli.main import main

EVENT = {"choices": [{"text": "a", "finish_reason": None}]}
LAST = {"choices": [{"text": "b", "finish_reason": "length"}], "usage": {"prompt_tokens": 30, "completion_tokens": 2}}


class Handler(BaseHTTPRequestHandler):
    """Two tokens for each prompt, after the seconds that the path of the base URL says."""

    bodies: list[dict[str, Any]] = []  # noqa: RUF012  # shared by all requests, cleared by the fixture

    def do_GET(self) -> None:
        self.answer(json.dumps({"data": [{"id": "m", "meta": {"n_vocab": 1000}}]}).encode())

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        time.sleep(float(self.path.split("/")[1]))
        if "top_k" in self.bodies[-1]:
            self.answer(b'{"error": {"message": "no \x1b[31m"}}'.replace(b"\x1b", b"\\u001b"), 400)
        else:
            self.answer(f"data: {json.dumps(EVENT)}\n\ndata: {json.dumps(LAST)}\n\ndata: [DONE]\n\n".encode())

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


class Server(ThreadingHTTPServer):
    request_queue_size = 200


@pytest.fixture
def url() -> Iterator[str]:
    Handler.bodies.clear()
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_block(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--num-prompts", "6", "--max-concurrency", "2", "--random-input-len", "30", "--random-output-len", "2"]
    assert main(["bench", "serve", "--base-url", f"{url}/0", *flags, "--goodput", "ttft:60000", "tpot:60000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        "Successful requests:                     6" in lines
        and "Total input tokens:                      180" in lines
    )
    assert "Requests within all goals (%):           100.00" in lines
    assert any(line.startswith("P95 ITL (ms):") for line in lines)
    assert all(len(b["prompt"]) == 30 and b["max_tokens"] == 2 and b["ignore_eos"] for b in Handler.bodies)


def test_json_with_detail_and_a_picture(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "p.svg"
    flags = ["--num-prompts", "3", "--request-rate", "1000", "--seed", "7", "--metric-percentiles", "50,99.9"]
    assert (
        main(["bench", "serve", "--base-url", f"{url}/0", *flags, "--json", "--save-detailed", "--plot", str(picture)])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert (result["completed"], result["model_id"], result["seed"], result["request_rate"]) == (3, "m", 7, 1000.0)
    assert result["total_output_tokens"] == 6 and result["p99.9_ttft_ms"] >= result["p50_ttft_ms"] > 0
    assert result["generated_texts"] == ["ab"] * 3 and result["errors"] == [""] * 3 and len(result["ttfts"]) == 3
    assert "Time to First Token" in picture.read_text()


def test_another_seed_each_time(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["bench", "serve", "--base-url", f"{url}/0", "--num-prompts", "1", "--num-warmups", "0"]) == 0
    first, second = Handler.bodies
    assert first["prompt"] != second["prompt"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--extra-body", '{"top_k": 1}'], "cannot be measured: status 400: no \\x1b[31m"),
        (["--extra-body", "[1]"], "--extra-body is '[1]', expected a JSON object"),
        (["--goodput", "itl:5"], "--goodput is 'itl:5', expected milliseconds"),
        (["--request-rate", "0"], "--request-rate is 0, expected"),
        (["--request-rate", "nan"], "--request-rate is nan, expected"),
        (["--metric-percentiles", "50,101"], "--metric-percentiles is '50,101'"),
        (["--plot", "x.pdf"], "--plot x.pdf: expected a file name that ends with .svg or .png"),
        (["--base-url", "localhost"], "--base-url is 'localhost', expected for example"),
        (["--base-url", "http://127.0.0.1:1"], "cannot be measured: 127.0.0.1:1: "),
        (["--num-warmups", "0", "--extra-body", '{"top_k": 1}', "--num-prompts", "2"], "2 failed: status 400: no"),
        (["--dataset", "/nowhere.jsonl"], "/nowhere.jsonl: No such file"),
        (["--num-prompts", "0"], "--num-prompts"),
    ],
)
def test_mistakes_are_one_sentence(url: str, flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--base-url", f"{url}/0", *flags]) == 2
    assert says in capsys.readouterr().err


def test_more_sockets_than_the_system_begins_with(url: str) -> None:
    code = (
        "import resource, sys; from coterie.cli.main import main; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 4096)); "
        "sys.exit(main(['bench', 'serve', '--base-url', sys.argv[1], '--num-prompts', '60', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code, f"{url}/0.2"], capture_output=True, text=True, timeout=60)
    result = json.loads(done.stdout)
    assert (result["completed"], result["failed"]) == (60, 0), done.stderr


def test_ctrl_c_prints_what_there_is(url: str) -> None:
    command = [sys.executable, "-m", "coterie", "bench", "serve", "--base-url", f"{url}/0.05", "--max-concurrency", "1"]
    child = subprocess.Popen([*command, "--num-prompts", "1000", "--json"], stdout=-1, stderr=-1, text=True)
    while len(Handler.bodies) < 5 and child.poll() is None:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=60)
    result = json.loads(out)
    assert child.returncode == 130 and result["is_stopped"] and 1 <= result["completed"] < 1000
    assert f"stopped after {result['completed']} of 1000 requests" in err
