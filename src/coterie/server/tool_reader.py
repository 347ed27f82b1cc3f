"""Calls of tools out of the text that a model writes, as it comes: `[{"name": "f", "arguments": {...}}]`.

    reader = CallReader(begins=False, is_streamed=True, mark=5)
    for piece in reader.push(event.text, (event.token_id,)): ...  # a Piece is text, or (a part of) a call
    for piece in reader.finish(): ...                   # after the last event
    reader.n_calls                                      # more than 0: the answer ends with "tool_calls"

One walk over the characters and `json.loads` on what is complete; nothing is ever evaluated. Text that turns out to be
no list of calls (malformed, deeper than 32, longer than 64 KB) is given out as text, from its first character on.
When streamed, a call's arguments go out as they are written once its name is known; the ids are made here, as the
model's own come after the arguments.
"""

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["CallReader", "Piece", "new_call_id"]

_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_DEEPEST = 32
_LONGEST = 64 << 10  # characters of all calls together
_MOST_CALLS = 128
_CLOSING = {"[": "]", "{": "}"}
_SPACE = " \t\r\n"


def new_call_id() -> str:
    """Nine letters and digits, as Mistral's forms want them."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


@dataclass(frozen=True, slots=True)
class Piece:
    """Text; or, where `index` is not None, a part of that call: `id` and `name` on its first one, then arguments."""

    text: str = ""
    index: int | None = None
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class CallReader:
    """For one sample. `begins`: the mark of calls is already in the prompt; `mark`: its id, where the model writes it;
    `in_text`: a list at the beginning of the text is one of calls, without any mark (the emulated form)."""

    def __init__(self, *, is_streamed: bool, begins: bool = False, mark: int | None = None, in_text: bool = False):
        self.n_calls = 0
        self._is_streamed, self._mark, self._in_text = is_streamed, mark, in_text
        self._list = _CallList(is_streamed, 0) if begins else None
        self._is_undecided = in_text and not begins
        self._held = ""  # white space while that is undecided
        self._is_after = False  # white space after a list is dropped

    def push(self, text: str, token_ids: Iterable[int] = ()) -> list[Piece]:
        """What `text`, brought by these tokens, gives. Text that came with the mark itself is taken to follow it."""
        if self._list is None and self._mark is not None and self._mark in token_ids:
            self._list = _CallList(self._is_streamed, self.n_calls)
        if self._is_undecided:
            self._held += text
            if not (begun := self._held.lstrip(_SPACE)):
                return []
            self._is_undecided = False
            text = self._held
            self._list = _CallList(self._is_streamed, 0) if begun[0] == "[" else None
        return self._give(text)

    def finish(self) -> list[Piece]:
        """The rest: of a list that was not completed, the text of what no call was made of."""
        if self._is_undecided:
            return _texts(self._held)
        rest = "" if self._list is None or self._list.n_begun else self._list.raw
        self._list = None
        return _texts(rest)

    def _give(self, text: str) -> list[Piece]:
        if self._list is None:
            text = text.lstrip(_SPACE) if self._is_after else text
            self._is_after = self._is_after and not text
            return _texts(text)
        pieces = self._list.push(text)
        self.n_calls = self._list.first + self._list.n_begun
        if self._list.is_over:
            rest, self._is_after, self._list = self._list.rest, bool(self._list.n_begun), None
            pieces += self._give(rest)
        return pieces


class _CallList:
    """One list of calls. `rest` is the text after it, or all that was not given out where it is no such list."""

    def __init__(self, is_streamed: bool, first: int):
        self.first, self.n_begun = first, 0
        self.raw = ""
        self.rest = ""
        self.is_over = False
        self._is_streamed = is_streamed
        self._closing: list[str] = []
        self._in_string = self._is_escaped = False
        self._is_one = False  # a single call without a list around it
        self._n_seen = 0
        self._begin_object()

    def push(self, text: str) -> list[Piece]:
        start, self.raw = len(self.raw), self.raw + text
        pieces: list[Piece] = []
        try:
            if len(self.raw) > _LONGEST:
                raise ValueError
            for at in range(start, len(self.raw)):
                self._step(at, pieces)
                if self.is_over:
                    self.rest = self.raw[at + 1 :] if self.n_begun else self.raw
                    break
        except (ValueError, RecursionError):
            self.is_over = True
            self.rest = "" if self.n_begun else self.raw
            self._is_sending = False
        if self._is_sending:
            self._send(len(self.raw), pieces)
        return pieces

    def _begin_object(self) -> None:
        self._object_at = self._key_at = self._value_at = -1
        self._key: str | None = None
        self._name: str | None = None
        self._is_sending = self._was_sent = False
        self._sent = 0

    def _step(self, at: int, pieces: list[Piece]) -> None:
        c = self.raw[at]
        if self._in_string:
            self._in_string = self._is_escaped or c != '"'
            self._is_escaped = c == "\\" and not self._is_escaped
            return
        if c in _SPACE:
            return
        level = len(self._closing)
        if level == 2 and self._key is not None and self._value_at < 0 and c != ":":
            self._value_at = at
            self._maybe_send(c, at, pieces)
        if c == '"' and level >= 2:
            self._in_string = True
            if level == 2 and self._key is None:
                self._key_at = at
        elif c in "[{":
            self._open(c, at, level)
        elif c in "]}":
            self._close(c, at, pieces)
        elif level == 2 and c == ":" and self._key is None:
            self._key = str(json.loads(self.raw[self._key_at : at]))
            self._value_at = -1
        elif level == 2 and c == ",":
            self._end_value(at)
        elif level < 2 and not (c == "," and level == 1):
            raise ValueError

    def _open(self, c: str, at: int, level: int) -> None:
        if level == 0 and c == "{":
            self._is_one = True
            self._closing.append("")
            level = 1
        if level == 1:
            if c != "{" or self._n_seen >= _MOST_CALLS:
                raise ValueError
            self._object_at = at
        if level >= _DEEPEST:
            raise ValueError
        self._closing.append(_CLOSING[c])

    def _close(self, c: str, at: int, pieces: list[Piece]) -> None:
        if not self._closing or self._closing.pop() != c:
            raise ValueError
        if len(self._closing) == 2 and self._is_sending:
            self._send(at + 1, pieces)
            self._is_sending, self._was_sent = False, True
        if len(self._closing) == 1:
            self._end_value(at)
            self._end_object(at + 1, pieces)
        self.is_over = not self._closing or (self._is_one and len(self._closing) == 1)

    def _end_value(self, at: int) -> None:
        if self._key == "name" and self._value_at >= 0:
            self._name = _checked_name(json.loads(self.raw[self._value_at : at]))
        self._key, self._key_at = None, -1

    def _maybe_send(self, c: str, at: int, pieces: list[Piece]) -> None:
        """Begin to give arguments out, where they are an object and the name came before them."""
        if not (self._is_streamed and self._key == "arguments" and c == "{" and self._name and not self._was_sent):
            return
        pieces.append(Piece(index=self.first + self.n_begun, id=new_call_id(), name=self._name))
        self.n_begun += 1
        self._is_sending, self._sent = True, at

    def _send(self, end: int, pieces: list[Piece]) -> None:
        if end > self._sent:
            part = self.raw[self._sent : end]
            pieces.append(Piece(index=self.first + self.n_begun - 1, arguments=part))
            self._sent = end

    def _end_object(self, end: int, pieces: list[Piece]) -> None:
        call = json.loads(self.raw[self._object_at : end], parse_constant=_no_constant)
        name, arguments = _checked_name(call.get("name")), _object_text(call.get("arguments", {}))
        self._n_seen += 1
        if not self._was_sent:
            index = self.first + self.n_begun
            pieces.append(Piece(index=index, id=new_call_id(), name=name, arguments=arguments))
            self.n_begun += 1
        self._begin_object()


def _texts(text: str) -> list[Piece]:
    return [Piece(text)] if text else []


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError
    return name


def _object_text(arguments: Any) -> str:
    """JSON text of arguments, which some models write as JSON text themselves."""
    if isinstance(arguments, str):
        arguments = json.loads(arguments, parse_constant=_no_constant)
    if not isinstance(arguments, dict):
        raise ValueError
    return json.dumps(arguments, ensure_ascii=False)


def _no_constant(name: str) -> Any:
    raise ValueError(name)
