"""What every refusal looks like: the body of both dialects, soon, and with nothing in it of how the server is made."""

import re
import sys
from pathlib import Path
from typing import Any

from raw_http import Reply

__all__ = ["check_body", "check_refusal", "leaks"]

_FIELDS = ("message", "type", "param", "code")
_LONGEST = 2.0  # seconds until a refusal is here
_ROOT = str(Path(__file__).resolve().parents[3])
_LEAKS = re.compile(
    r"Traceback|File \"|\.py\b|\.py:\d|site-packages|0x[0-9a-f]{6,}|<[\w.]+ object|coterie\.\w+\.|pydantic|starlette|"
    r"(?<!%)llguidance|uvicorn|torch\.|Errno|\.venv|"
    + "|".join(map(re.escape, (_ROOT, sys.prefix, f"{Path.home()}/"))),
    re.IGNORECASE,
)  # fmt: skip


def leaks(text: str) -> list[str]:
    """Words that tell of files, modules, addresses or exceptions."""
    return _LEAKS.findall(text)


def check_body(body: Any) -> None:
    """The union body: Mistral's fields at the top, OpenAI's under `error`, refused values under `detail`."""
    assert isinstance(body, dict) and body["object"] == "error", body
    for fields in (body, body["error"]):
        assert isinstance(fields["message"], str) and fields["message"], body
        assert isinstance(fields["type"], str) and fields["type"], body
        assert fields["param"] is None or isinstance(fields["param"], str), body
        assert fields["code"] is None or isinstance(fields["code"], str), body
    assert all(body[name] == body["error"][name] for name in _FIELDS), body
    for item in body.get("detail", []):
        assert {"loc", "msg", "type"} <= item.keys() and isinstance(item["loc"], list), body


def check_refusal(
    reply: Reply, *statuses: int, words: tuple[str, ...] = (), longest: float = _LONGEST
) -> dict[str, Any]:
    """A 4xx (one of `statuses`, if any are given) in the union shape, with these words, within two seconds."""
    assert 400 <= reply.status < 500 or reply.status in statuses, (reply, reply.text[:500])
    assert not statuses or reply.status in statuses, (reply, reply.text[:500])
    assert reply.headers["content-type"].startswith("application/json"), reply.headers
    assert reply.seconds <= longest, reply
    assert not leaks(reply.text), (leaks(reply.text), reply.text[:500])
    body: dict[str, Any] = reply.json()
    check_body(body)
    assert len(body["message"]) <= 2000, body["message"][:300]
    for word in words:
        assert word.lower() in body["message"].lower(), (word, body)
    return body
