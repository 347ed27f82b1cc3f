"""The server opens no connection, looks no name up and starts no program, whatever it is asked.

vLLM's CVE-2025-6242 was a picture's address that the server went to, Ollama's CVE-2026-5530 a model's.
"""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_grammars import REFUSED
from neighbours import streamed
from processes import script
from raw_http import ask

CHAT = "/v1/chat/completions"


@pytest.fixture
def canary() -> Iterator[tuple[int, list[str]]]:
    """A port of this machine that counts who comes."""
    visits: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_count, args=(listener, visits), daemon=True).start()
        yield listener.getsockname()[1], visits


def _count(listener: socket.socket, visits: list[str]) -> None:
    try:
        while True:
            visits.append(str(listener.accept()[1]))
    except OSError:
        return


def test_nothing_is_reached(tmp_path: Path, canary: tuple[int, list[str]]) -> None:
    port, visits = canary
    record = tmp_path / "reached"
    environment = {"HF_TOKEN": "secret", "HTTP_PROXY": f"http://127.0.0.1:{port}"}
    with script("watched_server.py", str(record), "serve", "--port", "0", environment=environment) as server:
        ask_for_the_world(server.url, f"http://127.0.0.1:{port}/x")
        assert server.stop() == 0
    assert not visits
    assert record.read_text() == ""
    assert "secret" not in "".join(server.log)


def ask_for_the_world(url: str, elsewhere: str) -> None:
    """Everything that could make a server go out: pictures, schemas by address, names of models, files."""
    picture = [{"type": "image_url", "image_url": {"url": elsewhere}}]
    sound = [{"type": "input_audio", "input_audio": {"data": elsewhere, "format": "wav"}}]
    for content in (picture, sound, [{"type": "document_url", "document_url": elsewhere}], elsewhere):
        ask(url, "POST", CHAT, {"messages": [{"role": "user", "content": content}], "max_tokens": 1})
    for model in (elsewhere, "mistralai/Mixtral-8x7B-v0.1", "hf://mistralai/Mixtral-8x7B-v0.1"):
        ask(url, "POST", CHAT, {"model": model, "messages": [{"role": "user", "content": "a"}]})
    hello = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    schema = {"type": "object", "properties": {"x": {"$ref": elsewhere}}}
    ask(
        url,
        "POST",
        CHAT,
        {**hello, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
    )
    for fields in list(REFUSED.values())[:40]:
        ask(url, "POST", CHAT, {**hello, **fields})
    ask(url, "POST", CHAT, {**hello, "webhook": elsewhere, "callback_url": elsewhere, "metadata": {"url": elsewhere}})
    for path in ("/", "/metrics", "/openapi.json", "/v1/models", f"/?url={elsewhere}", "/page/" + elsewhere):
        ask(
            url,
            "GET",
            path,
            headers={"referer": elsewhere, "x-forwarded-for": "8.8.8.8", "forwarded": f"for={elsewhere}"},
        )
    streamed(url, {"prompt": "Once", "max_tokens": 8})
