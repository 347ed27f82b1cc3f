"""HTTP from outside: events however they are cut, errors in every shape, ends that come too early or never."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from coterie.bench.client import Client, Failure, Target
from coterie.errors import RequestError


def events(api: Callable[..., Any], answer: Any, timeout: float = 5) -> list[bytes]:
    async def run() -> list[bytes]:
        async with api({"/v1/completions": answer}) as fake:
            client = Client(Target.of(fake.url), timeout=timeout)
            return [data async for _, data in client.events("/v1/completions", {"a": 1})]

    return asyncio.run(run())


def test_events_are_the_same_however_they_are_cut(api: Callable[..., Any], answers: Any) -> None:
    text = ': ping\n\nevent: x\ndata: {"é": 1}\n\ndata:2\r\n\r\ndata: [DONE]\n\n'
    expected = ['{"é": 1}'.encode(), b"2", b"[DONE]"]
    assert events(api, answers.streamed((0, text))) == expected
    whole = b"".join(piece for _, piece in answers.streamed(*((0, c) for c in text)))
    assert events(api, [(0, whole[i : i + 3]) for i in range(0, len(whole), 3)]) == expected


def test_an_answer_without_a_length_ends_with_the_connection(api: Callable[..., Any]) -> None:
    assert events(api, b"HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n") == [b"1"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"error": {"message": "too long"}}', "status 400: too long"),
        (b'{"message": "no", "object": "error"}', "status 400: no"),
        (b'{"detail": [{"loc": ["body"]}]}', 'status 400: [{"loc": ["body"]}]'),
        (b"<html>", "status 400: <html>"),
        (b"x" * 1000, "status 400: " + "x" * 297 + "..."),
    ],
)
def test_a_refusal_is_said_in_the_servers_words(api: Callable[..., Any], answers: Any, body: bytes, says: str) -> None:
    with pytest.raises(Failure) as e:
        events(api, answers.reply(body, 400))
    assert str(e.value) == says


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nda", "broke off"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
        (b"", "not HTTP|closed before an answer"),
    ],
)
def test_what_is_not_an_answer_is_a_failure(api: Callable[..., Any], answer: bytes, says: str) -> None:
    with pytest.raises(Failure, match=says):
        events(api, answer)


def test_a_request_that_never_ends_is_given_up(api: Callable[..., Any], answers: Any) -> None:
    began = time.perf_counter()
    with pytest.raises(Failure, match=r"no end within 0\.2 s"):
        events(api, answers.streamed((0, "data: 1\n\n"), (30, "data: 2\n\n")), timeout=0.2)
    assert time.perf_counter() - began < 5


def test_nobody_there() -> None:
    with pytest.raises(Failure, match=r"127\.0\.0\.1:1: "):
        asyncio.run(Client(Target.of("http://127.0.0.1:1")).json("GET", "/v1/models"))


def test_the_key_and_the_host_are_sent(api: Callable[..., Any], answers: Any) -> None:
    async def run() -> dict[str, str]:
        async with api({"/v1/models": answers.reply(b"[1]")}) as fake:
            assert await Client(Target.of(fake.url + "/v1/"), "secret").json("GET", "/v1/models") == [1]
            return dict(fake.requests[0][1])

    headers = asyncio.run(run())
    assert headers["authorization"] == "Bearer secret" and headers["host"].startswith("127.0.0.1:")
    with pytest.raises(RequestError, match="line break"):
        Client(Target.of("http://x"), "a\nb")


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "http://", "http://u:p@x", "http://x:99999", "http://x?q"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="--base-url is"):
        Target.of(url)


def test_urls() -> None:
    assert Target.of("https://example.org/api/v1/") == Target(True, "example.org", 443, "/api")
    assert Target.of("http://[::1]:80").host_header == "[::1]"
    assert Target.of("http://h:8000").host_header == "h:8000"
