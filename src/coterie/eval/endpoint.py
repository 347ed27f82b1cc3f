"""A chat model behind HTTP, as OpenAI's interface has it: messages in, one text out, whatever goes wrong in between.

Each try has a deadline over all of it, from the connection to the last byte (a server that sends a byte a minute is
cut off too); tries repeat with growing pauses where that may help. Redirects are not followed: the key would go along.
The key is in no message and no repr.
"""

import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from coterie.eval.http_post import Response, Target, Transport, TransportError

__all__ = ["Endpoint", "Messages", "Unanswered"]

Messages = Sequence[Mapping[str, str]]

_WORTH_ANOTHER_TRY = {408, 409, 425, 429}  # and 500 to 599
_LONGEST_PAUSE = 60.0
_OPTIONAL = ("max_tokens", "temperature")  # some servers take neither from some models
_LONGEST_REASON = 200


class Unanswered(Exception):
    """No text came. `is_hopeless`: the next question would fare no better (the key is refused)."""

    def __init__(self, reason: str, is_hopeless: bool = False):
        super().__init__(reason)
        self.reason, self.is_hopeless = reason, is_hopeless


class Endpoint:
    """`ask(messages)` from any number of threads; `stop()` ends what is under way."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        key: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        pause: float = 1.0,
        max_tokens: int = 2048,
    ):
        """`url` ends in the version, `http://host:port/v1`, or in `/chat/completions`; `pause` seconds before the
        second try, doubled for each. Raises `RequestError` for a URL or a key that cannot be one."""
        self._target = Target.of(url)
        self._transport = Transport(self._target, key)
        self._timeout, self._retries, self._pause = timeout, retries, pause
        self._options: dict[str, Any] = {"temperature": 0.0, "max_tokens": max_tokens}
        self._stopped = threading.Event()
        self.model = model or self._only_model()

    @property
    def address(self) -> str:
        """The URL without what may be secret in it."""
        return self._target.address

    @property
    def left_out(self) -> list[str]:
        """Parameters that the server did not take and that are no longer sent."""
        return [name for name in _OPTIONAL if name not in self._options]

    def ask(self, messages: Messages) -> str:
        """The answer's text, never empty. Raises `Unanswered` after the last try."""
        for n in range(self._retries + 1):
            try:
                return self._try(messages)
            except TransportError as e:
                if not e.is_worth_another_try or n == self._retries or self._stopped.is_set():
                    tries = f" ({n + 1} tries)" if n else ""
                    raise Unanswered(self._transport.without_key(e.reason) + tries, e.is_hopeless) from None
                self._wait(n, e.retry_after)
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """Close what is open; whoever waits gets `Unanswered` at once."""
        self._stopped.set()
        self._transport.close()

    def _try(self, messages: Messages) -> str:
        if self._stopped.is_set():
            raise TransportError("stopped", is_worth_another_try=False)
        options = dict(self._options)
        body = json.dumps({"model": self.model, "messages": list(messages), **options}).encode()
        response = self._transport.send("POST", "/chat/completions", body, self._timeout)
        if response.status == 200:
            return _text(response.body)
        refused = [name for name in _OPTIONAL if name in options and name.encode() in response.body]
        if response.status in (400, 422) and refused:
            for name in refused:
                self._options.pop(name, None)
            return self._try(messages)
        raise _error(response)

    def _wait(self, n: int, retry_after: float | None) -> None:
        pause = retry_after if retry_after is not None else self._pause * 2**n * random.uniform(0.75, 1.25)
        self._stopped.wait(min(pause, _LONGEST_PAUSE))

    def _only_model(self) -> str:
        """What the server calls its first model; "default" where it does not tell (one that has a single model takes
        any name)."""
        try:
            response = self._transport.send("GET", "/models", None, min(self._timeout, 10.0))
            name = json.loads(response.body)["data"][0]["id"]
        except (TransportError, ValueError, LookupError, TypeError, RecursionError):
            return "default"
        return name if isinstance(name, str) and name.isprintable() and 0 < len(name) <= 200 else "default"


def _text(body: bytes) -> str:
    """`choices[0].message.content` of an answer; text parts are joined."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
        if isinstance(content, list):
            content = "".join(part["text"] for part in content if part.get("type") == "text")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise TransportError(f"the answer is no chat completion: {_short(body)}") from None
    if not isinstance(content, str) or not content.strip():
        raise TransportError("the answer has no text")
    return content.encode(errors="replace").decode()  # an answer may be cut off within an escaped pair of surrogates


def _error(response: Response) -> TransportError:
    status, said = response.status, _short(_message(response.body))
    if status in (401, 403):
        reason = f"the server refuses the key ({status}): set COTERIE_JUDGE_KEY to one that it knows"
        return TransportError(reason, is_worth_another_try=False, is_hopeless=True)
    if 300 <= status < 400:
        reason = f"the server sends us elsewhere ({status}): give the URL it leads to"
        return TransportError(reason, is_worth_another_try=False, is_hopeless=True)
    if status == 404:
        reason = f"the server has no such page or model ({status}{': ' + said if said else ''})"
        return TransportError(reason, is_worth_another_try=False, is_hopeless=True)
    may_pass = status in _WORTH_ANOTHER_TRY or status >= 500
    return TransportError(
        f"the server answers {status}{': ' + said if said else ''}",
        is_worth_another_try=may_pass,
        retry_after=_seconds(response.retry_after) if may_pass else None,
    )


def _message(body: bytes) -> bytes:
    """`error.message` where the server says it as OpenAI does, else the body."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error).encode()
    except (ValueError, LookupError, TypeError, RecursionError):
        return body


def _short(body: bytes) -> str:
    text = " ".join(body[: 4 * _LONGEST_REASON].decode("utf-8", errors="replace").split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 3] + "..."


def _seconds(retry_after: str | None) -> float | None:
    """The header, in seconds or as a date; None where it is neither."""
    if not retry_after:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None
