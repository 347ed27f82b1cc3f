import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import Request

from coterie.server.body import JSON_DEPTH, discard_body, parse_json, read_body, read_json
from coterie.server.failures import ApiError
from coterie.server.settings import Settings


def receiving(*parts: bytes | None, forever: bool = False) -> Callable[[], Any]:
    """A client that sends these parts; None leaves; `forever` never comes to an end."""
    left = list(parts)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.sleep(3600)
        part = left.pop(0)
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": bool(left) or forever}

    return receive


def read(headers: dict[str, str], receive: Callable[[], Any], **settings: Any) -> bytes:
    return asyncio.run(read_body(headers, receive, Settings(**settings)))


def test_parts_are_joined() -> None:
    assert read({"transfer-encoding": "chunked"}, receiving(b"ab", b"", b"c")) == b"abc"


@pytest.mark.parametrize(
    ("headers", "parts"),
    [
        ({"content-length": "11"}, []),
        ({"content-length": "9" * 40}, []),
        ({"content-length": "ten"}, []),
        ({"transfer-encoding": "chunked"}, [b"12345", b"67890", b"1"]),
        ({"content-length": "3"}, [b"12345678901"]),
    ],
)
def test_too_large_a_body_is_refused_before_it_is_kept(headers: dict[str, str], parts: list[bytes]) -> None:
    with pytest.raises(ApiError) as e:
        read(headers, receiving(*parts, forever=True), max_body=10)
    assert (e.value.status, e.value.code) == (413, "request_too_large") and "10 bytes" in e.value.message


def test_a_body_that_does_not_arrive() -> None:
    with pytest.raises(ApiError) as e:
        read({"content-length": "3"}, receiving(b"1", forever=True), body_timeout=0.05)
    assert (e.value.status, e.value.type) == (408, "timeout_error")


def test_a_client_that_leaves_while_it_sends() -> None:
    with pytest.raises(ConnectionResetError):
        read({"content-length": "3"}, receiving(b"1", None))


def test_what_is_still_sent_is_taken() -> None:
    taken = receiving(b"1", b"2")
    asyncio.run(discard_body({"content-length": "2"}, taken))
    asyncio.run(discard_body({}, receiving()))  # nothing to wait for
    asyncio.run(discard_body({"content-length": "2", "expect": "100-Continue"}, receiving()))


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": [1, -2.5, "x", None, True]},
        {"text": ']}{[\\"', "é": "\U0001f600"},
        [],
        "x",
        3,
        "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    ],
)
def test_json_that_is_fine(value: Any) -> None:
    for ascii in (True, False):
        assert parse_json(json.dumps(value, ensure_ascii=ascii).encode()) == value


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    return (opening * depth + closing * depth).encode()


def test_depth() -> None:
    assert parse_json(nested(JSON_DEPTH)) is not None
    for body in (nested(JSON_DEPTH + 1), b'{"a": ' * 65 + b"1" + b"}" * 65, b'{"a":[' * 40 + b"1" + b"]}" * 40):
        with pytest.raises(ApiError, match="deeper than 64"):
            parse_json(body)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "brackets do not match"),
        (b"[}", "not JSON at line 1"),
        (b"{'a': 1}", "not JSON at line 1, column 2"),
        (b'{"a": 1,}', "not JSON"),
        (b'{"a": "\n"}', "not JSON"),
        (b'{"a": 1} {"b": 2}', "not JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b'{"a": NaN}', "a is NaN"),
        (b'{"a": -Infinity}', "a is -Infinity"),
        (b'{"a": [1e309]}', "a.0 is 1e309"),
        (b'{"a": ' + b"1" * 5000 + b"}", "a is 1111"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"a": 1, "b": 2, "a": 3}', "key 'a' twice"),
    ],
)
def test_json_that_is_not(body: bytes, said: str) -> None:
    with pytest.raises(ApiError) as e:
        parse_json(body)
    assert e.value.status == 400 and said in e.value.message and len(e.value.message) < 400


@pytest.mark.parametrize("unit", [b'"\\"', b"[", b"]", b"[]", b'"', b"\\", b"{}", b'["', b'\\"', nested(64)])
def test_four_megabytes_of_anything_take_no_time(unit: bytes) -> None:
    """The scan is linear: a quadratic one would take hours. Python's own parser is not asked before that."""
    body = unit * ((4 << 20) // len(unit))
    start = time.process_time()
    with pytest.raises(ApiError):
        parse_json(body)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=UTF-8", 200),
        ('application/json;charset="utf-8"', 200),
        ("", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/json; charset=latin-1", 415),
        ("application/jsonx", 415),
    ],
)
def test_content_types(kind: str, status: int) -> None:
    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", kind.encode())]}
    request = Request(scope, receiving(b'{"a": 1}'))
    if status == 200:
        assert asyncio.run(read_json(request)) == {"a": 1}
        return
    with pytest.raises(ApiError) as e:
        asyncio.run(read_json(request))
    assert e.value.status == status and "expected application/json" in e.value.message


@pytest.mark.parametrize(("body", "kind"), [(b"[]", "array"), (b'"x"', "string"), (b"null", "null"), (b"3", "number")])
def test_the_body_is_an_object(body: bytes, kind: str) -> None:
    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
    with pytest.raises(ApiError, match=kind):
        asyncio.run(read_json(Request(scope, receiving(body))))


def test_a_compressed_body_is_not_taken() -> None:
    """A kilobyte of it could be a gigabyte."""
    headers = [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")]
    with pytest.raises(ApiError, match="gzip") as e:
        asyncio.run(read_json(Request({"type": "http", "method": "POST", "headers": headers}, receiving(b"{}"))))
    assert e.value.status == 415
