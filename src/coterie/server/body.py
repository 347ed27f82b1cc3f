"""A request's body: counted as it comes, given seconds to arrive, and JSON of a bounded depth before it is parsed.

`read_json(request)` is what handlers call. Depth is found without recursion and without a loop over bytes: strings are
dropped, and what is left loses its innermost brackets, level by level.
"""

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import Receive

from coterie.server.failures import ApiError, refused
from coterie.server.settings import Settings

__all__ = ["JSON_DEPTH", "check_depth", "discard_body", "has_body", "parse_json", "read_body", "read_json"]

JSON_DEPTH = 64
_MOST_DIGITS = 308  # of a whole number; with more it may be beyond a float's range
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)  # an open one goes to the end: linear
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_REST = bytes(set(range(256)) - set(b"{}[]"))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_ODD_NUMBER = re.compile(rb"NaN|Infinity|[eE]\+?[0-9]{3}|[0-9]{200}")  # all others are finite, and read by C
_IN_THREAD = 128 << 10  # bytes: what is larger takes more than a millisecond or two to parse
_DISCARD_SECONDS = 3.0


def has_body(headers: Mapping[str, str]) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


async def read_body(headers: Mapping[str, str], receive: Receive, settings: Settings) -> bytes:
    """All of it. Raises `ApiError` 413 or 408, `ConnectionResetError` where the client has left."""
    limit = settings.max_body
    declared = headers.get("content-length", "0")
    if len(declared) > 19 or not declared.isdigit() or int(declared) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(settings.body_timeout):
            return await _collect(receive, limit)
    except TimeoutError:
        message = f"the body did not arrive within {settings.body_timeout:.0f} s"
        raise ApiError(408, message, code="body_timeout") from None


async def _collect(receive: Receive, limit: int) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return b"".join(parts)


async def discard_body(headers: Mapping[str, str], receive: Receive) -> None:
    """Take what a client is still sending, so that it gets to reading why it was refused."""
    if not has_body(headers) or headers.get("expect", "").lower() == "100-continue":
        return
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        pass


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than this server's limit of {limit} bytes", code="request_too_large")


async def read_json(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Raises `ApiError` 415 or 400."""
    kind = request.headers.get("content-type", "")
    essence, _, rest = kind.partition(";")
    charset = rest.lower().replace(" ", "").replace('"', "")
    if essence.strip().lower() != "application/json" or charset not in ("", "charset=utf-8", "charset=utf8"):
        raise ApiError(
            415, f"the content type is {kind[:80]!r}, expected application/json", code="unsupported_media_type"
        )
    if (coding := request.headers.get("content-encoding", "identity")) != "identity":
        raise ApiError(415, f"the content encoding is {coding[:80]!r}, expected none", code="unsupported_media_type")
    body = await request.body()
    value = parse_json(body) if len(body) < _IN_THREAD else await asyncio.to_thread(parse_json, body)
    if not isinstance(value, dict):
        raise refused(None, f"the body is a JSON {_kind(value)}, expected an object", code="invalid_json")
    return value


def parse_json(body: bytes) -> Any:
    """Strict JSON: UTF-8, no number beyond a float's range or NaN, no key twice, no half of a surrogate pair."""
    try:
        text = body.decode()
    except UnicodeDecodeError as e:
        raise refused(None, f"the body is not UTF-8 at byte {e.start}", code="invalid_json") from None
    check_depth(body)
    try:
        numbers = _NUMBERS if _ODD_NUMBER.search(body) else {}
        value = json.loads(text, object_pairs_hook=_no_key_twice, **numbers)
    except json.JSONDecodeError as e:
        where = f"line {e.lineno}, column {e.colno}"
        raise refused(None, f"the body is not JSON at {where}: {e.msg}", code="invalid_json") from None
    if numbers:
        _refuse_other_numbers(value)
    if _SURROGATE.search(body):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            message = "the body holds half of a surrogate pair (\\ud800 to \\udfff alone), which is no character"
            raise refused(None, message, code="invalid_json") from None
    return value


def check_depth(body: bytes) -> None:
    """`ApiError` where brackets are nested deeper than `JSON_DEPTH`, or cannot be matched at all."""
    rest = _STRING.sub(b"", body).translate(_BRACKETS, _REST)
    for _ in range(JSON_DEPTH):
        shorter = rest.replace(b"[]", b"")
        if not shorter:
            return
        if len(shorter) == len(rest):
            break
        rest = shorter
    is_matched = len(rest.replace(b"[]", b"")) != len(rest)
    message = (
        f"the body's JSON is nested deeper than {JSON_DEPTH} levels"
        if is_matched
        else "the body is not JSON: its brackets do not match"
    )
    raise refused(None, message, code="invalid_json")


class _NotANumber(str):
    """The text of a number that JSON or a float cannot hold, in its place until the place is known."""


def _finite(text: str) -> Any:
    return value if math.isfinite(value := float(text)) else _NotANumber(text)


def _whole(text: str) -> Any:
    return int(text) if len(text) <= _MOST_DIGITS else _NotANumber(text)


_NUMBERS: dict[str, Any] = {"parse_constant": _NotANumber, "parse_float": _finite, "parse_int": _whole}


def _refuse_other_numbers(value: Any, place: str = "") -> None:
    if isinstance(value, _NotANumber):
        shown = value if len(value) <= 40 else value[:37] + "..."
        raise refused(
            place[1:][:200] or None,
            f"{place[1:][:200] or 'the body'} is {shown}, expected a finite number of at most {_MOST_DIGITS} digits",
            code="invalid_json",
        )
    for key, v in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(v, _NotANumber | dict | list):
            _refuse_other_numbers(v, f"{place}.{key}")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise refused(None, f"the body holds the key {name[:80]!r} twice in one object", code="invalid_json")
    return value


def _kind(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names[type(value)]
